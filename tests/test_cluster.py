"""Clusters: capacities by hand, links in order, what switches can't wire, and the graph."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from colossim import catalog
from colossim.cluster import LINK_KINDS, NIC_IN, NIC_OUT, NVLINK_OUT, build_cluster
from colossim.cluster.variation import expected_maximum, with_slowest
from colossim.errors import ScenarioError, SimulationError
from colossim.scenario.schema import ClusterSpec


def cluster(nodes=16, node="hgx-h100", fabric="spectrum-x", degraded=(), groups=None, **changes):
    facts = {"base": fabric, **changes}
    entries = groups or ({"type": node, "count": nodes},)
    return build_cluster(ClusterSpec.model_validate({"nodes": tuple(entries), "fabric": facts, "degraded": degraded}))


def problems(**arguments):
    with pytest.raises(ScenarioError) as caught:
        cluster(**arguments)
    return [(p.field, p.message) for p in caught.value.problems]


def test_a_full_pods_ports_make_a_leafs_bundle():
    """64 nodes a pod, a leaf a rail: 64 NICs of 50 GB/s x 95 %, halved by 2:1, also when the pod is part-filled."""
    built = cluster(nodes=65, oversubscription=(2.0, 1.0))
    leaf = 64 * 50e9 * 0.95 / 2
    assert built.bundle_capacity(1) == pytest.approx(np.full(2 * 8, leaf))
    assert built.bundle_capacity(2).size == 0, "one block needs no way out of it"


def test_a_blocks_bundle_has_both_ratios():
    """8 pods x 512 NICs x 47.5 GB/s over 2:1 and 7:1; 17 pods are 3 blocks."""
    built = cluster(nodes=16 * 64 + 1, oversubscription=(2.0, 7.0))
    assert built.bundle_capacity(2) == pytest.approx(np.full(3, 8 * 512 * 47.5e9 / 14))


def test_a_fat_trees_leaf_takes_all_nics_of_its_nodes():
    built = cluster(nodes=8, type="fat-tree", nodes_per_pod=4, tiers=2)
    assert built.bundle_capacity(1) == pytest.approx(np.full(2, 4 * 8 * 47.5e9))


def test_a_full_pod_of_racks_beside_nodes_with_more_rails_is_not_oversubscribed():
    """Racks put 72 GPUs on 4 rails: 18 NICs a leaf and node, so a leaf has 4 x 18 ports up at 1:1, with 8-rail nodes, too."""
    mixed = ({"type": "gb200-nvl72", "count": 4}, {"type": "hgx-h100", "count": 4})
    built = cluster(groups=mixed, nodes_per_pod=4, pods_per_block=1, switch_ports=144)
    assert built.bundle_capacity(1) == pytest.approx(np.full(2 * 8, 4 * 18 * 47.5e9))
    assert [built.can_bind(level) for level in (1, 2, 3)] == [False] * 3
    ((field, message),) = problems(groups=mixed, nodes_per_pod=4, pods_per_block=1, switch_ports=143)
    assert field == "cluster.fabric.nodes_per_pod"
    assert "3 nodes a pod would fit" in message, "143 ports are 71 down: 3 x 18"


def test_rails_without_a_gpu_need_no_leaf():
    """2 GPUs of an 8-rail node use 2 rails; beside full nodes on one tier, 6 rails could not be reached over NVLink."""
    half = {"base": "hgx-h100", "name": "half", "gpus": 2}
    built = cluster(groups=({"type": half, "count": 9},), nodes_per_pod=8, pods_per_block=1)
    assert built.bundle_capacity(1).size == 2 * 2
    both = ({"type": half, "count": 2}, {"type": "hgx-h100", "count": 2})
    ((field, message),) = problems(groups=both, tiers=1, oversubscription=())
    assert field == "cluster.fabric.rails"
    assert "tiers: 2" in message


def test_links_are_numbered_kind_by_kind():
    built = cluster(nodes=20, nodes_per_pod=8, pods_per_block=1)
    gpus = 160
    kinds = [built.link_kind_name(i) for i in range(built.links)]
    counts = {kind: kinds.count(kind) for kind in LINK_KINDS}
    assert counts == {
        "nvlink-out": gpus, "nvlink-in": gpus, "nic-out": gpus, "nic-in": gpus,
        "leaf-up": 24, "leaf-down": 24, "block-up": 3, "block-down": 3, "zone-up": 0, "zone-down": 0,
        "fabric": 0,
    }  # fmt: skip
    assert kinds == sorted(kinds, key=LINK_KINDS.index)
    assert built.capacity().size == built.links
    with pytest.raises(IndexError):
        built.link_kind_name(built.links)


def test_two_node_types_side_by_side():
    built = cluster(groups=({"type": "hgx-h100", "count": 2}, {"type": "gb200-nvl72", "count": 1}), nodes_per_pod=3)
    assert built.gpus == 2 * 8 + 72
    assert built.first_gpu.tolist() == [0, 8, 16]
    assert built.gpu_local[16:20].tolist() == [0, 1, 2, 3]
    assert built.gpu_rail[16:22].tolist() == [0, 1, 2, 3, 0, 1], "18 trays of 4 rails"
    assert built.nvlink[[0, 20]].tolist() == [450e9, 900e9]


def test_a_slower_nic_than_the_fabric_counts():
    """An A100 node's 200 Gb/s NIC on a 400 Gb/s fabric: 25 GB/s x 95 %."""
    assert cluster(node="dgx-a100", nodes=1).nic == pytest.approx(np.full(8, 25e9 * 0.95))


