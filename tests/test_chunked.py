"""Fluid collectives against every message of every rank, on toy numbers.

Fluid: one activity a group, t = bytes/rate + latency. Chunked: each message pays its hop l_e and then c/B_e, c = S/(n C) in
a ring of n members on C lanes. K = passes x (n - 1) steps. L = what the slowest chunk's K hops add up to. Two views of a
channel: `overlap` (LogP: a message's latency is spent in flight, what scenarios play) and `serial` (Hockney: it occupies its
channel). On an idle network, B the slowest edge's rate and l its hop:

    fluid     K c/B + L
    overlap   K c/B + l  <=  chunked  <=  fluid;  equal where all edges are alike, and without bytes
    serial    K max(l_e + c/B_e)  >=  fluid
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from colossim import chunks, patterns, trees
from colossim.chunks import collective_messages
from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, build_cluster
from colossim.collective import PASSES, Library, MessageCost
from colossim.engine.chunked import Row, pipeline_rows, play_collective, play_messages, shape_of
from colossim.engine.clock import Clock
from colossim.engine.network import Activity, Network
from colossim.messages import SWITCH
from colossim.nccl import PAT_OVERLAP, PAT_RANK
from colossim.scenario.schema import ClusterSpec

US, MB = 1e-6, 1e6
#: Toy numbers: an NVLink sustains 280 GB/s = 7 lanes of 40, a NIC 80 % of 50 GB/s = 40; hops of 1 us and 9 us + switches.
NVLINK, NIC, NIC_PEAK = 280e9, 40e9, 50e9
BUILDERS = {
    "ring": patterns.ring,
    "hierarchical": patterns.hierarchical,
    "direct": patterns.all_to_all,
    "shift": patterns.shift,
    "tree": trees.tree,
    "nvls": trees.nvls,
    "pat": trees.pat,
}


def toy(nodes, nvlink_hop="1 us", network_hop="9 us", switch="1 us", **fabric):
    """Nodes of 8 GPUs. A network hop is 10 us on one leaf (9 + 1 switch), 12 us over the spine (9 + 3 switches)."""
    curve = {"bandwidth": "280 GB/s", "half_size": "0 B", "exponent": 0.6, "base": "0 s", "hop": nvlink_hop}
    node = {
        "base": "hgx-h100",
        "nvlink_ring": curve,
        "network": {"efficiency": "80 %", "base": "0 s", "hop": network_hop, "half_size": "0 B"},
    }
    facts = {"base": "spectrum-x", "efficiency": "100 %", "hop_latency": switch, "nodes_per_pod": 8, **fabric}
    return build_cluster(
        ClusterSpec.model_validate({"nodes": ({"type": node, "count": nodes},), "fabric": facts}),
    )


def strided(nodes, q, first=0):
    """q members in each of `nodes` nodes, on evenly spaced rails."""
    return np.array([8 * node + first + j * (8 // q) for node in range(nodes) for j in range(q)])


def fluid(cluster, groups, operation, size, algorithm):
    """s until each group has ended: its footprint as one activity on the same network, as the engine plays it."""
    library = Library(cluster.node_types, cluster.fabric.link)
    env = Clock()
    network = Network(env, cluster.capacity().tolist())
    activities = []
    for gpus in [groups] if np.ndim(groups[0]) == 0 else groups:
        footprint = BUILDERS[algorithm](cluster, gpus[None, :])
        assert footprint.usable[0]
        types = tuple(int(t) for t in np.unique(cluster.gpu_type[gpus]))
        t = library.price(operation, size, footprint.shape(0, algorithm, gpus.size, types), "simple")
        weight = loads(cluster, footprint)
        links = tuple((int(link), float(weight[link])) for link in np.flatnonzero(weight))
        activity = Activity(links, t.bytes, t.cap)
        activity.owner = Nobody()
        network.start(activity, t.latency)
        activities.append(activity)
    env.run()
    return [activity.ended for activity in activities]


def loads(cluster, footprint):
    """(links,) edges of the footprint of one group."""
    weight = np.zeros(cluster.links)
    for _, kind, column in footprint.own:
        weight[kind * cluster.gpus : (kind + 1) * cluster.gpus] += column
    np.add.at(weight, footprint.link, footprint.weight)
    return weight


def paces(cluster, members, operation, size, algorithm):
    library = Library(cluster.node_types, cluster.fabric.link)
    return library.message_cost(operation, size, shape_of(cluster, members, algorithm), "simple")


class Nobody:
    def ended(self, activity):
        pass


def edges_of(cluster, order, lanes, over=1.0):
    """(l_e, B_e) of a ring's edges: NVLink 280 GB/s over the C - 1 lanes that share it, a NIC 40, the spine 50/over x 2."""
    found = []
    for src, dst in zip(order, np.roll(order, -1), strict=True):
        route = cluster.routes(np.array([src]), np.array([dst]))
        if route.level[0] == 0:
            found.append((1 * US, NVLINK / max(1, lanes - 1)))
        else:
            pods = cluster.fabric.nodes_per_pod * NIC_PEAK / over
            found.append((9 * US + route.latency[0], min(NIC, pods) if route.level[0] > 1 else NIC))
    return found


