"""What bounds a stage's kernels: arithmetic, or memory, which draws less power and doesn't mind a lower clock."""

from __future__ import annotations

from typing import Literal

from colossim.catalog.gpu import Gpu
from colossim.workload.kernels import arithmetic_time, kernel_time
from colossim.workload.program import Compute, Op, StageProgram
from colossim.workload.schedule import Kind

#: Passes by kind, and what a step does outside of them.
Where = Kind | Literal["outside"]


def arithmetic_shares(program: StageProgram, gpu: Gpu, precision: str) -> dict[Where, float]:
    """Share of the kernels' seconds for which arithmetic sets the pace, by kind of pass; 0 where there are none.

    A mean over the stage's passes of a kind: kernels last about a millisecond and less, power is told over longer.
    precision: of the matrix products. The optimizer is `outside`.
    """
    bodies: dict[int, tuple[float, float]] = {}

    def of(body: tuple[Op, ...]) -> tuple[float, float]:
        if id(body) not in bodies:
            kernels = [kernel for op in body if isinstance(op, Compute) for kernel in op.kernels]
            bodies[id(body)] = (
                sum(kernel_time(kernel, gpu, precision) for kernel in kernels),
                sum(arithmetic_time(kernel, gpu, precision) for kernel in kernels),
            )
        return bodies[id(body)]

    spent: dict[Where, tuple[float, float]] = {}
    parts: list[tuple[Where, tuple[Op, ...]]] = [(each.kind, each.body) for each in program.passes]
    for where, body in [*parts, ("outside", program.prologue), ("outside", program.epilogue)]:
        whole, arithmetic = of(body)
        before = spent.get(where, (0.0, 0.0))
        spent[where] = (before[0] + whole, before[1] + arithmetic)
    return {where: arithmetic / whole if whole else 0.0 for where, (whole, arithmetic) in spent.items()}
