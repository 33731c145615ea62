"""Where jobs stand: which nodes each takes, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from colossim.draws import generator
from colossim.errors import Problem, ScenarioError

Ints = NDArray[Any]


@dataclass(frozen=True)
class Wish:
    """What a job asks for. gpus: how many.  placement: packed, scattered or its nodes.  field: where the user says so."""

    name: str
    gpus: int
    placement: Literal["packed", "scattered"] | tuple[int, ...]
    field: str


def place(wishes: Sequence[Wish], sizes: Ints, seed: int) -> list[Ints]:
    """The nodes of each job, in the order in which its ranks take them. sizes: (N,) GPUs of each node.

    Nodes that are named are set aside first; then jobs take theirs in turn: packed the first that are free, in order,
    scattered a random draw (its generator seeded from seed and the job's name). Raises ScenarioError: nodes that aren't
    there, or named twice, or too few.
    """
    problems = []
    taken: dict[int, str] = {}
    for wish in wishes:
        if isinstance(wish.placement, tuple):
            for i, node in enumerate(wish.placement):
                if not 0 <= node < sizes.size:
                    problems.append(
                        Problem(f"{wish.field}.{i}", f"{node} is no node: they are numbered 0 to {sizes.size - 1}")
                    )
                elif node in taken:
                    whose = "named twice" if taken[node] == wish.name else f"taken by job `{taken[node]}`"
                    problems.append(Problem(f"{wish.field}.{i}", f"node {node} is {whose}"))
                else:
                    taken[node] = wish.name
    if problems:
        raise ScenarioError(problems)
    free = np.ones(sizes.size, dtype=bool)
    free[list(taken)] = False
    found = []
    for wish in wishes:
        if isinstance(wish.placement, tuple):
            order: Ints = np.array(wish.placement, np.int64)
        else:
            order = np.flatnonzero(free)
            if wish.placement == "scattered":
                order = generator(seed, wish.name).permutation(order)
        enough = int(np.searchsorted(np.cumsum(sizes[order]), wish.gpus)) + 1
        if enough > order.size:
            have = int(sizes[order].sum())
            problems.append(Problem(wish.field, f"{wish.gpus:,} GPUs are asked for; these nodes have {have:,}"))
            continue
        free[order[:enough]] = False
        found.append(order[:enough])
    if problems:
        raise ScenarioError(problems)
    return found
