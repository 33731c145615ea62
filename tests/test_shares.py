"""Shares of replicas: whole numbers that add up, programs and memory by node type, folds that stay exact."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fold import agree, random_scenario
from test_step import Plain

from colossim.engine.record import CATEGORIES
from colossim.errors import DoesNotFit, ScenarioError
from colossim.explain import explain
from colossim.jobs import simulate_jobs
from colossim.layout import compile_setup, lay_out
from colossim.partition import refine
from colossim.quotient import quotient
from colossim.scenario.job import JobSpec
from colossim.scenario.reader import load_scenario
from colossim.scenario.schema import ClusterSpec
from colossim.simulation import play_step, simulate
from colossim.workload.replicas import apportion

#: Replicas side by side, each on neighbouring nodes.
BY_REPLICA = "job.parallelism.order=[tensor, context, expert, pipeline, data]"
MIXED = [BY_REPLICA, "cluster.nodes=[{type: hgx-h100, count: 8}, {type: hgx-h200, count: 8}]"]


def mixed(*changes, base=MIXED):
    return load_scenario("two-pods", set=[*base, *changes])


# -- whole numbers ---------------------------------------------------------------------------------------------------
def test_the_largest_remainder_gets_what_is_left():
    """10 by 1 : 2 : 4 are 1.43, 2.86, 5.71: 1 + 2 + 5, and 2 left for .86 and .71."""
    assert apportion(10, np.array([1.0, 2.0, 4.0]), np.array([1, 1, 1])).tolist() == [1, 3, 6]


def test_equal_weights_get_equal_numbers():
    assert apportion(24, np.full(3, 0.1), np.full(3, 4)).tolist() == [2, 2, 2]


def test_nobody_goes_without():
    """11 by 1 : 100 : 100 are 0.05, 5.47, 5.47: one for the first, and 10 for the others."""
    assert apportion(11, np.array([1.0, 100.0, 100.0]), np.ones(3, int)).tolist() == [1, 5, 5]


def test_shares_in_units_of_their_own():
    """18 by 1 : 2, the second in pairs: 6 and 6 pairs."""
    assert apportion(18, np.array([1.0, 2.0]), np.array([1, 2])).tolist() == [6, 6]


@pytest.mark.parametrize(("total", "quanta"), [(2, (1, 1, 1)), (7, (2, 2, 2)), (5, (4, 4, 4))])
def test_what_does_not_add_up_is_refused(total, quanta):
    with pytest.raises(ValueError, match="is no sum of"):
        apportion(total, np.ones(3), np.array(quanta))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 500))
def test_shares_add_up_and_keep_to_their_quota(weights, quantum, more):
    """Hamilton's method: where all parts are one at least, each is rounded to a whole number beside it."""
    units = len(weights) + more
    counts = apportion(units * quantum, np.array(weights), np.full(len(weights), quantum))
    assert counts.sum() == units
    assert counts.min() >= 1
    parts = units * np.array(weights) / sum(weights)
    if parts.min() >= 1:
        assert np.all(np.abs(counts - parts) < 1 + 1e-6)


# -- speeds ----------------------------------------------------------------------------------------------------------
def two_speeds(monkeypatch, *changes):
    """Nodes whose kernels take their FLOPs over 1 and over 2 TFLOP/s, replicas of one GPU, no launches, gradients at once."""
    monkeypatch.setattr(
        "colossim.workload.program.kernel_time",
        lambda kernel, gpu, precision: kernel.flops / (2e12 if gpu.name == "H200" else 1e12),
    )
    alone = [f"job.parallelism.{key}" for key in ("tensor=1", "pipeline=1", "virtual_pipeline=1", "schedule=1f1b")]
    plain = ["job.parallelism.sequence=false", "job.software.host=null", "job.parallelism.sharding=none"]
    nodes = "cluster.nodes=[{type: hgx-h100, count: 1}, {type: hgx-h200, count: 1}]"
    still = ["job.overlap.data=false", "job.model=llama3-8b", "job.model.layers=2", "job.sequence_length=512"]
    return load_scenario("two-pods", set=[*alone, *plain, *still, BY_REPLICA, nodes, "job.global_batch=96", *changes])


