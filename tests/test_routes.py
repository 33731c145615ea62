"""Routes against a graph that is wired here, switch by switch, by somebody who doesn't know the cluster's arithmetic.

Folded and unfolded runs share their routes, so that nothing else would notice a wrong one.
"""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossim import catalog
from colossim.cluster import build_cluster
from colossim.scenario.schema import ClusterSpec

HOP = 1e-6


def node_type(gpus, rails):
    base = catalog.load("nodes", "hgx-h100")
    return base.model_copy(update={"name": f"{gpus}g{rails}r", "gpus": gpus, "rails": rails})


def fabric(**changes):
    base = catalog.load("fabrics", "spectrum-x")
    facts = {"switch_ports": 4096, "hop_latency": HOP, "efficiency": 1.0, "oversubscription": ()}
    return base.model_copy(update={**facts, **changes})


def cluster_of(groups, fabric_):
    spec = ClusterSpec.model_construct(
        nodes=tuple(_Group(kind, count) for kind, count in groups), fabric=fabric_, degraded=(), pue=1.0
    )
    return build_cluster(spec)


class _Group:
    def __init__(self, kind, count):
        self.type, self.count = kind, count


def wire(groups, fabric_):
    """The network, switch by switch: GPUs with their NICs, leaves, two spines a block, two cores a zone, one top switch."""
    graph = nx.Graph()
    place = {}
    gpu = node = 0
    for kind, count in groups:
        for _ in range(count):
            pod = 0 if fabric_.type == "single-switch" else node // fabric_.nodes_per_pod
            for local in range(kind.gpus):
                rail = local % kind.rails
                leaf = ("leaf", pod, rail if fabric_.type == "rail-optimized" else 0)
                graph.add_edge(("nic", gpu), leaf)
                place[gpu] = (node, rail, local)
                if fabric_.tiers > 1 and fabric_.type != "single-switch":
                    block = pod // fabric_.pods_per_block if fabric_.tiers > 2 else 0
                    for s in range(2):
                        spine = ("spine", block, s)
                        graph.add_edge(leaf, spine)
                        if fabric_.tiers > 2:
                            zone = block // fabric_.blocks_per_zone if fabric_.tiers > 3 else 0
                            core = ("core", zone, s)
                            graph.add_edge(spine, core)
                            if fabric_.tiers > 3:
                                graph.add_edge(core, ("top",))
                gpu += 1
            node += 1
    return graph, place


@st.composite
def fabrics(draw):
    # Rail-optimized thrice: there is most to go wrong.
    kind = draw(st.sampled_from(["rail-optimized", "rail-optimized", "rail-optimized", "fat-tree", "single-switch"]))
    return fabric(
        type=kind,
        tiers=draw(st.sampled_from([3, 4, 2, 1])) if kind != "single-switch" else 1,
        nodes_per_pod=draw(st.integers(1, 3)),
        pods_per_block=draw(st.integers(1, 3)),
        blocks_per_zone=draw(st.integers(1, 2)),
        rails=draw(st.sampled_from(["forward", "spine"])),
    )


@st.composite
def cases(draw):
    fabric_ = draw(fabrics())
    # Also nodes whose last tray is short of a rail, and nodes with fewer GPUs than rails.
    kinds = [node_type(*shape) for shape in ((4, 4), (4, 2), (2, 2), (5, 2), (2, 4))]
    groups = [(draw(st.sampled_from(kinds)), draw(st.integers(1, 4))) for _ in range(draw(st.integers(1, 2)))]
    if fabric_.tiers == 1 and fabric_.type != "single-switch":
        # One tier joins one pod, and rails meet in the nodes.
        groups = [(kinds[0], count) for _, count in groups]
        fabric_ = fabric_.model_copy(update={"nodes_per_pod": sum(count for _, count in groups), "rails": "forward"})
    return groups, fabric_


def links_on(path):
    """Names of the bundles that a path of the wired graph crosses: the way up and the way down of what is below."""
    names = set()
    for here, there in itertools.pairwise(path):
        for low, high, way in ((here, there, "up"), (there, here, "down")):
            if (low[0], high[0]) in (("leaf", "spine"), ("spine", "core"), ("core", "top")):
                # Members of a bundle differ in the last index of a spine or a core only.
                names.add((way, low if low[0] == "leaf" else low[:2]))
    return names


