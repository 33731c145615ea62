"""Clusters on graphs: equal to the built-in fabrics of their shape, and folded equal to unfolded."""

from __future__ import annotations

import random
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from test_fold import agree, agreed_time

import colossim
from colossim import patterns
from colossim.cluster import GraphCluster, build_cluster
from colossim.cluster.examples import dragonfly_plus, multi_plane
from colossim.errors import TooManyClasses
from colossim.fold import fold
from colossim.layout import compile_setup, lay_out
from colossim.partition import refine
from colossim.scenario.job import JobSpec
from colossim.scenario.reader import load_scenario
from colossim.scenario.schema import ClusterSpec, RunSpec, Scenario
from colossim.simulation import play_step, simulate

DENSE = {"layers": 8, "hidden": 512, "heads": 8, "kv_heads": 4, "ffn": 2048, "vocabulary": 1024}
EXPERTS = {**DENSE, "ffn": 0, "experts": 4, "experts_per_token": 2, "expert_ffn": 1024, "shared_ffn": 512}
PORT, HOP = 50e9, 600e-9


def random_scenario(seed, graph, nodes):
    """A job on `nodes` nodes of 8 GPUs of a graph, with rings, trees, all-to-all and stage boundaries."""
    draw = random.Random(seed)
    pick = draw.choice
    moe = draw.random() < 0.5
    tensor, pipeline, context = pick([1, 2, 4, 8]), pick([1, 2, 2]), pick([1, 1, 2])
    while tensor * pipeline * context > 8 * nodes:
        tensor //= 2
    most = 8 * nodes // (tensor * pipeline * context)
    data = draw.randint(1, most) if most < 4 or not moe else 4 * draw.randint(1, most // 4)
    expert = max(e for e in (1, 2, 4) if data * context % e == 0) if moe else 1
    order = ["tensor", "context", "expert", "data", "pipeline"]
    if moe:
        order = ["tensor", "context", "data", "expert", "pipeline"]
    elif draw.random() < 0.5:
        draw.shuffle(order)
    job = {
        "model": EXPERTS if moe else DENSE,
        "software": {"base": "megatron-2024", "bucket_parameters": "1M", "bucket_parameters_per_rank": "0"},
        "sequence_length": 256,
        "global_batch": data * draw.randint(1, 3),
        "parallelism": {
            "tensor": tensor,
            "context": context,
            "pipeline": pipeline,
            "expert": expert,
            "data": data,
            "sharding": pick(["none", "optimizer", "parameters"]),
            "order": tuple(order),
        },
        "overlap": {"data": draw.random() < 0.7, "pipeline": draw.random() < 0.7, "expert": draw.random() < 0.3},
        "collectives_algorithm": pick(["auto", "ring", "tree", "nvls", "pat", "hierarchical"]),
    }
    degraded = ({"node": 0, "gpu": draw.randrange(8), "rate": "50 %"},) if draw.random() < 0.2 else ()
    spec = {"nodes": ({"type": "hgx-h100", "count": nodes},), "fabric": "spectrum-x", "degraded": degraded}
    scenario = Scenario(
        name=f"graph-{seed}", cluster=ClusterSpec.model_validate(spec), job=JobSpec.model_validate(job), run=RunSpec()
    )
    return colossim.with_graph(scenario, graph)


def irregular(seed):
    """(graph, nodes): leaves and spines wired at random, of unequal capacities; some GPUs on two leaves, some spines joined."""
    draw = random.Random(seed)
    nodes, leaves, spines = draw.randint(2, 6), draw.randint(1, 5), draw.randint(1, 4)
    rates = draw.choice([(50e9,), (20e9, 50e9, 100e9), tuple(draw.uniform(5e9, 100e9) for _ in range(5))])
    graph = nx.MultiGraph() if draw.random() < 0.3 else nx.Graph()
    facts = lambda: {"capacity": draw.choice(rates), "latency": draw.choice([HOP, HOP, 1e-6 / 3])}  # noqa: E731
    graph.add_nodes_from((f"leaf{i}" for i in range(leaves)), kind="leaf")
    graph.add_nodes_from((f"spine{i}" for i in range(spines)), kind="spine")
    for leaf in range(leaves):
        up = draw.sample(range(spines), draw.randint(1, spines))
        # All leaves have spine 0, so that all meet.
        for spine in sorted({0, *up}):
            for _ in range(draw.choice([1, 1, 2])):
                graph.add_edge(f"leaf{leaf}", f"spine{spine}", **facts())
    for a, b in combinations(range(spines), 2):
        if draw.random() < 0.3:
            graph.add_edge(f"spine{a}", f"spine{b}", **facts())
    for node in range(nodes):
        by_rail = draw.random() < 0.3
        home = draw.randrange(leaves)
        for gpu in range(8):
            name = f"n{node}g{gpu}"
            graph.add_node(name, kind="gpu", node=node, gpu=gpu)
            for leaf in {(home + gpu * by_rail) % leaves, draw.randrange(leaves) if draw.random() < 0.05 else home}:
                graph.add_edge(name, f"leaf{leaf}", capacity=PORT, latency=HOP / 2)
    return graph, nodes


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 40))])
def test_folded_equals_unfolded_on_irregular_graphs(seed):
    agree(random_scenario(seed, *irregular(seed)))