def test_speeds_of_1_and_2_end_together(monkeypatch):
    """96 sequences on 8 + 8 GPUs: 6 each, or 4 and 8 by speed. With t s a sequence 6t, or 4t = 8t/2: 2/3 of the compute."""
    equal, speed = (simulate(two_speeds(monkeypatch, f"job.balance={how}")) for how in ("equal", "speed"))
    assert [(row["nodes"], row["sequences"]) for row in speed.shares] == [(["hgx-h100"], 4), (["hgx-h200"], 8)]
    assert speed.breakdown_s["compute"] == pytest.approx(equal.breakdown_s["compute"] * 2 / 3)
    for result, waits in ((equal, equal.breakdown_s["compute"] / 2), (speed, 0.0)):
        waiting = [line.seconds()[CATEGORIES.index("straggler")] for line in result.record.timelines]
        assert max(waiting) == pytest.approx(waits, abs=1e-9 * result.step_time_s)
        assert result.tokens_per_step == 96 * 512
    # What follows the passes is the same.
    after = [r.step_time_s - r.breakdown_s["compute"] for r in (equal, speed)]
    assert after[0] == pytest.approx(after[1])
    assert speed.mfu == pytest.approx(equal.mfu * equal.step_time_s / speed.step_time_s)


def test_a_batch_that_equal_shares_do_not_divide(monkeypatch):
    """60 sequences among 16 replicas: 2.5 and 5 by speed, so that half of the slow ones get 3, half 2."""
    laid = lay_out(two_speeds(monkeypatch, "job.balance=speed", "job.global_batch=60", "job.parallelism.data=16"))
    assert sorted(k.sequences for k in laid.shares.kinds for _ in range(k.replicas)) == [2] * 4 + [3] * 4 + [5] * 8


def test_experts_keep_replicas_together():
    """Replicas that share experts wait for each other in each pass: a block of four has one number of micro-batches."""
    experts = "{layers: 8, hidden: 512, heads: 8, ffn: 0, vocabulary: 1024, experts: 4, experts_per_token: 2, expert_ffn: 1024}"
    laid = lay_out(mixed(f"job.model={experts}", "job.parallelism.expert=4", "job.balance=speed"))
    assert laid.shares.blocks.replicas == 4
    for channel in (c for c in laid.traffic.channels if c.name == "expert"):
        assert np.all(laid.traffic.kind[channel.members] == laid.traffic.kind[channel.members[:, :1]])


def test_interleaved_schedules_take_whole_rounds(monkeypatch):
    monkeypatch.setattr(
        "colossim.workload.program.kernel_time",
        lambda kernel, gpu, precision: kernel.flops / (3e14 if gpu.name == "H200" else 1e14),
    )
    laid = lay_out(mixed("job.balance=speed", "job.global_batch=256"))
    numbers = {kind.plan.micro_batches for kind in laid.shares.kinds}
    assert len(numbers) > 1
    assert all(number % 4 == 0 for number in numbers)
    assert sum(kind.replicas * kind.sequences for kind in laid.shares.kinds) == 256


# -- settings of groups ----------------------------------------------------------------------------------------------
ONE_CHUNK = ["job.parallelism.virtual_pipeline=1", "job.parallelism.schedule=1f1b"]


def test_settings_by_node_type():
    """8 replicas on each: 8 sequences each, of which the H200s' are 4 micro-batches of 2 and nothing is computed again.

    HFU counts the recomputed half: (needed + again/2) over needed.
    """
    both, own = (
        simulate(mixed("job.recompute=full", *ONE_CHUNK, *more))
        for more in ((), ("job.groups={hgx-h200: {recompute: none, micro_batch: 2}}",))
    )
    assert [(row["nodes"], row["micro_batches"], row["micro_batch"], row["recompute"]) for row in own.shares] == [
        (["hgx-h100"], 8, 1, "full"),
        (["hgx-h200"], 4, 2, "none"),
    ]
    again = both.hfu / both.mfu - 1
    assert own.hfu / own.mfu - 1 == pytest.approx(again / 2)
    assert own.tokens_per_step == both.tokens_per_step


def test_the_memory_of_each_group_is_its_own():
    """The fullest is told; what doesn't fit is told with the group whose settings they are."""
    large = ["job.sequence_length=131072", "job.recompute=full", *ONE_CHUNK]
    fits = simulate(mixed(*large, "job.groups={hgx-h200: {recompute_layers: 5}}"))
    assert fits.memory_bytes["capacity"] > 140e9
    with pytest.raises(
        DoesNotFit, match=r"settings of job\.groups\.hgx-h200.*--set job\.groups\.hgx-h200\.recompute=full"
    ):
        simulate(mixed(*large, "job.groups={hgx-h200: {recompute: none}}"))
    verdict = explain(mixed(*large, "job.groups={hgx-h200: {recompute: none}}"))["memory a GPU"]["verdict"]
    assert "doesn't fit" in verdict


