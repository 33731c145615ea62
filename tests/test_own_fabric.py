"""Fabrics of one's own: routes against all shortest paths that networkx enumerates, and what is said of wrong graphs."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossim.cluster.examples import dragonfly_plus, multi_plane
from colossim.cluster.own import own_fabric
from colossim.cluster.paths import mixed
from colossim.errors import ScenarioError, SimulationError

HOP = 1e-6
FIELD = "cluster.fabric.graph"


def fabric_of(graph, gpus_per_node, **how):
    return own_fabric(graph, gpus_per_node, latency=HOP, **how)


def problems_of(source, gpus_per_node):
    with pytest.raises(ScenarioError) as caught:
        fabric_of(source, gpus_per_node)
    assert {problem.field for problem in caught.value.problems} == {FIELD}
    return caught.value.problems


def gpu(graph, name, node, index=0):
    graph.add_node(name, kind="gpu", node=node, gpu=index)


def shares_by_name(fabric, src, dst):
    spread = fabric.spread(np.array([src]), np.array([dst]))
    return {fabric.names[link]: share for link, share in zip(spread.link, spread.share, strict=True)}


# -- against brute force ---------------------------------------------------------------------------------------------
def brute_force(graph, src, dst, relay, weight):
    """({(tail, head): share}, worst latency) over all shortest paths that networkx finds, split vertex by vertex."""
    kept = graph if relay else graph.subgraph([v for v in graph if v in (src, dst) or graph.nodes[v]["kind"] != "gpu"])
    paths = list(nx.all_shortest_paths(kept, src, dst, weight=weight))
    following = {}
    for path in paths:
        for tail, head in pairwise(path):
            following.setdefault(tail, set()).add(head)
    share = {}
    worst = 0
    for path in paths:
        part = Fraction(1)
        edges = list(pairwise(path))
        for tail, head in edges:
            total = sum(graph.edges[tail, other]["capacity"] for other in following[tail])
            part *= Fraction(graph.edges[tail, head]["capacity"], total)
        for edge in edges:
            share[edge] = share.get(edge, 0) + part
        worst = max(worst, sum(graph.edges[edge]["latency"] for edge in edges))
    return share, worst


@st.composite
def graphs(draw):
    """Connected graphs of up to 5 GPUs and 9 switches; GPUs may have several links, also to each other."""
    gpus, switches = draw(st.integers(2, 5)), draw(st.integers(1, 9))
    names = [f"g{i}" for i in range(gpus)] + [f"s{i}" for i in range(switches)]
    graph = nx.DiGraph() if draw(st.booleans()) else nx.Graph()
    for i in range(gpus):
        gpu(graph, f"g{i}", i)
    graph.add_nodes_from((f"s{i}" for i in range(switches)), kind="switch")
    some = st.sampled_from(names)
    wanted = draw(st.lists(st.tuples(some, some), max_size=30))
    # Every switch hangs on an earlier one and every GPU on a switch, so that all reach each other.
    tree = [(f"s{i}", f"s{draw(st.integers(0, i - 1))}") for i in range(1, switches)]
    tree += [(f"g{i}", f"s{draw(st.integers(0, switches - 1))}") for i in range(gpus)]
    for a, b in wanted + tree + [(b, a) for a, b in tree]:
        if a != b:
            facts = {"capacity": st.integers(1, 4), "latency": st.integers(0, 3), "far": st.integers(1, 3)}
            graph.add_edge(a, b, **{name: draw(values) for name, values in facts.items()})
    return graph


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(graphs(), st.booleans(), st.sampled_from([None, "far"]))
def test_spread_is_what_all_shortest_paths_add_up_to(graph, relay, weight):
    """Shares, latencies and the sum into the destination, for every pair of GPUs at once."""
    gpus = sum(kind == "gpu" for _, kind in graph.nodes(data="kind"))
    fabric = fabric_of(graph, [1] * gpus, relay=relay, weight=weight)
    src, dst = (side.ravel() for side in np.meshgrid(np.arange(gpus), np.arange(gpus), indexing="ij"))
    spread = fabric.spread(src, dst)
    for message, (a, b) in enumerate(zip(src, dst, strict=True)):
        mine = spread.message == message
        got = {fabric.names[link]: share for link, share in zip(spread.link[mine], spread.share[mine], strict=True)}
        if a == b:
            assert not got
            assert spread.latency[message] == 0
            continue
        expected, worst = brute_force(graph, f"g{a}", f"g{b}", relay, weight)
        assert got == pytest.approx({f"{tail} -> {head}": float(part) for (tail, head), part in expected.items()})
        assert spread.latency[message] == worst


@settings(max_examples=50, deadline=None)
@given(graphs(), st.integers(0, 2**70))
def test_a_single_path_is_one_of_the_shortest(graph, seed):
    gpus = sum(kind == "gpu" for _, kind in graph.nodes(data="kind"))
    fabric = fabric_of(graph, [1] * gpus)
    src, dst = np.arange(gpus), np.roll(np.arange(gpus), 1)
    paths = fabric.single_paths(src, dst, np.arange(gpus) - 2, seed, 3)
    network = fabric.network
    for message in range(gpus):
        allowed = set(fabric.spread(src[message : message + 1], dst[message : message + 1]).link)
        for queue_pair in range(3):
            links = paths.link[(paths.message == message) & (paths.queue_pair == queue_pair)]
            assert set(links) <= allowed
            ends = [fabric.gpu_vertex[src[message]], *network.head[links]]
            assert list(network.tail[links]) == ends[:-1]
            assert ends[-1] == fabric.gpu_vertex[dst[message]]
            assert paths.latency[message, queue_pair] == network.latency[links].sum()


def test_what_flows_into_a_vertex_flows_out():
    fabric = fabric_of(dragonfly_plus(4, 3, 2, 2, gpus_per_node=2), [2] * 24)
    src = np.arange(fabric.gpus)
    for shift in (1, 5, 17, 30):
        dst = (src + shift) % fabric.gpus
        spread = fabric.spread(src, dst)
        size = len(fabric.network.vertices)
        net = np.zeros((fabric.gpus, size))
        np.add.at(net, (spread.message, fabric.network.head[spread.link]), spread.share)
        np.add.at(net, (spread.message, fabric.network.tail[spread.link]), -spread.share)
        wanted = np.zeros((fabric.gpus, size))
        wanted[src, fabric.gpu_vertex[dst]] += 1
        wanted[src, fabric.gpu_vertex[src]] -= 1
        assert net == pytest.approx(wanted)


# -- counted by hand -------------------------------------------------------------------------------------------------
def leaf_spine(capacities=(1, 1)):
    """Two leaves of two GPUs, and a spine for each capacity of its links."""
    graph = nx.Graph()
    for index in range(4):
        gpu(graph, f"g{index}", index)
        graph.add_edge(f"g{index}", f"l{index // 2}", capacity=1.0, latency=HOP / 2)
    for spine, capacity in enumerate(capacities):
        graph.add_node(f"s{spine}", kind="spine")
        for leaf in range(2):
            graph.add_node(f"l{leaf}", kind="leaf")
            graph.add_edge(f"l{leaf}", f"s{spine}", capacity=float(capacity))
    return graph


def test_leaves_and_spines_share_by_capacity():
    """Spines with links of 1 and 3: a quarter and three quarters; in one leaf nothing goes up."""
    fabric = fabric_of(leaf_spine((1, 3)), [1] * 4)
    assert shares_by_name(fabric, 0, 1) == {"g0 -> l0": 1, "l0 -> g1": 1}
    assert shares_by_name(fabric, 0, 3) == {
        "g0 -> l0": 1, "l0 -> s0": 0.25, "s0 -> l1": 0.25, "l0 -> s1": 0.75, "s1 -> l1": 0.75, "l1 -> g3": 1,
    }  # fmt: skip
    assert fabric.spread(np.array([0, 0]), np.array([1, 3])).latency == pytest.approx([HOP, 3 * HOP])


def test_messages_keep_their_order_and_repeat():
    fabric = fabric_of(leaf_spine(), [1] * 4)
    spread = fabric.spread(np.array([2, 0, 1, 0]), np.array([0, 3, 1, 3]))
    assert list(np.bincount(spread.message, minlength=4)) == [6, 6, 0, 6]
    again = spread.link[spread.message == 3], spread.share[spread.message == 3]
    assert np.array_equal(again, (spread.link[spread.message == 1], spread.share[spread.message == 1]))
    nothing = fabric.spread(np.zeros(0, int), np.zeros(0, int))
    assert nothing.link.size == nothing.latency.size == 0


def test_queue_pairs_of_many_flows_use_all_spines_alike():
    """4,000 queue pairs over 4 spines: each within 5 standard deviations, sqrt(4000 x 3/16), of 1,000."""
    fabric = fabric_of(leaf_spine((1, 1, 1, 5)), [1] * 4)
    src, dst = np.zeros(1000, int), np.full(1000, 3)
    paths = fabric.single_paths(src, dst, np.arange(1000), 7, 4)
    assert paths.latency.shape == (1000, 4)
    uses = [int(np.sum(paths.link == fabric.names.index(f"l0 -> s{spine}"))) for spine in range(4)]
    assert uses == pytest.approx([1000] * 4, abs=5 * (4000 * 3 / 16) ** 0.5)
    same = fabric.single_paths(src, dst, np.arange(1000), 7, 4)
    assert np.array_equal(paths.link, same.link)
    other = fabric.single_paths(src, dst, np.arange(1000), 8, 4)
    assert not np.array_equal(paths.link, other.link)


def test_queue_pairs_and_vertices_choose_independently():
    """Two choices of two in a row: of 400 flows all four combinations take a quarter, within 5 sqrt(400 x 3/16)."""
    graph = nx.DiGraph()
    gpu(graph, "a", 0)
    gpu(graph, "b", 1)
    ways = [
        ("a", "s0"),
        ("a", "s1"),
        ("s0", "m"),
        ("s1", "m"),
        ("m", "t0"),
        ("m", "t1"),
        ("t0", "b"),
        ("t1", "b"),
        ("b", "a"),
    ]
    graph.add_nodes_from(["s0", "s1", "t0", "t1", "m"], kind="switch")
    graph.add_edges_from(ways, capacity=1.0)
    fabric = fabric_of(graph, [1, 1])
    paths = fabric.single_paths(np.zeros(400, int), np.ones(400, int), np.arange(400), 3, 2)
    used = paths.link.reshape(400, 2, 4)
    within = 5 * (400 * 3 / 16) ** 0.5
    choices = [used[:, 0, 0] == fabric.names.index("a -> s0"), used[:, 0, 2] == fabric.names.index("m -> t0")]
    choices.append(used[:, 1, 0] == fabric.names.index("a -> s0"))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for here in (False, True):
            for there in (False, True):
                both = int(np.sum((choices[one] == here) & (choices[other] == there)))
                assert both == pytest.approx(100, abs=within)


def test_endpoints_do_not_relay_unless_there_is_nothing_else():
    """A ring of four: the opposite GPU is reached both ways round. With a switch, only if the graph says so."""
    ring = nx.cycle_graph(4)
    for index in ring:
        gpu(ring, index, index)
    nx.set_edge_attributes(ring, 1.0, "capacity")
    fabric = fabric_of(ring, [1] * 4)
    assert set(shares_by_name(fabric, 0, 2).values()) == {0.5}
    assert len(shares_by_name(fabric, 0, 1)) == 1
    ring.add_node("idle", kind="switch")
    with pytest.raises(SimulationError, match="partitioned"):
        fabric_of(ring, [1] * 4)
    ring.graph["relay"] = True
    assert set(shares_by_name(fabric_of(ring, [1] * 4), 0, 2).values()) == {0.5}


def two_ways(*weights):
    """a - s - b and a - t - b with these weights, a - s first."""
    graph = nx.MultiGraph()
    gpu(graph, "a", 0)
    gpu(graph, "b", 1)
    graph.add_nodes_from("st", kind="switch")
    for ends, far in zip((("a", "s"), ("s", "b"), ("a", "t"), ("t", "b")), weights, strict=True):
        graph.add_edge(*ends, capacity=1.0, far=far)
    return graph


def test_weights_make_other_paths_the_shortest():
    """0.1 + 0.2 is as long as 0.15 + 0.15, though not to the last bit; with 0.16 only s is on the way."""
    fabric = fabric_of(two_ways(0.1, 0.2, 0.15, 0.15), [1, 1], weight="far")
    assert set(shares_by_name(fabric, 0, 1).values()) == {0.5}
    fabric = fabric_of(two_ways(0.1, 0.2, 0.15, 0.16), [1, 1], weight="far")
    assert shares_by_name(fabric, 0, 1) == {"a -> s": 1, "s -> b": 1}


def test_of_parallel_and_direct_links_only_the_shortest_count():
    """The second cable from s to b is longer, and so is the one from a to b."""
    graph = two_ways(1, 1, 1, 2)
    graph.add_edge("s", "b", capacity=1.0, far=2)
    graph.add_edge("a", "b", capacity=1.0, far=3)
    assert shares_by_name(fabric_of(graph, [1, 1], weight="far"), 0, 1) == {"a -> s": 1, "s -> b": 1}


def test_gpus_of_a_server_share_its_links_or_have_rails():
    """`node` without rails: one vertex, GPUs meet there, two parallel cables share. With rails: GPU i has rail i % 2."""
    graph = nx.MultiGraph()
    graph.add_node("leaf", kind="switch")
    for node in range(2):
        graph.add_node(("server", node), kind="node", node=node)
        for rail in range(2):
            graph.add_edge(("server", node), "leaf", capacity=1.0, rail=rail)
    railed = fabric_of(graph, [4, 4])
    assert shares_by_name(railed, 3, 4) == {"server 0 rail 1 -> leaf": 1, "leaf -> server 1 rail 0": 1}
    assert railed.gpu_vertex[0] == railed.gpu_vertex[2] != railed.gpu_vertex[1]
    for *_, data in graph.edges(data=True):
        del data["rail"]
    shared = fabric_of(graph, [4, 4])
    assert shares_by_name(shared, 0, 3) == {}
    assert shares_by_name(shared, 0, 4) == {
        "server 0 -> leaf": 0.5, "server 0 -> leaf (2)": 0.5, "leaf -> server 1": 0.5, "leaf -> server 1 (2)": 0.5,
    }  # fmt: skip


def test_a_nic_may_serve_two_gpus():
    graph = leaf_spine()
    graph.nodes["g0"]["gpu"] = "0, 1"
    fabric = fabric_of(graph, [2, 1, 1, 1])
    assert shares_by_name(fabric, 0, 1) == {}
    assert shares_by_name(fabric, 1, 2) == {"g0 -> l0": 1, "l0 -> g1": 1}


def test_a_thousand_gpus_take_as_many_rows_as_counted_by_hand():
    """16 leaves of 64 GPUs, 16 spines: GPU to leaf, 16 up, 16 down, leaf to GPU; one search a leaf, not a GPU."""
    fabric = fabric_of(multi_plane(1, 16, 16, 8), [8] * 128)
    src = np.arange(1024)
    spread = fabric.spread(src, (src + 64) % 1024)
    assert spread.link.size == 1024 * 34
    assert np.bincount(spread.link, weights=spread.share).max() == pytest.approx(4)
    kinds, _ = fabric.network.kinds(fabric.gpu_vertex)
    assert len(kinds) == 16


def test_batches_change_nothing(monkeypatch):
    """One destination and one message at a time, as in fabrics that are too large to route at once."""
    fabric = fabric_of(dragonfly_plus(3, 2, 2, 2, gpus_per_node=2), [2] * 12)
    src = np.arange(fabric.gpus)
    dst = src * 7 % fabric.gpus
    once = fabric.spread(src, dst), fabric.single_paths(src, dst, src, 1, 2)
    monkeypatch.setattr("colossim.cluster.network._AT_ONCE", 1)
    monkeypatch.setattr("colossim.cluster.paths._AT_ONCE", 1)
    again = fabric.spread(src, dst), fabric.single_paths(src, dst, src, 1, 2)
    for one, other in zip(once, again, strict=True):
        for name, values in vars(one).items():
            assert np.array_equal(values, getattr(other, name)), name


def test_the_hash_is_splitmix64():
    """Its first three outputs from state 0, as published (Vigna's splitmix64.c)."""
    states = np.array([0, 0x9E3779B97F4A7C15, 2 * 0x9E3779B97F4A7C15 % 2**64], np.uint64)
    assert [hex(value) for value in mixed(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


# -- examples and files ----------------------------------------------------------------------------------------------
def test_planes_share_a_nic():
    fabric = fabric_of(multi_plane(4, 2, 2, 1, gpus_per_node=2), [2, 2])
    shares = shares_by_name(fabric, 0, 2)
    assert {name: share for name, share in shares.items() if name.startswith("node0")} == {
        f"node0 gpu0 -> plane{plane} leaf0": 0.25 for plane in range(4)
    }
    assert {share for name, share in shares.items() if "spine" in name} == {0.125}


def test_groups_of_a_dragonfly_are_three_switches_apart():
    """Up to one of 2 spines, across, down: half on each."""
    graph = dragonfly_plus(3, 2, 2, 1, gpus_per_node=1)
    assert graph.number_of_edges() == 3 * (2 * 2 + 2) + 3 * 2
    shares = shares_by_name(fabric_of(graph, [1] * 6), 0, 5)
    assert shares["group0 spine1 -> group2 spine1"] == 0.5
    assert len(shares) == 8


def same(one, other):
    for name in ("tail", "head", "capacity", "latency", "forwards"):
        assert np.array_equal(getattr(one.network, name), getattr(other.network, name)), name
    assert one.names == other.names
    assert np.array_equal(one.gpu_vertex, other.gpu_vertex)


@pytest.mark.parametrize("kind", ["graphml", "gexf", "json", "links.json"])
@pytest.mark.parametrize(
    "graph", [dragonfly_plus(2, 2, 2, 1, gpus_per_node=2), multi_plane(2, 2, 2, 1, gpus_per_node=2)]
)
def test_a_fabric_survives_being_saved(tmp_path, graph, kind):
    path = tmp_path / f"fabric.{kind}"
    if kind == "graphml":
        nx.write_graphml(graph, path)
    elif kind == "gexf":
        nx.write_gexf(graph, path)
    else:
        path.write_text(json.dumps(nx.node_link_data(graph, edges="links" if kind == "links.json" else "edges")))
    gpus = [2] * (sum(kind == "gpu" for _, kind in graph.nodes(data="kind")) // 2)
    same(fabric_of(path, gpus), fabric_of(graph, gpus))
    same(fabric_of(str(path), gpus), fabric_of(graph, gpus))


def test_parallel_cables_and_relay_survive_being_saved(tmp_path):
    graph = nx.MultiDiGraph(relay=True)
    gpu(graph, "a", 0)
    gpu(graph, "b", 1)
    for ends in (("a", "b"), ("a", "b"), ("b", "a")):
        graph.add_edge(*ends, capacity="400 Gb/s", latency="2 us")
    graph.add_node("s", kind="switch")
    nx.write_graphml(graph, tmp_path / "a.graphml")
    (tmp_path / "a.json").write_text(json.dumps(nx.node_link_data(graph, edges="edges")))
    for source in (graph, tmp_path / "a.graphml", tmp_path / "a.json"):
        fabric = fabric_of(source, [1, 1])
        assert fabric.names == ("a -> b", "a -> b (2)", "b -> a")
        assert fabric.network.forwards.all()
        assert list(fabric.capacity) == [50e9] * 3
        assert list(fabric.latency) == [2e-6] * 3


# -- what is wrong ---------------------------------------------------------------------------------------------------
GRAPHML = """<?xml version="1.0"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="k" for="node" attr.name="kind" attr.type="string"/>
<key id="n" for="node" attr.name="node" attr.type="int"/>
<key id="g" for="node" attr.name="gpu" attr.type="int"/>
<key id="c" for="edge" attr.name="capacity" attr.type="string"/>
<key id="l" for="edge" attr.name="latency" attr.type="string"/>
<graph edgedefault="undirected">
<node id="a"><data key="k">gpu</data><data key="n">0</data><data key="g">0</data></node>
<node id="b"><data key="k">gpu</data><data key="n">7</data><data key="g">0</data></node>
<node id="s"><data key="k">switch</data></node>
<node id="t"/>
<edge source="a" target="s"><data key="c">400</data></edge>
<edge source="s" target="b"/>
<edge source="s" target="a"><data key="c">0 Gb/s</data><data key="l">-3 us</data></edge>
<edge source="s" target="typo"><data key="c">400 gb/s</data></edge>
</graph>
</graphml>
"""


def test_every_problem_has_its_line(tmp_path):
    path = tmp_path / "wrong.graphml"
    path.write_text(GRAPHML)
    said = [(problem.line, problem.message) for problem in problems_of(path, [1, 2])]
    expected = [
        (10, "vertex `b` of kind `gpu`: there is no node 7, the cluster has 2"),
        (12, "vertex `t` has no `kind`"),
        (13, "edge `a -- s`: capacity `400` has no unit: write `400 GB/s` or `400 Gb/s`"),
        (14, "edge `b -- s` has no `capacity`: write it such as `400 Gb/s`"),
        (15, "capacity `0 Gb/s` must be a finite number, more than 0"),
        (15, "latency `-3 us` is not a time: it must be finite and not negative"),
        (16, "vertex `typo` is named by an edge, but is no node of the file"),
        (16, "`gb/s` is not a unit of rate"),
        (None, "has no endpoint for node 1 GPU 0, node 1 GPU 1"),
    ]
    assert [line for line, _ in said] == [line for line, _ in expected]
    for line, words in expected:
        assert any(line == at and words in message for at, message in said), (line, words, said)
    assert all(problem.file == str(path) for problem in problems_of(path, [1, 2]))


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        (0, "must be a finite number, more than 0"),
        (-5e9, "must be a finite number, more than 0"),
        (float("nan"), "must be a finite number, more than 0"),
        (float("inf"), "must be a finite number, more than 0"),
        (True, "must be a finite number, more than 0"),
        ([1], "must be a finite number, more than 0"),
        (10**400, "int too large"),
        ("fast", "is not a rate"),
        ("", "is not a rate"),
    ],
)
def test_capacities_that_are_none(capacity, words):
    graph = leaf_spine()
    graph.edges["l0", "s0"]["capacity"] = capacity
    (problem,) = problems_of(graph, [1] * 4)
    assert "edge `l0 -- s0`" in problem.message
    assert words in problem.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"node": None}, "has no `node`"),
        ({"node": "x"}, "has no `node`"),
        ({"node": -1}, "has no `node`"),
        ({"node": 1.5}, "has no `node`"),
        ({"gpu": None}, "has no `gpu`"),
        ({"gpu": "0 x"}, "has no `gpu`"),
        ({"gpu": 1}, "there is no GPU 1, node 3 has 1"),
        ({"node": 2}, "GPU 0 of node 2 already hangs on `g2`"),
        ({"kind": 5}, "has no `kind`"),
    ],
)
def test_endpoints_that_are_none(changes, words):
    graph = leaf_spine()
    graph.nodes["g3"].update(changes)
    first, second = problems_of(graph, [1] * 4)
    assert "`g3`" in first.message
    assert words in first.message
    assert second.message == "has no endpoint for node 3 GPU 0"


