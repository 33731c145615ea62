"""A cluster on a graph as a networkx graph: whole, or one node a kind of vertex. Words as in `colossim.cluster.graph`.

Layers: GPUs 0, NVLink switches 1, then 1 + the number of links from the nearest GPU. A vertex that is a GPU's own endpoint
and stands for nothing else (`gpu`) is the GPU; NICs and servers that are vertices have a node each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from colossim.cluster.graph import WHOLE_UP_TO
from colossim.errors import SimulationError

if TYPE_CHECKING:
    import networkx

    from colossim.cluster.graph_cluster import GraphCluster
    from colossim.cluster.topology import Ints


def _layers(cluster: GraphCluster) -> Ints:
    """(V,) layer of each vertex: 1 + links from the nearest endpoint, 0 for vertices that are GPUs."""
    network = cluster.own.network
    far = np.full(len(network.vertices), -1)
    far[cluster.own.gpu_vertex] = 0
    step = 0
    while True:
        front = (far[network.tail] == step) & (far[network.head] < 0)
        if not front.any():
            break
        step += 1
        far[network.head[front]] = step
    own = np.array([word == "gpu" for word in network.words], bool)
    return np.where(own, 0, np.where(far < 0, 2, far + 1 + (far == 0)))


def whole_of_graph(cluster: GraphCluster) -> networkx.DiGraph[Any]:
    """Every GPU, NVLink switch and vertex; parallel links are one. Raises SimulationError above WHOLE_UP_TO GPUs."""
    import networkx as nx

    if cluster.gpus > WHOLE_UP_TO:
        raise SimulationError(
            f"the whole graph of {cluster.gpus:,} GPUs is too large to be useful: ask for cluster.graph(quotient=True)"
        )
    network, layer = cluster.own.network, _layers(cluster)
    graph: networkx.DiGraph[Any] = nx.DiGraph()
    called: list[Any] = list(network.vertices)
    for gpu, vertex in enumerate(cluster.own.gpu_vertex.tolist()):
        kind = cluster.node_types[int(cluster.gpu_type[gpu])]
        me, switch = ("gpu", gpu), ("nvswitch", int(cluster.gpu_node[gpu]))
        graph.add_node(me, kind="gpu", layer=0, count=1, type=kind.gpu.name, rail=int(cluster.gpu_rail[gpu]))
        graph.add_node(switch, kind="nvswitch", layer=1, count=1, type=kind.name)
        facts = {"capacity": float(cluster.nvlink[gpu]), "latency": kind.nvlink_ring.hop / 2, "count": 1}
        graph.add_edge(me, switch, kind="nvlink-out", **facts)
        graph.add_edge(switch, me, kind="nvlink-in", **facts)
        if layer[vertex] == 0:
            called[vertex] = me
        else:
            nic = {"capacity": float(cluster.nic[gpu]), "latency": 0.0, "count": 1}
            graph.add_edge(me, network.vertices[vertex], kind="nic-out", **nic)
            graph.add_edge(network.vertices[vertex], me, kind="nic-in", **nic)
    for vertex, name in enumerate(called):
        if name == network.vertices[vertex]:
            graph.add_node(name, kind=network.words[vertex], layer=int(layer[vertex]), count=1)
    for link, (tail, head) in enumerate(zip(network.tail.tolist(), network.head.tolist(), strict=True)):
        _add(graph, called[tail], called[head], float(cluster.own.capacity[link]), float(network.latency[link]))
    return graph


def quotient_of_graph(cluster: GraphCluster) -> networkx.DiGraph[Any]:
    """One node a kind of part with its `count`, one edge a kind of link with its `count` and median capacity."""
    import networkx as nx

    network, layer = cluster.own.network, _layers(cluster)
    graph: networkx.DiGraph[Any] = nx.DiGraph()
    called: list[Any] = [
        f"{word} {above}" if above else None for word, above in zip(network.words, layer.tolist(), strict=True)
    ]
    for vertex, name in enumerate(called):
        if name is not None:
            count = graph.nodes[name]["count"] + 1 if name in graph else 1
            graph.add_node(name, kind=network.words[vertex], layer=int(layer[vertex]), count=count)
    for index, kind in enumerate(cluster.node_types):
        own = np.flatnonzero(cluster.gpu_type == index)
        gpu, switch = f"gpu {kind.gpu.name}", f"nvswitch {kind.name}"
        graph.add_node(gpu, kind="gpu", layer=0, count=int(own.size), type=kind.gpu.name)
        graph.add_node(switch, kind="nvswitch", layer=1, count=int((cluster.node_type == index).sum()), type=kind.name)
        facts = {"capacity": float(np.median(cluster.nvlink[own])), "latency": kind.nvlink_ring.hop / 2}
        graph.add_edge(gpu, switch, kind="nvlink-out", count=int(own.size), **facts)
        graph.add_edge(switch, gpu, kind="nvlink-in", count=int(own.size), **facts)
        for vertex in cluster.own.gpu_vertex[own].tolist():
            if layer[vertex] == 0:
                called[vertex] = gpu
        ends = [called[vertex] for vertex in cluster.own.gpu_vertex[own].tolist() if layer[vertex]]
        for end in sorted(set(ends)):
            nic = {"capacity": float(np.median(cluster.nic[own])), "latency": 0.0, "count": ends.count(end)}
            graph.add_edge(gpu, end, kind="nic-out", **nic)
            graph.add_edge(end, gpu, kind="nic-in", **nic)
    several: dict[tuple[Any, Any], list[int]] = {}
    for link, (tail, head) in enumerate(zip(network.tail.tolist(), network.head.tolist(), strict=True)):
        several.setdefault((called[tail], called[head]), []).append(link)
    for (low, high), links in several.items():
        capacity, latency = float(np.median(cluster.own.capacity[links])), float(np.median(network.latency[links]))
        graph.add_edge(low, high, kind="fabric", capacity=capacity, latency=latency, count=len(links))
    return graph


def _add(graph: networkx.DiGraph[Any], low: Any, high: Any, capacity: float, latency: float) -> None:
    """A link, or one more beside those that are there."""
    there = graph.edges[low, high] if graph.has_edge(low, high) else None
    if there is None:
        graph.add_edge(low, high, kind="fabric", capacity=capacity, latency=latency, count=1)
    else:
        there["capacity"] += capacity
        there["count"] += 1