# -- rings -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("operation", "steps"), [("all_reduce", 14), ("reduce_scatter", 7), ("all_gather", 7)])
def test_a_ring_of_equal_edges_is_its_closed_form(operation, steps, overlap):
    """8 GPUs of a node, 22.4 MB: chunks of 2.8 MB take 1 + 10 us a step: 14 x 11 = 2 (n-1)/n S/B + 2 (n-1) a = 140 + 14."""
    cluster, size = toy(1), 22.4 * MB
    run = play_collective(cluster, np.arange(8), operation, size, algorithm="ring", overlap=overlap)
    closed = steps / 8 * size / NVLINK + steps * US
    assert closed == pytest.approx(steps * 11 * US)
    assert run.seconds == pytest.approx(closed, rel=1e-12)
    assert fluid(cluster, np.arange(8), operation, size, "ring") == pytest.approx([closed], rel=1e-12)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("nodes", "pod"), [(8, 8), (4, 4), (2, 8)])
def test_a_ring_of_one_rank_a_node_is_its_closed_form(nodes, pod, overlap):
    """n chunks of 0.4 MB take 10 + 10 us each step on the network."""
    cluster, size = toy(nodes, nodes_per_pod=pod), nodes * 0.4 * MB
    run = play_collective(cluster, strided(nodes, 1), "all_reduce", size, algorithm="ring", overlap=overlap)
    assert run.seconds == pytest.approx(2 * (nodes - 1) * 20 * US, rel=1e-12)
    assert fluid(cluster, strided(nodes, 1), "all_reduce", size, "ring") == pytest.approx([run.seconds], rel=1e-12)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_flat_ring_over_nodes_of_equal_edges_is_its_closed_form(overlap):
    """2 x 8 GPUs with hops of 10 us everywhere, NVLink 7 x 40 GB/s: 8 lanes of 16 chunks of 0.4 MB: 30 steps of 20 us."""
    cluster, size = toy(2, nvlink_hop="10 us"), 8 * 16 * 0.4 * MB
    run = play_collective(cluster, np.arange(16), "all_reduce", size, algorithm="ring", overlap=overlap)
    assert run.seconds == pytest.approx(30 * 20 * US, rel=1e-12)
    assert fluid(cluster, np.arange(16), "all_reduce", size, "ring") == pytest.approx([run.seconds], rel=1e-12)


SHAPES = [
    *[(2, 8), (8, 1), (4, 4), (2, 4), (2, 2), (4, 2)],
    *[pytest.param(nodes, q, marks=pytest.mark.slow) for nodes, q in ((8, 2), (4, 8), (8, 4), (8, 8))],
]


@pytest.mark.parametrize("operation", ["all_reduce", "reduce_scatter", "all_gather"])
@pytest.mark.parametrize("over", [1.0, 4.0])
@pytest.mark.parametrize(("nodes", "q"), SHAPES)
def test_flat_rings_of_mixed_edges(nodes, q, over, operation):
    """overlap: K c/B + l <= chunked <= fluid = K c/B + L. serial: K max(l_e + c/B_e) = K (l_max + c/B).

    Pods of 2 nodes; at 4:1 the spine leaves 2 x 50/4 = 25 of 40 GB/s to the one edge of a lane that crosses. The slowest
    edge is the longest, too.
    """
    cluster = toy(nodes, nodes_per_pod=2, oversubscription=(over, 1.0))
    members, passes = strided(nodes, q), PASSES.get(operation, 1)
    n = nodes * q
    orders = chunks.ring_orders(cluster, members)
    edges = edges_of(cluster, orders[0], q, over)
    hops, rates = np.array([e[0] for e in edges]), np.array([e[1] for e in edges])
    for chunk in (0.04 * MB, 0.4 * MB, 4 * MB):
        size = chunk * n * q
        (closed,) = fluid(cluster, members, operation, size, "ring")
        exact = passes * (n - 1) * chunk / rates.min() + longest_way(hops, passes * (n - 1))
        # Where an all-reduce skips a network edge too, the fluid still pays its switch (q = 2), or skips the shorter one
        # twice (q = 1: of two neighbouring edges one is in a pod and one between).
        slip = {1: 2 * US, 2: US}.get(q, 0.0) if passes == 2 else 0.0
        assert exact * (1 - 1e-12) <= closed <= exact + slip + 1e-15
        serial = play_collective(cluster, members, operation, size, algorithm="ring").seconds
        assert serial == pytest.approx(passes * (n - 1) * (hops + chunk / rates).max(), rel=1e-9)
        overlap = play_collective(cluster, members, operation, size, algorithm="ring", overlap=True).seconds
        assert overlap <= closed * (1 + 1e-12)
        assert overlap >= (passes * (n - 1) * chunk / rates.min() + hops.max()) * (1 - 1e-12)
        assert overlap <= by_recurrence(edges, passes * (n - 1), chunk) * (1 + 1e-12)
        if q <= 2:
            # Rates stand still: a NIC or an NVLink has one lane.
            assert overlap == pytest.approx(by_recurrence(edges, passes * (n - 1), chunk), rel=1e-9)


def longest_way(hops, steps):
    """The largest sum of `steps` hops that follow each other round a ring."""
    round_twice = np.tile(hops, 2)
    return max(round_twice[e : e + steps].sum() for e in range(hops.size))


def by_recurrence(edges, steps, chunk):
    """end(k, e) = max(end(k-1, e-1) + l_e, end(k-1, e)) + c/B_e: a chunk has come, and the edge is free."""
    end = [hop + chunk / rate for hop, rate in edges]
    for _ in range(steps - 1):
        end = [max(end[e - 1] + hop, end[e]) + chunk / rate for e, (hop, rate) in enumerate(edges)]
    return max(end)