def test_degraded_links_keep_their_share():
    weak = ({"node": 1, "gpu": 2, "rate": "50 %"}, {"node": 0, "gpu": 0, "link": "nvlink", "rate": "25 %"})
    built = cluster(nodes=2, degraded=weak)
    assert built.nic[10] == pytest.approx(0.5 * 47.5e9)
    assert built.nvlink[0] == pytest.approx(0.25 * 450e9)
    capacity = built.capacity()
    assert capacity[NIC_OUT * 16 + 10] == capacity[NIC_IN * 16 + 10] == built.nic[10]
    assert capacity[NVLINK_OUT * 16] == built.nvlink[0]


@pytest.mark.parametrize(
    ("weak", "field", "word"),
    [
        ({"node": 2, "gpu": 0, "rate": "50 %"}, "cluster.degraded.0.node", "0 to 1"),
        ({"node": 0, "gpu": 8, "rate": "50 %"}, "cluster.degraded.0.gpu", "0 to 7"),
    ],
)
def test_a_degraded_link_that_is_not_there(weak, field, word):
    ((found, message),) = problems(nodes=2, degraded=(weak,))
    assert found == field
    assert word in message


def test_three_tiers_of_128_ports_end_at_524288_nics():
    """128^3 / 4 NICs at full bisection: 128 blocks of 4,096; one node more needs another tier."""
    nodes = 128**3 // 4 // 8
    assert cluster(nodes=nodes).gpus == 524_288
    ((field, message),) = problems(nodes=nodes + 1)
    assert field == "cluster.fabric"
    assert "65,536 nodes" in message
    assert "tiers: 4" in message
    assert cluster(nodes=nodes + 1, tiers=4).gpus == 524_296


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ({"nodes": 17, "type": "single-switch"}, "cluster.fabric.switch_ports", "136 GPUs"),
        ({"nodes": 65, "tiers": 1, "oversubscription": ()}, "cluster.fabric", "at most 64 nodes"),
        ({"nodes": 64 * 17, "tiers": 2, "oversubscription": ()}, "cluster.fabric", "at most 1,024 nodes"),
        ({"nodes_per_pod": 65}, "cluster.fabric.nodes_per_pod", "64 nodes a pod would fit"),
        ({"nodes": 64 * 9, "pods_per_block": 9}, "cluster.fabric.pods_per_block", "8 would fit"),
        ({"tiers": 1, "oversubscription": (), "rails": "spine"}, "cluster.fabric.rails", "tiers: 2"),
        ({"nodes": 65536 * 2, "tiers": 4, "blocks_per_zone": 65}, "cluster.fabric.blocks_per_zone", "64 would fit"),
    ],
)
def test_what_switches_cannot_wire(arguments, field, words):
    found = problems(**arguments)
    assert [f for f, _ in found] == [field]
    assert words in found[0][1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"nodes": 16, "type": "single-switch"},
        {"nodes": 1024, "tiers": 2, "oversubscription": ()},
        {"nodes_per_pod": 64},
        {"nodes": 64 * 9, "pods_per_block": 8},
        {"nodes": 65536 * 2, "tiers": 4, "blocks_per_zone": 64},
        {"nodes": 17, "type": "single-switch", "planes": 2},
        {"nodes": 85, "nodes_per_pod": 85, "oversubscription": (2.0, 1.0), "pods_per_block": 1},
    ],
)
def test_what_the_messages_suggest_can_be_wired(arguments):
    assert cluster(**arguments).gpus > 0


