"""A fabric of one's own: a graph of vertices and links that GPUs hang on, and the ways of messages through it.

What the graph says:
    vertex  kind      `gpu` or `nic`: an endpoint with `node` (server, from 0) and `gpu` (in it, from 0; `0,1` for a NIC that
                      two share). `node`: one endpoint for all GPUs of server `node`. Any other word: it forwards.
    edge    capacity  `400 Gb/s`, or a number of bytes/s of one direction.  latency: `600 ns`, or seconds.
            rail      index, at a vertex of kind `node`: GPU i uses only the links of the (i % rails)-th rail there
    graph   relay     whether endpoints forward for others; else they do only where nothing else could (a torus of servers)
An undirected edge is two directed links. Parallel edges stay apart.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colossim.cluster.network import Floats, Ints, Network
from colossim.cluster.own_vertices import Reading
from colossim.cluster.paths import Paths, Spread, single_paths, spread
from colossim.cluster.read_graph import read_graph
from colossim.errors import SimulationError

if TYPE_CHECKING:
    import networkx

#: How many ranges of nodes an error lists.
_MOST_RANGES = 6


@dataclass(frozen=True)
class OwnFabric:
    """G GPUs on a network of V vertices and L directed links.

    network: vertices and links.  gpu_vertex: (G,) the vertex that each GPU sends and receives at.  gpu_node: (G,).
    file: where the graph stands; None for a graph object.
    """

    network: Network
    gpu_vertex: Ints
    gpu_node: Ints
    file: str | None = None

    @property
    def gpus(self) -> int:
        return int(self.gpu_vertex.size)

    @property
    def links(self) -> int:
        return int(self.network.tail.size)

    @property
    def capacity(self) -> Floats:
        """(L,) bytes/s of each directed link."""
        return self.network.capacity

    @property
    def latency(self) -> Floats:
        """(L,) s of each directed link."""
        return self.network.latency

    @cached_property
    def names(self) -> tuple[str, ...]:
        """(L,) `a -> b` of each link; the second of parallel ones is `a -> b (2)`."""
        seen: dict[str, int] = {}
        names = []
        for tail, head in zip(self.network.tail.tolist(), self.network.head.tolist(), strict=True):
            name = f"{self.network.vertices[tail]} -> {self.network.vertices[head]}"
            seen[name] = seen.get(name, 0) + 1
            names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        return tuple(names)

    def spread(self, src: Ints, dst: Ints) -> Spread:
        """Messages from GPUs src to GPUs dst (M,) over all shortest paths (see `paths.spread`).

        GPUs behind one vertex reach each other there, without links. Raises SimulationError if there is no path.
        """
        return spread(self.network, self.gpu_vertex[src], self.gpu_vertex[dst])

    def single_paths(self, src: Ints, dst: Ints, key: Ints, seed: int, paths_per_flow: int = 1) -> Paths:
        """Messages from GPUs src to GPUs dst (M,), each of their queue pairs on one hashed path (see `paths.single_paths`)."""
        return single_paths(self.network, self.gpu_vertex[src], self.gpu_vertex[dst], key, seed, paths_per_flow)


def own_fabric(
    source: str | os.PathLike[str] | networkx.Graph[Any],
    gpus_per_node: Sequence[int],
    *,
    latency: float,
    relay: bool | None = None,
    weight: str | None = None,
    connected: bool = True,
) -> OwnFabric:
    """The fabric of a graph, or of its file, for nodes with so many GPUs each.

    latency: s of an edge that says none; a message through n switches crosses n + 1 links.
    relay: whether endpoints forward for others; None for what the graph says (attribute `relay`), or else whether every
    vertex is an endpoint.  weight: edge attribute whose sum a shortest path minimizes (1 where absent); None for hops.
    connected: whether all GPUs must reach each other; False for rails that meet over NVLink only.
    Raises ScenarioError with all that is wrong with the graph, SimulationError if it is partitioned.
    """
    file = read_graph(source)
    reading = Reading(file, gpus_per_node, latency, weight)
    network, gpu_vertex = reading.network(relay)
    fabric = OwnFabric(network, gpu_vertex, np.repeat(np.arange(len(gpus_per_node)), gpus_per_node), file.file)
    if connected:
        check_connected(fabric)
    return fabric


def check_connected(fabric: OwnFabric) -> None:
    """Raises SimulationError if some GPUs cannot reach others, naming both."""
    found = fabric.network.unreachable(np.unique(fabric.gpu_vertex))
    if found is None:
        return
    lost = np.isin(fabric.gpu_vertex, np.unique(fabric.gpu_vertex)[found])
    message = f"the fabric is partitioned: {_gpus(fabric, lost)} cannot reach {_gpus(fabric, ~lost)}"
    raise SimulationError(f"{fabric.file}: {message}" if fabric.file else message)


def _gpus(fabric: OwnFabric, chosen: NDArray[np.bool_]) -> str:
    """`node 0 to node 3` for GPUs; of nodes with some GPUs chosen and some not, `GPU 1 of node 4`."""
    node = fabric.gpu_node
    whole = np.bincount(node, weights=~chosen) == 0
    nodes = np.flatnonzero(whole & (np.bincount(node) > 0))
    ranges = [f"node {run[0]} to node {run[-1]}" if run.size > 1 else f"node {run[0]}" for run in _runs(nodes)]
    first = np.searchsorted(node, node)
    ranges += [f"GPU {gpu - first[gpu]} of node {node[gpu]}" for gpu in np.flatnonzero(chosen & ~whole[node])]
    more = len(ranges) - _MOST_RANGES
    return ", ".join(ranges[:_MOST_RANGES]) + (f" and {more} more" if more > 0 else "")


def _runs(values: Ints) -> list[Ints]:
    """Ascending integers as runs of neighbours."""
    return [run for run in np.split(values, np.flatnonzero(np.diff(values) != 1) + 1) if run.size]
