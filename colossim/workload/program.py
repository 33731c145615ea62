"""What a rank does in a step: operations in order, a pass at a time.

A program belongs to a pipeline stage; its ranks all play it. Passes of the same kind share one body (the same tuple), so
that 512 micro-batches cost no more than one to compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from colossim.catalog.gpu import Gpu
from colossim.workload.kernels import Flash, Gemm, Kernel, kernel_time
from colossim.workload.schedule import Kind

ChannelName = Literal[
    "tensor", "context", "expert", "expert_tensor", "data", "data_shards", "data_replicas", "expert_data", "embedding", "amax"
]  # fmt: skip
Operation = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "shift"]
Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Compute:
    """Kernels one after the other. category: what their time is called."""

    kernels: tuple[Kernel, ...]
    category: Literal["compute", "optimizer"] = "compute"

    @property
    def flops(self) -> float:
        """FLOPs that the hardware performs."""
        return sum(kernel.flops for kernel in self.kernels)


def kernel_pricer(gpus: Sequence[Gpu], precision: str) -> Callable[[Compute, int], float]:
    """Seconds of an operation's kernels on the GPU of an index, remembered."""
    seconds: dict[tuple[int, int], float] = {}
    held: list[Compute] = []

    def kernel_seconds(op: Compute, index: int) -> float:
        key = (id(op), index)
        if key not in seconds:
            held.append(op)  # keeps its id taken
            seconds[key] = sum(kernel_time(kernel, gpus[index], precision) for kernel in op.kernels)
        return seconds[key]

    return kernel_seconds


@dataclass(frozen=True)
class Beside:
    """Products that a collective runs beside, piece by piece. Their plain time stands elsewhere in the program.

    products: as they are there.  pieces: cut, one after the other, on the SMs that they keep throughout.  crowded: the same on
    the SMs that are left while a transfer runs.  piece: one that no transfer runs beside.  calls: of the collective, with
    1/calls of its bytes each.  last: whether the last call begins when the products have ended.  after: kernels behind all.
    """

    products: Compute
    pieces: Compute
    crowded: Compute
    piece: Compute
    calls: int = 1
    last: bool = False
    after: Compute = Compute(())

    @property
    def late(self) -> bool:
        """Whether they are products of weights' gradients."""
        return any(isinstance(kernel, Gemm) and kernel.accumulate for kernel in self.products.kernels)

    def seconds(self, price: Callable[[Compute], float], call: float) -> float:
        """s of both together, without `after`. price: s of kernels alone.  call: s of one call alone.

        max(W + (1 - W/W') n x + x_last, c + N x): pieces W, W' while a transfer runs, n of the N calls of x s beside them.
        Either the products set the pace, and the transfers' SMs are missing for as long as these run; or the transfers do, and
        nothing but one piece c is without one.
        """
        whole = price(self.pieces)
        missing = 1 - whole / price(self.crowded)
        shown = call if self.last else 0.0
        return max(whole + missing * (self.calls * call - shown) + shown, price(self.piece) + self.calls * call)

    def shown(self, price: Callable[[Compute], float], call: float, alone: float) -> float:
        """What both together take beyond the plain products, over the `alone` s of the collective; above 1 if that is more."""
        together = self.seconds(price, call) + price(self.after)
        return max(0.0, together - price(self.products)) / alone if alone > 0 else 0.0


@dataclass(frozen=True)
class Collective:
    """A collective of the rank's group; blocks.

    size: S bytes: the buffer of an all-reduce; gathered, or before scattering; all that one rank sends in an all-to-all,
    its own share included; what goes to the next rank in a shift.  hidden: part of its time that overlap hides for nothing.
    for_weights: whether the weights' gradients alone need it.  beside: products that hide what they can of it.
    """

    channel: ChannelName
    operation: Operation
    size: float
    hidden: float = 0.0
    for_weights: bool = False
    beside: Beside | None = None


@dataclass(frozen=True)
class Post:
    """Starts a collective beside what follows, first-in first-out a channel.

    after: tag of a post that has to end first, whose tag isn't waited for before; empty if there is none.
    """

    collective: Collective
    tag: str
    after: str = ""


@dataclass(frozen=True)
class Wait:
    """Blocks until the latest post with this tag has ended."""

    tag: str


@dataclass(frozen=True)
class Send:
    """Sends `size` bytes over the stage boundary. blocking: waits until they have arrived.

    held: part of the time that the transfer alone takes, for which the sender's kernels stand still beside it.
    """

    direction: Direction
    size: float
    blocking: bool
    held: float = 0.0


@dataclass(frozen=True)
class Receive:
    """Waits for what the neighbour stage sends for this pass."""

    direction: Direction


@dataclass(frozen=True)
class Copy:
    """Starts a copy of `size` bytes to the host's memory (out) or from it (in), first-in first-out each way."""

    direction: Literal["out", "in"]
    size: float


@dataclass(frozen=True)
class Copied:
    """Blocks until all copies of this direction have ended."""

    direction: Literal["out", "in"]


@dataclass(frozen=True)
class HostStep:
    """The optimizer's step on the host, for the rank's share of parameters; blocks.

    ranks: of the job: those of a node share its memory.  beside: whether copies run beside the step.
    """

    parameters: float
    ranks: int
    beside: bool


