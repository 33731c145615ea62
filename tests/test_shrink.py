"""A job that goes on with fewer replicas: by hand, of scenarios, and beside one that waits."""

from __future__ import annotations

import dataclasses
import math

import pytest
from test_campaign import setting, source, spent, strip
from test_eras import struck

from colossim.campaign import setting_of
from colossim.damage import fewer_of, in_size
from colossim.engine.campaign import play_campaign
from colossim.engine.faults import Failures
from colossim.engine.setting import Fewer, State, Wrong
from colossim.errors import ScenarioError
from colossim.layout import prepare
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.simulation import simulate

#: Two nodes a replica, four replicas: 4 tokens a step of 1 s, and one token fewer for each replica that is missing.
FEWER = tuple(Fewer(replicas, 2 * replicas, float(replicas)) for replicas in (3, 2))


def elastic(*sources, **changes):
    return setting(*sources, **{"nodes": 8, "tokens": 4.0, "fewer": FEWER} | changes)


def in_places(monkeypatch, *strikes):
    """Faults at (s, component), however often it is asked."""
    left = list(strikes)
    monkeypatch.setattr(Failures, "next", lambda self: left[0] if left else (math.inf, 0))
    monkeypatch.setattr(
        Failures, "renew", lambda self, component, when: left and left[0][1] == component and left.pop(0)
    )


# -- by hand -------------------------------------------------------------------------------------------------------------
def test_it_goes_on_with_fewer_replicas_until_a_restart(monkeypatch):
    """Node 0 at 20 s, for 100 s: 50 s of restart, then three replicas of four, also when it is back. Node 6 at 210 s: from
    260 s on three replicas again, on node 0 among others."""
    in_places(monkeypatch, (20.0, 0), (210.0, 6))
    log = play_campaign(elastic(source(1.0, "node", 8, "node", repair=100.0), duration=270.0, interval=1e9))
    # 20 s of four replicas are lost, 140 s of three as well; from 260 s on three replicas for 10 s: 30 tokens of 40.
    assert spent(log) == pytest.approx({"lost_work": 160.0, "restart": 100.0, "productive": 7.5, "degraded": 2.5})
    assert log.done == pytest.approx(30.0)
    assert log.shrunk == 150.0


def test_a_restart_takes_up_what_is_back(monkeypatch):
    """Node 0 at 20 s, for 100 s; a fault of the job at 210: all four from 260 on."""
    struck(monkeypatch, {1.0: [20.0], 2.0: [210.0]})
    kinds = (source(1.0, "node", 8, "node", repair=100.0), source(2.0))
    log = play_campaign(elastic(*kinds, duration=270.0, interval=1e9))
    assert log.done == pytest.approx(40.0)
    assert "waiting" not in spent(log)


def test_at_once_the_job_stops_for_what_is_back(monkeypatch):
    """Node 0 at 20 s; three replicas from 70 to 120 s; a checkpoint of 10 s, a restart of 50, and 20 s of four."""
    struck(monkeypatch, {1.0: [20.0]})
    node = source(1.0, "node", 8, "node", repair=100.0)
    log = play_campaign(elastic(node, duration=200.0, interval=1e9, regrow=True))
    expected = {"lost_work": 20.0, "restart": 100.0, "checkpoint": 10.0, "productive": 37.5 + 20.0, "degraded": 12.5}
    assert spent(log) == pytest.approx(expected)
    assert log.done == pytest.approx(50 * 3 + 20 * 4)
    assert (log.shrunk, log.checkpoints, len(log.interruptions)) == (50.0, 1, 1)


def test_a_node_that_stands_idle_is_missed_by_nobody(monkeypatch):
    """Without node 0 a replica is missing, whose other node, 7, idles: when it fails too, the job goes on."""
    in_places(monkeypatch, (20.0, 0), (80.0, 7))
    log = play_campaign(elastic(source(1.0, "node", 8, "node", repair=1e9), duration=170.0, interval=1e9))
    assert log.faults == {"node": 2}
    assert len(log.interruptions) == 1
    assert log.done == pytest.approx(300.0)


def test_what_idles_is_laid_on_at_the_next_restart(monkeypatch):
    """Nodes 0 and 1: the second time 7 stands in for it, three replicas as before; 2 then leaves two."""
    in_places(monkeypatch, (20.0, 0), (80.0, 1), (140.0, 2))
    log = play_campaign(elastic(source(1.0, "node", 8, "node", repair=1e9), duration=240.0, interval=1e9))
    assert [item.time for item in log.interruptions] == [20.0, 80.0, 140.0]
    assert log.done == pytest.approx(50.0 * 2)


def test_with_too_few_left_it_waits(monkeypatch):
    """Five of eight nodes by 24 s, the first back at 1,020: four are there, two replicas, after a restart."""
    in_places(monkeypatch, *((20.0 + i, i) for i in range(5)))
    log = play_campaign(elastic(source(1.0, "node", 8, "node", repair=1000.0), duration=1080.0, interval=1e9))
    assert spent(log)["waiting"] == 1020.0 - 24.0
    assert log.done == pytest.approx(10.0 * 2)