@pytest.mark.parametrize("operation", ["all_reduce", "reduce_scatter", "all_gather"])
@pytest.mark.parametrize(("nodes", "q"), [(1, 8), (4, 8), (4, 2), (4, 1), (2, 8), (2, 2), (8, 4), (3, 4)])
def test_without_bytes_a_ring_takes_the_fluids_latency(operation, nodes, q):
    """Then a chunk's way is all: passes x sum(l) but for the edges into its origin, one a pass, 1 us each where q > 2."""
    cluster, members = toy(nodes), strided(nodes, q)
    (closed,) = fluid(cluster, members, operation, 0.0, "ring")
    run = play_collective(cluster, members, operation, 0.0, algorithm="ring", overlap=True)
    # Of the network edge that an all-reduce of two ranks a node skips the fluid still pays the switch.
    switch = US if (operation, q) == ("all_reduce", 2) else 0.0
    assert run.seconds == pytest.approx(closed - switch, rel=1e-12)


def test_a_bottleneck_hides_the_latency_of_the_other_edges():
    """4 x 2 GPUs, chunks of 40 MB: a NIC moves 14 of them in 14 ms and waits for one hop only: the fluid adds 14 of them."""
    cluster, members, chunk = toy(4), strided(4, 2), 40 * MB
    (closed,) = fluid(cluster, members, "all_reduce", chunk * 8 * 2, "ring")
    assert closed == pytest.approx(14 * 1e-3 + (7 * 1 + 7 * 10 + 1) * US)
    run = play_collective(cluster, members, "all_reduce", chunk * 8 * 2, algorithm="ring", overlap=True)
    assert run.seconds == pytest.approx(14 * 1e-3 + 10 * US, rel=1e-12)


@pytest.mark.parametrize("slices", [2, 5])
def test_slices_of_a_ring(slices):
    """One node: serial pays each slice's hop: K (s l + c/B). overlap hides all but one: K c/B + l, if l < c/B (s - 1)/s."""
    cluster, size = toy(1), 22.4 * MB
    serial = play_collective(cluster, np.arange(8), "all_reduce", size, algorithm="ring", slices=slices).seconds
    assert serial == pytest.approx(14 * (slices * 1 + 10) * US, rel=1e-12)
    run = play_collective(cluster, np.arange(8), "all_reduce", size, algorithm="ring", slices=slices, overlap=True)
    assert run.seconds == pytest.approx((14 * 10 + 1) * US, rel=1e-12)


