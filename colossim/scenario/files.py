"""Files that a scenario names beside itself: the graph of a fabric, NCCL's dump of a node; and a graph given in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossim.catalog import Extra, based, entry
from colossim.catalog.nccl_topology import NodeFacts, read_node
from colossim.errors import Problem, ScenarioError
from colossim.scenario.messages import Place, place_of
from colossim.scenario.schema import Scenario
from colossim.units import RATE
from colossim.yaml12 import Path_, dotted

if TYPE_CHECKING:
    import networkx


def with_graph(scenario: Scenario, graph: networkx.Graph[Any]) -> Scenario:
    """The same scenario on a fabric of type graph, the graph being a networkx object.

    Efficiency, hop latency and the rate of a NIC port stay those of the scenario's fabric.
    """
    name = str(getattr(graph, "name", "") or "own graph")
    fabric = scenario.cluster.fabric.model_copy(update={"type": "graph", "graph": None, "name": name})
    cluster = scenario.cluster.model_copy(update={"fabric": fabric})
    cluster._graph = graph
    return scenario.model_copy(update={"cluster": cluster})


def find_graph(scenario: Scenario, file: str) -> None:
    """Tells the cluster where its graph's file is."""
    graph, path = scenario.cluster.fabric.graph, "cluster.fabric.graph"
    while path and scenario.place(path) is None:
        path = path.rpartition(".")[0]
    if graph is not None:
        scenario.cluster._graph = beside(graph, file, scenario.place(path))


def beside(name: str, file: str, place: Place | None) -> str:
    """The path of a file that a scenario names: relative to the scenario, or to where the command line is that names it."""
    by_hand = place is not None and (place[0] or "").startswith("--set ")
    return name if by_hand else str(Path(file).parent / name)


def with_dumps(
    value: dict[str, Any], file: str, extra: Extra, problems: list[Problem], places: Mapping[Path_, Place]
) -> dict[str, Any]:
    """The scenario's fields, nodes that name NCCL's dump of themselves with the `gpus` and `nic` that it found."""
    cluster = value.get("cluster")
    nodes = cluster.get("nodes") if isinstance(cluster, dict) else None
    if not isinstance(cluster, dict) or not isinstance(nodes, tuple):
        return value
    found = []
    for i, group in enumerate(nodes):
        kind = group.get("type") if isinstance(group, dict) else None
        at: Path_ = ("cluster", "nodes", i, "type")
        try:
            fields = entry("nodes", kind, extra) if isinstance(kind, str) else based("nodes", kind or {}, extra)
            dump = fields.get("topology")
        except (ValueError, AttributeError, TypeError):
            dump = None  # what is wrong here is said when the fields are read
        if isinstance(dump, str):
            own: dict[str, Any] = {"base": kind} if isinstance(kind, str) else kind or {}
            place = place_of((*at, "topology"), places, places)
            try:
                facts = read_node(beside(dump, file, place), field=dotted((*at, "topology")))
            except ScenarioError as error:
                for p in error.problems:
                    problems.append(Problem(p.field, str(Problem("", p.message, p.file, p.line, p.column)), *place))
            else:
                problems += _contradictions(own, facts, at, places)
                group = {**group, "type": {**own, "gpus": facts.gpus, "nic": _rate(facts.nic)}}
        found.append(group)
    return {**value, "cluster": {**cluster, "nodes": tuple(found)}}


def _contradictions(kind: dict[str, Any], facts: NodeFacts, at: Path_, places: Mapping[Path_, Place]) -> list[Problem]:
    """Where the node's own fields say other than the dump."""
    found = []
    if not facts.nics:
        found.append(("topology", "has no NIC that NCCL uses"))
    gpus, nic = kind.get("gpus"), kind.get("nic")
    if isinstance(gpus, int) and gpus != facts.gpus:
        found.append(("gpus", f"{gpus}: the topology has {facts.gpus} GPUs; leave it out"))
    try:
        differs = isinstance(nic, str) and bool(facts.nics) and abs(RATE.parse(nic) / facts.nic - 1) > 1e-9
    except ValueError:
        differs = False
    if differs:
        found.append(("nic", f"`{nic}`: the topology has {_rate(facts.nic)} a GPU; leave it out"))
    return [Problem(dotted((*at, name)), what, *place_of((*at, name), places, places)) for name, what in found]


def _rate(value: float) -> str:
    """Bytes/s as text; a node without NICs is said to be wrong elsewhere."""
    return f"{(value or 1.0) * 8e-9:.12g} Gb/s"
