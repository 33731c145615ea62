"""GPUs that aren't alike: arrays of lateness against closed forms, and against every GPU played by itself."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from test_fold import random_scenario

from colossim.cluster import build_cluster
from colossim.cluster.variation import paces_of, slow_gpus
from colossim.draws import generator, log_spread
from colossim.engine.lateness import Lateness, Stretch
from colossim.engine.seats import Seating, Seats
from colossim.engine.trace import Played, Ran
from colossim.errors import ScenarioError, SimulationError
from colossim.jitter import _told
from colossim.layout import compile_setup, folded, lay_out, prepare
from colossim.legs import KERNEL, WAIT, Part, Segment
from colossim.scenario.jitter import Jitter, Slow
from colossim.scenario.reader import load_scenario
from colossim.simulation import play_step, play_steps, simulate, step_seconds

SLOW = "jitter={slow: {share: 5 %, factor: 1.1}}"
ALL = "jitter={kernel: 1.5 %, gpu: 0.5 %, slow: {share: 5 %, factor: 1.1}}"


# -- closed forms ----------------------------------------------------------------------------------------------------
def toy(ranks, parts, groups=1):
    """Lateness of one class of ranks, in groups of neighbours on channel 0, that plays these parts."""
    of = np.arange(ranks) // (ranks // groups)
    traffic = SimpleNamespace(ranks=ranks, channels=[SimpleNamespace(roles=[of])])
    partition = SimpleNamespace(rank=np.zeros(ranks, int), groups=(np.zeros(groups, int),))
    quotient = SimpleNamespace(partition=partition, links=())
    return Lateness([Played((0,), (Segment.of(parts),), -1)], traffic, quotient, 0.0)


def kernel(seconds, grain=1.0):
    return Part(seconds, 0, KERNEL, grain=grain)


def barrier(seconds=0.0):
    return Part(seconds, 1, 0)


def expected_maximum(n, cv):
    """Of n lognormal draws with a mean of 1: the integral of 1 - F(x)^n."""
    spread = log_spread(cv)
    x = np.linspace(0.0, 1.0 + 12 * cv, 20_001)[1:]
    z = (np.log(x) + spread**2 / 2) / spread
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    return float(np.trapezoid(1.0 - below**n, x)) + x[0]


@pytest.mark.parametrize(("ranks", "cv"), [(1, 0.05), (2, 0.05), (8, 0.015), (8, 0.3), (1000, 0.05)])
def test_a_collective_waits_for_the_largest_of_n_lognormal_draws(ranks, cv):
    steps = toy(ranks, [kernel(1.0), barrier()]).drawn(np.ones(ranks), cv, 4000, generator(0, "test"))
    sigma = float(np.std(steps)) / math.sqrt(steps.size)
    assert np.mean(steps) == pytest.approx(expected_maximum(ranks, cv), abs=4.5 * sigma)


def test_barriers_cost_the_sum_of_maxima_not_the_maximum_of_sums():
    """16 kernels of 1/16 s that vary by 1.5 %, 8 GPUs: 1 + 0.015 x 1.42 with barriers, 1 + 0.015 x 1.42 / 4 without."""
    part = kernel(1 / 16)
    with_barriers = toy(8, [part, barrier()] * 16).drawn(np.ones(8), 0.015, 2000, generator(0, "test"))
    without = toy(8, [part] * 16 + [barrier()]).drawn(np.ones(8), 0.015, 2000, generator(0, "test"))
    assert np.mean(with_barriers) == pytest.approx(expected_maximum(8, 0.015), abs=2e-4)
    assert np.mean(with_barriers) == pytest.approx(1.021, abs=1e-3)
    assert np.mean(without) == pytest.approx(expected_maximum(8, 0.015 / 4), abs=3e-4)
    assert np.mean(without) == pytest.approx(1.005, abs=1e-3)


def test_each_group_waits_for_its_own_slowest_and_the_host_for_nobody():
    """Two pairs, one GPU at 1.5: its pair takes (2 + 2) x 1.5 + 1 + 2 x 0.25, the other 4 + 1 + 0.5."""
    paces = np.array([[1.0, 1.0, 1.5, 1.0]])
    parts = [kernel(2.0), Part(1.0, 9, WAIT), barrier(0.25), kernel(2.0), barrier(0.25)]
    step = toy(4, parts, groups=2)
    assert step.steps(paces)[0] == pytest.approx(7.5)
    assert step.steps(np.ones((1, 4)))[0] == pytest.approx(5.5)


def test_stretches_keep_what_varies_together():
    """Two kernels of 3 and 4 s of grain 1 vary like sqrt(9 + 16) of 7 s."""
    first, last = Stretch.cut((kernel(3.0), kernel(4.0), Part(1.0, 9, KERNEL), barrier(2.0)))
    assert (first.kernels, first.others, first.channel, first.seconds) == (7.0, 1.0, 0, 2.0)
    assert first.grain == pytest.approx(5 / 7)
    assert (last.kernels, last.others, last.channel) == (0.0, 0.0, -1)


@pytest.mark.parametrize("seed", range(20))
def test_the_last_of_each_group_is_found_however_they_sit(seed):
    draw = np.random.default_rng(seed)
    groups = int(draw.integers(1, 9))
    of = np.concatenate([np.arange(groups), draw.integers(0, groups, int(draw.integers(0, 60)))])
    if seed % 3 == 0:
        of = np.repeat(np.arange(groups), int(draw.integers(1, 50)))
    of = of if seed % 2 else draw.permutation(of)
    times = draw.random((3, of.size))
    seats = Seats.taken(of, groups)
    expected = [[max(row[of == group]) for group in range(groups)] for row in times]
    assert seats.last(times).tolist() == expected
    assert seats.told(seats.last(times)).tolist() == [[row[group] for group in of] for row in expected]


# -- what GPUs draw --------------------------------------------------------------------------------------------------
def cluster():
    return build_cluster(load_scenario("two-pods").cluster)


def test_slow_machines_are_so_many_whole_nodes_or_single_gpus():
    nodes = slow_gpus(cluster(), Jitter(slow=Slow(share=0.25, factor=1.1)), 0)
    assert nodes.reshape(16, 8).all(axis=1).sum() == 4
    assert nodes.sum() == 32
    gpus = slow_gpus(cluster(), Jitter(slow=Slow(share=0.25, factor=1.1, per="gpu")), 0)
    assert gpus.sum() == 32
    assert not gpus.reshape(16, 8).all(axis=1).any()


def test_paces_have_a_mean_of_one_and_the_spread_that_is_said():
    many = SimpleNamespace(gpus=200_000, gpu_node=np.arange(200_000) // 8, gpu_local=np.arange(200_000) % 8)
    paces = paces_of(many, Jitter(gpu=0.02), 0)
    assert paces.mean() == pytest.approx(1.0, abs=2e-4)
    assert paces.std() == pytest.approx(0.02, rel=0.01)
    slow = Jitter(gpu=0.02, slow=Slow(share=0.5, factor=2.0))
    assert paces_of(many, slow, 0).mean() == pytest.approx(1.5, abs=2e-3)
    assert (paces_of(many, slow, 0) != paces_of(many, slow, 1)).any()


def test_a_gpus_own_variation_stands_in_for_the_types_spread():
    spread = "cluster.nodes.0.type={base: hgx-h100, gpu: {base: H100, spread: 2 %}}"
    plain = simulate(load_scenario("two-pods")).step_time_s
    assert simulate(load_scenario("two-pods", set=[spread])).step_time_s > plain
    own = simulate(load_scenario("two-pods", set=[spread, "jitter={gpu: 0.001 %}"]))
    without = simulate(load_scenario("two-pods", set=[spread.replace("2 %", "0 %")])).step_time_s
    assert own.jitter["undisturbed_s"] == pytest.approx(without, rel=1e-12)


# -- against the step that was played ---------------------------------------------------------------------------------
def traced(scenario):
    """The step as it was played, and its lateness; ranks."""
    laid = lay_out(scenario, must_fit=False)
    quotient, pace = folded(laid)
    setup = compile_setup(laid, quotient, pace)
    trace = []
    record = play_step(setup, None, trace)
    return record, Lateness(trace, laid.traffic, quotient, laid.scenario.job.software.overlap.compute), laid.plan.world


def without_jitter(seed):
    record, step, ranks = traced(random_scenario(seed))
    return record.step_time, float(step.steps(np.ones((1, ranks)))[0])


def agrees(seeds):
    for seed in seeds:
        try:
            played, again = without_jitter(seed)
        except (ScenarioError, SimulationError):
            continue
        assert again == pytest.approx(played, rel=1e-11), seed


def test_gone_through_again_without_jitter_it_is_the_step_that_was_played():
    """Also where transfers share links and slow kernels: all random jobs of the folding tests."""
    agrees(range(12))


@pytest.mark.slow
def test_gone_through_again_without_jitter_every_step_is_the_one_that_was_played():
    agrees(range(12, 120))


def test_ranks_that_share_a_seat_are_where_each_would_be(monkeypatch):
    """A tenth of the ranks at 1.1, the others alike: merged by refinement, and every rank by itself."""
    monkeypatch.setattr("colossim.engine.seats._SHARED", 1)
    monkeypatch.setattr("colossim.engine.lateness._SHARED", 1)
    compared = 0
    for seed in range(12):
        try:
            _, step, ranks = traced(random_scenario(seed))
        except (ScenarioError, SimulationError):
            continue
        slow = np.random.default_rng(seed).random((3, ranks)) < [[0.0], [0.1], [0.1]]
        paces = 1.0 + 0.1 * slow
        paces[0] = 1.01
        assert step.steps(paces) == pytest.approx(step.steps(paces, together=False), rel=1e-12), seed
        compared += 1
    assert compared > 6


def test_few_seats_stand_for_many_ranks():
    """One slow node of 16: its replica's ranks and those of the others, a stage and a place in the tensor group each."""
    laid = prepare(load_scenario("two-pods")).laid
    kind = slow_gpus(laid.cluster, Jitter(slow=Slow(share=0.06, factor=1.1)), 0).astype(int)
    partition = folded(laid)[0].partition
    seating = Seating(laid.traffic, partition, kind)
    assert sum(ranks.size for ranks in seating.ranks) <= 32
    assert sum(ranks.size for ranks in Seating(laid.traffic, partition).ranks) == 128


