"""The ramp of the global batch: steps as Megatron counts them, each size's step once, the time of the whole run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossim.errors import ScenarioError
from colossim.result.ramp import cost_of_ramp, time_to_train
from colossim.scenario.job import BatchRamp
from colossim.scenario.ramp import stretches
from colossim.scenario.reader import load_scenario
from colossim.simulation import simulate

#: Replicas of two stages: every batch of 32 sequences has a whole number of rounds.
SMALL = ["job.parallelism.pipeline=2", "job.model.layers=4", "job.global_batch=128"]
RAMP = "job.batch_ramp={start: 64, increment: 32, samples: 1000}"


def by_steps(start, increment, samples, batch):
    """A training loop's steps one by one, with the batch size of each until it is full: Megatron's rules."""
    sizes, consumed = [], 0
    while True:
        if consumed > samples:
            return sizes
        size = start + int(consumed / (samples / ((batch - start) // increment))) * increment
        if size == batch:
            return sizes
        sizes.append(size)
        consumed += size


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 20_000))
def test_steps_are_those_of_megatrons_loop(start, increment, increments, samples):
    batch = start + increments * increment
    ramp = BatchRamp(start=start, increment=increment, samples=samples)
    found = stretches(ramp, batch)
    assert [size for size, steps in found for _ in range(steps)] == by_steps(start, increment, samples, batch)
    assert len({size for size, _ in found}) == len(found), "each size once"


def test_a_ramp_by_hand():
    """16 to 48 by 16 over 100: 16 until 50 are consumed, which is after 4 steps (64); 32 until 100, after 2 (128)."""
    assert stretches(BatchRamp(start=16, increment=16, samples=100), 48) == [(16, 4), (32, 2)]


def test_sizes_that_a_step_jumps_over_do_not_occur():
    """10 to 40 by 10 over 6: a size for 2 sequences each, and the first step takes 10."""
    assert stretches(BatchRamp(start=10, increment=10, samples=6), 40) == [(10, 1)]


def test_the_ramp_of_gpt3_is_counted_in_no_time():
    """Megatron's GPT-3 175B: 16 to 1,536 by 16 over 5,859,375 sequences, 61,678 a size, which is 3,855 steps of the first."""
    found = stretches(BatchRamp(start=16, increment=16, samples=5_859_375), 1536)
    assert len(found) == 95
    assert found[0] == (16, 3855)
    consumed = sum(size * steps for size, steps in found)
    assert 5_859_375 <= consumed <= 5_859_375 + 1536


def test_the_time_to_train_integrates_the_ramp():
    """10 steps of 4 s, then 5 of 6 s take 70 s for 20 + 20 = 40 sequences; of 100 the other 60 take 60/8 steps of 10 s."""
    sizes = [(2, 10, 4.0), (4, 5, 6.0)]
    assert time_to_train(100, sizes, 8, 10.0) == pytest.approx(70 + 60 / 8 * 10)
    assert time_to_train(24, sizes, 8, 10.0) == pytest.approx(40 + 6), "the run ends in the ramp"
    assert time_to_train(100, [], 8, 10.0) == pytest.approx(125)
    cost = cost_of_ramp(sizes, 8, 10.0)
    assert (cost["sequences"], cost["steps"], cost["time_s"]) == (40, 15, 70.0)
    assert cost["extra_s"] == pytest.approx(70 - 50)
    assert cost_of_ramp([], 8, 10.0) is None


@pytest.mark.parametrize("balance", ["equal", "speed"])
def test_each_size_is_played_as_a_scenario_of_its_own(balance):
    """On the same replicas; the step at full batch stays the headline, and the run takes as long as its parts."""
    mixed = ["cluster.nodes=[{type: hgx-h100, count: 8}, {type: hgx-a100, count: 8}]", f"job.balance={balance}"]
    order = "job.parallelism.order=[tensor, context, expert, pipeline, data]"
    changes = [*SMALL, *ONE_CHUNK, *mixed, order]
    ramp = simulate(load_scenario("two-pods", set=[*changes, RAMP, "job.tokens=1B"]))
    plain = simulate(load_scenario("two-pods", set=changes))
    assert ramp.step_time_s == pytest.approx(plain.step_time_s)
    assert [row["global_batch"] for row in ramp.ramp["sizes"]] == [64, 96]
    for row in ramp.ramp["sizes"]:
        alone = [f"job.global_batch={row['global_batch']}", f"job.parallelism.data={DATA}"]
        assert row["step_time_s"] == pytest.approx(
            simulate(load_scenario("two-pods", set=[*changes, *alone])).step_time_s
        )
        assert row["step_time_s"] < ramp.step_time_s
    rest = 1e9 / 8192 - ramp.ramp["sequences"]
    assert ramp.time_to_train_s == pytest.approx(ramp.ramp["time_s"] + rest / 128 * plain.step_time_s)
    assert ramp.ramp["extra_s"] > 0
    assert "batch ramp" in str(ramp)
    assert plain.ramp is None


ONE_CHUNK = ["job.parallelism.virtual_pipeline=1", "job.parallelism.schedule=1f1b"]
DATA = 128 // (2 * 2)


@pytest.mark.parametrize(
    ("ramp", "field", "words"),
    [
        ("{start: 128, increment: 16, samples: 1000}", "start", "no less than the global batch of 128"),
        (
            "{start: 32, increment: 20, samples: 1000}",
            "increment",
            "20 does not divide 128 - 32 = 96: 12, 16, 24 would",
        ),
        ("{start: 32, increment: 32, samples: 10.5}", "samples", "no whole number"),
        ("{start: 16, increment: 16, samples: 1000}", "", "its step of 16 sequences: interleaved needs"),
        ("{start: 32}", "increment", "is missing"),
    ],
)
def test_what_cannot_be_is_told_in_its_place(ramp, field, words):
    with pytest.raises(ScenarioError) as caught:
        load_scenario("two-pods", set=[f"job.batch_ramp={ramp}"])
    problems = {problem.field: problem for problem in caught.value.problems}
    found = problems[f"job.batch_ramp.{field}".rstrip(".")]
    assert words in found.message
    assert found.file == "--set job.batch_ramp"


def test_too_many_sizes_are_refused():
    """A size is a step to play: 1,024 - 1 = 1,023 of them are more than 256; by 11, its next divisor, 93."""
    changes = [
        "job.global_batch=1024",
        "job.parallelism.data=1",
        "job.batch_ramp={start: 1, increment: 1, samples: 1M}",
    ]
    with pytest.raises(ScenarioError, match=r"1,023 batch sizes.*at most 256: 11 would do"):
        load_scenario("two-pods", set=[*changes, *ONE_CHUNK])
