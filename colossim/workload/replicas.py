"""Kinds of replicas: those that play the same programs, and how many sequences each gets of the global batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.workload.build import build_programs
from colossim.workload.program import StageProgram

Floats = NDArray[np.float64]
Ints = NDArray[Any]


@dataclass(frozen=True)
class ReplicaKind:
    """Replicas that play the same programs. settings: node type whose settings in `job.groups` they have; empty: the job's.

    replicas: how many.  plan, job: as they are for each of these, micro-batches and recompute among them.
    """

    settings: str
    replicas: int
    plan: Plan
    job: JobSpec

    @staticmethod
    def of(plan: Plan, job: JobSpec, settings: str, micro_batches: int, replicas: int) -> ReplicaKind:
        """plan, job: those of the whole job."""
        own = job.on(settings)
        tokens = own.micro_batch * plan.sequence // plan.context
        its = replace(plan, micro_batches=micro_batches, micro_batch=own.micro_batch, tokens=tokens)
        return ReplicaKind(settings, replicas, its, own)

    @property
    def sequences(self) -> int:
        """Sequences of one replica and step."""
        return self.plan.micro_batches * self.plan.micro_batch

    @cached_property
    def programs(self) -> tuple[StageProgram, ...]:
        """The program of each pipeline stage."""
        return build_programs(self.plan, self.job)


def apportion(total: int, weights: Floats, quanta: Ints) -> Ints:
    """(U,) whole numbers n >= 1 with sum(n quanta) = total, each n quanta near its part of the total by weight.

    weights: (U,) > 0.  quanta: (U,) what one of n stands for.  Parts are rounded down, but to one at least, and what is left
    goes to the largest remainders, one each (Hamilton's method); among equals to the heaviest, then the first.
    Raises ValueError if the total is too small, or the quanta don't add up to it.
    """
    fixed = np.zeros(weights.size, dtype=bool)
    while True:
        # Those whose part is less than one get one; the others share what is left.
        left = total - int(quanta[fixed].sum())
        rest = float(weights[~fixed].sum())
        parts = left * weights / rest / quanta if rest else np.ones(weights.size)
        low = ~fixed & (parts < 1)
        if not low.any():
            break
        fixed |= low
    # A part that is whole but for rounding is whole.
    counts = np.where(fixed, 1, np.floor(parts + 1e-9)).astype(np.int64)
    left = total - int((counts * quanta).sum())
    remainders = np.where(fixed, -1.0, np.round(parts - counts, 9))
    order = np.lexsort((np.arange(weights.size), -weights, -remainders))
    while left > 0:
        before = left
        for unit in order:
            if quanta[unit] <= left:
                counts[unit] += 1
                left -= int(quanta[unit])
            if not left:
                break
        if left == before:
            break
    if left:
        raise ValueError(
            f"{total} is no sum of {', '.join(str(q) for q in np.unique(quanta))} with one of each at least"
        )
    return counts
