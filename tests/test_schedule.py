"""Schedules against Megatron's own index arithmetic, and played by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from colossim.workload.schedule import holdings, order

INTERLEAVED = [(p, p * groups, v) for p, groups, v in itertools.product((2, 3, 4, 8), (1, 2, 5), (2, 3, 8))]
PLAIN = [(s, p, m) for s, p, m in itertools.product(("gpipe", "1f1b"), (1, 2, 5, 8), (1, 3, 8, 17))]
ZERO_BUBBLE = [("zero-bubble", p, m, 1) for p, m in itertools.product((1, 2, 5, 8), (1, 3, 8, 17))]
TURNS = [*((s, p, m, 1) for s, p, m in PLAIN), *(("interleaved", *rest) for rest in INTERLEAVED)]
EVERY = [*TURNS, *ZERO_BUBBLE]


def in_flight(schedule, stage, p, m, v):
    """Passes whose activations a stage holds at the most, from F to B, or to W where that comes later (models.md 4)."""
    return {
        "gpipe": m,
        "1f1b": min(p - stage, m),
        "interleaved": min(2 * (p - 1 - stage) + (v - 1) * p + 1, m * v),
        "zero-bubble": min(p, m),
    }[schedule]


def makespan(schedule, p, m, v, forward, backward, weights=lambda i: 0.0):
    """Seconds of stages that play their orders together; (stage) -> s of a pass. Passes without W count it in B."""
    slots = [order(schedule, i, p, m, v) for i in range(p)]
    apart = schedule == "zero-bubble"
    takes = {
        "F": forward, "B": backward if apart else lambda i: backward(i) + weights(i), "W": weights
    }  # fmt: skip
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
                elif kind == "W":
                    needs = [("B", j, here)]
                if any(need not in ended for need in needs):
                    break
                now[i] = max([now[i], *(ended[need] for need in needs)]) + takes[kind](i)
                ended[kind, j, here] = now[i]
                at[i] += 1
                moved = True
    assert at == [len(own) for own in slots], "nobody waits for ever"
    return max(now)


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


def test_the_worked_example_of_zero_bubble():
    """p 4, m 6, the first and the last stage of ZB-H1 (models.md 4)."""
    first = "F0 F1 F2 F3 B0 W0 F4 B1 W1 F5 B2 W2 B3 W3 B4 W4 B5 W5"
    last = "F0 B0 F1 B1 F2 B2 F3 B3 W0 F4 B4 W1 F5 B5 W2 W3 W4 W5"
    for stage, text in ((0, first), (3, last)):
        assert [f"{k}{j}" for k, j, _ in order("zero-bubble", stage, 4, 6)] == text.split()


@pytest.mark.parametrize(("schedule", "p", "m", "v"), TURNS)
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


@pytest.mark.parametrize(("p", "m"), [case[1:3] for case in ZERO_BUBBLE])
def test_zero_bubble_is_1f1b_with_the_weights_put_off(p, m):
    """Without its W it is 1f1b; W comes in order, each behind its B, min(i, m) micro-batches behind at the most."""
    for stage in range(p):
        slots = order("zero-bubble", stage, p, m)
        assert [slot for slot in slots if slot[0] != "W"] == order("1f1b", stage, p, m)
        assert [j for kind, j, _ in slots if kind == "W"] == list(range(m))
        behind = list(itertools.accumulate((kind == "B") - (kind == "W") for kind, _, _ in slots))
        assert min(behind) == 0
        assert max(behind) == min(stage + 1, m)


@pytest.mark.parametrize(("schedule", "p", "m", "v"), EVERY)
def test_what_is_held_is_found_by_walking_the_order(schedule, p, m, v):
    """The most that is held equals the closed form, and the walk over all m micro-batches shows no other moment."""
    for stage in range(p):
        held: set[tuple[int, int]] = set()
        waiting: set[tuple[int, int]] = set()
        moments = set()
        for kind, j, c in order(schedule, stage, p, m, v):
            if kind == "F":
                held.add((j, c))
            counts = [tuple(sum(own == chunk for _, own in of) for chunk in range(v)) for of in (held, waiting)]
            moments.add((kind, c, *counts))
            if kind == "B":
                held.remove((j, c))  # KeyError if a B came before its F
                waiting |= {(j, c)} if schedule == "zero-bubble" else set()
            elif kind == "W":
                waiting.remove((j, c))
        assert not held
        assert not waiting
        found = holdings(schedule, stage, p, m, v)
        assert {(h.kind, h.chunk, h.activations, h.pending) for h in found} == moments
        most = max(sum(h.activations) + sum(h.pending) for h in found)
        assert most == in_flight(schedule, stage, p, m, v)


@pytest.mark.parametrize(("schedule", "p", "m", "v"), TURNS)
def test_stages_played_together_meet_the_makespan(schedule, p, m, v):
    """F 1 and B 2 s a chunk. gpipe, 1f1b: 3 (m + p - 1). interleaved: 3 (m v + p - 1). Nobody waits for ever."""
    assert makespan(schedule, p, m, v, lambda i: 1.0, lambda i: 2.0) == 3 * (m * v + p - 1)


@pytest.mark.parametrize("seed", range(40))
def test_zero_bubble_meets_its_makespan(seed):
    """m (F + B + W) + (p - 1) max(F, B, F + B - W) for m >= p, whatever takes longest."""
    draw = random.Random(seed)
    p = draw.randint(1, 9)
    m = p + draw.randint(0, 12)
    f, b, w = (float(draw.randint(1, 9)) for _ in range(3))
    played = makespan("zero-bubble", p, m, 1, lambda i: f, lambda i: b, lambda i: w)
    assert played == m * (f + b + w) + (p - 1) * max(f, b, f + b - w)


@pytest.mark.parametrize("seed", range(60))
def test_unequal_stages_keep_the_order_of_schedules(seed):
    """Zero-bubble is never slower than 1f1b, which is never slower than gpipe; 1f1b never beyond m max(F + B) + sum - max,
    nor below its busiest stage with the others' first F and last B around it; exact if only the last stage is slower."""
    draw = random.Random(seed)
    p, m = draw.randint(2, 7), draw.randint(1, 12)
    slow = draw.random() < 0.3
    times = [[float(draw.randint(1, 9)) for _ in range(3)] for _ in range(p)]
    if slow:
        times = [[2.0, 2.0, 2.0]] * (p - 1) + [[3.0, 4.0, 3.0]]
    f, b, w = ((lambda i, k=k: times[i][k]) for k in range(3))
    taken = {s: makespan(s, p, m, 1, f, b, w) for s in ("gpipe", "1f1b", "zero-bubble")}
    whole = [sum(own) for own in times]
    bound = (m - 1) * max(whole) + sum(whole)
    assert taken["zero-bubble"] <= taken["1f1b"] <= taken["gpipe"]
    assert taken["1f1b"] <= bound
    assert taken["1f1b"] == bound or not slow
    for schedule, seconds in taken.items():
        assert seconds >= max(m * whole[i] + sum(f(k) for k in range(i)) for i in range(p)), schedule


