"""Scenarios with files of one's own: graphs and NCCL's dumps, from the command line to the result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib
import networkx as nx
import pytest
from test_cli import cli  # noqa: F401 (a fixture)
from test_nccl_topology import hopper

import colossim
from colossim.cluster import examples
from colossim.errors import ScenarioError, SimulationError
from colossim.explain import explain
from colossim.layout import lay_out
from colossim.scenario.reader import load_scenario
from colossim.shipped import scenarios_folder
from colossim.simulation import simulate

matplotlib.use("Agg")
DOCS = Path(__file__).parent.parent / "docs"

SCENARIO = """\
name: mine
cluster:
  nodes: [{type: hgx-h100, count: 2}]
  fabric:
    type: graph
    graph: graphs/mine.graphml
job:
  model: llama3-8b
  sequence_length: 4096
  global_batch: 16
  parallelism: {tensor: 8}
"""


@pytest.fixture
def write(tmp_path):
    """Writes a scenario and its graph; returns the scenario's path."""

    def write(graph, text=SCENARIO):
        (tmp_path / "graphs").mkdir(exist_ok=True)
        if graph is not None:
            nx.write_graphml_xml(graph, tmp_path / "graphs" / "mine.graphml")
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def plane(**changes):
    return examples.multi_plane(1, 2, 2, 1, **changes)


def test_a_graph_is_found_beside_its_scenario(write, cli, monkeypatch, tmp_path):  # noqa: F811
    path = write(plane())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = simulate(load_scenario(path))
    assert result.step_time_s == simulate(colossim.with_graph(load_scenario(path), plane())).step_time_s
    code, out, _ = cli("run", str(path), "--json", "--no-plots")
    assert code == 0
    assert json.loads(out)["step_time_s"] == result.step_time_s


@pytest.mark.parametrize("suffix", ["graphml", "gexf", "json"])
def test_formats_are_one_fabric(write, monkeypatch, tmp_path, suffix):
    """What `--set` names is relative to where the command line is."""
    path = write(plane())
    monkeypatch.chdir(tmp_path)
    name = f"other.{suffix}"
    if suffix == "json":
        Path(name).write_text(json.dumps(nx.node_link_data(plane(), edges="edges")))
    else:
        {"graphml": nx.write_graphml_xml, "gexf": nx.write_gexf}[suffix](plane(), name)
    other = simulate(load_scenario(path, set=[f"cluster.fabric.graph={name}"]))
    assert other.step_time_s == pytest.approx(simulate(load_scenario(path)).step_time_s, rel=1e-12)


def told(path, *changes):
    with pytest.raises(ScenarioError) as caught:
        simulate(load_scenario(path, set=changes))
    return caught.value.problems


def test_all_that_is_wrong_with_a_graph_is_said_at_its_place(write, tmp_path):
    """In the scenario and in the graph's file, beside what else is wrong with the cluster."""
    graph = plane()
    graph.edges["plane0 leaf0", "plane0 spine0"]["capacity"] = 0.0
    graph.edges["plane0 leaf1", "plane0 spine1"]["capacity"] = -1.0
    graph.remove_node("node1 gpu3")
    graph.nodes["node0 gpu2"]["node"] = 7
    path = write(graph)
    problems = told(path, "cluster.degraded=[{node: 9, gpu: 0, rate: 50 %}]")
    assert {(p.file, p.line, p.column) for p in problems if p.field == "cluster.fabric.graph"} == {(str(path), 6, 12)}
    text = [str(problem) for problem in problems]
    file = re.escape(str(tmp_path / "graphs" / "mine.graphml"))
    for wanted in (
        rf"mine.yaml:6:12: cluster.fabric.graph: {file}:\d+: edge `plane0 leaf0 -- plane0 spine0`: capacity `0.0` must be",
        rf"{file}:\d+: edge `plane0 spine1 -- plane0 leaf1`: capacity `-1.0` must be",
        rf"{file}:\d+: vertex `node0 gpu2` of kind `gpu`: there is no node 7, the cluster has 2",
        rf"{file}: has no endpoint for node 0 GPU 2, node 1 GPU 3",
        r"cluster.degraded.0.node: 9 is no node",
    ):
        assert any(re.search(wanted, line) for line in text), (wanted, text)
    assert len(text) == 5