@pytest.mark.parametrize("nodes", [2, 3, 4, 5])
@pytest.mark.parametrize("q", [1, 2, 3, 8])
def test_rings_put_the_same_bytes_on_links_as_the_fluid(nodes, q):
    """Every lane is a ring through all members; loads are the footprint's, but that a relay joins where q = 2, N odd."""
    cluster = toy(nodes, nodes_per_pod=2, oversubscription=(4.0, 1.0))
    members = np.array([8 * node + j for node in range(nodes) for j in range(q)])
    orders = chunks.ring_orders(cluster, members)
    assert [sorted(order) for order in orders.tolist()] == [members.tolist()] * q
    run = play_collective(cluster, members, "all_gather", 1.0 * MB, algorithm="ring", overlap=True)
    counted = patterns.ring(cluster, members[None, :])
    expected = loads(cluster, counted)
    relays = np.zeros(cluster.links)
    if q == 2 and nodes % 2:
        closing = [(order[-1], order[0]) for order in orders.tolist()]
        assert all(src % 8 != dst % 8 for src, dst in closing)
        for src, dst in closing:
            relays[[NVLINK_OUT * cluster.gpus + src, NVLINK_IN * cluster.gpus + src // 8 * 8 + dst % 8]] += 1
    found = run.link_bytes / (counted.share[0] * MB)
    assert found == pytest.approx(expected + relays)


# -- hierarchical ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("nodes", "q"), [(2, 8), (4, 8), (8, 8), (4, 4), (8, 1)])
@pytest.mark.parametrize("operation", ["all_reduce", "reduce_scatter", "all_gather"])
@pytest.mark.parametrize("over", [1.0, 4.0])
def test_phases_of_a_hierarchy_add_up_but_the_fluid_overlaps_them(nodes, q, operation, over):
    """One slice: NVLink time V and network time X add up; the fluid takes the larger: chunked = fluid + min(V, X).

    passes x (q-1) steps of 1 us + S/(q 280 GB/s) in the node, passes x (N-1) of a hop + S/(n 40 GB/s) between nodes. Pods
    of 8 nodes, or of one at 4:1: then all network edges have 12.5 GB/s and a hop of 12 us.
    """
    cluster = toy(nodes) if over == 1 else toy(nodes, nodes_per_pod=1, oversubscription=(over, 1.0))
    rate, hop = (NIC, 10 * US) if over == 1 else (NIC_PEAK / 4, 12 * US)
    members, passes, size = strided(nodes, q), PASSES.get(operation, 1), nodes * q * 2 * MB
    inside, between = passes * (q - 1) / q * size / NVLINK, passes * (nodes - 1) / (nodes * q) * size / rate
    latency = passes * ((q - 1) * US + (nodes - 1) * hop)
    (closed,) = fluid(cluster, members, operation, size, "hierarchical")
    assert closed == pytest.approx(max(inside, between) + latency, rel=1e-12)
    run = play_collective(cluster, members, operation, size, algorithm="hierarchical")
    assert run.seconds == pytest.approx(inside + between + latency, rel=1e-9)
    assert run.seconds == pytest.approx(closed + min(inside, between), rel=1e-9)


@pytest.mark.parametrize("slices", [1, 2, 4, 8])
def test_slices_overlap_the_phases_of_a_hierarchy(slices):
    """Without latency, X >= V: the rails never rest once the first slice is scattered, the last is gathered: X + V/s."""
    cluster, size = toy(8, nvlink_hop="0 s", network_hop="0 s", switch="0 s", nodes_per_pod=8), 64 * MB
    cluster = replace(cluster, nic=cluster.nic / 4)
    members = strided(8, 4)
    inside, between = 2 * 3 / 4 * size / NVLINK, 2 * 7 / 32 * size / (NIC_PEAK / 4)
    assert between > inside
    assert fluid(cluster, members, "all_reduce", size, "hierarchical") == pytest.approx([between])
    run = play_collective(cluster, members, "all_reduce", size, algorithm="hierarchical", slices=slices)
    assert run.seconds == pytest.approx(between + inside / slices, rel=1e-9)


# -- all-to-all ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("nodes", "q"), [(1, 8), (2, 8), (4, 8), (8, 8), (8, 1), (4, 4)])
@pytest.mark.parametrize("over", [1.0, 4.0])
def test_an_all_to_all_without_relays_is_the_fluid(nodes, q, over):
    """All messages at once: one hop, and the fullest link's messages over its rate. Direct NICs (`rails: spine`).

    Messages to nearer leaves come 2 us earlier and leave their share to others: chunked is up to that much faster.
    """
    cluster = toy(nodes, nodes_per_pod=2, oversubscription=(over, 1.0), rails="spine")
    members, message = strided(nodes, q), 4 * MB
    (closed,) = fluid(cluster, members, "all_to_all", message * nodes * q, "direct")
    run = play_collective(cluster, members, "all_to_all", message * nodes * q, algorithm="direct")
    assert closed - 2 * US - 1e-12 <= run.seconds <= closed * (1 + 1e-12)
    if nodes == 1:
        assert run.seconds == pytest.approx(US + 7 * message / NVLINK)
    if over == 4 and nodes > 2:
        assert run.seconds == pytest.approx(closed, rel=1e-12), "the fullest link is a bundle; all its messages are far"


@pytest.mark.parametrize(("nodes", "q"), [(2, 8), (4, 8), pytest.param(8, 8, marks=pytest.mark.slow), (4, 4), (8, 1)])
@pytest.mark.parametrize("message", [0.04 * MB, 4 * MB])
def test_relays_of_an_all_to_all_are_exposed_until_the_nic_has_work(nodes, q, message):
    """PXN: of the n - q messages that leave by a NIC the N - 1 of its own rail go at once, the others after NVLink.

    NVLink moves (q-1) n/q messages: V = 1 us + (q-1) n/q m/280. The NIC: 10 us + max(V, (N-1) m/40) + (n-q-(N-1)) m/40;
    the fluid takes the larger of NVLink and NIC and one hop: fluid <= chunked <= fluid + V.
    """
    cluster, members, n = toy(nodes), strided(nodes, q), nodes * q
    (closed,) = fluid(cluster, members, "all_to_all", message * n, "direct")
    nvlink, nic = (q - 1) * n / q * message / NVLINK, (n - q) * message / NIC
    assert closed == pytest.approx(10 * US + max(nvlink, nic))
    run = play_collective(cluster, members, "all_to_all", message * n, algorithm="direct")
    own = (nodes - 1) * message / NIC
    relays = max(US + nvlink, own) if q > 1 else own
    assert run.seconds == pytest.approx(10 * US + relays + nic - own, rel=1e-9)
    assert closed * (1 - 1e-12) <= run.seconds <= closed + US + nvlink
    # Cut in slices, relays start early: the fluid's time, but for the first slice.
    cut = play_collective(cluster, members, "all_to_all", message * n, algorithm="direct", slices=4, overlap=True)
    assert closed * (1 - 1e-12) <= cut.seconds <= closed + (US + nvlink / 4 if q > 1 else 0.0) + 1e-12


@pytest.mark.parametrize("over", [1.0, 4.0])
@pytest.mark.parametrize(("nodes", "q"), [(3, 8), (4, 8), (8, 4)])
@pytest.mark.parametrize("message", [0.04 * MB, 4 * MB])
def test_relays_over_the_spine(nodes, q, message, over):
    """Pods of two nodes: as above, less the 2 us by which messages to the own leaf are earlier than the fluid's one hop."""
    cluster, members, n = toy(nodes, nodes_per_pod=2, oversubscription=(over, 1.0)), strided(nodes, q), nodes * q
    (closed,) = fluid(cluster, members, "all_to_all", message * n, "direct")
    run = play_collective(cluster, members, "all_to_all", message * n, algorithm="direct")
    relays = US + (q - 1) * n / q * message / NVLINK
    assert closed - 2 * US - 1e-12 <= run.seconds <= closed + relays


@pytest.mark.parametrize("window", [1, 2, 7])
def test_an_all_to_all_in_rounds_pays_a_hop_a_round(window):
    """8 ranks, one a node, `window` messages in flight: ceil(7/w) hops instead of one; bytes as before (each round waits
    for all messages of the one before): 10 us x ceil(7/w) + 7 x 0.4 MB/40 GB/s."""
    cluster = toy(8)
    run = play_collective(cluster, strided(8, 1), "all_to_all", 8 * 0.4 * MB, algorithm="direct", window=window)
    assert run.seconds == pytest.approx((-(-7 // window) * 10 + 70) * US, rel=1e-12)
    (closed,) = fluid(cluster, strided(8, 1), "all_to_all", 8 * 0.4 * MB, "direct")
    assert run.seconds == pytest.approx(closed + (-(-7 // window) - 1) * 10 * US, rel=1e-12)


# -- several groups --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("overlap", [False, True])
def test_equal_groups_share_what_they_cross(overlap):
    """Two rings of the same GPUs: 25 of the NIC's 50 GB/s each, not 40. Eight on a 4:1 fat-tree: 2 x 8 x 50/4/8 = 25."""
    members, size = strided(8, 1), 8 * 0.4 * MB
    for cluster, groups, step in (
        (toy(8), [members, members], 10 * US + 0.4 * MB / 25e9),
        (
            toy(8, type="fat-tree", nodes_per_pod=1, oversubscription=(4.0, 1.0)),
            [members + rail for rail in range(8)],
            12 * US + 0.4 * MB / 12.5e9,
        ),
    ):
        run = play_collective(cluster, groups, "all_reduce", size, algorithm="ring", overlap=overlap)
        assert run.group_end == pytest.approx([14 * step] * len(groups), rel=1e-12)
        assert fluid(cluster, groups, "all_reduce", size, "ring") == pytest.approx([14 * step] * len(groups), rel=1e-9)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("size", [0.64 * MB, 6.4 * MB, 64 * MB, 640 * MB])
def test_rings_of_different_length_meet(size, overlap):
    """8 and 4 nodes on one rail: 25 GB/s each where both run, 40 for who is left.

    The fluid pays its 6 (14) hops at once and moves without pause then; message by message, each step leaves the link to
    the other for a hop. The ends differ by less than those hops, 60 and 140 us; from the second on nothing is created:
    the NICs of both carry (14/8 + 6/4) S at 50 GB/s.
    """
    cluster, groups = toy(8), [strided(8, 1), strided(4, 1)]
    described = [collective_messages(cluster, m, "all_reduce", size, algorithm="ring") for m in groups]
    run = play_messages(
        cluster, described, [paces(cluster, m, "all_reduce", size, "ring") for m in groups], overlap=overlap
    )
    closed = fluid(cluster, groups, "all_reduce", size, "ring")
    assert abs(run.group_end[0] - closed[0]) < 140 * US
    assert abs(run.group_end[1] - closed[1]) < 60 * US
    assert run.seconds >= (14 / 8 + 6 / 4) * size / NIC_PEAK
    alone = [play_collective(cluster, m, "all_reduce", size, algorithm="ring").seconds for m in groups]
    assert np.all(run.group_end > alone)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_slow_nic_sets_the_pace_of_its_ring(overlap):
    """8 nodes, one NIC left with 10 of 50 GB/s: 14 steps of 10 us + 4 MB/10 GB/s; with overlap all hops hide
    but two: a chunk enters by the slow NIC and leaves by it."""
    built = toy(8)
    nic = built.nic.copy()
    nic[8] /= 5
    cluster, size = replace(built, nic=nic), 8 * 4 * MB
    closed = fluid(cluster, strided(8, 1), "all_reduce", size, "ring")
    assert closed == pytest.approx([14 * (10 * US + 4 * MB / 10e9)])
    run = play_collective(cluster, strided(8, 1), "all_reduce", size, algorithm="ring", overlap=overlap)
    assert run.seconds == pytest.approx(closed[0] - (12 * 10 * US if overlap else 0.0))


UNEVEN = [
    [*range(8), *range(8, 12)], [*range(8), 8, 9, 10, 16], [0, 1, 2, 8, 9], [3, 4, 12, 13, 14, 15, 20], [0, 7, 9, 10, 17],
]  # fmt: skip


@pytest.mark.parametrize("members", UNEVEN, ids=str)
def test_rings_of_unequal_nodes(members):
    """The fluid lets a lane leave a node where it entered. A path can't: NVLinks carry up to one lane's edge more or less,
    NICs and bundles the same. Large messages agree within the serial bound, K x (l_max) of latency."""
    cluster, members = toy(3), np.array(members)
    counted = patterns.ring(cluster, members[None, :])
    size = 1000 * MB
    (closed,) = fluid(cluster, members, "all_reduce", size, "ring")
    run = play_collective(cluster, members, "all_reduce", size, algorithm="ring")
    found, expected = run.link_bytes / (2 * counted.share[0] * size), loads(cluster, counted)
    nvlinks = 2 * cluster.gpus
    assert np.abs(found - expected)[:nvlinks].max() <= 1 + 1e-9
    nics = slice(NIC_OUT * cluster.gpus, 4 * cluster.gpus)
    assert found[nics].sum() == pytest.approx(expected[nics].sum())
    assert found[nics].max() == pytest.approx(expected[nics].max())
    assert closed <= run.seconds <= closed + 2 * (members.size - 1) * 10 * US


# -- tree, broadcast, shift --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8])
def test_both_trees_span_all_nodes_and_leaves_alternate(nodes):
    """NCCL's pair of trees: N - 1 edges each, depth about log2 N; for even N a leaf of one is not a leaf of the other."""
    first, second = (parents.tolist() for parents in trees.double_tree(nodes))
    for parents in (first, second):
        assert parents.count(-1) == 1
        for node in range(nodes):
            path = [node]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            assert len(path) - 1 <= np.ceil(np.log2(nodes)) + (nodes % 2)
        assert max(Counter(parents).values()) <= 2
    leaves = [set(range(nodes)) - set(parents) for parents in (first, second)]
    assert not leaves[0] & leaves[1] or nodes % 2


@pytest.mark.parametrize(("nodes", "q"), [(2, 1), (4, 1), (8, 1), (2, 8), (4, 2)])
def test_a_tree_puts_what_the_table_says(nodes, q):
    """NVLink 2 (q-1)/q S, NIC 2 (N-1)/N S/q in the mean and 2 S/q at most; without bytes 2 (q-1) a_v + 2 log2 N a_n."""
    cluster, members, size = toy(nodes), strided(nodes, q), 8 * MB
    run = play_collective(cluster, members, "all_reduce", size, algorithm="tree", slices=4)
    gpus = cluster.gpus
    for kind in (NVLINK_OUT, NVLINK_IN):
        assert run.link_bytes[kind * gpus + members] == pytest.approx(2 * (q - 1) / q * size)
    for kind in (NIC_OUT, NIC_IN):
        carried = run.link_bytes[kind * gpus + members]
        assert carried.mean() == pytest.approx(2 * (nodes - 1) / nodes * size / q)
        assert carried.max() <= 2 * size / q * (1 + 1e-12)
    empty = play_collective(cluster, members, "all_reduce", 0.0, algorithm="tree").seconds
    assert empty == pytest.approx(2 * (q - 1) * US + 2 * np.log2(nodes) * 10 * US)


def test_a_tree_of_two_nodes():
    """Each of both trees reduces 4 MB to one node and sends it back: 2 x (10 us + 4 MB/40 GB/s) = 2 a + S/B."""
    run = play_collective(toy(2), strided(2, 1), "all_reduce", 8 * MB, algorithm="tree")
    assert run.seconds == pytest.approx(2 * 10 * US + 8 * MB / NIC)


def test_a_pipelined_tree_nears_its_fullest_nic():
    """8 nodes: no NIC carries more than 2 S; from one slice to 32 the time falls to within a few slices of that."""
    cluster, members, size = toy(8), strided(8, 1), 640 * MB
    times = []
    for slices in (1, 4, 32):
        run = play_collective(cluster, members, "all_reduce", size, algorithm="tree", slices=slices, overlap=True)
        times.append(run.seconds)
        fullest = run.link_bytes[NIC_OUT * cluster.gpus :].max() / NIC
    assert times == sorted(times, reverse=True)
    assert fullest <= times[-1] <= fullest + 2 * 3 * 2 * (10 * US + size / 2 / 32 / NIC)


@pytest.mark.parametrize("slices", [1, 4, 8])
@pytest.mark.parametrize(
    ("nodes", "q"), [(2, 1), (3, 1), (4, 1), (5, 1), (8, 1), (2, 8), (4, 2), pytest.param(4, 8, marks=pytest.mark.slow)]
)
def test_a_tree_is_the_fluid_and_its_slices_on_their_way(nodes, q, slices):
    """Without bytes equal. With T of them on the fullest link, one of s slices takes T/s a hop at most, and H = 2 (depth + q-1)
    hops follow each other: max(latency, T) <= chunked <= fluid + (H - 1) T/s."""
    cluster, members = toy(nodes), strided(nodes, q)
    (latency,) = fluid(cluster, members, "all_reduce", 0.0, "tree")
    empty = play_collective(cluster, members, "all_reduce", 0.0, algorithm="tree", slices=slices, overlap=True).seconds
    assert empty == pytest.approx(latency, rel=1e-12)
    hops = 2 * (trees.tree(cluster, members[None, :]).network_steps[0] + q - 1)
    for size in (1 * MB, 64 * MB, 1024 * MB):
        (closed,) = fluid(cluster, members, "all_reduce", size, "tree")
        moving = closed - latency
        run = play_collective(cluster, members, "all_reduce", size, algorithm="tree", slices=slices, overlap=True)
        assert max(latency, moving) * (1 - 1e-9) <= run.seconds <= closed + (hops - 1) * moving / slices
        if nodes == 2 and q == 1 and slices == 1:
            assert run.seconds == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("operation", ["all_gather", "reduce_scatter"])
@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8, 13, 16])
def test_pat_is_the_fluid(nodes, operation):
    """ceil(log2 n) steps of hop/3.5 and (n-1)/n S at the NIC's rate: exactly, on one leaf, whatever the bytes."""
    cluster, members = toy(nodes, nodes_per_pod=16), strided(nodes, 1)
    for size in (0.0, 1 * MB, 64 * MB):
        (closed,) = fluid(cluster, members, operation, size, "pat")
        run = play_collective(cluster, members, operation, size, algorithm="pat", overlap=True)
        assert run.seconds == pytest.approx(closed, rel=1e-12)
    steps = np.ceil(np.log2(nodes))
    assert closed == pytest.approx(
        nodes * PAT_RANK + steps * (9 / PAT_OVERLAP + 1) * US + (nodes - 1) / nodes * size / NIC
    )


@pytest.mark.parametrize("nodes", [4, 8])
def test_pat_over_a_narrow_spine_waits_for_each_step(nodes):
    """Pods of two nodes at 4:1. Steps don't overlap, so each waits for its own fullest link, where the fluid takes the link
    that is fullest in all: fluid <= chunked <= the sum of the steps at 12.5 GB/s, a node's part of the spine."""
    cluster, members = toy(nodes, nodes_per_pod=2, oversubscription=(4.0, 1.0)), strided(nodes, 1)
    (closed,) = fluid(cluster, members, "all_gather", 64 * MB, "pat")
    (latency,) = fluid(cluster, members, "all_gather", 0.0, "pat")
    run = play_collective(cluster, members, "all_gather", 64 * MB, algorithm="pat", overlap=True)
    assert closed * (1 - 1e-12) <= run.seconds <= latency + (nodes - 1) / nodes * 64 * MB / (NIC_PEAK / 4) * (1 + 1e-12)


@pytest.mark.parametrize("slices", [1, 2, 8])
@pytest.mark.parametrize("size", [0.0, 1 * MB, 64 * MB])
def test_in_switch_reduction_is_the_fluid_and_one_slice(size, slices):
    """Up and down follow each other for each slice: chunked = fluid + (1 + 1/n) S/(s B)."""
    cluster, members = toy(1), np.arange(8)
    (closed,) = fluid(cluster, members, "all_reduce", size, "nvls")
    run = play_collective(cluster, members, "all_reduce", size, algorithm="nvls", slices=slices, overlap=True)
    nvls = cluster.node_types[0].nvls
    assert closed - nvls.base == pytest.approx((1 + 1 / 8) * size / nvls.bandwidth * nvls_ramp(nvls, size))
    assert run.seconds == pytest.approx(closed + (closed - nvls.base) / slices, rel=1e-12)
    gpus = cluster.gpus
    assert run.link_bytes[: 2 * gpus] == pytest.approx((1 + 1 / 8) * size)
    assert not run.link_bytes[2 * gpus :].any()


def nvls_ramp(curve, size):
    return 1.0 + (curve.half_size / size) ** curve.exponent if size else 1.0


@pytest.mark.parametrize("slices", [1, 3, 8])
def test_a_broadcast_fills_its_pipeline(slices):
    """(s + n - 2) (a + S/(s B)): 8 GPUs, 8.4 MB over 280 GB/s = 30 us."""
    run = play_collective(toy(1), np.arange(8), "broadcast", 8.4 * MB, algorithm="ring", slices=slices)
    step = (1 + 30 / slices) * US
    assert run.seconds == pytest.approx((slices + 6) * step, rel=1e-12)
    # The picture: slice j leaves edge e at (e + j + 1) steps.
    rows = pipeline_rows(run)
    assert len(rows) == 7 * slices
    assert rows[0] == Row(pytest.approx(1 * US), pytest.approx(step), 0, 0, (0, 1), 0, 0)
    for row in rows:
        assert row.end == pytest.approx((row.edge[0] + row.slice + 1) * step)
        assert row.end - row.start == pytest.approx(30 / slices * US)


def test_a_broadcast_over_nodes_reaches_everyone_once():
    cluster, members = toy(4), strided(4, 4)
    messages = collective_messages(cluster, members, "broadcast", 4.0, algorithm="ring")
    for lane in range(4):
        assert sorted(messages.dst[messages.lane == lane].tolist()) == members.tolist()[1:]


def test_a_message_crosses_the_links_of_its_route():
    """GPU 3 of pod 0 to GPU 5 of pod 1: NVLink to GPU 5 of its node, that NIC, leaf 5 up, leaf 8 + 5 down, the NIC."""
    cluster = toy(2, nodes_per_pod=1)
    run = play_collective(cluster, np.array([3, 13]), "broadcast", 4 * MB, algorithm="ring")
    up, down = cluster.bundle_offset(1, False), cluster.bundle_offset(1, True)
    links = [16 * NVLINK_OUT + 3, 16 * NVLINK_IN + 5, 16 * NIC_OUT + 5, 16 * NIC_IN + 13, up + 5, down + 13]
    assert {int(link): float(run.link_bytes[link]) for link in np.flatnonzero(run.link_bytes)} == dict.fromkeys(
        links, 4 * MB
    )
    assert run.seconds == pytest.approx(12 * US + 4 * MB / NIC)


def test_a_shift_is_one_message_each():
    """4 MB to the next: over NVLink 1 us + 4/280, over the NIC 10 us + 4/40 = 110 us: the fluid's time."""
    cluster, members = toy(2), np.arange(16)
    run = play_collective(cluster, members, "shift", 4 * MB, algorithm="shift")
    assert run.seconds == pytest.approx(110 * US)
    assert fluid(cluster, members, "shift", 4 * MB, "shift") == pytest.approx([110 * US])
    assert sorted(set(np.round(run.end / US, 6))) == pytest.approx([1 + 4 * MB / NVLINK / US, 110.0])


# -- the reference itself ----------------------------------------------------------------------------------------------
CASES = [(op, alg) for op, algorithms in chunks.ALGORITHMS.items() for alg in algorithms]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("operation", "algorithm"), CASES)
def test_nothing_starts_before_what_it_needs_and_channels_send_in_order(operation, algorithm, overlap):
    cluster, members = toy(3, nodes_per_pod=2, oversubscription=(4.0, 1.0)), np.array([0, 1, 5, 8, 9, 10, 17, 18, 23])
    if algorithm == "nvls":
        members = np.arange(8)
    elif operation == "send":
        members = np.array([17, 1])
    run = play_collective(cluster, members, operation, 9 * MB, algorithm=algorithm, slices=2, overlap=overlap)
    messages = run.messages
    assert np.all(run.ready[messages.waiter] >= run.end[messages.needed])
    ordered = messages.after >= 0
    assert np.all(run.start[ordered] >= run.end[messages.after[ordered]])
    # An NVSwitch's reduction has its latency in what it costs once.
    assert np.all(run.ready <= run.start if algorithm == "nvls" else run.ready < run.start)
    capacity = cluster.capacity()
    assert np.all(run.link_bytes <= capacity * run.seconds)
    for edge in {*zip(messages.lane, messages.src, messages.dst, strict=True)}:
        on = (messages.lane == edge[0]) & (messages.src == edge[1]) & (messages.dst == edge[2])
        assert (messages.after[on] < 0).sum() == 1, "one chain a lane and edge"


def contributors(messages, members, parts_of, seed):
    """Follows the data in a random order that waits allow: part -> GPU -> whose contributions it holds in the end."""
    draw = random.Random(seed)
    waiters = [[] for _ in range(messages.count)]
    missing = [0] * messages.count
    ordered = np.flatnonzero(messages.after >= 0)
    whats = [*messages.needed.tolist(), *messages.after[ordered].tolist()]
    for who, what in zip([*messages.waiter.tolist(), *ordered.tolist()], whats, strict=True):
        waiters[what].append(who)
        missing[who] += 1
    parts = {}
    ready = [i for i, left in enumerate(missing) if not left]
    while ready:
        i = ready.pop(draw.randrange(len(ready)))
        for part in parts_of(int(messages.lane[i]), int(messages.chunk[i]), int(messages.src[i])):
            holds = parts.setdefault(part, {SWITCH: set(), **{gpu: {gpu} for gpu in members.tolist()}})
            holds[int(messages.dst[i])] |= holds[int(messages.src[i])]
        for who in waiters[i]:
            missing[who] -= 1
            if not missing[who]:
                ready.append(who)
    assert not any(missing)
    return {part: {gpu: who for gpu, who in held.items() if gpu != SWITCH} for part, held in parts.items()}


@pytest.mark.parametrize(("nodes", "q"), [(1, 8), (3, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize(
    ("operation", "algorithm"), [case for case in CASES if case[0] in PASSES and "direct" not in case]
)
def test_the_messages_do_what_the_operation_says(operation, algorithm, nodes, q):
    """Every part of the buffer: all members hold everyone's (all-reduce), one does (reduce-scatter), all hold one's (gather).

    In a hierarchy member r of a node has reduced local chunk r + 1, which its rail then cuts in N.
    """
    cluster, members = toy(nodes), strided(nodes, q)
    if algorithm == "nvls" and nodes > 1:
        with pytest.raises(ValueError, match="one node"):
            collective_messages(cluster, members, operation, 1.0, algorithm=algorithm)
        return
    messages = collective_messages(cluster, members, operation, 1.0, algorithm=algorithm)

    def parts_of(lane, chunk, src):
        if algorithm == "pat":
            # The chunks that go over a distance: of the ranks m before (behind) whose lowest set bit it is.
            at, n = int(np.flatnonzero(members == src)[0]), members.size
            ways = [m for m in range(1, n) if m & -m == chunk]
            return [(at - (m - chunk)) % n if operation == "all_gather" else (at + m) % n for m in ways]
        if algorithm == "nvls":
            return [0]
        if algorithm != "hierarchical" or nodes == 1:
            return [(lane, chunk)]
        if lane >= 2:
            return [((lane - 2 + 1) % q, chunk)]
        return [((chunk + lane) % q, c) for c in range(nodes)]

    everyone = set(members.tolist())
    runs = [contributors(messages, members, parts_of, seed) for seed in range(5)]
    for held in itertools.chain.from_iterable(parts.values() for parts in runs):
        if operation == "all_reduce":
            assert all(what == everyone for what in held.values())
        elif operation == "reduce_scatter":
            assert everyone in held.values()
        else:
            assert set.intersection(*map(set, held.values()))
    if operation == "reduce_scatter":
        owners = Counter(gpu for held in runs[0].values() for gpu, what in held.items() if what == everyone)
        assert set(owners) == everyone
        assert len(set(owners.values())) == 1


def test_every_message_of_an_all_to_all_arrives():
    """From every member to every other, by the neighbour on the destination's rail where that is another."""
    cluster, members = toy(2), strided(2, 4)
    messages = collective_messages(cluster, members, "all_to_all", 8.0, algorithm="direct")
    ways = {}
    for lane, src, dst in zip(messages.lane.tolist(), messages.src.tolist(), messages.dst.tolist(), strict=True):
        ways.setdefault(lane, []).append((src, dst))
    expected = []
    for a in members.tolist():
        for b in members.tolist():
            via = a if a // 8 == b // 8 else a // 8 * 8 + b % 8
            if a != b:
                expected.append([(a, b)] if via == a else [(a, via), (via, b)])
    assert sorted(ways.values()) == sorted(expected)
    assert messages.size == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"operation": "all_gather", "algorithm": "tree"}, "all_gather by tree"),
        ({"members": np.array([3])}, "two GPUs"),
        ({"members": np.array([3, 1])}, "ascending"),
        ({"slices": 0}, "slices 0"),
    ],
)
def test_what_cannot_be_described(changes, words):
    asked = {"members": np.arange(4), "operation": "all_reduce", "algorithm": "ring", **changes}
    with pytest.raises(ValueError, match=words):
        collective_messages(
            toy(1),
            asked["members"],
            asked["operation"],
            1.0,
            algorithm=asked["algorithm"],
            slices=asked.get("slices", 1),
        )


def test_a_circle_is_found():
    cluster = toy(1)
    messages = collective_messages(cluster, np.arange(2), "shift", 1.0, algorithm="shift")
    circle = replace(messages, waiter=np.array([0, 1]), needed=np.array([1, 0]))
    with pytest.raises(RuntimeError, match="circle"):
        play_messages(cluster, [circle], [MessageCost(0.0, 0.0, 0.0, 1.0, 1.0)])
