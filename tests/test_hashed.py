"""Hashed and pinned paths: walked over a fabric that is wired here switch by switch, and what their collisions cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossim.cluster import build_cluster
from colossim.cluster.hashed import Members, _mixed, hashed_paths
from colossim.errors import SimulationError
from colossim.maxmin import max_min
from colossim.scenario.schema import ClusterSpec


def cluster(nodes, node="hgx-h100", **changes):
    fabric = {"base": "spectrum-x", "efficiency": "100 %", **changes}
    spec = {"nodes": ({"type": node, "count": nodes},), "fabric": fabric, "degraded": ()}
    return build_cluster(ClusterSpec.model_validate(spec))


#: 128 NICs: leaves of 2 (U = 2), 8 leaves a block (V = 8), 2 blocks a zone (W = 2), 4 zones.
SMALL = {"nodes": 16, "tiers": 4, "nodes_per_pod": 2, "pods_per_block": 1, "blocks_per_zone": 2, "rails": "spine"}
#: 16,384 NICs on three tiers: 64 down and 64 up at a leaf, 64 ways from a spine to the core.
LARGE = {"nodes": 2048, "tiers": 3, "rails": "spine"}


def send(built, src, dst, **how):
    """The members and paths of messages that are keyed by their ends."""
    routes = built.routes(src, dst)
    members = Members.of(built)
    how = {"flow_key": src.astype(np.int64) * built.gpus + dst, **how}
    return members, hashed_paths(members, routes.exit_gpu, dst, routes.level, **how)


def nic_rates(built, src, dst, capacity=None, **how):
    """(E,) rates of the NICs, each with one message, over line rate: NIC out, single links, NIC in; all of capacity 1."""
    members, paths = send(built, src, dst, **how)
    gpus, flows = built.gpus, np.arange(paths.flow.size)
    who = np.concatenate([flows, flows, paths.who])
    where = np.concatenate([src[paths.flow], gpus + dst[paths.flow], 2 * gpus + paths.where])
    room = np.concatenate([np.ones(2 * gpus), np.ones(members.links) if capacity is None else capacity])
    rate = max_min(who, where, np.ones(who.size), room, np.full(flows.size, np.inf))
    return np.bincount(paths.flow, weights=rate, minlength=src.size)


def links_of(paths, subflow):
    return paths.where[paths.who == subflow].tolist()


# -- single links --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("facts", "ways"),
    [
        (SMALL, (2, 8, 2)),
        ({**SMALL, "oversubscription": (2.0, 3.0, 1.0)}, (1, 3, 2)),
        ({"nodes": 1536, "base": "meta-roce-24k"}, (55, 64, 64)),
        ({"nodes": 1536, "base": "meta-roce-24k", "type": "fat-tree"}, (439, 8, 64)),
        ({"nodes": 40, "tiers": 2, "oversubscription": (), "type": "fat-tree", "nodes_per_pod": 8}, (64, 8, 64)),
    ],
)
def test_single_links_add_up_to_their_bundle(facts, ways):
    """Ports over oversubscription, rounded: 384 / 7 are 55, 3,072 / 7 are 439; the bundle keeps its capacity."""
    built = cluster(**facts)
    members = Members.of(built)
    assert members.ways == ways
    capacity = members.capacity()
    assert capacity.size == members.links
    for level, down in itertools.product((1, 2, 3), (False, True)):
        bundle = built.bundle_capacity(level)
        paths = int(np.prod(ways[:level]))
        assert members.table(capacity, level, down).shape == (bundle.size, paths)
        assert members.table(capacity, level, down).sum(axis=1) == pytest.approx(bundle, rel=1e-12)


def test_one_switch_has_no_links_between_switches():
    built = cluster(4, type="single-switch", tiers=1, oversubscription=())
    members, paths = send(built, np.arange(16), np.arange(16, 32), paths_per_flow=2)
    assert members.links == members.capacity().size == 0
    assert paths.flow.size == 32
    assert paths.who.size == paths.where.size == 0


def wired(built, ways):
    """Link number -> the switches that it joins, counted out by hand in the order of the docstring."""
    pods = -(-built.nodes // built.fabric.nodes_per_pod)
    rails = built.rails
    leaves = [(pod, rail) for pod in range(pods) for rail in range(rails)]
    spines, cores, tops = ways
    ends = {}

    def lay(lower, upper):
        for down in (False, True):
            for below, above in zip(lower, upper, strict=True):
                ends[len(ends)] = (above, below) if down else (below, above)

    tiers = built.fabric.tiers
    block_of = {leaf: leaf[0] // built.fabric.pods_per_block if tiers > 2 else 0 for leaf in leaves}
    blocks = sorted(set(block_of.values()))
    zone_of = {block: block // built.fabric.blocks_per_zone if tiers > 3 else 0 for block in blocks}
    zones = sorted(set(zone_of.values()))
    each = list(itertools.product(leaves, range(spines)))
    lay([("leaf", *leaf) for leaf, _ in each], [("spine", block_of[leaf], i) for leaf, i in each])
    if len(blocks) > 1:
        each = list(itertools.product(blocks, range(spines), range(cores)))
        lay([("spine", b, i) for b, i, _ in each], [("core", zone_of[b], i, j) for b, i, j in each])
    if len(zones) > 1:
        each = list(itertools.product(zones, range(spines), range(cores), range(tops)))
        lay([("core", *core) for *core, _ in each], [("top", i, j, k) for _, i, j, k in each])
    return ends


@pytest.mark.parametrize("policy", ["ecmp", "static"])
@pytest.mark.parametrize(
    "facts",
    [
        SMALL,
        {**SMALL, "rails": "forward"},
        {**SMALL, "type": "fat-tree", "oversubscription": (3.0, 1.0, 2.0)},
        {**SMALL, "tiers": 3},
        {**SMALL, "tiers": 2},
        {**SMALL, "nodes": 13, "node": "gb200-nvl72", "nodes_per_pod": 1, "switch_ports": 1024},
    ],
)
def test_every_path_is_a_walk_from_leaf_to_leaf(facts, policy):
    """Up links in order, then down links in reverse: each starts where the one before ends; the last one at the leaf of dst."""
    built = cluster(**facts)
    rng = np.random.default_rng(3)
    src, dst = rng.integers(0, built.gpus, (2, 400))
    members, paths = send(built, src, dst, policy=policy, paths_per_flow=2)
    ends = wired(built, members.ways)
    assert len(ends) == members.links
    routes = built.routes(src, dst)
    assert paths.flow.tolist() == np.repeat(np.arange(400), 2 if policy == "ecmp" else 1).tolist()
    assert np.all(np.diff(paths.who) >= 0)
    for subflow, message in enumerate(paths.flow.tolist()):
        links = links_of(paths, subflow)
        if routes.level[message] < 2:
            assert links == []
            continue
        leaves = []
        for gpu in (routes.exit_gpu[message], dst[message]):
            rail = built.gpu_rail[gpu] if built.rails > 1 else 0
            leaves.append(("leaf", built.gpu_node[gpu] // built.fabric.nodes_per_pod, rail))
        place = leaves[0]
        for link in links[0::2] + links[1::2][::-1]:
            assert ends[link][0] == place
            place = ends[link][1]
        assert place == leaves[1]
        assert len(links) == 2 * (routes.level[message] - 1)


# -- what collisions cost ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def large():
    return cluster(**LARGE)


@pytest.mark.parametrize(("queue_pairs", "expected"), [(1, 0.636), (2, 0.771)])
def test_a_shift_by_a_leaf_is_balls_in_bins(queue_pairs, expected):
    """64 NICs of a leaf to the next one's over 64 spines. One flow a NIC: links that carry any over all, 1 - (1 - 1/64)^64 =
    0.635; each of two flows at its link's share, or at what the NIC's other one leaves."""
    built = cluster(2048, tiers=2, oversubscription=(), type="fat-tree", nodes_per_pod=8, switch_ports=256)
    src = np.arange(built.gpus)
    dst = (src + 64) % built.gpus
    means = [nic_rates(built, src, dst, seed=seed, paths_per_flow=queue_pairs).mean() for seed in range(3)]
    assert np.mean(means) == pytest.approx(expected, abs=0.01)
    if queue_pairs == 1:
        assert np.mean(means) == pytest.approx(1 - (1 - 1 / 64) ** 64, abs=0.005)


@pytest.mark.parametrize(("queue_pairs", "low", "high"), [(1, 0.41, 0.45), (2, 0.59, 0.62), (16, 0.935, 0.955)])
def test_a_permutation_over_three_tiers(large, queue_pairs, low, high):
    """Every NIC of 16,384 to a random other one: mean NIC rate over line rate."""
    src, dst = np.arange(large.gpus), np.random.default_rng(1).permutation(large.gpus)
    assert low < nic_rates(large, src, dst, seed=1, paths_per_flow=queue_pairs).mean() < high


def test_a_slow_link_keeps_its_flows(large):
    """Half of one uplink: the same paths, and those that cross it share half of it."""
    src = np.arange(large.gpus)
    dst = (src + 8 * 64) % large.gpus
    members, paths = send(large, src, dst)
    capacity = np.ones(members.links)
    busiest = int(np.bincount(paths.where, minlength=members.links).argmax())
    capacity[busiest] = 0.5
    on = paths.flow[paths.who[paths.where == busiest]]
    assert on.size > 2
    assert nic_rates(large, src, dst, capacity)[on] == pytest.approx(0.5 / on.size)
    assert nic_rates(large, src, dst)[on] == pytest.approx(1 / on.size)


# -- static --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tiers", [2, 3, 4])
def test_static_shifts_never_collide(tiers):
    """Rank-ordered, rail-aligned rings and all other shifts by whole nodes: every NIC at line rate."""
    built = cluster(**{**SMALL, "tiers": tiers})
    src = np.arange(built.gpus)
    for nodes in range(1, built.nodes):
        dst = (src + 8 * nodes) % built.gpus
        _, paths = send(built, src, dst, policy="static")
        assert np.bincount(paths.where).max(initial=0) <= 1, nodes
        assert nic_rates(built, src, dst, policy="static").tolist() == [1.0] * built.gpus


def test_static_shifts_never_collide_at_scale(large):
    src = np.arange(large.gpus)
    for nodes in (1, 63, 64, 65, 512, 1000):
        _, paths = send(large, src, (src + 8 * nodes) % large.gpus, policy="static")
        assert np.bincount(paths.where).max() == 1


def test_static_shifts_of_a_fat_tree_by_any_number_of_nics_never_collide():
    """Leaves of 8 NICs, blocks of 4 leaves, 4 blocks; at 2:1 two flows a link."""
    facts = {"nodes": 16, "tiers": 3, "type": "fat-tree", "nodes_per_pod": 1, "pods_per_block": 4}
    for ratio in (1, 2):
        built = cluster(**facts, oversubscription=(float(ratio), 1.0))
        src = np.arange(built.gpus)
        for shift in range(1, built.gpus):
            _, paths = send(built, src, (src + shift) % built.gpus, policy="static")
            assert np.bincount(paths.where, minlength=1).max() <= ratio, shift


def test_static_heeds_neither_key_nor_seed():
    built = cluster(**SMALL)
    src, dst = np.random.default_rng(0).integers(0, built.gpus, (2, 300))
    plain = send(built, src, dst, policy="static")[1]
    other = send(built, src, dst, policy="static", flow_key=np.arange(300), seed=5, paths_per_flow=4)[1]
    assert plain.where.tolist() == other.where.tolist()


# -- dead links ----------------------------------------------------------------------------------------------------------------
def test_a_dead_link_moves_only_the_traffic_of_its_switch(large):
    """An uplink of leaf 3 dies: its flows take the other 63, those of other leaves stay where they are."""
    src = np.arange(large.gpus)
    dst = (src + 8 * 640) % large.gpus
    members, before = send(large, src, dst)
    alive = np.ones(members.links, bool)
    dead = int(members.number(1, False, np.array([3]), np.array([17]))[0])
    alive[dead] = False
    after = send(large, src, dst, alive=alive)[1]
    assert dead in before.where
    assert dead not in after.where
    moved = np.unique(after.who[before.where != after.where])
    assert moved.size > 0
    assert np.all(large.leaf(src[after.flow[moved]]) == 3)
    uplinks = members.table(np.bincount(after.where, minlength=members.links), 1, False)[3]
    assert uplinks.sum() == 64


def test_a_dead_link_on_the_far_side_counts(large):
    """Downlinks 0 to 31 of leaf 9, and cores 0 to 62 of spine 40 down into block 1, are dead: who sends there knows."""
    members = Members.of(large)
    alive = np.ones(members.links, bool)
    members.table(alive, 1, True)[9, :32] = False
    members.table(alive, 2, True)[1, 40 * 64 : 40 * 64 + 63] = False
    src = np.arange(large.gpus)
    dst = (src + 8 * 512) % large.gpus
    _, paths = send(large, src, dst, alive=alive, paths_per_flow=4)
    assert alive[paths.where].all()
    load = np.bincount(paths.where, minlength=members.links)
    assert members.table(load, 1, True)[9, 32:].sum() == 4 * 64
    # ECMP does not weigh: spine 40 keeps its share of a 64th of 16,384 flows, all of them on the core that is left.
    last = members.table(load, 2, True)[1, 40 * 64 + 63]
    assert last == pytest.approx(4 * 4096 / 64, abs=5 * 16)


@pytest.mark.parametrize("policy", ["ecmp", "static"])
def test_leaves_that_are_cut_off_are_named(policy):
    """Leaf 1 (pod 0, rail 1) has uplink 0 only, leaf 10 (pod 1, rail 2) downlink 1 only: others reach them still."""
    built = cluster(**{**SMALL, "tiers": 3})
    members = Members.of(built)
    alive = np.ones(members.links, bool)
    members.table(alive, 1, False)[1, 1] = False
    members.table(alive, 1, True)[10, 0] = False
    src, dst = np.array([1, 1, 0]), np.array([2, 16 + 3, 16 + 10])
    send(built, src, dst, policy=policy, alive=alive)
    with pytest.raises(SimulationError, match=r"leaf \(pod 0, rail 1\) to leaf \(pod 1, rail 2\)"):
        send(built, np.append(src, 1), np.append(dst, 16 + 2), policy=policy, alive=alive)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.5, 0.98), st.sampled_from([2, 3, 4]), st.sampled_from(["ecmp", "static"]))
def test_paths_are_alive_if_any_is(seed, share, tiers, policy):
    """Against all paths of a pair of leaves, one by one; links die at random."""
    built = cluster(**{**SMALL, "tiers": tiers})
    rng = np.random.default_rng(seed)
    members = Members.of(built)
    alive = rng.random(members.links) < share
    src, dst = rng.integers(0, built.gpus, (2, 20))
    routes = built.routes(src, dst)
    places = (built.leaf, built.block, built.zone)
    for one in range(src.size):
        a, b = src[one : one + 1], dst[one : one + 1]
        depth = max(0, int(routes.level[one]) - 1)
        options = set()
        for choice in itertools.product(*(range(ways) for ways in members.ways[:depth])):
            links, path = [], 0
            for tier, way in enumerate(choice):
                path = path * members.ways[tier] + way
                links += [int(members.number(tier + 1, down, places[tier]((a, b)[down])[0], path)) for down in (0, 1)]
            if alive[links].all():
                options.add(tuple(links))
        if options:
            _, paths = send(built, a, b, alive=alive, seed=seed, policy=policy, paths_per_flow=3)
            assert {tuple(links_of(paths, subflow)) for subflow in range(paths.flow.size)} <= options
        else:
            with pytest.raises(SimulationError, match="no path is alive"):
                send(built, a, b, alive=alive, seed=seed, policy=policy)


# -- the hash ------------------------------------------------------------------------------------------------------------------
def test_the_mixer_is_splitmix64():
    """The first two numbers of the published generator from seed 0."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden, 2 * golden % 2**64], np.uint64)
    assert [hex(x) for x in _mixed(states).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_paths_belong_to_messages_not_to_their_order(large):
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, large.gpus, (2, 500))
    order = rng.permutation(500)
    alive = rng.random(Members.of(large).links) < 0.95
    for facts in ({}, {"alive": alive}):
        plain = send(large, src, dst, paths_per_flow=3, seed=4, **facts)[1]
        mixed = send(large, src[order], dst[order], paths_per_flow=3, seed=4, **facts)[1]
        for place, message in enumerate(order.tolist()):
            for pair in range(3):
                assert links_of(mixed, 3 * place + pair) == links_of(plain, 3 * message + pair)


