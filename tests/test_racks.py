"""Faults that take several nodes at once: by hand, their rates, and what can't be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_campaign import setting, source, spent
from test_shrink import elastic, in_places

from colossim.campaign import sources_of
from colossim.catalog.faults import Radius
from colossim.engine.campaign import play_campaign
from colossim.errors import ScenarioError
from colossim.layout import prepare
from colossim.scenario.reader import load_scenario

REST = ("run.duration=9 d", "checkpoint={interval: 20 min, write: 10 s, restart: 5 min}")


def rack(size=4, count=2, mtbf=1.0, **facts):
    return source(mtbf, "rack", count, "power", radius=Radius.model_construct(nodes=size), **facts)


def test_a_rack_takes_its_nodes_at_once(monkeypatch):
    """Two racks of four, three spares: the first at 20 s for 1,000; the job waits, then all are back."""
    in_places(monkeypatch, (20.0, 0), (2000.0, 1))
    log = play_campaign(setting(rack(repair=1000.0), duration=4000.0, nodes=8, spares=3))
    assert [item.component for item in log.interruptions] == ["rack 0", "rack 1"]
    assert spent(log)["waiting"] == 2000.0
    assert log.faults == {"power": 2}


def test_with_as_many_spares_it_goes_on(monkeypatch):
    in_places(monkeypatch, (20.0, 0), (200.0, 1))
    log = play_campaign(setting(rack(repair=1000.0), duration=400.0, nodes=8, spares=8))
    assert "waiting" not in spent(log)
    in_places(monkeypatch, (20.0, 0), (200.0, 1))
    log = play_campaign(setting(rack(repair=1000.0), duration=1100.0, nodes=8, spares=7))
    assert spent(log)["waiting"] == 820.0


def test_a_job_shrinks_by_a_rack(monkeypatch):
    """Of four replicas on two nodes each two are left, after 50 s of restart."""
    in_places(monkeypatch, (20.0, 1))
    log = play_campaign(elastic(rack(repair=1e9), duration=170.0, interval=1e9))
    assert log.done == pytest.approx(200.0)


def test_the_last_rack_has_what_is_left():
    assert rack(4, 3).nodes_of(2, 10) == (8, 9)
    assert rack(4, 3).nodes_of(1, 10) == (4, 5, 6, 7)


def test_racks_that_fail_leave_a_job_without_spares_waiting():
    """Two racks of two nodes, two spares, mean life M = mean repair of each: of how many racks' worth is out, k, births at
    2/M below 2, 1/M at 2 (one rack is empty), back at k/M; the job runs where k is at most 1."""
    rates = [2.0, 2.0, 1.0]
    weights = np.cumprod([1.0, *(rate / (k + 1) for k, rate in enumerate(rates))])
    whole = weights[:2].sum() / weights.sum()
    kind = rack(2, 2, mtbf=36000.0, repair=36000.0, repair_spread=1.0)
    one = {"duration": 3e7, "interval": math.inf, "write": 0.0, "restart": 0.0, "spares": 2, "nodes": 4}
    waited = np.mean([play_campaign(setting(kind, seed=seed, **one)).spent["waiting"] for seed in range(10)]) / 3e7
    assert 1 - waited == pytest.approx(whole, abs=0.012)


def test_racks_of_a_scenario():
    """16 nodes in racks of 5: four of them."""
    scenario = load_scenario("two-pods", set=[*REST, "faults.power={mtbf: 900 h, radius: {nodes: 5}}"])
    laid = prepare(scenario).laid
    (found,) = sources_of(scenario, laid.plan, laid.cluster)
    assert (found.owner, found.count) == ("rack", 4)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("power={mtbf: 9 h}", "radius: is missing"),
        ("gpu={mtbf: 9 h, radius: {nodes: 4}}", "is of a rack, not of a gpu"),
        ("rack={mtbf: 9 h, radius: {nodes: 4}, effect: corrupt}", "corrupt is of no rack"),
    ],
)
def test_odd_racks_are_told(fault, says):
    with pytest.raises(ScenarioError, match=says):
        prepare(load_scenario("two-pods", set=[*REST, f"faults.{fault}"]))