def test_whole_floats_and_text_are_indices():
    graph = leaf_spine()
    graph.nodes["g3"].update(node="3", gpu=0.0, kind=" NIC ")
    assert fabric_of(graph, [1] * 4).gpus == 4


def test_rails_are_of_all_edges_of_a_server_or_of_none():
    graph = nx.MultiGraph()
    graph.add_node("leaf", kind="switch")
    graph.add_node("a", kind="node", node=0)
    for rail in (0, None, "x"):
        graph.add_edge("a", "leaf", capacity=1.0, rail=rail)
    messages = [problem.message for problem in problems_of(graph, [1])]
    assert len(messages) == 2
    assert any("`rail` is an index from 0, not `x`" in message for message in messages)
    assert any("has no `rail`, as other edges of `a` have" in message for message in messages)


def test_many_problems_are_counted():
    graph = multi_plane(1, 4, 16, 1, gpus_per_node=1)
    for *_, data in graph.edges(data=True):
        del data["capacity"]
    found = problems_of(graph, [1] * 4)
    assert len(found) == 21
    assert found[-1].message == f"and {4 + 64 - 20} more problems"
    (few,) = problems_of(multi_plane(1, 1, 1, 1), [8, 8, 8])
    assert few.message.startswith("has no endpoint for node 1 GPU 0, node 1 GPU 1")
    assert few.message.endswith("and 8 more")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.graphml", None, "no such file"),
        ("a.dot", "graph {}", "`.dot` is no ending"),
        ("a", "", "`` is no ending"),
        ("a.graphml", "<graphml>\n<graph>\n</graphml>", "is not XML: mismatched tag"),
        ("a.graphml", "", "is not XML: no element found"),
        ("a.graphml", "<graphml/>", "is not .graphml that networkx reads"),
        ("a.graphml", "<gexf/>", "its outermost element is `gexf`, not `graphml`"),
        ("a.graphml", '<?xml version="1.0" encoding="none-such"?><graphml/>', "is not XML"),
        ("a.graphml", GRAPHML.replace(">7<", ">seven<"), "is not .graphml that networkx reads"),
        ("a.gexf", "<gexf/>", "is not .gexf that networkx reads"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[" * 200_000, "nests too deep"),
        ("a.json", b"\xff", "is not UTF-8 text (byte 0)"),
        ("a.json", "[]", "is not the JSON that networkx.node_link_data writes"),
        ("a.json", '{"nodes": [], "links": 3}', "is not the JSON that networkx.node_link_data writes"),
        ("a.json", '{"nodes": [{"id": null}], "links": []}', "nodes[0] has no `id`"),
        ("a.json", '{"nodes": [{"id": [1, {}]}], "links": []}', "nodes[0] has no `id`"),
        ("a.json", '{"nodes": [{"id": 1}], "links": [[1, 1]]}', "edges[0] has no `source` and `target`"),
        ("a.json", '{"nodes": [{"id": 1}], "edges": [{"source": 1, "target": 2}]}', "edges[0] names `2`"),
        ("a.json", '{"nodes": [], "edges": []}', "has no endpoint for node 0 GPU 0"),
    ],
)
def test_files_that_are_no_graph(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (problem,) = problems_of(path, [1])
    assert problem.file == str(path)
    assert words in problem.message


def test_what_else_is_no_graph(tmp_path):
    (problem,) = problems_of({"nodes": []}, [1])
    assert "a dict is no graph" in problem.message
    (problem,) = problems_of(tmp_path / "x.json" / "y.json", [1])
    assert problem.message == "no such file"
    (tmp_path / "z.json").mkdir()
    (problem,) = problems_of(tmp_path / "z.json", [1])
    assert problem.message.startswith("is a directory")
    graph = leaf_spine()
    graph.graph["relay"] = "maybe"
    (problem,) = problems_of(graph, [1] * 4)
    assert problem.message == "the graph's `relay` is true or false, not `maybe`"


def test_a_partition_names_both_sides():
    graph = multi_plane(1, 2, 2, 4, gpus_per_node=1)
    graph.remove_edges_from([("plane0 leaf1", "plane0 spine0"), ("plane0 leaf1", "plane0 spine1")])
    with pytest.raises(
        SimulationError, match=r"^the fabric is partitioned: node 0 to node 3 cannot reach node 4 to node 7$"
    ):
        fabric_of(graph, [1] * 8)
    apart = fabric_of(graph, [1] * 8, connected=False)
    assert len(shares_by_name(apart, 4, 7)) == 2
    with pytest.raises(SimulationError, match="node3 gpu0 cannot reach node4 gpu0"):
        apart.spread(np.array([3]), np.array([4]))
    with pytest.raises(SimulationError, match="node3 gpu0 cannot reach node4 gpu0"):
        apart.single_paths(np.array([3]), np.array([4]), np.array([0]), 0)


def test_rails_that_never_meet_are_a_partition_of_gpus():
    graph = nx.Graph()
    for index in range(4):
        gpu(graph, f"g{index}", index // 2, index % 2)
        graph.add_node(f"rail{index % 2}", kind="leaf")
        graph.add_edge(f"g{index}", f"rail{index % 2}", capacity=1.0)
    words = "GPU 0 of node 0, GPU 0 of node 1 cannot reach GPU 1 of node 0, GPU 1 of node 1"
    with pytest.raises(SimulationError, match=words):
        fabric_of(graph, [2, 2])
    assert len(shares_by_name(fabric_of(graph, [2, 2], connected=False), 0, 2)) == 2


def test_one_way_and_over_an_endpoint_only_are_partitions():
    """a -> s -> b without the way back; a - s - b - t - c, where b doesn't relay."""
    graph = nx.DiGraph()
    gpu(graph, "a", 0)
    gpu(graph, "b", 1)
    graph.add_node("s", kind="switch")
    graph.add_edges_from([("a", "s"), ("s", "b")], capacity=1.0)
    with pytest.raises(SimulationError, match="node 1 cannot reach node 0"):
        fabric_of(graph, [1, 1])
    graph = nx.path_graph(["a", "s", "b", "t", "c"])
    for node, name in enumerate("abc"):
        gpu(graph, name, node)
    graph.nodes["s"]["kind"] = graph.nodes["t"]["kind"] = "switch"
    nx.set_edge_attributes(graph, 1.0, "capacity")
    with pytest.raises(SimulationError, match="node 0 cannot reach node 1 to node 2"):
        fabric_of(graph, [1, 1, 1])
    assert len(shares_by_name(fabric_of(graph, [1, 1, 1], relay=True), 0, 2)) == 4