@dataclass(frozen=True)
class Launched:
    """Parts what a pass's host launches: it doesn't get ahead in what comes before for what comes behind."""


Op = Compute | Collective | Post | Wait | Send | Receive | Copy | Copied | HostStep | Launched


@dataclass(frozen=True, eq=False)
class Pass:
    """One micro-batch through one chunk.

    host: s that the host needs to launch each part of the body (they are parted by `Launched`); 0 where that never shows.
    """

    kind: Kind
    micro_batch: int
    chunk: int
    body: tuple[Op, ...]
    host: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class StageProgram:
    """A stage's step. host_exponent: q of the launch floor.

    prologue: before the first pass: what the last step has left to do.  epilogue: after the last pass.
    """

    stage: int
    passes: tuple[Pass, ...]
    epilogue: tuple[Op, ...]
    host_exponent: float
    prologue: tuple[Op, ...] = ()

    @property
    def bodies(self) -> list[tuple[Op, ...]]:
        """All its operations, in order."""
        return [self.prologue, *(p.body for p in self.passes), self.epilogue]


def used_operations(programs: Iterable[StageProgram]) -> dict[str, frozenset[str]]:
    """Channel name -> operations that the programs do over it."""
    found: dict[str, set[str]] = {}

    def note(channel: str, operation: str) -> None:
        found.setdefault(channel, set()).add(operation)

    seen: set[int] = set()
    for program in programs:
        for body in program.bodies:
            if id(body) in seen:
                continue
            seen.add(id(body))
            for op in body:
                if isinstance(op, Collective):
                    note(op.channel, op.operation)
                elif isinstance(op, Post):
                    note(op.collective.channel, op.collective.operation)
                elif isinstance(op, Send | Receive):
                    note(op.direction, "send")
    return {channel: frozenset(operations) for channel, operations in found.items()}


def split_backward(ops: list[Op]) -> tuple[list[Op], list[Op]]:
    """A backward pass in two, each in its old order: what leads to the input's gradients, and the weights' gradients.

    The second part has the products that accumulate, and the collectives that gather their inputs again. No collective stays
    beside a product that isn't in its part.
    """
    inputs: list[Op] = []
    weights: list[Op] = []
    for op in ops:
        if isinstance(op, Compute):
            late = tuple(kernel for kernel in op.kernels if isinstance(kernel, Gemm) and kernel.accumulate)
            inputs.append(Compute(tuple(kernel for kernel in op.kernels if kernel not in late), op.category))
            weights.append(Compute(late, op.category))
        elif isinstance(op, Collective):
            near = op.beside is not None and op.beside.late == op.for_weights
            (weights if op.for_weights else inputs).append(op if near else replace(op, beside=None))
        else:
            inputs.append(op)
    return inputs, weights


def recomputed_by_operator(ops: list[Op]) -> list[Op]:
    """What torchtitan's selective checkpointing by operator computes again of a layer's forward pass.

    Kept are the outputs of every other product, from the first on, of fused attention, and of reductions of the tensor group
    (torchtitan/parallelisms/parallelize_llama.py, `_get_custom_policy`); grouped products of experts are no `aten.mm`.
    Nothing needs what the last product gives: it ends before that.
    """
    last = max(
        i for i, op in enumerate(ops) if isinstance(op, Compute) and any(isinstance(k, Gemm) for k in op.kernels)
    )
    found: list[Op] = []
    products = 0
    for op in ops[: last + 1]:
        if isinstance(op, Compute):
            again: list[Kernel] = []
            for kernel in op.kernels:
                own = isinstance(kernel, Gemm) and not kernel.tokens
                products += own
                if not ((own and products % 2) or isinstance(kernel, Flash)):
                    again.append(kernel)
            found.append(Compute(tuple(again), op.category))
        elif not (isinstance(op, Collective) and op.operation in ("reduce_scatter", "all_reduce")):
            found.append(op)
    final = found[-1]
    assert isinstance(final, Compute)
    if final.kernels and isinstance(final.kernels[-1], Gemm):
        found[-1] = Compute(final.kernels[:-1], final.category)
    return found


def launched_apart(ops: tuple[Op, ...]) -> list[list[Op]]:
    """The operations between one `Launched` and the next."""
    found: list[list[Op]] = [[]]
    for op in ops:
        if isinstance(op, Launched):
            found.append([])
        else:
            found[-1].append(op)
    return found


def launches(ops: tuple[Op, ...]) -> int:
    """Kernels that the host launches for these operations, collectives' included."""
    return sum(len(op.kernels) if isinstance(op, Compute) else isinstance(op, Collective | Post) for op in ops)


def merged(ops: list[Op]) -> tuple[Op, ...]:
    """The same operations with kernels that follow each other in one Compute."""
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if isinstance(op, Compute) and not op.kernels:
            continue
        if isinstance(op, Compute) and isinstance(last, Compute) and op.category == last.category:
            result[-1] = Compute(last.kernels + op.kernels, op.category)
        else:
            result.append(op)
    return tuple(result)