def test_seeds_differ_and_numpys_generator_is_left_alone(large):
    src = np.arange(2000)
    np.random.seed(1)
    state = np.random.get_state()[1].tolist()
    one, same, other = (send(large, src, src + 9000, seed=seed)[1].where for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert np.mean(one == other) < 0.1
    assert np.random.get_state()[1].tolist() == state


def chi_square(counts):
    """Chi-square of equal shares in standard deviations from its mean: k - 1 and 2 (k - 1) for k cells."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2).sum() / expected - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("keys", ["ends", "count", "stride"])
def test_the_hash_is_even_in_every_tier_and_across_them(large, keys):
    """Spines, cores, both together, one queue pair against the other, one message against the next: within 5 sigma."""
    src = np.arange(8192)
    key = {"ends": src * 16384 + src + 8192, "count": src, "stride": src << 20}[keys]
    members, paths = send(large, src, src + 8192, flow_key=key, paths_per_flow=2, seed=7)
    assert paths.where.size == 2 * 8192 * 4
    path = (paths.where[2::4] - members.offset(2, False)) % 4096
    assert np.all((paths.where[0::4] - members.offset(1, False)) % 64 == path // 64)
    spine, core = path // 64, path % 64
    for cells, size in (
        (spine, 64), (core, 64), (path, 4096), (64 * spine[0::2] + spine[1::2], 4096), (64 * core[0::2] + core[1::2], 4096),
        (64 * spine[:-2] + spine[2:], 4096),
    ):  # fmt: skip
        assert abs(chi_square(np.bincount(cells, minlength=size))) < 5


def test_what_is_no_routing_is_refused(large):
    src = np.arange(2)
    with pytest.raises(ValueError, match="spray"):
        send(large, src, src + 100, policy="spray")
    with pytest.raises(ValueError, match="0 paths"):
        send(large, src, src + 100, paths_per_flow=0)


# -- names -------------------------------------------------------------------------------------------------------------------
def test_links_have_names():
    """Links are numbered by level, up before down: U = 2 a leaf, U V = 16 a block, U V W = 32 a zone (see SMALL)."""
    members = Members.of(cluster(**SMALL))
    down, group = True, 9
    named = {
        members.number(1, not down, group, 1): "uplink 1 of leaf (pod 1, rail 1)",
        members.number(1, down, group, 0): "downlink 0 of leaf (pod 1, rail 1)",
        members.number(2, not down, 3, 8 + 5): "uplink 5 of spine 1 of block 3",
        members.number(3, down, 1, (8 + 5) * 2 + 1): "downlink 1 of core (1, 5) of zone 1",
    }
    assert {link: members.name(int(link)) for link in named} == named
    names = [members.name(link) for link in range(members.links)]
    assert len(set(names)) == members.links
    with pytest.raises(IndexError):
        members.name(members.links)