def test_exit_codes(write, cli, tmp_path):  # noqa: F811
    path = write(None)
    code, _, err = cli("run", str(path))
    assert code == 2
    assert err == f"{path}:6:12: cluster.fabric.graph: {tmp_path / 'graphs/mine.graphml'}: no such file\n"
    graph = plane()
    graph.remove_edges_from([("plane0 leaf1", "plane0 spine0"), ("plane0 leaf1", "plane0 spine1")])
    path = write(graph)
    for words in (["run"], ["check"]):
        code, _, err = cli(*words, str(path))
        assert code == 1
        assert err.endswith("mine.graphml: the fabric is partitioned: node 0 cannot reach node 1\n")
    with pytest.raises(SimulationError):
        lay_out(load_scenario(path))


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ("    graph: graphs/mine.graphml\n", "", "cluster.fabric.graph", "is missing: the file of a networkx graph"),
        ("type: graph\n", "type: fat-tree\n", "cluster.fabric.link", "is missing"),
        ("type: graph\n", "type: fat-tree\n", "cluster.fabric.switch_ports", "is missing"),
        ("graph: graphs/mine.graphml", "graph: 3", "cluster.fabric.graph", "`3` should be text"),
        ("graph: graphs/mine.graphml", "graph: a.dot", "cluster.fabric.graph", "a.dot: `.dot` is no ending"),
        ("type: graph\n", "type: grap\n", "cluster.fabric.type", "did you mean `graph`?"),
    ],
)
def test_what_a_graph_needs(write, old, new, field, words):
    problems = told(write(plane(), SCENARIO.replace(old, new)))
    assert any(problem.field == field and words in problem.message for problem in problems), problems


def test_what_a_graph_says_by_itself_had_no_effect(write):
    text = SCENARIO.replace(
        "    type: graph\n",
        "    type: graph\n    tiers: 3\n    oversubscription: [2]\n    planes: 2\n    pods_per_block: 2\n",
    )
    notes = [note for note in simulate(load_scenario(write(plane(), text))).notes if "cluster.fabric" in note]
    names = ("tiers", "pods_per_block", "oversubscription", "planes")
    assert notes == [f"`cluster.fabric.{name}` had no effect: the graph says how nodes meet" for name in names]
    changes = [f"cluster.fabric.{change}" for change in ("sharp=true", "paths_per_flow=4", "rails=spine")]
    notes = [n for n in simulate(load_scenario(write(plane()), set=changes)).notes if "cluster.fabric" in n]
    assert notes == [
        "`cluster.fabric.paths_per_flow` had no effect: adaptive routing uses all paths",
        "`cluster.fabric.rails` had no effect: the graph says how nodes meet",
        "`cluster.fabric.sharp` had no effect: a graph's switches don't reduce",
    ]
    notes = simulate(load_scenario("two-pods", set=["cluster.fabric.graph=x.gexf"])).notes
    assert "`cluster.fabric.graph` had no effect: only a fabric of type graph has one, not rail-optimized" in notes


def test_hashed_routing_of_a_graph_is_refused(write):
    (problem,) = told(write(plane()), "cluster.fabric.routing=ecmp")
    assert problem.message.startswith("`ecmp` isn't available on a graph yet")


def test_a_graph_leaves_the_scenario_it_is_given_to(write):
    scenario = load_scenario("two-pods")
    assert colossim.with_graph(scenario, plane()).cluster.fabric.type == "graph"
    assert scenario == load_scenario("two-pods")
    assert scenario.cluster.graph is None