def test_a_part_that_is_slow_on_an_idle_node_slows_nobody(monkeypatch):
    """Node 0 stops at 20 s; the link of node 7, which idles then, is slow all along: 20 s at half the pace, then at 3/4."""
    times = {1.0: [(20.0, 0)], 2.0: [(0.0, 7)]}
    monkeypatch.setattr(Failures, "next", lambda self: next(iter(times[self.kind.mtbf]), (math.inf, 0)))
    monkeypatch.setattr(Failures, "renew", lambda self, component, when: times[self.kind.mtbf].pop(0))
    kinds = (
        source(1.0, "node", 8, "node", repair=1e9),
        source(2.0, "gpu", 8, "link", effect="degrade", repair=1e9),
    )
    log = play_campaign(elastic(*kinds, duration=100.0, interval=1e9))
    assert log.done == pytest.approx(30.0 * 3)


# -- of scenarios --------------------------------------------------------------------------------------------------------
SHRINK = (
    "run.duration=3 d",
    "faults.gpu={mtbf: 4000 h, repair: 1 d, detect: 30 s}",
    "checkpoint={interval: 20 min, write: 10 s, restart: 5 min}",
    "when_short=shrink",
    "spares=0",
)


@pytest.mark.slow
def test_a_smaller_job_is_the_step_engines():
    """Without one of 16 nodes 15 of 16 replicas: 120 sequences a step; the same step by hand."""
    scenario = load_scenario("two-pods", set=SHRINK)
    laid = prepare(scenario).laid
    assert [(size.replicas, size.nodes) for size in fewer_of(scenario, laid.plan)[:2]] == [(15, 15), (14, 14)]
    step = simulate(strip(scenario)).step_time_s
    setting = setting_of(scenario, laid.plan, laid.cluster, step, lambda other: simulate(strip(other)).step_time_s)
    by_hand = simulate(load_scenario("two-pods", set=["job.parallelism.data=15", "job.global_batch=120"]))
    assert setting.first.step_of(State(replicas=15)) == by_hand.step_time_s
    assert setting.first.fewer[0].tokens == by_hand.tokens_per_step
    slow = setting.first.step_of(State((Wrong("gpu", 0.5, 3),), 15))
    assert slow > by_hand.step_time_s


def test_the_batch_stays_where_fewer_replicas_divide_it():
    """128 sequences among 16 replicas: the next that divide them, in multiples of the four stages, are 8."""
    scenario = load_scenario("two-pods", set=[*SHRINK, "short_batch=same"])
    plan = derive(scenario)
    sizes = fewer_of(scenario, plan)
    assert [(size.replicas, size.tokens) for size in sizes] == [(8, 128 * 8192.0)]
    assert in_size(scenario, plan, 8).job.global_batch == 128


def test_experts_that_span_replicas_leave_together():
    """Groups of eight replicas share experts: without a node eight of sixteen are left."""
    more = [
        "job.model=mixtral-8x22b",
        "job.parallelism.expert=4",
        "job.parallelism.tensor=2",
        "job.parallelism.pipeline=4",
    ]
    scenario = load_scenario("two-pods", set=[*SHRINK, *more])
    assert [size.replicas for size in fewer_of(scenario, derive(scenario))] == [12, 8]


def test_shrinking_does_more_than_waiting():
    """Of the same faults, with a day of repair and no spares: tokens and goodput."""
    wait = simulate(load_scenario("two-pods", set=[*SHRINK, "when_short=wait"])).campaign
    shrink = simulate(load_scenario("two-pods", set=SHRINK)).campaign
    assert shrink.spent_s["waiting"] == 0.0 < wait.spent_s["waiting"]
    assert shrink.goodput > wait.goodput + 0.1
    assert shrink.fewer_replicas_s > 0.0
    assert math.fsum(shrink.spent_s.values()) == pytest.approx(shrink.wall_s, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["cluster.nodes=[{type: hgx-h100, count: 8}, {type: gb200-nvl72, count: 8}]"], "as many GPUs each"),
        (["job.balance=speed"], "replicas that are alike"),
        (
            ["job.global_batch=36", "short_batch=same", "job.parallelism.data=9", "job.parallelism.tensor=1"],
            "can't be fewer",
        ),
    ],
)
def test_what_can_not_shrink_is_told(changes, says):
    with pytest.raises(ScenarioError, match=says):
        simulate(load_scenario("two-pods", set=[*SHRINK, *changes]))


@pytest.mark.slow
def test_one_and_two_workers_shrink_alike():
    one, two = (simulate(load_scenario("two-pods", set=SHRINK), replicas=2, workers=n).campaign for n in (1, 2))
    assert repr(one.logs) == repr(two.logs)
    assert dataclasses.asdict(one.logs[0]) != dataclasses.asdict(one.logs[1])
