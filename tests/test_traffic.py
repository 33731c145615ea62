"""Who talks to whom, and what each pattern puts on links, against plain loops over ranks and edges."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossim import dispatch, patterns, trees
from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster, build_cluster
from colossim.layout import lay_out
from colossim.scenario.derive import derive
from colossim.scenario.plan import NodeLimit
from colossim.scenario.reader import load_scenario
from colossim.scenario.schema import ClusterSpec
from colossim.traffic import group_members, stage_of_ranks
from colossim.workload.program import used_operations


def cluster(nodes=8, **changes):
    facts = {"base": "spectrum-x", "nodes_per_pod": 2, "pods_per_block": 2, "oversubscription": (2, 2), **changes}
    return build_cluster(
        ClusterSpec.model_validate({"nodes": ({"type": "hgx-h100", "count": nodes},), "fabric": facts})
    )


def own(footprint, kind, gpu):
    return sum(column[gpu] for _, k, column in footprint.own if k == kind)


def crossed(footprint, cluster_, group=0):
    """link kind -> summed weight of further links of a group."""
    total = Counter()
    for g, link, weight in zip(footprint.group, footprint.link, footprint.weight, strict=True):
        if g == group:
            total[cluster_.link_kind_name(int(link))] += weight
    return total


# -- groups ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ([], "two-pods"),
        (["job.parallelism.order=[data, tensor, pipeline, expert, context]"], "two-pods"),
        (["job.model=mixtral-8x22b", "job.parallelism.expert=4", "job.parallelism.context=2"], "two-pods"),
        # Three replicas of two contexts: an expert group of 2 spans both contexts.
        (
            [
                *["job.model=mixtral-8x22b", "job.parallelism.expert=2", "job.parallelism.context=2"],
                *["job.parallelism.data=3", "job.global_batch=24"],
            ],
            "two-pods",
        ),
    ],
)  # fmt: skip
def test_groups_by_coordinates(changes, name):
    """A rank's coordinates are digits of its number, `order`'s first axis fastest; groups hold the rest fixed."""
    plan = derive(load_scenario(name, set=changes))
    coordinates = []
    for rank in range(plan.world):
        digits, left = {}, rank
        for axis in plan.order:
            digits[axis] = left % plan.axes[axis]
            left //= plan.axes[axis]
        coordinates.append(digits)
    inner = plan.expert_context

    def groups(key):
        found = {}
        for rank, at in enumerate(coordinates):
            found.setdefault(key(at), []).append(rank)
        return sorted(found.values())

    expected = {
        "tensor": groups(lambda at: (at["context"], at["expert"], at["data"], at["pipeline"])),
        "context": groups(lambda at: (at["tensor"], at["expert"], at["data"], at["pipeline"])),
        "expert": groups(lambda at: (at["tensor"], at["context"] // inner, at["data"], at["pipeline"])),
        "data": groups(lambda at: (at["tensor"], at["pipeline"])),
        "amax": groups(lambda at: (at["pipeline"],)),
        "expert_data": groups(lambda at: (at["tensor"], at["pipeline"], at["expert"], at["context"] % inner)),
    }
    found = group_members(plan)
    for channel, members in found.items():
        if channel in expected:
            assert sorted(sorted(row) for row in members.tolist()) == expected[channel], channel
    assert {c for c, rows in expected.items() if len(rows[0]) > 1 and (c != "expert_data" or plan.expert > 1)} <= set(
        found
    )
    stage = stage_of_ranks(plan)
    assert stage.tolist() == [at["pipeline"] for at in coordinates]
    for a, b in found["forward"].tolist():
        assert (stage[a] + 1) % plan.pipeline == stage[b]
        assert {k: v for k, v in coordinates[a].items() if k != "pipeline"} == {
            k: v for k, v in coordinates[b].items() if k != "pipeline"
        }
    for a, b in found["embedding"].tolist():
        assert (stage[a], stage[b]) == (0, plan.pipeline - 1)
        assert coordinates[a] | {"pipeline": 0} == coordinates[b] | {"pipeline": 0}
    assert len(found["embedding"]) == plan.world // plan.pipeline
    assert found["backward"].tolist() == [[b, a] for a, b in found["forward"].tolist()]


def test_only_used_operations_are_built():
    laid = lay_out(load_scenario("two-pods"))
    assert set(used_operations(laid.shares.programs)) == {"tensor", "data", "forward", "backward"}
    assert {c.name for c in laid.traffic.channels} == {"tensor", "data", "forward", "backward"}


# -- patterns against the table of network.md --------------------------------------------------------------------------
def strided(nodes, q):
    """q members in each of `nodes` nodes, on evenly spaced rails."""
    return np.array([[8 * node + j * (8 // q) for node in range(nodes) for j in range(q)]])


@pytest.mark.parametrize("q", [1, 2, 4, 8])
@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_a_flat_ring_puts_what_the_table_says(q, nodes):
    """Per pass: NVLink (q-1)/q (n-1)/n S, NIC (n-1)/(n q) S; N network and n-N NVLink edges, whose switches count."""
    built = cluster(nodes=nodes, nodes_per_pod=8)
    members = strided(nodes, q)
    print_ = patterns.ring(built, members)
    n = nodes * q
    share = print_.share[0]
    for gpu in members[0]:
        for kinds, expected in (
            ((NVLINK_OUT, NVLINK_IN), (q - 1) / q * (n - 1) / n),
            ((NIC_OUT, NIC_IN), (n - 1) / (n * q)),
        ):
            for kind in kinds:
                assert share * own(print_, kind, gpu) == pytest.approx(expected)
    others = [g for g in range(built.gpus) if g not in members]
    assert not any(own(print_, kind, g) for kind in range(4) for g in others)
    assert (print_.nvlink_steps[0], print_.network_steps[0]) == (n - nodes, nodes)
    # A pass skips the shortest edge: one over the network if each node has one member, else one that has no switch.
    assert print_.switches[0] == pytest.approx((nodes - (q == 1)) * 600e-9)


def test_a_ring_in_a_node_is_one_lane():
    built = cluster()
    print_ = patterns.ring(built, np.arange(8)[None, :])
    assert print_.share[0] == 7 / 8
    assert [own(print_, kind, 3) for kind in range(4)] == [1, 1, 0, 0]
    assert (print_.nvlink_steps[0], print_.network_steps[0], print_.switches[0]) == (7, 0, 0)


def test_a_ring_crosses_each_pod_once_each_way():
    """8 nodes in 4 pods of two blocks, one rank a node: an edge out of each pod, and out of each block."""
    built = cluster()
    members = strided(8, 1)
    print_ = patterns.ring(built, members)
    assert crossed(print_, built) == {"leaf-up": 4, "leaf-down": 4, "block-up": 2, "block-down": 2}
    assert print_.crossings[:, 0].tolist() == [4, 2, 0]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_rings_of_unequal_nodes_by_enumeration(data):
    """C = max q lanes; lane k leaves node i by member floor(k q_i / C) and enters the next by floor(k q_j / C)."""
    built = cluster(nodes=6)
    chosen = sorted(data.draw(st.sets(st.integers(0, 47), min_size=2, max_size=14)))
    print_ = patterns.ring(built, np.array([chosen]))
    by_node = [list(rows) for _, rows in itertools.groupby(chosen, key=lambda g: g // 8)]
    lanes = max(len(rows) for rows in by_node) if len(by_node) > 1 else 1
    count = Counter()
    for lane in range(lanes):
        for i, rows in enumerate(by_node):
            after = by_node[(i + 1) % len(by_node)]
            if len(by_node) == 1:
                for gpu in rows:
                    count[NVLINK_OUT, gpu] += 1
                    count[NVLINK_IN, gpu] += 1
                continue
            leaves, enters = rows[lane * len(rows) // lanes], after[lane * len(after) // lanes]
            entered = rows[lane * len(rows) // lanes]
            for gpu in rows:
                count[NVLINK_OUT, gpu] += gpu != leaves
                count[NVLINK_IN, gpu] += gpu != entered
            forwarder = leaves // 8 * 8 + enters % 8
            if forwarder != leaves:
                count[NVLINK_OUT, leaves] += 1
                count[NVLINK_IN, forwarder] += 1
            count[NIC_OUT, forwarder] += 1
            count[NIC_IN, enters] += 1
    total = Counter()
    for kind in range(4):
        for gpu in range(built.gpus):
            total[kind, gpu] += own(print_, kind, gpu)
    for link, weight in zip(print_.link, print_.weight, strict=True):
        if link < 4 * built.gpus:
            total[int(link) // built.gpus, int(link) % built.gpus] += weight
    assert +total == +count
    ups = crossed(print_, built)
    assert ups["leaf-up"] == ups["leaf-down"]
    assert sum(v for (k, _), v in total.items() if k == NIC_OUT) == sum(v for (k, _), v in total.items() if k == NIC_IN)


def messages(members):
    return [(a, b) for a in members for b in members if a != b]


@pytest.mark.parametrize("q", [1, 2, 8])
@pytest.mark.parametrize("rails", ["forward", "spine"])
def test_an_all_to_all_by_enumeration(q, rails):
    """Every message from every member to every other, each on its way; PXN sends on the rail of the destination."""
    built = cluster(rails=rails)
    members = strided(8, q)
    print_ = patterns.all_to_all(built, members)
    count, ups = Counter(), Counter()
    for a, b in messages(members[0].tolist()):
        if a // 8 == b // 8:
            count[NVLINK_OUT, a] += 1
            count[NVLINK_IN, b] += 1
            continue
        leaves = a // 8 * 8 + b % 8 if rails == "forward" else a
        if leaves != a:
            count[NVLINK_OUT, a] += 1
            count[NVLINK_IN, leaves] += 1
        count[NIC_OUT, leaves] += 1
        count[NIC_IN, b] += 1
        routes = built.routes(np.array([a]), np.array([b]))
        ups["leaf-up"] += routes.level[0] > 1
        ups["block-up"] += routes.level[0] > 2
    for kind in range(4):
        for gpu in members[0]:
            assert own(print_, kind, gpu) == pytest.approx(count[kind, gpu])
    found = crossed(print_, built)
    assert found["leaf-up"] == found["leaf-down"] == ups["leaf-up"]
    assert found["block-up"] == found["block-down"] == ups["block-up"]
    n = 8 * q
    assert print_.share[0] == 1 / n


def test_an_all_to_all_in_the_table():
    """q = 8: NVLink 7/8 S, NIC (n-8)/n S, leaf-up P x (n-8P)/n S of a pod of P nodes."""
    built = cluster()
    print_ = patterns.all_to_all(built, strided(8, 8))
    n, pod = 64, 2
    assert print_.share[0] * own(print_, NVLINK_OUT, 5) == pytest.approx(7 / 8)
    assert print_.share[0] * own(print_, NIC_OUT, 5) == pytest.approx((n - 8) / n)
    leaf = built.bundle_offset(1, False)
    assert print_.share[0] * print_.weight[print_.link == leaf].sum() == pytest.approx(pod * (n - 8 * pod) / n)


@pytest.mark.parametrize(
    ("src", "dst", "kinds"),
    [(0, 1, (NVLINK_OUT, NVLINK_IN)), (0, 8, (NIC_OUT, NIC_IN)), (3, 8 * 7 + 3, (NIC_OUT, NIC_IN))],
)
def test_a_pair_uses_one_way(src, dst, kinds):
    built = cluster()
    print_ = patterns.pair(built, np.array([[src, dst]]))
    assert own(print_, kinds[0], src) == own(print_, kinds[1], dst) == 1
    assert sum(own(print_, kind, gpu) for kind in range(4) for gpu in range(built.gpus)) == 2
    level = built.routes(np.array([src]), np.array([dst])).level[0]
    assert print_.crossings[:, 0].tolist() == [float(level > 1), float(level > 2), 0.0]


def test_a_shift_sends_once_and_receives_once():
    built = cluster()
    members = strided(4, 2)
    print_ = patterns.shift(built, members)
    for gpu in members[0]:
        assert own(print_, NVLINK_OUT, gpu) + own(print_, NIC_OUT, gpu) <= 1
        assert own(print_, NVLINK_IN, gpu) + own(print_, NIC_IN, gpu) >= 1


# -- slack -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ratio", [1, 1.5, 7])
def test_slack_is_what_the_feeding_nics_cannot_fill(ratio):
    """A bundle is slack if the NICs with traffic through it sum to no more than it carries: by loops over edges."""
    changes = [
        f"cluster.fabric.oversubscription=[{ratio}, 1]",
        "cluster.fabric.nodes_per_pod=4",
        "cluster.fabric.pods_per_block=8",
    ]
    laid = lay_out(load_scenario("two-pods", set=changes))
    traffic, built = laid.traffic, laid.cluster
    capacity = built.capacity()
    feeding = {}
    for channel in traffic.channels:
        for members in channel.members.tolist():
            pairs = (
                [members]
                if channel.name in ("forward", "backward")
                else list(zip(members, members[1:] + members[:1], strict=True))
            )
            for a, b in pairs:
                route = built.routes(np.array([a]), np.array([b]))
                if route.level[0] > 1:
                    up = built.bundle_offset(1, False) + int(built.leaf(route.exit_gpu)[0])
                    feeding.setdefault(up, set()).add(int(route.exit_gpu[0]))
    for leaf in range(built.bundle_capacity(1).size):
        link = built.bundle_offset(1, False) + leaf
        fed = sum(built.nic[gpu] for gpu in feeding.get(link, ()))
        assert traffic.slack[link] == (fed <= capacity[link] * (1 + 1e-9)), leaf
    assert traffic.slack[: 4 * built.gpus].sum() == 0, "only bundles are slack"


# -- the same for any members, by the way of each message ----------------------------------------------------------------
LEAVES_BLOCKS_ZONES = (1, 2, 3)


def random_cluster(draw):
    """Nodes of 8 GPUs on 8 rails, of 8, 6 and 72 on 4; pods, blocks and zones of few nodes, all oversubscribed."""
    trays = {"base": "hgx-h100", "name": "trays", "rails": 4}
    ragged = {"base": "hgx-h100", "name": "ragged", "gpus": 6, "rails": 4}
    groups = [{"type": draw.choice(["hgx-h100", "hgx-h100", trays, ragged]), "count": draw.randint(1, 5)}]
    if draw.random() < 0.4:
        groups.append({"type": "gb200-nvl72", "count": draw.randint(1, 2)})
    draw.shuffle(groups)
    tiers = draw.choice([2, 3, 4])
    fabric = {
        "base": "spectrum-x",
        "type": draw.choice(["rail-optimized"] * 3 + ["fat-tree"]),
        "rails": draw.choice(["forward", "spine"]),
        "tiers": tiers,
        "switch_ports": 16384,
        "nodes_per_pod": draw.randint(1, 3),
        "pods_per_block": draw.randint(1, 2),
        "blocks_per_zone": draw.randint(1, 2),
        "oversubscription": (2,) * (tiers - 1),
    }
    return build_cluster(ClusterSpec.model_validate({"nodes": tuple(groups), "fabric": fabric}))


def by_messages(built, pairs):
    """Messages a link, and which (direction, level, GPU) feed bundles, from the route of one message after the other."""
    count, feeds = Counter(), set()
    places = dict(zip(LEAVES_BLOCKS_ZONES, (built.leaf, built.block, built.zone), strict=True))
    for a, b in pairs:
        route = built.routes(np.array([a]), np.array([b]))
        level, via = int(route.level[0]), int(route.exit_gpu[0])
        if level == 0:
            count[NVLINK_OUT * built.gpus + a] += 1
            count[NVLINK_IN * built.gpus + b] += 1
            continue
        if via != a:
            count[NVLINK_OUT * built.gpus + a] += 1
            count[NVLINK_IN * built.gpus + via] += 1
        count[NIC_OUT * built.gpus + via] += 1
        count[NIC_IN * built.gpus + b] += 1
        for crossed_level in LEAVES_BLOCKS_ZONES[: level - 1]:
            feeds |= {(0, crossed_level, via), (1, crossed_level, b)}
            if built.can_bind(crossed_level):
                place = places[crossed_level]
                count[built.bundle_offset(crossed_level, False) + int(place(np.array([via]))[0])] += 1
                count[built.bundle_offset(crossed_level, True) + int(place(np.array([b]))[0])] += 1
    return count, feeds


PATTERNS = {
    "pair": (patterns.pair, lambda m: [(m[0], m[1])]),
    "shift": (patterns.shift, lambda m: list(zip(m, m[1:] + m[:1], strict=True))),
    "all_to_all": (patterns.all_to_all, messages),
}


def random_groups():
    """(seed, cluster, members): some GPUs at equal strides, of which two at least are in the cluster."""
    for seed in range(250):
        draw = random.Random(seed)
        built = random_cluster(draw)
        n, stride = draw.choice([2, 3, 4, 6, 8, 18]), draw.choice([1, 2, 3, 4, 6, 8, 9, 16])
        start = draw.randrange(max(1, built.gpus - stride * (n - 1)))
        members = [gpu for gpu in range(start, start + stride * n, stride) if gpu < built.gpus]
        if len(members) < 2:
            continue
        yield seed, built, members


@pytest.mark.parametrize("name", PATTERNS)
def test_any_members_by_messages(name):
    """Strides that leave a node by other rails than they enter the next, trays, nodes of 8 and 72, groups that straddle.

    Every link carries exactly the messages whose route crosses it (so bytes out are bytes in, level by level), and every
    NIC that feeds a bundle is known to, or the bundle could be taken for slack.
    """
    build, edges_of = PATTERNS[name]
    wrong = []
    for seed, built, members in random_groups():
        found = build(built, np.array([members]))
        expected, feeds = by_messages(built, edges_of(members))
        total = Counter()
        for _, kind, column in found.own:
            for gpu in np.flatnonzero(column).tolist():
                total[kind * built.gpus + gpu] += float(column[gpu])
        for link, weight in zip(found.link.tolist(), found.weight.tolist(), strict=True):
            total[link] += weight
        off = {built.link_kind_name(link) for link in total | expected if abs(total[link] - expected[link]) > 1e-9}
        unknown = [f for f in feeds if not found.feeds[f[0], f[1] - 1, f[2]]]
        if off or unknown:
            wrong.append((seed, members, sorted(off), unknown[:3]))
    assert not wrong, f"{len(wrong)} groups, first {wrong[0]}"


LIMIT = NodeLimit(nodes=2, experts=1024, per_token=3)


def test_node_limited_routing_of_any_members_by_messages():
    """As above: to each other node one message for all its members, to the one at the sender's own place, of d/k a copy, d the
    nodes a token goes to; there, and in the own node, every other member gets its copy over NVLink."""
    sent = 0
    for seed, built, members in random_groups():
        found = dispatch.node_limited(built, np.array([members]), LIMIT)
        nodes = {}
        for gpu in members:
            nodes.setdefault(int(built.gpu_node[gpu]), []).append(gpu)
        ratio = dispatch.nodes_of_a_token(LIMIT, len(nodes)) / LIMIT.per_token
        expected, feeds = Counter(), set()
        for home, own_node in nodes.items():
            for place, a in enumerate(own_node):
                for node, there in nodes.items():
                    first = a if node == home else there[place * len(there) // len(own_node)]
                    if node != home:
                        links, fed = by_messages(built, [(a, first)])
                        feeds |= fed
                        expected.update({link: count * len(there) * ratio for link, count in links.items()})
                        sent += 1
                    for b in there:
                        if b != first:
                            expected.update({NVLINK_OUT * built.gpus + first: 1, NVLINK_IN * built.gpus + b: 1})
        total = Counter()
        for _, kind, column in found.own:
            total.update({kind * built.gpus + gpu: float(column[gpu]) for gpu in np.flatnonzero(column).tolist()})
        for link, weight in zip(found.link.tolist(), found.weight.tolist(), strict=True):
            total[link] += weight
        assert total == pytest.approx(expected, rel=1e-12), (seed, members)
        assert all(found.feeds[f[0], f[1] - 1, f[2]] for f in feeds), seed
        own_links = [(kind, gpu) for kind in (NIC_OUT, NIC_IN) for gpu in members]
        assert found.nic_weight[0] == pytest.approx(max(total[kind * built.gpus + gpu] for kind, gpu in own_links))
        assert found.share[0] == 1 / len(members)
    assert sent > 1000


def test_deepseeks_dispatch():
    """DeepSeek-V3: 64 ranks on 8 nodes, 8 of 256 experts on at most 4 nodes. A node without a copy: C(96,8)/C(128,8) = 9 %, so
    3.63 nodes; of 8 copies 7 would leave the node, now 3.63 x 7/8 = 3.17 do. NVLink: 7/8 of all copies, as before."""
    limit = NodeLimit(nodes=4, experts=256, per_token=8)
    distinct = 4 * (1 - math.comb(96, 8) / math.comb(128, 8))
    assert dispatch.nodes_of_a_token(limit, 8) == pytest.approx(distinct) == pytest.approx(3.63, abs=0.005)
    built = cluster()
    print_, every = dispatch.node_limited(built, strided(8, 8), limit), patterns.all_to_all(built, strided(8, 8))
    assert 8 * print_.share[0] * own(print_, NIC_OUT, 5) == pytest.approx(distinct * 7 / 8)
    assert 8 * every.share[0] * own(every, NIC_OUT, 5) == pytest.approx(7)
    for kind in (NVLINK_OUT, NVLINK_IN):
        assert own(print_, kind, 5) == pytest.approx(own(every, kind, 5)) == pytest.approx(64 * 7 / 8)


@pytest.mark.parametrize(
    ("nodes", "limit", "distinct"),
    [
        (1, NodeLimit(4, 8, 2), 1.0),
        (4, NodeLimit(1, 8, 2), 1.0),
        (2, NodeLimit(2, 4, 2), 2 * (1 - 1 / 6)),
        (4, NodeLimit(9, 4, 2), 2.0),
        (4, NodeLimit(2, 4, 2), 2.0),
    ],
)
def test_nodes_that_a_token_goes_to(nodes, limit, distinct):
    """One copy a node where it has one expert; 2 of 2 x 2 experts miss a node with the probability 1/6; all on one of one."""
    assert dispatch.nodes_of_a_token(limit, nodes) == pytest.approx(distinct)


def test_pat_compares_places_to_the_same_effect_as_it_looks_up_routes(monkeypatch):
    """Groups of one GPU a node, on one rail or across: whatever can be compared is what the routes of each step say."""
    compared = 0
    for seed in range(200):
        draw = random.Random(seed)
        built = random_cluster(draw)
        nodes = sorted(draw.sample(range(built.nodes), draw.randint(2, built.nodes))) if built.nodes > 1 else [0]
        first, lanes = built.first_gpu[nodes], draw.randint(1, 4)
        members = np.stack([first + lane for lane in range(lanes)])
        if draw.random() < 0.2:
            members[:, 0] += 1
        compared += built.own_ways(members)
        found = trees.pat(built, members)
        with monkeypatch.context() as patch:
            patch.setattr(Cluster, "own_ways", lambda *_: False)
            expected = trees.pat(built, members)
        for name in ("group", "link", "weight", "switches", "nic_weight", "crossings", "feeds", "usable"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), (seed, name)
        for (*_, weights), (*_, others) in zip(found.own, expected.own, strict=True):
            assert np.array_equal(weights, others), seed
    assert 50 < compared < 200


def test_an_all_to_all_over_two_racks():
    """All 144 GPUs of two NVL72, 4 rails: of 72 messages to the other rack 18 go to one's own rail and need no NVLink:
    NVLink 71 + 54, NIC 72."""
    spec = {"nodes": ({"type": "gb200-nvl72", "count": 2},), "fabric": {"base": "spectrum-x", "nodes_per_pod": 1}}
    built = build_cluster(ClusterSpec.model_validate(spec))
    print_ = patterns.all_to_all(built, np.arange(144)[None, :])
    assert {own(print_, NIC_OUT, gpu) for gpu in range(144)} == {72}
    assert {own(print_, NVLINK_OUT, gpu) for gpu in range(144)} == {71 + 54}
    assert {own(print_, NVLINK_IN, gpu) for gpu in range(144)} == {71 + 54}


def test_an_all_to_all_leaves_by_a_neighbour_that_is_no_member():
    """GPUs 6 and 9 (rails 6 and 1) of two nodes: the message to rail 1 leaves by GPU 1, that to rail 6 by GPU 14."""
    built = cluster(nodes=2)
    print_ = patterns.all_to_all(built, np.array([[6, 9]]))
    total = Counter()
    for _, kind, column in print_.own:
        total.update({(kind, int(gpu)): float(column[gpu]) for gpu in np.flatnonzero(column)})
    for link, weight in zip(print_.link.tolist(), print_.weight.tolist(), strict=True):
        if link < 4 * built.gpus:
            total[link // built.gpus, link % built.gpus] += weight
    expected = [(NVLINK_OUT, 6), (NVLINK_IN, 1), (NIC_OUT, 1), (NIC_IN, 9)]
    expected += [(NVLINK_OUT, 9), (NVLINK_IN, 14), (NIC_OUT, 14), (NIC_IN, 6)]
    assert total == dict.fromkeys(expected, 1.0)


@pytest.mark.parametrize("seed", range(60))
def test_groups_of_random_orders(seed):
    """Any order of the axes, experts over both contexts or neither: groups are the ranks that share the other digits.

    Where 1 or 2 of 4 tensor ranks share an expert, expert groups take the tensor group's neighbours first.
    """
    draw = random.Random(seed)
    order = ["tensor", "context", "expert", "data", "pipeline"]
    draw.shuffle(order)
    context, expert, data = draw.choice([(1, 4, 4), (2, 4, 2), (2, 4, 6), (4, 2, 3), (4, 8, 2), (2, 2, 1)])
    tensor = 2 if seed < 40 else 4
    shared = 2 if seed < 40 else draw.choice([1, 2])
    plan = derive(
        load_scenario(
            "two-pods",
            set=[
                *["job.model=mixtral-8x22b", f"job.parallelism.order=[{', '.join(order)}]"],
                *[
                    f"job.parallelism.tensor={tensor}",
                    "job.parallelism.pipeline=2",
                    f"job.parallelism.context={context}",
                ],
                *[f"job.parallelism.expert={expert}", f"job.parallelism.data={data}", f"job.global_batch={8 * data}"],
                *["job.parallelism.virtual_pipeline=1", "job.parallelism.schedule=1f1b", "cluster.nodes.0.count=32"],
                *[f"job.parallelism.expert_tensor={shared}"],
            ],
        )
    )
    inner, within = plan.expert_context, plan.expert_within
    assert plan.axes["expert"] * inner * within == expert
    assert within == min(expert, tensor // shared)
    digits = []
    for rank in range(plan.world):
        at, left = {}, rank
        for axis in order:
            left, at[axis] = divmod(left, plan.axes[axis])
        digits.append(at)
        left, at["shared"] = divmod(at["tensor"], shared)
        at["outer"], at["middle"] = divmod(left, within)
    same = {
        "tensor": lambda d: (d["context"], d["expert"], d["data"], d["pipeline"]),
        "context": lambda d: (d["tensor"], d["expert"], d["data"], d["pipeline"]),
        "expert": lambda d: (d["shared"], d["outer"], d["context"] // inner, d["data"], d["pipeline"]),
        "data": lambda d: (d["tensor"], d["pipeline"]),
        "expert_data": lambda d: (d["shared"], d["middle"], d["pipeline"], d["expert"], d["context"] % inner),
        "expert_tensor": lambda d: (
            d["outer"],
            d["middle"],
            *(d[a] for a in ("context", "expert", "data", "pipeline")),
        ),
    }
    found = group_members(plan)
    if shared == tensor:
        del same["expert_tensor"]
        assert "expert_tensor" not in found
    for channel, key in same.items():
        groups = {}
        for rank, at in enumerate(digits):
            groups.setdefault(key(at), []).append(rank)
        rows = sorted(groups.values())
        if len(rows[0]) == 1:
            assert channel not in found
        else:
            assert sorted(found[channel].tolist()) == rows, channel
            if channel.startswith("expert"):
                holders = data * context * tensor // (expert * shared)
                sizes = {"expert": expert, "expert_data": holders, "expert_tensor": shared}
                assert len(rows[0]) == sizes[channel]
