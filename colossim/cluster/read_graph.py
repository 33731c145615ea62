"""A networkx graph from a file (GraphML, GEXF, JSON node-link), with the line of each vertex and edge.

Always a multigraph, so that parallel cables stay apart; whatever is wrong is a Problem of the field `cluster.fabric.graph`.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from colossim.catalog.xml_lines import read_bytes, read_xml
from colossim.errors import Problem, ScenarioError

if TYPE_CHECKING:
    import networkx

#: The field that every problem of a graph is about.
FIELD = "cluster.fabric.graph"
SUFFIXES = (".graphml", ".gexf", ".json")
_ENDS = ("source", "target")


@dataclass(frozen=True)
class GraphFile:
    """A graph and where it stands.

    file: its path; None for a graph object.  vertex_line: of each vertex of an XML file.  edge_lines: of the edges from a
    vertex to another, parallel ones in the order of the file; both ways round in an undirected graph.
    """

    graph: networkx.Graph[Any]
    file: str | None = None
    vertex_line: dict[Any, int] = field(default_factory=dict)
    edge_lines: dict[tuple[Any, Any], list[int]] = field(default_factory=dict)

    def edges(self) -> Iterator[tuple[Any, Any, dict[str, Any], int | None]]:
        """(tail, head, attributes, line) of every edge, an undirected one once."""
        seen: dict[tuple[Any, Any], int] = defaultdict(int)
        for tail, head, data in self.graph.edges(data=True):
            nth = seen[tail, head]
            seen[tail, head] += 1
            lines = self.edge_lines.get((tail, head), ())
            yield tail, head, data, lines[nth] if nth < len(lines) else None

    def problem(self, message: str, line: int | None = None) -> Problem:
        return Problem(FIELD, message, self.file, line)


def read_graph(source: str | os.PathLike[str] | networkx.Graph[Any]) -> GraphFile:
    """The graph of a file, by its ending, or of a networkx object. Raises ScenarioError for anything that isn't one."""
    import networkx as nx

    if isinstance(source, nx.Graph):
        return GraphFile(source)
    if not isinstance(source, str | os.PathLike):
        message = f"a {type(source).__name__} is no graph: name a file ({', '.join(SUFFIXES)}) or give a networkx graph"
        raise ScenarioError([Problem(FIELD, message)])
    file = os.fspath(source)
    suffix = PurePath(file).suffix.lower()
    if suffix not in SUFFIXES:
        message = f"`{suffix}` is no ending of a graph's file: write {', '.join(SUFFIXES)}"
        raise ScenarioError([Problem(FIELD, message, file)])
    data = read_bytes(source, FIELD)
    return _from_json(data, file) if suffix == ".json" else _from_xml(data, file, suffix)


def _from_xml(data: bytes, file: str, suffix: str) -> GraphFile:
    import networkx as nx

    root = read_xml(data, file, FIELD)
    language = suffix[1:]
    if root.tag != language:
        message = f"its outermost element is `{root.tag}`, not `{language}`"
        raise ScenarioError([Problem(FIELD, message, file, root.line)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of attributes without a declared type, which are text
            if suffix == ".graphml":
                graph = nx.read_graphml(io.BytesIO(data), force_multigraph=True)
            else:
                graph = nx.read_gexf(io.BytesIO(data))
    except Exception as error:  # networkx lets through whatever its conversions raise: ValueError, KeyError, TypeError
        detail = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | AttributeError) else str(error)
        raise ScenarioError([Problem(FIELD, f"is not {suffix} that networkx reads: {detail}", file)]) from None
    vertex_line: dict[Any, int] = {}
    edge_lines: dict[tuple[Any, Any], list[int]] = defaultdict(list)
    for element in root.walk():
        facts = element.attributes
        if element.tag == "node" and "id" in facts:
            vertex_line.setdefault(facts["id"], element.line)
        elif element.tag == "edge" and "source" in facts and "target" in facts:
            ends = facts["source"], facts["target"]
            edge_lines[ends].append(element.line)
            if not graph.is_directed() and ends[0] != ends[1]:
                edge_lines[ends[::-1]].append(element.line)
    return GraphFile(graph, file, vertex_line, dict(edge_lines))


def _from_json(data: bytes, file: str) -> GraphFile:
    """Node-link JSON: `nodes` with an `id` each, `edges` (or `links`, as networkx wrote it before 3.4) with two ends each."""
    import networkx as nx

    try:
        value = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ScenarioError([Problem(FIELD, f"is not JSON: {error.msg}", file, error.lineno, error.colno)]) from None
    except UnicodeDecodeError as error:
        raise ScenarioError([Problem(FIELD, f"is not UTF-8 text (byte {error.start})", file)]) from None
    except (RecursionError, ValueError) as error:  # ValueError: a number of more digits than Python reads
        reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)
        raise ScenarioError([Problem(FIELD, f"cannot be read: {reason}", file)]) from None
    wanted = "the JSON that networkx.node_link_data writes"
    nodes = value.get("nodes") if isinstance(value, dict) else None
    edges = value.get("edges", value.get("links")) if isinstance(value, dict) else None
    if not isinstance(nodes, list) or not isinstance(edges, list):
        message = f"is not {wanted}: an object with the lists `nodes` and `edges` (or `links`)"
        raise ScenarioError([Problem(FIELD, message, file)])
    graph: networkx.Graph[Any] = nx.MultiDiGraph() if value.get("directed") else nx.MultiGraph()
    if isinstance(value.get("graph"), dict):
        graph.graph.update(value["graph"])
    problems = []
    for index, facts in enumerate(nodes):
        if isinstance(facts, dict) and _name(facts.get("id")) is not None:
            graph.add_node(_name(facts["id"]), **{str(k): v for k, v in facts.items() if k != "id"})
        else:
            problems.append(Problem(FIELD, f"nodes[{index}] has no `id` (text or a number)", file))
    for index, facts in enumerate(edges):
        ends = [_name(facts.get(end)) for end in _ENDS] if isinstance(facts, dict) else [None]
        unknown = [end for end in ends if end not in graph]
        if None in ends:
            problems.append(Problem(FIELD, f"edges[{index}] has no `source` and `target`", file))
        elif unknown:
            problems.append(Problem(FIELD, f"edges[{index}] names `{unknown[0]}`, which is no node", file))
        else:
            graph.add_edges_from([(ends[0], ends[1], {str(k): v for k, v in facts.items() if k not in _ENDS})])
    if problems:
        raise ScenarioError(problems)
    return GraphFile(graph, file)


def _name(value: Any) -> Any:
    """A vertex's name as networkx holds it: JSON has lists for tuples. None for what can't be a name."""
    if isinstance(value, list):
        parts = tuple(_name(part) for part in value)
        return None if None in parts else parts
    return value if isinstance(value, str | int | float) else None