def test_more_stages_hold_no_more_than_there_is():
    """1f1b holds min(p - i, m): with m = 2 never more than 2. Interleaved never more than m v."""
    most = {
        (schedule, v): [max(sum(h.activations) for h in holdings(schedule, i, 4, m, v)) for i in range(4)]
        for schedule, m, v in (("1f1b", 2, 1), ("interleaved", 4, 2))
    }
    assert most == {("1f1b", 1): [2, 2, 2, 1], ("interleaved", 2): [8, 8, 7, 5]}


@pytest.mark.parametrize(
    ("schedule", "expected"), [("gpipe", "FFFBBB"), ("1f1b", "FBFBFB"), ("zero-bubble", "FBWFBWFBW")]
)
def test_one_stage_needs_no_pipeline(schedule, expected):
    assert "".join(kind for kind, _, _ in order(schedule, 0, 1, 3)) == expected


def test_impossible_schedules_say_what_is_possible():
    with pytest.raises(ValueError, match=r"micro-batches \(6\) in multiples of the stages \(4\)"):
        order("interleaved", 0, 4, 6, 2)
    for schedule in ("gpipe", "1f1b", "zero-bubble"):
        with pytest.raises(ValueError, match=f"{schedule} has one chunk a stage, not 2"):
            order(schedule, 0, 4, 6, 2)
    with pytest.raises(ValueError, match="gpipe, 1f1b, interleaved or zero-bubble"):
        order("dualpipe", 0, 4, 8)
