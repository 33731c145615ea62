"""Schedules against Megatron's own index arithmetic, and played by hand."""

from __future__ import annotations

import itertools

import pytest

from colossim.workload.schedule import in_flight, order

INTERLEAVED = [(p, p * groups, v) for p, groups, v in itertools.product((2, 3, 4, 8), (1, 2, 5), (2, 3, 8))]
PLAIN = [(s, p, m) for s, p, m in itertools.product(("gpipe", "1f1b"), (1, 2, 5, 8), (1, 3, 8, 17))]
EVERY = [*((s, p, m, 1) for s, p, m in PLAIN), *(("interleaved", *rest) for rest in INTERLEAVED)]


def test_the_worked_example_of_interleaving():
    """p 2, m 4, v 2, device 0 (micro-batch.chunk), as Megatron plays it."""
    text = "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0"
    assert [f"{k}{j}.{c}" for k, j, c in order("interleaved", 0, 2, 4, 2)] == text.split()


@pytest.mark.parametrize(("p", "m", "v"), INTERLEAVED)
def test_interleaving_equals_megatrons_index_arithmetic(p, m, v):
    """The k-th forward: chunk (k mod pv) div p of micro-batch k div pv x p + k mod p; backward the chunk is v - 1 - that."""
    for stage in range(p):
        slots = order("interleaved", stage, p, m, v)
        number = [(k // (p * v) * p + k % p, k % (p * v) // p) for k in range(m * v)]
        assert [(j, c) for kind, j, c in slots if kind == "F"] == number
        assert [(j, c) for kind, j, c in slots if kind == "B"] == [(j, v - 1 - c) for j, c in number]


@pytest.mark.parametrize(("schedule", "p", "m", "v"), EVERY)
def test_warm_up_then_turns_then_the_rest(schedule, p, m, v):
    """w forwards, then F B in turn, then w backwards; w = m (gpipe), min(p-1-i, m), or min(2(p-1-i) + (v-1)p, mv)."""
    for stage in range(p):
        slots = order(schedule, stage, p, m, v)
        w = {
            "gpipe": m,
            "1f1b": min(p - 1 - stage, m),
            "interleaved": min(2 * (p - 1 - stage) + (v - 1) * p, m * v),
        }[schedule]
        assert "".join(kind for kind, _, _ in slots) == "F" * w + "FB" * (m * v - w) + "B" * w


@pytest.mark.parametrize(("schedule", "p", "m", "v"), EVERY)
def test_in_flight_is_the_peak_of_walking_the_order(schedule, p, m, v):
    for stage in range(p):
        assert len(set(order(schedule, stage, p, m, v))) == 2 * m * v
        held: set[tuple[int, int]] = set()
        peak = 0
        for kind, j, c in order(schedule, stage, p, m, v):
            if kind == "F":
                held.add((j, c))
            else:
                held.remove((j, c))  # KeyError if a B came before its F
            peak = max(peak, len(held))
        assert not held
        assert in_flight(schedule, stage, p, m, v) == peak


@pytest.mark.parametrize(("schedule", "p", "m", "v"), EVERY)
def test_stages_played_together_meet_the_makespan(schedule, p, m, v):
    """F 1 and B 2 s a chunk. gpipe, 1f1b: 3 (m + p - 1). interleaved: 3 (m v + p - 1). Nobody waits for ever."""
    slots = [order(schedule, i, p, m, v) for i in range(p)]
    ended: dict[tuple[str, int, int], float] = {}  # of (kind, micro-batch, slot of the model)
    now, at = [0.0] * p, [0] * p
    moved = True
    while moved:
        moved = False
        for i in range(p):
            while at[i] < len(slots[i]):
                kind, j, c = slots[i][at[i]]
                here = i + p * c
                needs = []
                if kind == "F" and here:
                    needs = [("F", j, here - 1)]
                elif kind == "B":
                    needs = [("F", j, here)] + ([("B", j, here + 1)] if here < p * v - 1 else [])
                if any(need not in ended for need in needs):
                    break
                now[i] = max([now[i], *(ended[need] for need in needs)]) + (1.0 if kind == "F" else 2.0)
                ended[kind, j, here] = now[i]
                at[i] += 1
                moved = True
    assert at == [2 * m * v] * p
    assert max(now) == 3 * (m * v + p - 1)


def test_more_stages_hold_no_more_than_there_is():
    """1f1b holds min(p - i, m): with m = 2 never more than 2. Interleaved never more than m v."""
    assert [in_flight("1f1b", i, 4, 2) for i in range(4)] == [2, 2, 2, 1]
    assert [in_flight("interleaved", i, 4, 4, 2) for i in range(4)] == [8, 8, 7, 5]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_one_stage_needs_no_pipeline(schedule):
    expected = "FFFBBB" if schedule == "gpipe" else "FBFBFB"
    assert "".join(kind for kind, _, _ in order(schedule, 0, 1, 3)) == expected


def test_impossible_schedules_say_what_is_possible():
    with pytest.raises(ValueError, match=r"micro-batches \(6\) in multiples of the stages \(4\)"):
        order("interleaved", 0, 4, 6, 2)
    for schedule in ("gpipe", "1f1b"):
        with pytest.raises(ValueError, match=f"{schedule} has one chunk a stage, not 2"):
            order(schedule, 0, 4, 6, 2)
    with pytest.raises(ValueError, match="gpipe, 1f1b or interleaved"):
        order("zero-bubble", 0, 4, 8)