def both(seed, jitter):
    """Late of a random job, folded and GPU by GPU."""
    found = []
    for how in ("exact", "off"):
        scenario = random_scenario(seed)
        run = scenario.run.model_copy(update={"fold": how, "steps": 3})
        scenario = scenario.model_copy(update={"run": run, "jitter": jitter})
        found.append(play_steps(prepare(scenario, must_fit=False))[1])
    return found


def compared(seeds):
    """Differences of the step, relative, of jobs that are exact and of those that are not."""
    jitter = Jitter(gpu=0.02, slow=Slow(share=0.1, factor=1.1, per="gpu"))
    exact, rest = [], []
    for seed in seeds:
        try:
            arrays, whole = both(seed, jitter)
        except (ScenarioError, SimulationError):
            continue
        off = abs(arrays.median / whole.median - 1)
        (rest if arrays.approximate else exact).append(off)
    return exact, rest


def test_lateness_is_that_of_gpus_played_one_by_one():
    exact, rest = compared(range(6))
    assert exact
    assert max(exact) < 1e-9
    assert max(rest) < 0.01


@pytest.mark.slow
def test_lateness_is_that_of_gpus_played_one_by_one_in_many_jobs():
    exact, rest = compared(range(10, 50))
    assert len(exact) > 1
    assert max(exact) < 1e-9
    assert max(rest) < 0.02
    assert np.median(rest) < 1e-3


