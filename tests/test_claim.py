"""The vendor's claim, from the scenario itself: 95 % against 60 % is a fabric under a random permutation, two flows a NIC."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

import colossim
from colossim.cli import _run
from colossim.cluster import build_cluster
from colossim.offered import ends, offer

EFFICIENCY = 0.95


@functools.cache
def played(case):
    return offer(colossim.load_scenario("spectrum-x-claim", case=case))


def small(*changes):
    """two-pods: 128 NICs, 16 nodes, pods of 8; two tiers more above."""
    return colossim.load_scenario("two-pods", set=changes)


def test_two_hashed_flows_a_nic_get_sixty_percent():
    result = played("permutation, 2 flows")
    assert (result.gpus, result.flows, result.routing, result.queue_pairs) == (16_384, 32_768, "ecmp", 1)
    assert 0.57 <= result.nic_share["mean"] <= 0.62
    assert result.nic_share["min"] < 0.25


def test_sprayed_flows_get_what_congestion_control_leaves():
    """1.00 x the catalogue's efficiency: no NIC is held back by the fabric."""
    for case in ("permutation, adaptive", "all-to-all of 8, adaptive"):
        result = played(case)
        assert result.efficiency == pytest.approx(EFFICIENCY)
        assert [*result.nic_share.values(), *result.split_share.values()] == pytest.approx([EFFICIENCY] * 10)
        assert result.hottest == ()


def test_rings_in_rank_order_lose_nothing():
    """63 of 64 edges of a rail's ring stay on a leaf; the others have 64 uplinks for two flows."""
    result = played("rings in rank order")
    assert (result.routing, result.pattern) == ("ecmp", "shift")
    assert result.nic_share["mean"] == pytest.approx(EFFICIENCY, rel=0.005)


def test_more_flows_collide_less():
    """What 16,384 NICs were measured to get, of what the efficiency leaves: .446, .610, .764, .878, .945."""
    cases = ["1 flow", "2 flows", "4 flows", "8 flows", "16 flows"]
    shares = [played(f"permutation, {case}").nic_share["mean"] / EFFICIENCY for case in cases]
    assert shares == pytest.approx([0.446, 0.610, 0.764, 0.878, 0.945], abs=0.01)


@pytest.mark.slow
def test_the_step_loses_less_than_the_fabric():
    """The permutation loses 39 % of its rate. A step waits for its slowest flows, but spends most of its time elsewhere."""
    adaptive, ecmp, static = (
        colossim.simulate(colossim.load_scenario("spectrum-x-claim", case=f"step, {case}")).step_time_s
        for case in ("adaptive", "ecmp", "static")
    )
    assert 1.05 < ecmp / adaptive < 1.2
    assert 1 <= static / adaptive < 1.01


# -- the patterns --------------------------------------------------------------------------------------------------------
def test_patterns_are_what_they_say():
    scenario = small("traffic.pattern=permutation", "traffic.flows_per_nic=2")
    cluster = build_cluster(scenario.cluster)
    src, dst = ends(cluster, scenario.traffic, 0)
    assert src.tolist() == [*range(128)] * 2
    assert dst[:128].tolist() == dst[128:].tolist() != sorted(dst[:128])
    assert sorted(dst[:128]) == [*range(128)]

    by_a_pod = small("traffic.pattern=shift", "cluster.fabric.nodes_per_pod=8").traffic
    _, dst = ends(build_cluster(small("cluster.fabric.nodes_per_pod=8").cluster), by_a_pod, 0)
    assert dst.tolist() == np.roll(np.arange(128), -64).tolist()

    all_to_all = small("traffic.pattern=all_to_all", "traffic.flows_per_nic=3").traffic
    src, dst = ends(cluster, all_to_all, 0)
    assert sorted(dst[src == 9]) == sorted((9 + 32 * i) % 128 for i in (1, 2, 3)), "4 nodes each, 4 nodes apart"


def test_oversubscription_binds_sprayed_traffic():
    """All of a pod's NICs send to the other pod over half as many uplinks: each gets half of its rate."""
    shift = ("traffic.pattern=shift", "cluster.fabric.oversubscription=[2, 1]")
    share = offer(small(*shift)).nic_share
    assert list(share.values()) == pytest.approx([EFFICIENCY / 2] * 5)


@pytest.mark.parametrize("routing", ["ecmp", "static"])
def test_the_hottest_link_holds_its_flows_back(routing):
    result = offer(small("traffic.pattern=permutation", f"cluster.fabric.routing={routing}"))
    hot = result.hottest[0]
    assert hot["asked_share"] == pytest.approx(hot["flows"])
    assert result.nic_share["min"] <= EFFICIENCY / hot["flows"] * (1 + 1e-9)


def test_a_split_message_waits_for_its_slowest_queue_pair():
    """Queue pairs add up for a NIC's throughput; a message that is cut evenly moves at the slowest of them."""
    how = ("traffic.pattern=permutation", "cluster.fabric.routing=ecmp", "cluster.fabric.paths_per_flow=4")
    result = offer(small(*how))
    assert result.queue_pairs == 4
    assert all(result.split_share[key] <= result.nic_share[key] * (1 + 1e-9) for key in result.nic_share)
    assert result.split_share["mean"] < result.nic_share["mean"]


# -- words ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (["traffic.pattern=shift", "traffic.distance=16"], "traffic.distance", "ends where it began"),
        (["traffic.pattern=permutation", "traffic.distance=1"], "traffic.distance", "is a shift's"),
        (["traffic.pattern=all_to_all", "traffic.flows_per_nic=16"], "traffic.flows_per_nic", "at most 15"),
        (["traffic.pattern=permutation", "traffic.flows_per_nic=200000"], "traffic.flows_per_nic", "told apart"),
        (["traffic.pattern=ring"], "traffic.pattern", "ring"),
        (["traffic.flows_per_nic=2"], "traffic.pattern", ""),
    ],
)
def test_traffic_that_cannot_be_says_why(changes, field, words):
    with pytest.raises(colossim.ScenarioError) as raised:
        small(*changes)
    assert any(p.field == field and words in p.message for p in raised.value.problems), raised.value.problems


def test_a_step_and_a_fabric_are_not_mixed_up():
    with pytest.raises(colossim.ScenarioError, match="the fabric alone"):
        colossim.simulate(small("traffic.pattern=permutation"))
    with pytest.raises(ValueError, match="no `traffic`"):
        offer(small())


def test_run_plays_the_fabric(capsys, tmp_path):
    how = ["run", "two-pods", "--set", "traffic.pattern=permutation", "--set", "cluster.fabric.routing=ecmp", "--quiet"]
    assert _run([*how, "--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["played"], found["pattern"], found["flows_per_nic"], found["routing"]) == (
        "fabric",
        "permutation",
        1,
        "ecmp",
    )
    assert set(found["nic_share"]) == set(found["split_share"]) == {"min", "p1", "p5", "median", "mean"}
    assert json.loads((tmp_path / "summary.json").read_text()).keys() == found.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert _run(how) == 0
    page = capsys.readouterr().out
    assert "fabric alone" in page
    assert "Hottest: " in page
    assert max(len(line) for line in page.splitlines()) <= 80
