"""From what a graph says of its vertices and edges to a `Network` and the vertex of each GPU, or to all that is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from colossim.cluster.network import Ints, Network
from colossim.cluster.read_graph import GraphFile
from colossim.errors import Problem, ScenarioError
from colossim.units import RATE, TIME, Kind

_ENDPOINTS = ("gpu", "nic", "node")
#: Problems and GPUs that are named before it says how many more there are.
_MOST_PROBLEMS, _MOST_GPUS = 20, 8
#: A vertex: its name in the graph, and its rail where a server is split by rails.
_Vertex = tuple[Any, int | None]


class Reading:
    """A graph on its way to a network; problems collect until it is asked for."""

    def __init__(self, file: GraphFile, gpus_per_node: Sequence[int], latency: float, weight: str | None) -> None:
        self.file = file
        self.gpus_per_node = [int(gpus) for gpus in gpus_per_node]
        self.latency = latency
        self.weight = weight
        self.problems: list[Problem] = []

    def network(self, relay: bool | None) -> tuple[Network, Ints]:
        """The network, and the vertex of each GPU (G,). Raises ScenarioError with every problem."""
        kinds = {name: self._kind(name, data) for name, data in self.file.graph.nodes(data=True)}
        servers = {name for name, kind in kinds.items() if kind == "node"}
        edges = list(self.file.edges())
        rails = self._rails(servers, edges)
        vertices: list[_Vertex] = []
        for name in kinds:
            vertices.extend((name, rail) for rail in rails.get(name, (None,)))
        number = {vertex: index for index, vertex in enumerate(vertices)}
        gpu_vertex = self._gpu_vertices(kinds, rails, number)
        ends, facts = self._links(edges, rails, number)
        relays = self._relays(relay)
        if self.problems:
            raise ScenarioError(self._told())
        forwards = np.array([kinds[name] not in _ENDPOINTS for name, _ in vertices], bool)
        if relays if relays is not None else not forwards.any():
            forwards[:] = True
        tail, head = np.array(ends, np.int64).reshape(-1, 2).T.copy()
        capacity, latency, weight = np.array(facts, np.float64).reshape(-1, 3).T.copy()
        names = tuple(_text(name) if rail is None else f"{_text(name)} rail {rail}" for name, rail in vertices)
        words = tuple(kinds[name] for name, _ in vertices)
        return Network(names, forwards, tail, head, capacity, latency, weight, words), gpu_vertex

    def _told(self) -> list[Problem]:
        """In the order of the file, the first of them, and how many more there are."""
        told = sorted(self.problems, key=lambda problem: (problem.line is None, problem.line or 0))
        more = len(told) - _MOST_PROBLEMS
        return told[:_MOST_PROBLEMS] + ([self.file.problem(f"and {more:,} more problems")] if more > 0 else [])

    def _complain(self, message: str, line: int | None = None) -> None:
        self.problems.append(self.file.problem(message, line))

    # -- vertices ----------------------------------------------------------------------------------------------------
    def _kind(self, name: Any, data: dict[str, Any]) -> str:
        kind = data.get("kind")
        if not isinstance(kind, str) or not kind.strip():
            unknown = self.file.vertex_line and name not in self.file.vertex_line
            what = "is named by an edge, but is no node of the file" if unknown else "has no `kind`"
            right = "give it the kind `gpu`, `nic` or `node` if it is an endpoint, else `switch`"
            self._complain(f"vertex `{_text(name)}` {what}: {right}", self._line(name))
            return "switch"
        return kind.strip().lower()

    def _line(self, name: Any) -> int | None:
        line = self.file.vertex_line.get(name)
        if line is None and name not in self.file.vertex_line:
            for ends, lines in self.file.edge_lines.items():
                if name in ends:
                    return lines[0]
        return line

    def _gpu_vertices(
        self, kinds: dict[Any, str], rails: dict[Any, tuple[int, ...]], number: dict[_Vertex, int]
    ) -> Ints:
        """(G,) the vertex of each GPU; says which GPUs have none, or two, and which vertices are of no GPU."""
        first = np.concatenate(([0], np.cumsum(self.gpus_per_node, dtype=np.int64)))
        owner: dict[int, Any] = {}
        gpu_vertex = np.full(int(first[-1]), -1, np.int64)
        for name, kind in kinds.items():
            if kind not in _ENDPOINTS:
                continue
            data, line = self.file.graph.nodes[name], self._line(name)
            where = f"vertex `{_text(name)}` of kind `{kind}`"
            node = _index(data.get("node"))
            if node is None:
                self._complain(f"{where} has no `node`: the index of its server, from 0", line)
                continue
            if node >= len(self.gpus_per_node):
                self._complain(f"{where}: there is no node {node}, the cluster has {len(self.gpus_per_node):,}", line)
                continue
            here = self.gpus_per_node[node]
            gpus = list(range(here)) if kind == "node" else _indices(data.get("gpu"))
            if gpus is None:
                self._complain(f"{where} has no `gpu`: the index of its GPU in the node, from 0", line)
                continue
            for gpu in gpus:
                if gpu >= here:
                    self._complain(f"{where}: there is no GPU {gpu}, node {node} has {here}", line)
                    continue
                flat = int(first[node]) + gpu
                if flat in owner:
                    other = _text(owner[flat])
                    self._complain(f"{where}: GPU {gpu} of node {node} already hangs on `{other}`", line)
                    continue
                owner[flat] = name
                own = rails.get(name, (None,))
                gpu_vertex[flat] = number[name, own[gpu % len(own)]]
        missing = np.flatnonzero(gpu_vertex < 0)
        if missing.size:
            shown = missing[:_MOST_GPUS]
            servers = np.searchsorted(first, shown, side="right") - 1
            named = [f"node {n} GPU {gpu - first[n]}" for n, gpu in zip(servers, shown, strict=True)]
            more = f" and {missing.size - _MOST_GPUS:,} more" if missing.size > _MOST_GPUS else ""
            self._complain(f"has no endpoint for {', '.join(named)}{more}")
        return gpu_vertex

    # -- edges -------------------------------------------------------------------------------------------------------
    def _rails(self, servers: set[Any], edges: list[Any]) -> dict[Any, tuple[int, ...]]:
        """The rails of each server whose edges have any, ascending."""
        rails: dict[Any, set[int]] = {}
        for tail, head, data, line in edges:
            rail = _index(data.get("rail"))
            if data.get("rail") is not None and rail is None and {tail, head} & servers:
                self._complain(f"{self._edge(tail, head)}: `rail` is an index from 0, not `{data['rail']}`", line)
            if rail is not None:
                for end in {tail, head} & servers:
                    rails.setdefault(end, set()).add(rail)
        return {name: tuple(sorted(found)) for name, found in rails.items()}

    def _links(
        self, edges: list[Any], rails: dict[Any, tuple[int, ...]], number: dict[_Vertex, int]
    ) -> tuple[list[tuple[int, int]], list[tuple[float, float, float]]]:
        """(tail, head) and (capacity, latency, weight) of every directed link."""
        ends, facts = [], []
        both_ways = not self.file.graph.is_directed()
        for tail, head, data, line in edges:
            edge = self._edge(tail, head)
            capacity = self._quantity(edge, data, "capacity", RATE, None, line)
            latency = self._quantity(edge, data, "latency", TIME, self.latency, line)
            weight = 1.0 if self.weight is None else self._quantity(edge, data, self.weight, None, 1.0, line)
            rail = _index(data.get("rail"))
            if rail is None and (tail in rails or head in rails):
                server = _text(tail if tail in rails else head)
                if data.get("rail") is None:
                    self._complain(f"{edge} has no `rail`, as other edges of `{server}` have", line)
                continue
            pair = (
                number[tail, rail if tail in rails else None],
                number[head, rail if head in rails else None],
            )
            for way in (pair, pair[::-1]) if both_ways else (pair,):
                ends.append(way)
                facts.append((capacity, latency, weight))
        return ends, facts

    def _edge(self, tail: Any, head: Any) -> str:
        return f"edge `{_text(tail)} {'->' if self.file.graph.is_directed() else '--'} {_text(head)}`"

    def _quantity(
        self, edge: str, data: dict[str, Any], name: str, kind: Kind | None, default: float | None, line: int | None
    ) -> float:
        """SI value of an edge's attribute: text with a unit or a number; only a latency may be zero."""
        given = data.get(name)
        if given is None and default is not None:
            return default
        if given is None:
            self._complain(f"{edge} has no `{name}`: write it such as `400 Gb/s`, or as a number of bytes/s", line)
            return 1.0
        value = math.nan
        try:
            if isinstance(given, str):
                value = kind.parse(given) if kind else float(given)
            elif isinstance(given, int | float | np.number) and not isinstance(given, bool):
                value = float(given)
        except (ValueError, OverflowError) as error:
            self._complain(f"{edge}: {name} {error if kind else f'`{given}` is not a number'}", line)
            return 1.0
        if not 0 <= value < math.inf or (value == 0 and kind is not TIME):
            right = "not negative" if kind is TIME else "more than 0"
            self._complain(f"{edge}: {name} `{given}` must be a finite number, {right}", line)
            return 1.0
        return value

    def _relays(self, relay: bool | None) -> bool | None:
        given = relay if relay is not None else self.file.graph.graph.get("relay")
        if isinstance(given, str) and given.strip().lower() in ("true", "false"):
            given = given.strip().lower() == "true"
        if given is not None and not isinstance(given, bool):
            self._complain(f"the graph's `relay` is true or false, not `{given}`")
            return None
        return given


def _index(value: Any) -> int | None:
    """An index from 0, also as a whole float or as text, as some editors of graphs save them. None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}(\.0*)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return int(value) if math.isfinite(value) and 0 <= value < 1e9 and value == int(value) else None


def _indices(value: Any) -> list[int] | None:
    """Several indices: one, a list, or text such as `0,1` or `0 1`."""
    parts = re.split(r"[\s,;]+", value.strip()) if isinstance(value, str) else value
    found = [_index(part) for part in (parts if isinstance(parts, list | tuple) else [parts])]
    whole = [index for index in found if index is not None]
    return whole if whole and len(whole) == len(found) else None


def _text(name: Any) -> str:
    """A vertex's name: tuples as `leaf 3`."""
    return " ".join(_text(part) for part in name) if isinstance(name, tuple) else str(name)