@pytest.mark.slow
def test_the_random_graphs_are_worth_their_name():
    """Enough of them fold, wait for links of the graph, carry parts of messages, and have trees and all-to-alls on them."""
    count = dict.fromkeys(("halves", "tight", "parts", "trees", "all to all"), 0)
    for seed in range(80):
        laid = lay_out(random_scenario(seed, *irregular(seed)))
        first = 4 * laid.cluster.gpus
        on_graph = [c for c in laid.traffic.channels if (c.footprint.link >= first).any()]
        count["halves"] += 2 * (int(refine(laid.traffic).rank.max()) + 1) <= laid.traffic.ranks
        count["tight"] += any((~laid.traffic.slack[c.footprint.link]).any() for c in on_graph)
        count["parts"] += any((c.footprint.weight % 1 > 1e-9).any() for c in on_graph)
        count["trees"] += any(c.algorithm in ("tree", "pat") for c in on_graph)
        count["all to all"] += any(c.name == "expert" for c in on_graph)
    assert count["halves"] >= 50
    assert min(count.values()) >= 20, count


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 400))
def test_folded_equals_unfolded_on_more_irregular_graphs(seed):
    agree(random_scenario(seed, *irregular(seed)))


EXAMPLES = [
    (dragonfly_plus(3, 1, 2, 2, leaf_spine=200e9, between_groups=30e9), 6),
    (dragonfly_plus(2, 2, 2, 1, leaf_spine=100e9, between_groups=70e9), 4),
    (multi_plane(2, 2, 3, 2, leaf_spine=40e9), 4),
    (multi_plane(4, 3, 1, 1, leaf_spine=60e9), 3),
]


@pytest.mark.parametrize("seed", [*range(16), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(16, 32))])
def test_folded_equals_unfolded_on_the_examples(seed):
    agree(random_scenario(1000 + seed, *EXAMPLES[seed % 4]))


def two_pairs(more):
    """Nodes 0-1 and 2-3, each pair over a way `a` that binds and a wide one `b`; all meet in a core that is farther away.

    more: share by which leaf-b of the second pair is wider, so that less of its messages takes `a`.
    """
    graph = nx.Graph()
    for pair in (0, 1):
        for leaf in (0, 1):
            for gpu in range(8):
                graph.add_node(f"gpu {pair}{leaf}{gpu}", kind="gpu", node=2 * pair + leaf, gpu=gpu)
                graph.add_edge(f"gpu {pair}{leaf}{gpu}", f"leaf {pair}{leaf}", capacity=PORT)
            graph.add_edge(f"leaf {pair}{leaf}", f"a {pair}{leaf}", capacity=1e12)
            graph.add_edge(f"leaf {pair}{leaf}", f"b {pair}{leaf}", capacity=1e12 * (1 + pair * more))
            nx.add_path(graph, [f"leaf {pair}{leaf}", f"far {pair}{leaf}", "core"], capacity=1e13)
        graph.add_edge(f"a {pair}0", f"a {pair}1", capacity=20e9)
        graph.add_edge(f"b {pair}0", f"b {pair}1", capacity=1e13)
    for name in graph:
        graph.nodes[name].setdefault("kind", "switch")
    return graph