@pytest.mark.parametrize("nodes", [1, 20, 70])
def test_the_whole_graph_holds_every_link_of_the_cluster(nodes):
    built = cluster(nodes=nodes, nodes_per_pod=8, pods_per_block=2)
    graph = built.graph()
    kinds = {}
    for _, _, data in graph.edges(data=True):
        kinds.setdefault(data["kind"], []).append(data["capacity"])
    capacity = built.capacity()
    names = [built.link_kind_name(i) for i in range(built.links)]
    for kind in set(names):
        expected = [c for c, name in zip(capacity, names, strict=True) if name == kind]
        assert sorted(kinds[kind]) == pytest.approx(sorted(expected))
    assert sum(data["kind"] == "gpu" for _, data in graph.nodes(data=True)) == built.gpus


def test_the_folded_graph_counts_what_the_whole_one_holds():
    built = cluster(
        groups=({"type": "hgx-h100", "count": 30}, {"type": "hgx-h200", "count": 10}), nodes_per_pod=8, pods_per_block=2
    )
    whole, folded = built.graph(quotient=False), built.graph(quotient=True)
    for kind in ("gpu", "nvswitch", "leaf", "spine", "core"):
        count = sum(data["count"] for _, data in folded.nodes(data=True) if data["kind"] == kind)
        assert count == sum(data["kind"] == kind for _, data in whole.nodes(data=True)), kind
    for kind in ("nvlink-out", "nic-in", "leaf-up", "block-down"):
        links = [data for _, _, data in folded.edges(data=True) if data["kind"] == kind]
        assert sum(data["count"] for data in links) == sum(d["kind"] == kind for _, _, d in whole.edges(data=True)), (
            kind
        )


def test_a_large_cluster_has_its_folded_graph_only():
    built = cluster(nodes=12_500)
    assert built.graph().number_of_nodes() == 5
    with pytest.raises(SimulationError, match="quotient=True"):
        built.graph(quotient=False)


def test_only_oversubscribed_levels_can_bind():
    assert not cluster(nodes=128).can_bind(1)
    assert cluster(nodes=128, oversubscription=(1.5, 1.0)).can_bind(1)
    assert not cluster(nodes=70, oversubscription=(1.0, 7.0)).can_bind(2), "one block, no way out"
    # Eight nodes in pods of 64 that are 7:1: 8 NICs a leaf against ports for 64/7 of them.
    assert not cluster(nodes=8, oversubscription=(7.0, 1.0)).can_bind(1)


def test_catalogue_clusters_build():
    for fabric in catalog.names("fabrics"):
        node = "dgx-a100" if fabric == "selene-hdr" else "hgx-h100"
        assert cluster(nodes=40, node=node, fabric=fabric).nodes == 40


# -- GPUs that differ ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 8, 64, 1024, 98_304])
def test_the_slowest_of_many(n):
    """E[max of n] = the integral of x n phi(x) Phi(x)^(n-1), within 0.03; of two it is 1/sqrt(pi)."""
    x = np.linspace(-8, 8, 200_001)
    cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    exact = float(np.trapezoid(x * n * density * cdf ** (n - 1), x))
    assert expected_maximum(n) == pytest.approx(exact, abs=0.03)
    if n == 2:
        assert exact == pytest.approx(1 / math.sqrt(math.pi))


def test_a_job_has_its_slowest_gpus_of_each_type():
    """12 ranks on a node of H100 and half a node of H200: E[max of 8] and of 4. One GPU, a type that doesn't vary: the mean."""
    machines = cluster(groups=({"type": "hgx-h100", "count": 1}, {"type": "hgx-h200", "count": 1}))
    spreads = [t.gpu.spread for t in machines.node_types]
    paces = [t.gpu.pace for t in with_slowest(machines, 12).node_types]
    assert paces == pytest.approx([1 - spreads[0] * expected_maximum(8), 1 - spreads[1] * expected_maximum(4)])
    assert [t.gpu.pace for t in with_slowest(machines, 1).node_types] == [1.0, 1.0]
    even = tuple(t.model_copy(update={"gpu": t.gpu.model_copy(update={"spread": 0.0})}) for t in machines.node_types)
    assert with_slowest(replace(machines, node_types=even), 12).node_types == even