@pytest.mark.slow
def test_one_percent_of_slow_gpus_costs_512_what_they_cost_one_by_one():
    """The job of colossus-100k on 64 nodes, 1 % of whose GPUs run at 0.9."""
    small = ["cluster.nodes.0.count=64", "job.global_batch=64", "jitter={slow: {share: 1 %, factor: 1.1111, per: gpu}}"]
    arrays = simulate(load_scenario("colossus-100k", set=small))
    whole = simulate(load_scenario("colossus-100k", set=[*small, "run.fold=off"]))
    assert arrays.jitter["slow_gpus"] == whole.jitter["slow_gpus"] == 5
    assert arrays.step_time_s == pytest.approx(whole.step_time_s, rel=0.003)
    assert arrays.jitter["cost_s"] == pytest.approx(whole.jitter["cost_s"], rel=0.05)


@pytest.mark.slow
def test_kernels_that_vary_cost_what_they_cost_gpu_by_gpu():
    alone = [
        "job.software={base: megatron-2024, overlap: {compute: 0, transfer: 0}}",
        "jitter={kernel: 5 %}",
        "run.steps=4",
    ]
    arrays = simulate(load_scenario("two-pods", set=alone))
    whole = simulate(load_scenario("two-pods", set=[*alone, "run.fold=off"]))
    assert arrays.jitter["cost_s"] == pytest.approx(whole.jitter["cost_s"], rel=0.06)


