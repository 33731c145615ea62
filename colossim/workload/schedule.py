"""Pipeline schedules: the order in which a stage plays its passes (models.md 4)."""

from __future__ import annotations

#: (F or B, micro-batch, chunk)
Slot = tuple[str, int, int]


def order(schedule: str, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> list[Slot]:
    """Passes of a stage in order.

    stage: from 0.  chunks: 1 except for interleaved, whose micro-batches must be a multiple of the stages.
    Raises ValueError for a schedule that isn't known, or a combination that it doesn't allow.

    gpipe: all forwards, then all backwards (Huang et al. 2019).
    1f1b: p-1-i forwards to warm up, then one of each (Narayanan et al. 2019, PipeDream-Flush).
    interleaved: chunks take turns in groups of p micro-batches, 2(p-1-i) + (v-1)p to warm up (Narayanan et al. 2021).
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
    raise ValueError(f"`{schedule}` is no schedule: gpipe, 1f1b or interleaved")


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


def in_flight(schedule: str, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> int:
    """Passes whose activations a stage holds at the peak: micro-batches, or chunks of them for interleaved."""
    if schedule == "gpipe":
        return micro_batches
    if schedule == "1f1b":
        return min(stages - stage, micro_batches)
    return min(2 * (stages - 1 - stage) + (chunks - 1) * stages + 1, micro_batches * chunks)
