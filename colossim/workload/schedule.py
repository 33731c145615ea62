"""Pipeline schedules: the order in which a stage plays its passes (models.md 4)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

#: F forward, B backward (of zero-bubble: the input's gradients), W the weights' gradients, which zero-bubble parts from B.
Kind = Literal["F", "B", "W"]
#: (kind, micro-batch, chunk)
Slot = tuple[Kind, int, int]


def splits_backward(schedule: str) -> bool:
    """Whether the weights' gradients are a pass of their own."""
    return schedule == "zero-bubble"


def order(schedule: str, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> list[Slot]:
    """Passes of a stage in order.

    stage: from 0.  chunks: 1 except for interleaved, whose micro-batches must be a multiple of the stages.
    Raises ValueError for a schedule that isn't known, or a combination that it doesn't allow.

    gpipe: all forwards, then all backwards (Huang et al. 2019).
    1f1b: p-1-i forwards to warm up, then one of each (Narayanan et al. 2019, PipeDream-Flush).
    interleaved: chunks take turns in groups of p micro-batches, 2(p-1-i) + (v-1)p to warm up (Narayanan et al. 2021).
    zero-bubble: ZB-H1: 1f1b whose W lags i micro-batches behind B on stage i, and fills the bubble at the end; makespan
    m (F + B + W) + (p-1) max(F, B, F + B - W) for m >= p (Qi et al. 2023, section 2.1).
    """
    if schedule == "interleaved":
        return _interleaved(stage, stages, micro_batches, chunks)
    if chunks != 1:
        raise ValueError(f"{schedule} has one chunk a stage, not {chunks}")
    forward: list[Slot] = [("F", j, 0) for j in range(micro_batches)]
    backward: list[Slot] = [("B", j, 0) for j in range(micro_batches)]
    if schedule == "gpipe":
        return forward + backward
    if schedule == "1f1b":
        return _alternate(forward, backward, min(stages - 1 - stage, micro_batches))
    if schedule == "zero-bubble":
        return _delayed(_alternate(forward, backward, min(stages - 1 - stage, micro_batches)), stage)
    raise ValueError(f"`{schedule}` is no schedule: gpipe, 1f1b, interleaved or zero-bubble")


def _interleaved(stage: int, stages: int, micro_batches: int, chunks: int) -> list[Slot]:
    if micro_batches % stages:
        raise ValueError(f"interleaved needs micro-batches ({micro_batches}) in multiples of the stages ({stages})")
    table = [
        (j, chunk)
        for group in range(0, micro_batches, stages)
        for chunk in range(chunks)
        for j in range(group, group + stages)
    ]
    forward: list[Slot] = [("F", j, chunk) for j, chunk in table]
    backward: list[Slot] = [("B", j, chunks - 1 - chunk) for j, chunk in table]
    warm_up = min(2 * (stages - 1 - stage) + (chunks - 1) * stages, micro_batches * chunks)
    return _alternate(forward, backward, warm_up)


def _alternate(forward: list[Slot], backward: list[Slot], warm_up: int) -> list[Slot]:
    """The first forwards, then one forward and one backward in turn, then the last backwards."""
    steady = len(forward) - warm_up
    turns = [slot for k in range(steady) for slot in (forward[warm_up + k], backward[k])]
    return forward[:warm_up] + turns + backward[steady:]


def _delayed(slots: list[Slot], lag: int) -> list[Slot]:
    """With the W of micro-batch k - lag behind the B of each micro-batch k, and the last ones at the end."""
    delayed: list[Slot] = []
    for kind, micro_batch, chunk in slots:
        delayed.append((kind, micro_batch, chunk))
        if kind == "B" and micro_batch >= lag:
            delayed.append(("W", micro_batch - lag, chunk))
    done = sum(kind == "W" for kind, _, _ in delayed)
    return delayed + [("W", j, chunk) for kind, j, chunk in slots if kind == "B" and j >= done]


@dataclass(frozen=True)
class Held:
    """What a stage holds at the fullest moment of a pass: what the pass makes is there, what it frees is there still.

    kind, chunk: of the pass.  activations: (chunks,) micro-batches whose activations of a chunk are held, from F to B.
    pending: (chunks,) those that wait for W with what it needs.
    """

    kind: Kind
    chunk: int
    activations: tuple[int, ...]
    pending: tuple[int, ...]


@lru_cache(maxsize=4096)
def holdings(schedule: str, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> frozenset[Held]:
    """All that a stage holds in the course of its passes, found by walking their order.

    But for gpipe, whose every micro-batch adds up, a stage repeats itself once it is warm: 3 p micro-batches show all.
    """
    if schedule != "gpipe":
        micro_batches = min(micro_batches, 3 * stages)
    splits = splits_backward(schedule)
    activations, pending = [0] * chunks, [0] * chunks
    found = set()
    for kind, _, chunk in order(schedule, stage, stages, micro_batches, chunks):
        activations[chunk] += kind == "F"
        found.add(Held(kind, chunk, tuple(activations), tuple(pending)))
        activations[chunk] -= kind == "B"
        pending[chunk] += splits * ((kind == "B") - (kind == "W"))
    return frozenset(found)


@lru_cache(maxsize=4096)
def adding_up(schedule: str, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> frozenset[frozenset[int]]:
    """Sets of chunks whose gradients add up at once: from the first micro-batch's to the last one's."""
    last = "W" if splits_backward(schedule) else "B"
    done: Counter[int] = Counter()
    found = set()
    for kind, _, chunk in order(schedule, stage, stages, micro_batches, chunks):
        if kind == last:
            done[chunk] += 1
            # What a pass ends is there still.
            found.add(frozenset(c for c, n in done.items() if n < micro_batches) | {chunk})
    return frozenset(found)