def test_a_replica_that_spans_types_has_the_jobs_settings():
    laid = lay_out(load_scenario("two-pods", set=[MIXED[1], "job.groups={hgx-h200: {micro_batch: 2}}", *ONE_CHUNK]))
    assert [kind.settings for kind in laid.shares.kinds] == [""]
    result = simulate(laid.scenario)
    assert any("`job.groups.hgx-h200` had no effect" in note for note in result.notes)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (("job.groups={hgx-h20: {recompute: none}}",), "job.groups.hgx-h20", "no nodes of this type: did you mean `hgx-h200`?"),
        (("job.groups={hgx-h200: {micro_batch: 3}}",), "job.groups.hgx-h200.micro_batch", "no whole number of micro-batches"),
        (
            ("job.groups={hgx-h200: {recompute: none, recompute_layers: 1}}",),
            "job.groups.hgx-h200.recompute_layers",
            "is of full recompute",
        ),
        (("job.balance=speed", "job.parallelism.sharding=parameters"), "job.balance", "sharding: optimizer"),
        (
            ("job.groups={hgx-h200: {micro_batch: 2}}", "job.parallelism.sharding=gradients"),
            "job.groups.hgx-h200.micro_batch",
            "sharding: optimizer",
        ),
        (("job.balance=speed", "job.global_batch=130", "job.parallelism.data=16"), "job.global_batch", "128 or 132 would"),
        (("job.groups={hgx-h200: {tensor: 2}}",), "job.groups.hgx-h200.tensor", "known here: micro_batch"),
        (("job.balance=fast",), "job.balance", "equal, speed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_its_place(changes, field, words):
    with pytest.raises(ScenarioError) as caught:
        mixed(*changes)
    found = {problem.field: problem for problem in caught.value.problems}
    assert words in found[field].message
    assert found[field].file.startswith("--set job.")


def test_shares_that_do_not_add_up_are_told_in_their_place():
    """Micro-batches of 2 on the one, of 4 on the other: 2a + 4b is never odd."""
    sizes = "job.groups={hgx-h100: {micro_batch: 2}, hgx-h200: {micro_batch: 4}}"
    with pytest.raises(ScenarioError, match="is no sum of 2, 4") as caught:
        lay_out(mixed(sizes, *ONE_CHUNK, "job.balance=speed", "job.parallelism.data=16", "job.global_batch=131"))
    (problem,) = caught.value.problems
    assert problem.field == "job.balance"


# -- folding ---------------------------------------------------------------------------------------------------------
def shared_scenario(seed):
    """A random job on two node types, with shares by speed or settings of groups, most often both."""
    scenario, draw = random_scenario(seed), random.Random(f"shares {seed}")
    old, par = scenario.job, scenario.job.parallelism
    replica = par.tensor * par.context * par.pipeline
    kinds = ("hgx-h100", "hgx-a100")
    nodes = [{"type": kind, "count": max(draw.randint(1, 3), -(-replica // 16))} for kind in kinds]
    gpus = 8 * sum(group["count"] for group in nodes)
    fabric = scenario.cluster.fabric.model_copy(update={"nodes_per_pod": 2})
    order = ["tensor", "context", "expert", "pipeline", "data"] if draw.random() < 0.8 else par.order
    expert = par.expert if replica * par.expert <= gpus else 1
    data = max(1, gpus // replica // expert) * expert
    together = par.pipeline if par.schedule == "interleaved" else 1
    speed = draw.random() < 0.7
    groups = {"hgx-a100": {"recompute": draw.choice(["none", "full"])}}
    if draw.random() < 0.6:
        groups["hgx-h100"] = {"micro_batch": 2}
    sharding = draw.choice(["none", "optimizer"])
    parallelism = par.model_copy(
        update={"order": tuple(order), "data": data, "sharding": sharding, "expert": expert, "sharding_group": "all"}
    )
    batch = data * together * 2 * draw.randint(1, 3)
    job = JobSpec.model_validate(
        {
            **{name: getattr(old, name) for name in JobSpec.model_fields},
            "parallelism": parallelism,
            "global_batch": batch,
            "balance": "speed" if speed else "equal",
            "groups": groups,
        }
    )
    cluster = ClusterSpec.model_validate({"nodes": tuple(nodes), "fabric": fabric})
    return scenario.model_copy(update={"job": job, "cluster": cluster})


#: Seeds that are played by default, and the long list.
FEW = range(24)
SHARED = [*FEW, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(24, 240))]


@pytest.mark.parametrize("seed", SHARED)
def test_folded_equals_unfolded(seed):
    agree(shared_scenario(seed))


def test_the_random_cases_are_worth_their_name():
    laid = [lay_out(shared_scenario(seed)) for seed in FEW]
    assert sum(len(each.shares.kinds) > 1 for each in laid) > 14
    assert sum(len({kind.plan.micro_batches for kind in each.shares.kinds}) > 1 for each in laid) > 9
    for each in laid:
        sequences = sum(kind.replicas * kind.sequences for kind in each.shares.kinds)
        assert sequences == each.scenario.job.global_batch
        assert sum(kind.replicas for kind in each.shares.kinds) == each.plan.data


@pytest.mark.parametrize(
    "way", ["run.fold=off", "run.fold=bundles", "run.collectives=chunked", "cluster.fabric.routing=ecmp"]
)
def test_whatever_way_it_is_played(way):
    """The same shares, and about the same step: 2.7 x as fast, so that A100s with full recompute play 3, H100s 9."""
    nodes = "cluster.nodes=[{type: hgx-h100, count: 2}, {type: hgx-a100, count: 2}]"
    small = ["job.model.layers=4", "job.parallelism.pipeline=2", "job.global_batch=48", *ONE_CHUNK, BY_REPLICA, nodes]
    unequal = [*small, "job.balance=speed", "job.groups={hgx-a100: {recompute: full}}"]
    plain, other = (simulate(load_scenario("two-pods", set=[*unequal, *more])) for more in ((), (way,)))
    assert {row["micro_batches"] for row in plain.shares} == {3, 9}
    assert other.shares == plain.shares
    assert other.step_time_s == pytest.approx(plain.step_time_s, rel=2e-3)
    assert other.power_W == pytest.approx(plain.power_W, rel=2e-3), "whatever the classes, all ranks count"


TWO_JOBS = """\
name: two
cluster:
  nodes: [{type: hgx-h100, count: 4}, {type: hgx-a100, count: 4}]
  fabric: {base: spectrum-x, nodes_per_pod: 8}
jobs:
  - name: shared
    model: &model {base: llama3-8b, layers: 4}
    sequence_length: 2048
    global_batch: 48
    parallelism: &shape {tensor: 4, sequence: true, data: 8, sharding: optimizer}
    placement: [0, 1, 4, 5]
    balance: speed
    batch_ramp: {start: 16, increment: 16, samples: 40}
  - name: other
    model: *model
    sequence_length: 2048
    global_batch: 48
    parallelism: *shape
    placement: [2, 3, 6, 7]
"""


def test_one_of_several_jobs_has_shares(tmp_path):
    """On nodes of its own, over a fabric that is full, it plays as it does alone."""
    path = tmp_path / "two.yaml"
    path.write_text(TWO_JOBS)
    shared, other = simulate_jobs(load_scenario(path)).jobs
    numbers = {tuple(row["nodes"]): row["micro_batches"] for row in shared.alone.shares}
    assert numbers["hgx-h100",] > numbers["hgx-a100",]
    assert shared.alone.step_time_s < other.alone.step_time_s
    assert shared.together_s == pytest.approx(shared.alone.step_time_s, rel=1e-6)
    # 16 until 20 are consumed, 32 until 40.
    assert [(row["global_batch"], row["steps"]) for row in shared.alone.ramp["sizes"]] == [(16, 2), (32, 1)]


@pytest.mark.parametrize("seed", [seed for seed in FEW if shared_scenario(seed).cluster.gpus <= 16])
def test_a_second_simulator_agrees(seed):
    scenario = shared_scenario(seed)
    software = scenario.job.software.model_copy(update={"host": None})
    laid = lay_out(scenario.model_copy(update={"job": scenario.job.model_copy(update={"software": software})}))
    folded = refine(laid.traffic)
    record = play_step(compile_setup(laid, quotient(laid.traffic, folded)))
    np.testing.assert_allclose(record.rank_end[folded.rank], Plain(laid).run(), rtol=1e-9)