@pytest.mark.parametrize(("tensor", "pipeline"), [(4, 1), (8, 1), (8, 2)])
def test_a_job_whose_transfers_meet_nobody_is_exact(tensor, pipeline):
    """One replica: tensor groups on NVLink, a stage a node."""
    shape = f"job.parallelism={{tensor: {tensor}, sequence: true, pipeline: {pipeline}, schedule: 1f1b, data: 1}}"
    small = [shape, "cluster.nodes.0.count=2", "job.global_batch=8", "job.overlap.data=false"]
    jitter = "jitter={gpu: 3 %, slow: {share: 20 %, factor: 1.3, per: gpu}}"
    arrays = simulate(load_scenario("two-pods", set=[*small, jitter]))
    whole = simulate(load_scenario("two-pods", set=[*small, jitter, "run.fold=off"]))
    assert not any("lateness_approximate" in line for line in arrays.assumptions)
    assert arrays.step_time_s == pytest.approx(whole.step_time_s, rel=1e-9)


def test_transfers_that_share_an_uplink_are_told():
    """Stage transfers of a node's eight GPUs begin together; late ones would have the uplink to themselves."""
    thin = [
        "job.global_batch=32",
        "job.overlap={data: false, pipeline: false, tensor: false}",
        "job.parallelism={tensor: 8, sequence: true, pipeline: 2, schedule: 1f1b, sharding: optimizer}",
        "cluster.fabric.oversubscription=[8, 1]",
        "jitter={slow: {share: 10 %, factor: 1.1}}",
    ]
    result = simulate(load_scenario("two-pods", set=thin))
    assert any(line.startswith("lateness_approximate") for line in result.assumptions)


def test_copies_to_the_host_are_waited_for_by_late_gpus_too():
    """Activations on the host, all GPUs at 1.1: as if their kernels took as long, folded and GPU by GPU."""
    both_ways = [
        "job.offload={activations: 50 %}",
        "cluster.nodes.0.count=2",
        "job.global_batch=16",
        "job.parallelism.pipeline=2",
    ]
    jitter = "jitter={slow: {share: 50 %, factor: 1.5}}"
    arrays = simulate(load_scenario("two-pods", set=[*both_ways, jitter]))
    whole = simulate(load_scenario("two-pods", set=[*both_ways, jitter, "run.fold=off"]))
    assert arrays.jitter["cost_s"] > 0
    assert arrays.step_time_s == pytest.approx(whole.step_time_s, rel=0.01)