def test_efficiency_latency_and_port_rate_are_the_scenarios(write):
    path = write(plane(leaf_spine=10e9))

    def step(*changes):
        return simulate(load_scenario(path, set=[f"cluster.fabric.{change}" for change in changes])).step_time_s

    base = step()
    assert step("efficiency=50 %") > base * 1.001
    assert step("link=10 Gb/s") > base * 1.001
    assert step("link=800 Gb/s") == base, "no more than the NIC's own rate"
    assert step("hop_latency=1 ms") == base, "all edges state theirs"
    graph = plane(leaf_spine=10e9)
    for *_, data in graph.edges(data=True):
        del data["latency"]
    write(graph)
    assert step("hop_latency=1 ms") > base * 1.001


def test_links_are_named_by_their_ends(write):
    path = write(plane(leaf_spine=10e9))
    links = simulate(load_scenario(path)).links
    assert "plane0 leaf0 -> plane0 spine0" in links
    assert links["plane0 leaf0 -> plane0 spine0"]["capacity_Bps"] == 10e9
    page = str(simulate(load_scenario(path)))
    assert re.search(r"^plane0 \w+ -> plane0 \w+ +8 +10.0 GB/s", page, re.MULTILINE), page
    section = explain(load_scenario(path))
    assert section["cluster"]["graph"].endswith("mine.graphml: 20 vertices, 40 links, each one way")
    assert section["cluster"]["links that can bind"].startswith("8 of 40: plane0 leaf0 -> plane0 spine0, ")
    assert section["who talks over what"]["data"].endswith("NIC, the graph")


def test_many_named_links_are_one_entry():
    """Above 64 classes those of a capacity, and of a kind, are joined."""
    graph = examples.multi_plane(2, 8, 6, 1)
    for number, (*_, data) in enumerate(graph.edges(data=True)):
        data["capacity"] = 1e9 + 1e6 * number
    scenario = load_scenario(
        "two-pods", set=["cluster.nodes.0.count=8", "job.parallelism={tensor: 2, sharding: optimizer}"]
    )
    result = simulate(colossim.with_graph(scenario, graph))
    assert sum(use.kind == "fabric" for use in result.record.links) > 64
    joined = [link for name, link in result.links.items() if name == "fabric" or " -> " in name]
    assert len(result.links) <= 64
    assert sum(link["count"] for link in joined) == 2 * graph.number_of_edges()
    str(result)


def test_a_torus_of_servers_and_shared_nics_play():
    """Servers that relay for each other, without any switch; one vertex a server."""
    torus = nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 4, periodic=True))
    for node in torus:
        torus.nodes[node].update(kind="node", node=node)
    nx.set_edge_attributes(torus, "1.6 Tb/s", "capacity")
    result = simulate(colossim.with_graph(load_scenario("two-pods"), torus))
    assert result.gpus == 128
    shared = nx.Graph()
    shared.add_node("switch", kind="switch")
    for node in range(16):
        for nic in range(4):
            shared.add_node((node, nic), kind="nic", node=node, gpu=f"{2 * nic},{2 * nic + 1}")
            shared.add_edge((node, nic), "switch", capacity="400 Gb/s")
    halved = colossim.with_graph(load_scenario("two-pods"), shared)
    assert simulate(halved).step_time_s > result.step_time_s
    for scenario in (halved, colossim.with_graph(load_scenario("two-pods"), torus)):
        cluster = lay_out(scenario).cluster
        for quotient in (True, False):
            view = cluster.graph(quotient=quotient)
            of_graph = [data["count"] for *_, data in view.edges(data=True) if data["kind"] == "fabric"]
            assert sum(of_graph) == cluster.own.links
            assert sum(data["count"] for _, data in view.nodes(data=True) if data["kind"] == "gpu") == 128
        colossim.plot.topology(cluster)


def test_the_drawing_has_the_graphs_own_words():
    cluster = lay_out(colossim.with_graph(load_scenario("two-pods"), examples.dragonfly_plus(4, 2, 2, 2))).cluster
    words = {text.get_text() for text in colossim.plot.topology(cluster).texts}
    assert {"8 x leaf", "8 x spine", "128 H100 GPUs", "16 hgx-h100 nodes"} <= words


