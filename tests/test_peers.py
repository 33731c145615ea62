"""Checkpoints in the memory of other nodes: by hand, and beside the formula."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from test_campaign import CAMPAIGN, setting, source, spent, struck
from test_racks import rack
from test_shrink import in_places

from colossim.engine.campaign import play_campaign
from colossim.engine.setting import Peers
from colossim.errors import ScenarioError
from colossim.reliability import wall_over_work
from colossim.scenario.reader import load_scenario
from colossim.simulation import simulate

#: 2 s every 20 s of training, a restart of 5 s; storage: 10 s every 100 s, 50 s.
PEERS = Peers(interval=20.0, write=2.0, restart=5.0, copies=2)


def node(mtbf=1.0, **facts):
    return source(mtbf, "node", 4, "node", **facts)


def held(*sources, **changes):
    return setting(*sources, **{"nodes": 4, "spares": 9, "peers": PEERS} | changes)


def test_both_are_written_when_they_are_due():
    """100 s of training: four in memory, then one in storage; the next in memory 20 s after that."""
    log = play_campaign(held(duration=100.0 + 8.0 + 10.0 + 23.0))
    assert spent(log) == pytest.approx({"productive": 121.0, "checkpoint": 20.0})
    assert (log.checkpoints, log.in_memory) == (1, 5)


def test_a_node_is_restarted_from_memory(monkeypatch):
    """20 + 2 + 20 + 2 + 6 s: six are lost, and a restart takes 5."""
    in_places(monkeypatch, (50.0, 0))
    log = play_campaign(held(node(), duration=75.0))
    assert spent(log) == pytest.approx({"productive": 60.0, "lost_work": 6.0, "checkpoint": 4.0, "restart": 5.0})


def test_a_stop_of_the_whole_job_goes_back_to_storage(monkeypatch):
    struck(monkeypatch, {1.0: [50.0]})
    log = play_campaign(held(source(1.0), duration=120.0))
    assert spent(log)["lost_work"] == pytest.approx(46.0)
    assert spent(log)["restart"] == 50.0


def test_a_group_of_peers_takes_its_copies_along(monkeypatch):
    """Nodes 0 and 1 hold the same: a rack of two loses both; of racks of two that straddle groups none would."""
    in_places(monkeypatch, (50.0, 0))
    log = play_campaign(held(rack(2, 2), duration=120.0))
    assert (spent(log)["lost_work"], spent(log)["restart"]) == (46.0, 50.0)


@pytest.mark.parametrize(("second", "lost"), [(1, 40.0), (2, 0.0)])
def test_a_second_node_before_the_restart_is_over(second, lost, monkeypatch):
    """Node 0 at 50 s, another at 52: the first's neighbour takes the last copy of what both held, 40 s of work."""
    in_places(monkeypatch, (50.0, 0), (52.0, second))
    log = play_campaign(held(node(), duration=60.0))
    assert [item.lost for item in log.interruptions] == pytest.approx([6.0, lost])


def test_after_a_restart_the_copies_are_whole_again(monkeypatch):
    """Node 0 at 50, its neighbour at 60: the job has trained again since 55."""
    in_places(monkeypatch, (50.0, 0), (60.0, 1))
    log = play_campaign(held(node(), duration=70.0))
    assert [item.lost for item in log.interruptions] == pytest.approx([6.0, 5.0])


def test_corruption_reaches_back_behind_memory(monkeypatch):
    """Corrupt at 50 s, found at 100: what the nodes hold is of 88 s; storage holds the start."""
    struck(monkeypatch, {1.0: [50.0]})
    log = play_campaign(held(node(effect="corrupt", detect=50.0), duration=120.0))
    assert log.interruptions[0].lost == pytest.approx(92.0)


def test_wall_over_work_of_faults_that_memory_survives():
    """With spares at hand nodes that fail one by one always restart from memory: the formula with its numbers, within 1 %.

    The storage is never written within the work; all four nodes never go in one restart.
    """
    one = held(node(4 * 3600.0), work=100 * 600.0, interval=1e9, peers=Peers(600.0, 10.0, 30.0, 4), spares=10**6)
    wall = np.mean([play_campaign(dataclasses.replace(one, seed=seed)).wall for seed in range(60)])
    assert wall / one.work == pytest.approx(wall_over_work(600.0, 3600.0, 10.0, 30.0), rel=0.01)


# -- of scenarios --------------------------------------------------------------------------------------------------------
MEMORY = (
    "checkpoint={interval: 1 h, write: 1 min, restart: 10 min, peer: {interval: 5 min, write: 1 s, restart: 1 min}}"
)


def test_memory_saves_what_storage_would_lose():
    faults = (*CAMPAIGN[:2], "faults.gpu.repair=1 min", "faults.software={mtbf: 40 h}")
    both, storage = (
        simulate(load_scenario("two-pods", set=[*faults, *more])).campaign
        for more in ([MEMORY], [MEMORY, "checkpoint.peer=null"])
    )
    assert both.checkpoints_in_memory > 400 > storage.checkpoints_in_memory == 0
    assert both.goodput > storage.goodput
    assert both.best_s is None is not storage.best_s
    assert math.fsum(both.spent_s.values()) == pytest.approx(both.wall_s, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("checkpoint.peer.interval=2 h", "no shorter than that of the storage"),
        ("checkpoint.peer.write=6 min", "write more than it trains"),
        ("checkpoint.interval=optimal", "of storage alone"),
        ("checkpoint.peer.copies=1", "2"),
    ],
)
def test_odd_peers_are_told(change, says):
    with pytest.raises(ScenarioError, match=says):
        simulate(load_scenario("two-pods", set=[*CAMPAIGN, MEMORY, change]))