# -- what a user gets ------------------------------------------------------------------------------------------------
def test_the_result_says_what_jitter_costs_and_adds_up():
    result = simulate(load_scenario("two-pods", set=[ALL]))
    told = result.jitter
    assert sum(result.breakdown_s.values()) == pytest.approx(result.step_time_s, rel=1e-9)
    assert result.step_time_s == pytest.approx(told["undisturbed_s"] + told["cost_s"])
    assert set(told["of_each_s"]) == {"kernel", "gpu", "slow"}
    assert max(told["of_each_s"].values()) < told["cost_s"] < sum(told["of_each_s"].values())
    assert result.step_time_p99_s > result.step_time_s
    assert len(result.steps) == told["steps"] == 20
    assert np.median([row["step_time_s"] for row in result.steps]) == result.step_time_s
    assert result.steps[-1]["end_s"] == pytest.approx(sum(row["step_time_s"] for row in result.steps))
    assert told["slow_gpus"] == 8
    assert "stragglers" in str(result)
    assert json.loads(result.to_json())["jitter"] == told


def test_the_same_seed_draws_the_same():
    def step(*changes):
        return simulate(load_scenario("two-pods", set=[ALL, "run.steps=2", *changes])).step_time_s

    assert step() == step()
    assert step() != step("run.seed=1")


def test_no_more_steps_are_drawn_than_take_seconds(monkeypatch):
    monkeypatch.setattr("colossim.jitter._DRAWS", 3 * 128 * 1000)
    told = simulate(load_scenario("two-pods", set=[ALL])).jitter
    assert 1 <= told["steps"] < 20
    monkeypatch.setattr("colossim.jitter._UNFOLDED", 1)
    small = ["cluster.nodes.0.count=2", "job.global_batch=16", "run.fold=off"]
    assert simulate(load_scenario("two-pods", set=[*small, "jitter={kernel: 1 %}"])).jitter["steps"] == 1


def test_a_slow_machine_is_not_slower_than_all_kernels_together():
    """All machines at 1.1 take the step's kernels 1.1 times as long; one can't cost more."""
    one = simulate(load_scenario("two-pods", set=[SLOW])).jitter
    whole = simulate(load_scenario("two-pods", set=["jitter={slow: {share: 100 %, factor: 1.1}}"])).jitter
    assert 0 < one["cost_s"] < whole["cost_s"]
    assert whole["pace"] == pytest.approx(1.1, abs=2e-3)
    assert whole["percentile"] is None


def test_nothing_is_late_without_jitter():
    result = simulate(load_scenario("two-pods", set=["jitter={}"]))
    assert result.jitter["cost_s"] == pytest.approx(0.0, abs=1e-9)
    assert "`jitter` had no effect: it says how GPUs differ by 0 %" in result.notes


def test_a_step_of_faster_gpus_is_shorter_and_adds_up():
    """One GPU that drew a pace below the mean: no part of its step is negative."""
    alone = ["cluster.nodes.0.count=1", "job.global_batch=4", "job.parallelism={tensor: 1, pipeline: 1, data: 1}",
             "job.model={base: llama3-8b, layers: 4}", "jitter={gpu: 5 %}", "run.seed=2"]  # fmt: skip
    result = simulate(load_scenario("two-pods", set=alone))
    assert result.jitter["cost_s"] < 0
    assert min(result.breakdown_s.values()) >= 0
    assert sum(result.breakdown_s.values()) == pytest.approx(result.step_time_s, rel=1e-9)


def test_a_slow_machine_is_slow_wherever_the_job_stands():
    """All machines at 1.2, the job scattered; and half of them, of which as many are in the job however it is placed."""
    scattered = ["job.placement=scattered", "run.seed=2"]
    every = simulate(load_scenario("two-pods", set=[*scattered, "jitter={slow: {share: 100 %, factor: 1.2}}"])).jitter
    assert every["slow_gpus"] == 128
    assert every["pace"] == pytest.approx(1.2, abs=2e-3)
    half = "jitter={slow: {share: 50 %, factor: 1.2}}"
    placed = [simulate(load_scenario("two-pods", set=[*where, "run.seed=2", half])).jitter for where in ([], scattered)]
    assert [told["slow_gpus"] for told in placed] == [64, 64]


