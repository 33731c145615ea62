"""Routing that pins flows: collisions cost what they should, order saves what it can, and few replicas stand for many."""

from __future__ import annotations

import numpy as np
import pytest

import colossim.flows
from colossim.flows import Pinned
from colossim.fold import fold
from colossim.layout import compile_setup, lay_out
from colossim.scenario.reader import load_scenario
from colossim.simulation import play_step, simulate

#: 2 pods of 2 nodes in each of 2 blocks, a replica a node and stage.
SMALL = (
    "cluster.nodes.0.count=8",
    "cluster.fabric.nodes_per_pod=2",
    "cluster.fabric.pods_per_block=2",
    "cluster.fabric.tiers=3",
    "job.parallelism.pipeline=2",
    "job.parallelism.tensor=8",
    "job.parallelism.data=4",
    "job.global_batch=32",
)


def laid(*changes):
    return lay_out(load_scenario("two-pods", set=[*SMALL, *changes]))


def step(*changes):
    return simulate(load_scenario("two-pods", set=[*SMALL, *changes])).step_time_s


def pinned(*changes, seed=0):
    return Pinned.of(laid(*changes).traffic, seed)


def test_a_ring_of_neighbours_has_few_flows_and_loses_nothing():
    """Data-parallel rings in rank order leave each leaf once: no two flows can meet, and all move at the NIC's rate."""
    flows = pinned("cluster.fabric.routing=ecmp")
    number = next(i for i, c in enumerate(flows.traffic.channels) if c.name == "data" and c.algorithm == "ring")
    rates = flows.alone(number)
    crossing = np.isin(np.arange(rates.size), flows.flows.group[flows.channel == number])
    assert crossing.any()
    np.testing.assert_allclose(rates[crossing], flows.traffic.cluster.nic[0])


def test_colossus_rings_lose_nothing():
    """63 of 64 edges of a rail's ring stay on one leaf: under ecmp all rings of 98,304 ranks run at line rate."""
    traffic = lay_out(load_scenario("colossus-100k", set=["cluster.fabric.routing=ecmp"])).traffic
    flows = Pinned.of(traffic, 0)
    for number, channel in enumerate(traffic.channels):
        if channel.name == "data" and channel.algorithm == "ring":
            np.testing.assert_allclose(flows.alone(number), traffic.cluster.nic[0])


@pytest.mark.parametrize("routing", ["ecmp", "static"])
@pytest.mark.parametrize("placement", ["packed", "scattered"])
def test_not_faster_than_adaptive(routing, placement):
    """Collisions only take; a schedule of few nodes can win 0.1 % where they hold back what it was in the way of."""
    adaptive = step(f"job.placement={placement}")
    assert step(f"job.placement={placement}", f"cluster.fabric.routing={routing}") >= adaptive * (1 - 1e-3)


def test_whole_channels_in_flight_only_take(monkeypatch):
    """Where many kinds share links, all flows of a channel count as soon as some are in flight: slower, never faster."""
    changes = ("cluster.fabric.routing=ecmp", "job.placement=scattered", "run.seed=5")
    monkeypatch.setattr(colossim.flows, "MOST_NEAR", 1000)
    near = step(*changes)
    monkeypatch.setattr(colossim.flows, "MOST_NEAR", 0)
    assert near < step(*changes) < 1.1 * near


def test_two_flows_on_one_link_move_at_half_its_rate():
    """Of pairs that the hash sends over one uplink each has half: rates are NIC / (flows on the fullest link), at most."""
    flows = pinned("cluster.fabric.routing=ecmp")
    number = next(i for i, c in enumerate(flows.traffic.channels) if c.name == "forward")
    mine = flows.channel == number
    rates = flows.pair_rates(mine)
    rows = flows.rows(np.flatnonzero(mine), nics=True)
    load = np.bincount(rows.where)
    assert load.max() > 1
    fullest = np.zeros(rates.size)
    np.maximum.at(fullest, rows.who, load[rows.where])
    line = flows.traffic.cluster.nic[0]
    assert np.all(rates >= line / fullest * (1 - 1e-12))
    assert np.all(rates <= line * (1 + 1e-12))
    assert rates.min() == pytest.approx(line / load.max())


@pytest.mark.slow
def test_more_queue_pairs_collide_less():
    """A step over 1, 4 and 16 queue pairs a flow, mean of five seeds: each is faster than the one before."""
    steps = [
        np.mean(
            [
                step("cluster.fabric.routing=ecmp", f"cluster.fabric.paths_per_flow={n}", f"run.seed={s}")
                for s in range(5)
            ]
        )
        for n in (1, 4, 16)
    ]
    assert steps[0] > steps[1] > steps[2]


def test_another_seed_is_another_hash():
    assert step("cluster.fabric.routing=ecmp", "run.seed=1") != step("cluster.fabric.routing=ecmp", "run.seed=2")
    assert step("cluster.fabric.routing=ecmp", "run.seed=1") == step("cluster.fabric.routing=ecmp", "run.seed=1")


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 6))])
@pytest.mark.parametrize("placement", ["packed", "scattered"])
def test_replicas_apart_stand_for_every_group(seed, placement, monkeypatch):
    """All 4 replicas apart, folded, against every rank and group by itself: tensor ranks of a replica wait for each other
    at every layer, so that only the slowest of their flows counts, up to what the others free a moment earlier.

    What overlap costs is said here: it moves which transfers meet, and no fit of the catalogue's should move the bound."""
    costs = ("job.software.overlap={compute: 0.3782, transfer: 0.3782}", "job.software.boundary_overlap=7.401 %")
    changes = ("cluster.fabric.routing=ecmp", f"run.seed={seed}", f"job.placement={placement}", *costs)
    monkeypatch.setattr(colossim.flows, "MOST_NEAR", 1000)
    whole = laid(*changes)
    times = {}
    for how in ("exact", "off"):
        quotient, pace = fold(whole.traffic, how, seed)
        times[how] = play_step(compile_setup(whole, quotient, pace)).step_time
    assert times["exact"] == pytest.approx(times["off"], rel=0.02)
    assert times["exact"] >= times["off"] * (1 - 1e-3)


def test_replicas_are_what_communicates_other_than_across_all():
    flows = pinned("cluster.fabric.routing=ecmp")
    replicas = flows.replicas
    assert replicas.max() + 1 == 4
    assert np.bincount(replicas).tolist() == [16] * 4
    assert sorted(np.unique(flows.apart(2)).tolist()) == [0, 1, 2]
    assert np.bincount(flows.apart(2)).tolist() == [32, 16, 16]


@pytest.mark.slow
def test_the_answer_says_what_it_leaves_out():
    result = simulate(load_scenario("colossus-100k", set=["cluster.fabric.routing=ecmp"]))
    assert any("4 of 192 replicas" in text for text in result.assumptions)
    assert result.step_time_s > simulate(load_scenario("colossus-100k")).step_time_s