def links_of(cluster, level, exit_gpu, dst):
    """Numbers of the bundles of a route, as `Routes` says."""
    places = (cluster.leaf, cluster.block, cluster.zone)
    return {
        cluster.bundle_offset(tier, down) + int(places[tier - 1](np.array([end]))[0])
        for tier in range(1, int(level))
        for end, down in ((exit_gpu, False), (dst, True))
    }


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_every_route_is_the_shortest_path(case):
    """Level, exit GPU, latency and bundles of every pair of GPUs; one number a bundle, whichever pair crosses it."""
    groups, fabric_ = case
    cluster = cluster_of(groups, fabric_)
    graph, place = wire(groups, fabric_)
    pairs = list(itertools.permutations(range(cluster.gpus), 2))
    src, dst = np.array(pairs).T
    routes = cluster.routes(src, dst)
    paths = dict(nx.all_pairs_shortest_path(graph))
    numbers = {}
    for (a, b), level, exit_gpu, latency in zip(pairs, routes.level, routes.exit_gpu, routes.latency, strict=True):
        if place[a][0] == place[b][0]:
            assert (level, latency) == (0, 0.0)
            continue
        forwards = fabric_.type == "rail-optimized" and fabric_.rails == "forward"
        leaves_by = int(exit_gpu)
        assert place[leaves_by][0] == place[a][0], "a message leaves by its own node"
        if not forwards or place[a][1] == place[b][1]:
            assert leaves_by == a
        elif any(p[0] == place[a][0] and p[1] == place[b][1] for p in place.values()):
            assert place[leaves_by][1] == place[b][1], "forwarded over NVLink to the destination's rail"
            node, rail, local = place[a]
            tray = {g for g, p in place.items() if p[0] == node and p[2] - p[1] == local - rail}
            if any(place[g][1] == place[b][1] for g in tray):
                assert leaves_by in tray
        else:
            assert leaves_by == a, "a node without the destination's rail sends over the spine"
        path = paths["nic", leaves_by]["nic", b]
        switches = len(path) - 2
        assert latency == pytest.approx(switches * HOP)
        assert level == (switches + 1) // 2
        names, links = links_on(path), links_of(cluster, level, leaves_by, b)
        assert len(names) == len(links) == 2 * (level - 1)
        for way, below in names:
            tier = 1 + ("leaf", "spine", "core").index(below[0])
            first, size = cluster.bundle_offset(tier, way == "down"), cluster.bundle_capacity(tier).size
            (number,) = (link for link in links if first <= link < first + size)
            assert numbers.setdefault((way, below), number) == number, "a bundle has one number"
            assert cluster.link_kind_name(number) == f"{('leaf', 'block', 'zone')[tier - 1]}-{way}"
    assert len(set(numbers.values())) == len(numbers), "two bundles don't share a number"


def test_forwarding_in_a_rack_of_trays_stays_in_the_tray():
    """72 GPUs on 4 rails: a message for rail 3 from GPU 9 (tray 2) leaves by GPU 11 of the same tray."""
    rack = catalog.load("nodes", "gb200-nvl72")
    cluster = cluster_of([(rack, 2)], fabric(tiers=2, nodes_per_pod=1))
    routes = cluster.routes(np.array([9]), np.array([72 + 3]))
    assert routes.exit_gpu.tolist() == [11]
    assert routes.level.tolist() == [2], "each rack is a pod, which meet over the spines"


def test_a_node_without_the_rail_sends_over_the_spine():
    """2 GPUs of a 4-rail node beside 4: rail 1 is a neighbour's, rail 3 has no GPU there, whatever the node could hold."""
    cluster = cluster_of([(node_type(2, 4), 2), (node_type(4, 4), 1)], fabric(tiers=2, nodes_per_pod=3))
    routes = cluster.routes(np.array([0, 0, 7]), np.array([5, 7, 0]))
    assert routes.exit_gpu.tolist() == [1, 0, 4]
    assert routes.level.tolist() == [1, 2, 1]


def test_the_last_tray_may_be_short_of_a_rail():
    """5 GPUs on 2 rails: GPU 4 is alone in its tray, so a message for rail 1 leaves by GPU 3, not by the next node's 5."""
    cluster = cluster_of([(node_type(5, 2), 2)], fabric(tiers=2, nodes_per_pod=2))
    routes = cluster.routes(np.array([4, 2]), np.array([8, 8]))
    assert cluster.gpu_rail[8] == 1
    assert routes.exit_gpu.tolist() == [3, 3]
    assert routes.level.tolist() == [1, 1]