@pytest.mark.parametrize("place", [10, 63, 127])
def test_the_pace_is_that_of_a_percentile(place):
    """A step of 3 s and twice the pace of the GPU at a place of the order: that is its pace, place + 1 of 128 are no slower."""

    class Steps:
        approximate = False

        def lasting(self, paces):
            return 3.0 + 2.0 * np.sort(paces, axis=1)[:, place]

    drawn = np.sort(paces_of(cluster(), Jitter(gpu=0.05), 0))
    late = _told(Jitter(gpu=0.05), cluster(), 128, 0, 5.0, Steps())
    assert late.pace == pytest.approx(drawn[place])
    assert late.percentile == pytest.approx((place + 1) / 128)
    assert late.median == pytest.approx(3.0 + 2.0 * drawn[place])


def test_draws_are_counted_for_every_stretch_and_kernel_of_a_rank():
    """Four ranks: two stretches with kernels, one without, and a kernel beside transfers; the host draws nothing."""
    step = toy(4, [kernel(1.0), kernel(1.0), barrier(), Part(1.0, 9, WAIT), barrier(), kernel(1.0)])
    step.trace += [Ran(0, 1.0, 1.0), Ran(0, 1.0, 0.0)]
    assert step.draws == 4 * (2 + 1)


def test_states_of_a_campaign_and_batches_of_a_ramp_have_jitter_too():
    """Both take their steps from here."""
    degraded = "cluster.degraded=[{node: 0, gpu: 0, link: nvlink, rate: 20 %}]"
    late, plain = (load_scenario("two-pods", set=[degraded, *more]) for more in ([SLOW], []))
    assert step_seconds(prepare(late)) == simulate(late).step_time_s > step_seconds(prepare(plain))


def test_a_ramp_of_the_batch_is_played_with_jitter():
    ramp = ["job.batch_ramp={start: 64, increment: 64, samples: 1000}", "job.tokens=1B"]
    plain = simulate(load_scenario("two-pods", set=ramp)).ramp
    late = simulate(load_scenario("two-pods", set=[*ramp, SLOW])).ramp
    assert late["time_s"] > plain["time_s"]


def test_many_steps_are_rows_in_no_time():
    """Each begins where the one before ended."""
    result = simulate(load_scenario("two-pods", set=["run.steps=20000"]))
    assert len(result.steps) == 20_000
    assert result.steps[7]["start_s"] == result.steps[6]["end_s"]
    assert result.steps[-1]["end_s"] == pytest.approx(20_000 * result.step_time_s)


def test_jitter_makes_campaigns_longer():
    weeks = [
        "run.duration=1 d",
        "faults={job: {mtbf: 1 h}}",
        "checkpoint={interval: 10 min, write: 0 s, restart: 1 min}",
    ]
    plain = simulate(load_scenario("two-pods", set=weeks))
    late = simulate(load_scenario("two-pods", set=[*weeks, SLOW]))
    assert late.campaign.steps < plain.campaign.steps


def test_chunked_collectives_wait_for_slow_gpus_too():
    small = ["cluster.nodes.0.count=2", "job.global_batch=16", "job.parallelism.pipeline=2", "run.collectives=chunked"]
    result = simulate(load_scenario("two-pods", set=[*small, "jitter={slow: {share: 50 %, factor: 1.1}}"]))
    assert result.jitter["cost_s"] > 0


def test_several_jobs_have_none_yet():
    with pytest.raises(ScenarioError, match="stragglers of several jobs can't be played yet"):
        load_scenario("two-jobs", set=["jitter={kernel: 1 %}"])


def test_a_wrong_jitter_hides_no_other_problem():
    """What is wrong between other fields is told beside it, all at once."""
    wrong = ["jitter={slow: {share: 1 %, factor: 0.5}}", "spares=40", "faults={gpu: {mtbf: 100 h}}",
             "checkpoint={interval: 10 s, write: 20 s, restart: 1 min}"]  # fmt: skip
    with pytest.raises(ScenarioError) as error:
        load_scenario("two-pods", set=wrong)
    assert {problem.field for problem in error.value.problems} == {"jitter.slow.factor", "spares", "checkpoint.write"}