@pytest.mark.slow
def test_parts_that_differ_by_little_are_not_alike():
    """Nothing but the parts tells the pairs apart: a fold that rounds them to 2^-20 plays both at one pace, 1e-7 off."""
    changes = ["cluster.nodes.0.count=4", "job.parallelism={tensor: 16, sequence: true, data: 2}"]
    model = "job.model={layers: 4, hidden: 1024, heads: 16, ffn: 4096, vocabulary: 1024}"
    scenario = load_scenario("two-pods", set=[*changes, model])
    assert agree(colossim.with_graph(scenario, two_pairs(0.0))) == 1
    assert agree(colossim.with_graph(scenario, two_pairs(2e-7))) == 2


# -- against the built-in fabrics ------------------------------------------------------------------------------------
def leaf_spine(pods, nodes, ratio=1.0, spines=3, rails=1):
    """The two tiers of a fat-tree (rails 1) or of a rail-optimized fabric as a graph: `nodes` of 8 H100 a pod."""
    graph = nx.Graph(name="by hand")
    graph.add_nodes_from((f"spine{s}" for s in range(spines)), kind="spine")
    for pod in range(pods):
        for rail in range(rails):
            leaf = f"leaf{pod}.{rail}"
            graph.add_node(leaf, kind="leaf")
            for spine in range(spines):
                graph.add_edge(leaf, f"spine{spine}", capacity=nodes * 8 / rails * PORT / ratio / spines, latency=HOP)
        for node in range(pod * nodes, (pod + 1) * nodes):
            for gpu in range(8):
                graph.add_node((node, gpu), kind="gpu", node=node, gpu=gpu)
                graph.add_edge((node, gpu), f"leaf{pod}.{gpu % rails}", capacity="400 Gb/s", latency="300 ns")
    return graph


JOBS = {
    "stages": [],
    "tensor over nodes": ["job.parallelism={tensor: 8, data: 4, order: [data, tensor, context, expert, pipeline]}"],
    "context": ["job.parallelism={tensor: 2, context: 4, data: 4}"],
    "gathered context": ["job.parallelism={tensor: 2, context: 8, data: 2, context_style: all-gather}"],
    "ulysses": ["job.parallelism={tensor: 2, context: 8, data: 2, context_style: ulysses}"],
    "tree": ["job.parallelism={tensor: 2, sharding: optimizer}", "job.collectives_algorithm=tree"],
    "sharded": ["job.parallelism={tensor: 2, data: 16, sharding: parameters}", "job.collectives_algorithm=pat"],
    "limited experts": [
        "job.model={layers: 8, hidden: 512, heads: 8, ffn: 0, vocabulary: 1024, experts: 32, experts_per_token: 4,"
        " expert_ffn: 1024}",
        "job.parallelism={expert: 32, tensor: 1}",
        "job.experts={limit_nodes: 2}",
    ],
    "experts": [
        "job.model={layers: 8, hidden: 512, heads: 8, ffn: 0, vocabulary: 1024, experts: 16, experts_per_token: 2,"
        " expert_ffn: 1024}",
        "job.parallelism={expert: 16, order: [data, expert, tensor, context, pipeline]}",
    ],
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("kind", "ratio"),
    [
        ("fat-tree", 4),
        ("rail-optimized", 1),
        *(pytest.param(*which, marks=pytest.mark.slow) for which in (("fat-tree", 1), ("rail-optimized", 4))),
    ],
)
def test_a_leaf_spine_graph_is_the_built_in_fabric(kind, ratio, job):
    """The same links, so the same step: three spines of a graph carry a third each of what is one bundle there."""
    fabric = (
        f"cluster.fabric={{type: {kind}, tiers: 2, link: 400 Gb/s, switch_ports: 256, nodes_per_pod: 2, "
        f"oversubscription: [{ratio}], rails: spine, efficiency: 95 %}}"
    )
    built_in = load_scenario("two-pods", set=["cluster.nodes.0.count=4", fabric, *JOBS[job]])
    graph = leaf_spine(2, 2, ratio, rails=8 if kind == "rail-optimized" else 1)
    one, other = simulate(built_in), simulate(colossim.with_graph(built_in, graph))
    assert other.step_time_s == pytest.approx(one.step_time_s, rel=1e-9)
    assert other.breakdown_s == pytest.approx(one.breakdown_s, rel=1e-9, abs=1e-12)
    assert other.classes["ranks"] == one.classes["ranks"], "as symmetric, and folded as far"


