"""Crews that repair, and spares that take a time to join: by hand, and beside the theory of queues."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from test_campaign import CAMPAIGN, setting, source, spent, struck
from test_shrink import in_places

from colossim.campaign import spares_of
from colossim.engine.campaign import Campaign, play_campaign
from colossim.engine.faults import Failures
from colossim.errors import ScenarioError
from colossim.explain import explain
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario


# -- by hand -------------------------------------------------------------------------------------------------------------
def test_one_crew_repairs_one_thing_after_the_other(monkeypatch):
    """Nodes at 20 and 100 s, 1,000 s each, found after 5: the second is back at 2,025 s. One spare: the first fills its
    place at 1,025."""
    in_places(monkeypatch, (20.0, 0), (100.0, 1))
    node = source(1.0, "node", 8, "node", repair=1000.0, detect=5.0)
    one = setting(node, duration=3000.0, spares=1, nodes=8, crews=1)
    log = play_campaign(one)
    assert spent(log)["waiting"] == 1025.0 - 105.0
    in_places(monkeypatch, (20.0, 0), (100.0, 1), (1100.0, 2))
    assert spent(play_campaign(one))["waiting"] == pytest.approx(920.0 + 2025.0 - 1105.0)


def test_a_slow_link_waits_for_its_crew(monkeypatch):
    """Two links at half their rates, at 10 and 20 s, 60 s each, one crew: until 130 s."""
    in_places(monkeypatch, (10.0, 0), (20.0, 1))
    link = source(1.0, "gpu", 8, "link", effect="degrade", repair=60.0)
    log = play_campaign(setting(link, duration=200.0, interval=1e9, crews=1))
    assert spent(log) == pytest.approx({"productive": 140.0, "degraded": 60.0})


def test_a_warm_spare_joins_after_a_time(monkeypatch):
    """A node at 20 s, noticed after 5; a warm one needs 100 s more, the repair 1,000. What is back then stands by at once."""
    struck(monkeypatch, {1.0: [20.0, 1200.0]})
    node = source(1.0, "node", 8, "node", repair=1000.0, detect=5.0)
    log = play_campaign(setting(node, duration=2000.0, nodes=8, warm=1, join=100.0))
    assert [item.restart for item in log.interruptions] == [5.0 + 100.0 + 50.0] * 2
    assert spent(log)["waiting"] == 200.0


def test_a_spare_that_is_ready_goes_first(monkeypatch):
    struck(monkeypatch, {1.0: [20.0]})
    node = source(1.0, "node", 8, "node", repair=1000.0)
    assert "waiting" not in spent(play_campaign(setting(node, duration=900.0, nodes=8, spares=1, warm=1, join=100.0)))


def test_a_node_that_is_back_first_takes_the_place(monkeypatch):
    """Repaired after 30 s, while a warm one joins until 120: that one then stands by, for the fault at 200."""
    struck(monkeypatch, {1.0: [20.0, 200.0]})
    node = source(1.0, "node", 8, "node", repair=30.0)
    log = play_campaign(setting(node, duration=900.0, nodes=8, warm=1, join=100.0))
    assert [item.restart for item in log.interruptions] == [80.0, 80.0]


# -- theory --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("crews", "shape"),
    [(2, 1.0), *(pytest.param(*which, marks=pytest.mark.slow) for which in ((1, 1.0), (2, 1.0001)))],
)
def test_crews_are_the_servers_of_a_queue(crews, shape, monkeypatch):
    """Four places and four spares; lives and repairs exponential, of means M and M/2: births and deaths of a chain in how many
    are out, k, at rate 4/M while no place is empty, else (8 - k)/M, and back at 2 min(k, crews)/M (M/M/c, finite source)."""
    monkeypatch.setattr(Failures, "repair", lambda self: float(self.rng.exponential(self.kind.repair)))
    rates = [4.0 if k <= 4 else 8.0 - k for k in range(8)]
    weights = np.cumprod([1.0, *(rate / (2 * min(k + 1, crews)) for k, rate in enumerate(rates))])
    whole = weights[:5].sum() / weights.sum()
    fails = source(36000.0, "node", 4, "node", repair=18000.0, shape=shape)
    one = {"duration": 3e7, "interval": math.inf, "write": 0.0, "restart": 0.0, "spares": 4, "nodes": 4, "crews": crews}
    found = [play_campaign(setting(fails, seed=seed, **one)) for seed in range(10)]
    waited = np.mean([log.spent["waiting"] for log in found]) / 3e7
    assert 1 - waited == pytest.approx(whole, abs=0.01)


@pytest.mark.parametrize("shape", [1.0, 1.0001])
def test_what_waits_for_a_crew_can_not_fail(shape, monkeypatch):
    """Four links, a crew: of the machine repairman's chain, at rate (4 - k)/M up and 1/M down, faults come at the mean of
    (4 - k)/M."""
    monkeypatch.setattr(Failures, "repair", lambda self: float(self.rng.exponential(self.kind.repair)))
    weights = np.cumprod([1.0, 4.0, 3.0, 2.0, 1.0])
    rate = float(((4 - np.arange(5)) * weights).sum() / weights.sum()) / 1000.0
    link = source(1000.0, "gpu", 4, "link", effect="degrade", repair=1000.0, shape=shape)
    logs = [play_campaign(setting(link, duration=1e6, interval=math.inf, crews=1, seed=seed)) for seed in range(8)]
    faults = sum(log.faults["link"] for log in logs)
    assert faults / 8e6 == pytest.approx(rate, rel=0.04)


def test_queues_are_written_down():
    """At a turn with a queue, nodes that join and a job that goes on: the same log."""
    node = source(4000.0, "node", 8, "node", repair=3000.0, repair_spread=1.0)
    leaf = source(9000.0, "leaf", 2, "leaf", repair=500.0, shape=0.8)
    one = setting(node, leaf, duration=60_000.0, nodes=8, spares=2, warm=2, join=200.0, crews=1)
    whole, text, seen = play_campaign(one), None, set()
    while True:
        campaign = Campaign(one, text)
        fresh = iter([False])
        text = campaign.play(lambda fresh=fresh: next(fresh, True))
        if text is None:
            break
        outages = json.loads(text)["outages"]
        seen |= {name for name in ("queue", "busy") if outages[name]} | ({"joining"} if outages["spares"][2] else set())
    assert repr(campaign.log) == repr(whole)
    assert seen >= {"queue", "busy"}


# -- of scenarios --------------------------------------------------------------------------------------------------------
FREE = (*CAMPAIGN, "job.parallelism.data=8", "job.global_batch=64")


def test_warm_spares_are_of_the_nodes_that_are_free():
    """Eight of sixteen nodes are free: three of them warm."""
    scenario = load_scenario("two-pods", set=[*FREE, "warm={nodes: 3, join: 10 min}", "repairs={crews: 2}"])
    assert spares_of(scenario, derive(scenario)) == 5
    weeks = explain(scenario)["weeks"]
    assert weeks["spares"] == "5 nodes, and 3 that take 10.0 min to join"
    assert weeks["repairs"] == "2 at a time"


def test_warm_spares_that_are_not_there_are_told():
    with pytest.raises(ScenarioError, match=r"warm.nodes: 6 nodes: the job leaves 4 free beside 4 spares"):
        explain(load_scenario("two-pods", set=[*FREE, "warm={nodes: 6, join: 10 min}", "spares=4"]))