# -- what ships ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("dragonfly-plus", examples.dragonfly_plus(4, 2, 4, 4, leaf_spine=400e9, between_groups=100e9)),
        ("multi-plane", examples.multi_plane(2, 4, 4, 4, leaf_spine=100e9)),
    ],
)
def test_graphs_that_ship_are_what_their_scenarios_say(name, graph):
    read = nx.read_graphml(scenarios_folder() / "graphs" / f"{name}.graphml")
    assert dict(read.nodes(data=True)) == dict(graph.nodes(data=True))
    assert nx.utils.edges_equal(read.edges(data=True), graph.edges(data=True))
    assert load_scenario(name).cluster.graph == str(scenarios_folder() / "graphs" / f"{name}.graphml")


def test_experts_across_groups_wait_for_the_links_between_them():
    within, across = (
        simulate(load_scenario("dragonfly-plus", case=f"experts {w}")) for w in ("within a leaf", "across groups")
    )
    assert across.breakdown_s["expert_comm"] > 3 * within.breakdown_s["expert_comm"]


def test_the_page_about_own_fabrics_holds(monkeypatch, tmp_path, capsys):
    """Its program runs, and writes a file that its scenario reads."""
    text = (DOCS / "own-fabrics.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(program, names)
    assert re.search(r"^(leaf\d -> spine\d|spine\d -> leaf\d) +\d", capsys.readouterr().out, re.MULTILINE)
    fabric = re.search(r"```yaml\n(cluster:.*?)```", text, re.DOTALL)[1]
    rest = SCENARIO[: SCENARIO.index("cluster:")] + fabric + SCENARIO[SCENARIO.index("job:") :]
    Path("my.yaml").write_text(rest)
    assert simulate(load_scenario("my.yaml")).gpus == 32


# -- NCCL's dump -----------------------------------------------------------------------------------------------------
def with_dump(fields=""):
    node = f"{{type: {{base: hgx-h100, topology: node.xml{fields}}}, count: 2}}"
    return SCENARIO.replace("{type: hgx-h100, count: 2}", node)


def test_a_node_takes_gpus_and_nics_from_its_dump(write, tmp_path):
    (tmp_path / "node.xml").write_text(hopper().replace('speed="400000"', 'speed="200000"'))
    scenario = load_scenario(write(plane(), with_dump()))
    node = scenario.cluster.nodes[0].type
    assert (node.gpus, node.nic) == (8, 25e9)
    assert simulate(scenario).gpus == 16
    agreeing = load_scenario(write(plane(), with_dump(", gpus: 8, nic: 200 Gb/s")))
    assert agreeing.cluster.nodes[0].type == node


def test_a_dump_that_says_otherwise_is_told(write, tmp_path):
    (tmp_path / "node.xml").write_text(hopper())
    path = write(plane(), with_dump(", gpus: 4, nic: 100 Gb/s"))
    assert [str(problem) for problem in told(path)] == [
        f"{path}:3:61: cluster.nodes.0.type.gpus: 4: the topology has 8 GPUs; leave it out",
        f"{path}:3:69: cluster.nodes.0.type.nic: `100 Gb/s`: the topology has 400 Gb/s a GPU; leave it out",
    ]
    (tmp_path / "node.xml").write_text("<system>")
    (problem,) = told(write(plane(), with_dump()))
    assert str(problem) == (
        f"{path}:3:45: cluster.nodes.0.type.topology: {tmp_path / 'node.xml'}:1:9: is not XML: no element found"
    )
    (tmp_path / "node.xml").unlink()
    (problem,) = told(write(plane(), with_dump()))
    assert problem.message == f"{tmp_path / 'node.xml'}: no such file"


def test_a_dump_in_ones_own_catalogue(write, tmp_path):
    (tmp_path / "node.xml").write_text(hopper().replace('speed="400000"', 'speed="100000"'))
    (tmp_path / "own.yaml").write_text("nodes: {ours: {base: hgx-h100, topology: node.xml}}\n")
    text = SCENARIO.replace("{type: hgx-h100, count: 2}", "{type: ours, count: 2}") + "catalog: own.yaml\n"
    scenario = load_scenario(write(plane(), text))
    assert scenario.cluster.nodes[0].type.nic == 12.5e9