@pytest.mark.parametrize("job", ["stages", "tree", "sharded"])
def test_a_leaf_spine_graph_is_the_built_in_fabric_where_nothing_changes_rails(job):
    """A graph forwards nothing over NVLink; the built-in fabric has no need to in these jobs."""
    narrow = "cluster.fabric.oversubscription=[4]"
    two_tiers = ["cluster.nodes.0.count=4", "cluster.fabric.tiers=2", "cluster.fabric.nodes_per_pod=2", narrow]
    built_in = load_scenario("two-pods", set=[*two_tiers, *JOBS[job]])
    assert built_in.cluster.fabric.rails == "forward"
    one, other = simulate(built_in), simulate(colossim.with_graph(built_in, leaf_spine(2, 2, 4, rails=8)))
    assert other.step_time_s == pytest.approx(one.step_time_s, rel=1e-9)


def test_planes_as_a_graph_are_the_built_in_planes():
    """Each of two planes has half of a leaf's 16 ports over two, over three spines."""
    fabric = (
        "cluster.fabric={type: fat-tree, tiers: 2, link: 400 Gb/s, switch_ports: 256, nodes_per_pod: 2, planes: 2, "
        "oversubscription: [2]}"
    )
    built_in = load_scenario("two-pods", set=["cluster.nodes.0.count=4", fabric, *JOBS["experts"]])
    graph = multi_plane(2, 2, 3, 2, leaf_spine=16 * PORT / 2 / 2 / 3)
    one, other = simulate(built_in), simulate(colossim.with_graph(built_in, graph))
    assert other.step_time_s == pytest.approx(one.step_time_s, rel=1e-9)


@pytest.mark.parametrize("seed", range(0, 80, 4))
def test_slack_links_change_nothing_where_they_are_played(seed, monkeypatch):
    scenario = random_scenario(seed, *irregular(seed))
    pruned = agreed_time(scenario)
    monkeypatch.setattr(GraphCluster, "slack", lambda self: np.zeros(self.links, bool))
    assert agreed_time(scenario) == pytest.approx(pruned, rel=1e-9)


def test_a_narrow_spine_of_a_graph_costs_time():
    """Else the equality above could be that of fabrics which nothing waits for."""
    scenario = load_scenario("two-pods", set=["cluster.nodes.0.count=4", *JOBS["tree"]])
    times = [simulate(colossim.with_graph(scenario, leaf_spine(2, 2, ratio))).step_time_s for ratio in (1, 4)]
    assert times[1] > 1.01 * times[0]


@pytest.mark.parametrize("placement", ["[5, 0, 3, 2]", "scattered"])
@pytest.mark.parametrize("job", ["stages", "tree", "experts"])
def test_jobs_stand_on_the_nodes_they_are_placed_on(job, placement):
    """Nodes keep their vertices whatever the order in which ranks take them: as on the built-in fabric."""
    fabric = (
        "cluster.fabric={type: fat-tree, tiers: 2, link: 400 Gb/s, switch_ports: 256, nodes_per_pod: 2, "
        "oversubscription: [4]}"
    )
    built_in = load_scenario(
        "two-pods", set=["cluster.nodes.0.count=6", fabric, *JOBS[job], f"job.placement={placement}"]
    )
    on_graph = colossim.with_graph(built_in, leaf_spine(3, 2, 4))
    one, other = simulate(built_in), simulate(on_graph)
    assert other.step_time_s == pytest.approx(one.step_time_s, rel=1e-9)
    assert other.classes["ranks"] == one.classes["ranks"]
    agree(on_graph)


def test_a_placed_gpu_keeps_its_vertex():
    built = cluster(leaf_spine(2, 2), 4)
    moved = built.placed(np.array([3, 1, 0, 2]))
    vertices = moved.own.network.vertices
    assert [vertices[vertex] for vertex in moved.own.gpu_vertex[::8]] == ["3 0", "1 0", "0 0", "2 0"]
    assert moved.pod(np.arange(0, 32, 8)).tolist() == built.pod(np.array([24, 8, 0, 16])).tolist()
    assert moved.routes(np.array([0, 0]), np.array([24, 8])).level.tolist() == [1, 3]
    again = moved.placed(np.array([2, 0, 1, 3]))
    assert [vertices[vertex] for vertex in again.own.gpu_vertex[::8]] == ["2 0", "0 0", "1 0", "3 0"]


# -- links, places, slack --------------------------------------------------------------------------------------------
def cluster(graph, nodes, **fabric):
    fields = {"type": "graph", "graph": "-", "efficiency": "90 %", **fabric}
    spec = ClusterSpec.model_validate({"nodes": ({"type": "hgx-h100", "count": nodes},), "fabric": fields})
    spec._graph = graph
    built = build_cluster(spec)
    assert isinstance(built, GraphCluster)
    return built


def test_links_are_those_of_the_gpus_and_of_the_graph():
    """8 edges of 2 GPUs a node... as many links both ways; the efficiency is taken off all but NVLink."""
    graph = leaf_spine(2, 1)
    built = cluster(graph, 2)
    assert built.links == 4 * 16 + 2 * graph.number_of_edges()
    kinds = [built.link_kind_name(link) for link in range(built.links)]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "fabric": 2 * (16 + 6), "nic-in": 16, "nic-out": 16, "nvlink-in": 16, "nvlink-out": 16,
    }  # fmt: skip
    assert [colossim.cluster.LINK_KINDS[kind] for kind in built.link_kinds()] == kinds
    capacity = dict(zip(map(built.link_name, range(built.links)), built.capacity(), strict=True))
    assert capacity["leaf0.0 -> spine0"] == pytest.approx(0.9 * 8 * 50e9 / 3)
    assert capacity["0 0 -> leaf0.0"] == pytest.approx(0.9 * 50e9)
    assert built.nic == pytest.approx(np.full(16, 0.9 * 50e9)), "without `link` the NIC's own rate"
    assert cluster(graph, 2, link="200 Gb/s").nic == pytest.approx(np.full(16, 0.9 * 25e9))


def test_routes_count_switches_and_spread_over_the_spines():
    built = cluster(leaf_spine(2, 2), 4)
    routes = built.routes(np.array([0, 0, 0, 9]), np.array([1, 8, 16, 31]))
    assert routes.level.tolist() == [0, 1, 3, 3]
    assert routes.latency == pytest.approx([0, 600e-9, 1800e-9, 1800e-9], rel=1e-12)
    assert routes.exit_gpu.tolist() == [0, 0, 0, 9]
    got = sorted(
        (built.link_name(link), share)
        for message, link, share in zip(routes.message, routes.link, routes.share, strict=True)
        if message == 2
    )
    assert got == [
        ("0 0 -> leaf0.0", 1.0),
        *((f"leaf0.0 -> spine{s}", pytest.approx(1 / 3)) for s in range(3)),
        ("leaf1.0 -> 2 0", 1.0),
        *((f"spine{s} -> leaf1.0", pytest.approx(1 / 3)) for s in range(3)),
    ]
    assert built.pod(np.arange(32)).tolist() == [0] * 16 + [1] * 16
    railed = cluster(leaf_spine(2, 1, rails=8), 2)
    assert railed.pod(np.arange(16)).tolist() == [0] * 8 + [1] * 8
    assert railed.leaf(np.arange(16)).tolist() == list(range(16))
    assert not railed.block(np.arange(16)).any()


@pytest.mark.parametrize(("ratio", "binding"), [(1, 0), (1.01, 12)])
def test_links_that_nics_cannot_fill_are_slack(ratio, binding):
    """2 leaves x 3 spines x 2 ways carry a third each of what 16 NICs send: at 1:1 none can bind, a little below all can."""
    laid = lay_out(
        colossim.with_graph(load_scenario("two-pods", set=["cluster.nodes.0.count=4"]), leaf_spine(2, 2, ratio))
    )
    graph = laid.traffic.slack[4 * 32 :]
    assert graph.size == 2 * (32 + 6)
    assert int((~graph).sum()) == binding
    named = {laid.cluster.link_name(4 * 32 + link) for link in np.flatnonzero(~graph)}
    assert all("spine" in name for name in named)


def test_a_nic_beyond_its_edge_waits_for_the_edge():
    """Two edges of 25 GB/s to two planes carry half of a message each, and are no bottleneck; one of 25 is."""
    two, one = multi_plane(2, 1, 1, 2), multi_plane(1, 1, 1, 2, nic=25e9)
    members = np.array([[0, 8]])
    for graph, binds in ((two, False), (one, True)):
        built = cluster(graph, 2)
        footprint = patterns.ring(built, members)
        capacity = built.capacity()[footprint.link] / footprint.weight
        assert (capacity.min() < built.nic.min() * (1 - 1e-9)) == binds
        assert built.slack()[4 * 16 :].all() != binds


@pytest.mark.parametrize("seed", range(20))
def test_no_slack_link_ever_carries_more_than_it_has(seed):
    """Random flows from every GPU, as fast as NICs out and in allow: what is called slack isn't filled."""
    graph, nodes = irregular(seed)
    built = cluster(graph, nodes)
    draw = np.random.default_rng(seed)
    src = np.repeat(np.arange(built.gpus), 3)
    dst = draw.integers(0, built.gpus, src.size)
    routes = built.routes(src, dst)
    rate = np.where(routes.level > 0, draw.random(src.size) ** 4, 0.0)
    for end in (src, dst, src, dst):
        used = np.bincount(end, weights=rate, minlength=built.gpus) / built.nic
        rate = rate / np.maximum(1e-300, used[end]) if end is src else rate / np.maximum(1.0, used[end])
    load = np.bincount(routes.link, weights=routes.share * rate[routes.message], minlength=built.links)
    slack = built.slack()
    assert np.all(load[slack] <= built.capacity()[slack] * (1 + 1e-6))


def test_symmetric_graphs_fold_to_few_classes():
    """A ring of one GPU a node over every leaf and group: all ranks are alike, as on a fabric of tiers."""
    scenario = load_scenario("two-pods", set=["job.parallelism={tensor: 8}"])
    for graph in (
        multi_plane(2, 4, 4, 4, leaf_spine=20e9),
        dragonfly_plus(4, 2, 2, 2, leaf_spine=60e9, between_groups=1e12),
    ):
        laid = lay_out(colossim.with_graph(scenario, graph))
        assert not laid.traffic.slack[4 * 128 :].all()
        ranks = int(refine(laid.traffic).rank.max()) + 1
        assert ranks == 1
        assert agreed_time(laid.scenario) > 0


def test_bundles_estimates_a_graph_too():
    graph, nodes = irregular(3)
    laid = lay_out(random_scenario(1, graph, nodes))
    (exact, _), (estimate, _) = fold(laid.traffic, "exact"), fold(laid.traffic, "bundles")
    assert len(estimate.ranks) <= len(exact.ranks)
    times = [play_step(compile_setup(laid, q)).step_time for q in (exact, estimate)]
    assert times[1] == pytest.approx(times[0], rel=0.1)


def test_too_many_classes_name_links(monkeypatch):
    monkeypatch.setattr("colossim.fold.MOST_CLASSES", 1)
    laid = lay_out(colossim.with_graph(load_scenario("two-pods"), leaf_spine(4, 4, 3.0)))
    with pytest.raises(TooManyClasses, match=r"24 links of the graph can bind \(.*leaf0.0 -> spine0, "):
        fold(laid.traffic, "exact")
