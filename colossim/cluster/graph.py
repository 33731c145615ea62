"""The topology's face: a networkx graph, whole or folded into classes.

Nodes carry `kind` (gpu, nvswitch, leaf, spine, core, top), `layer` (0 for GPUs, counting up) and `count`; edges carry `kind`
(of LINK_KINDS), `capacity` (bytes/s of one direction), `latency` (s) and `count`. The spines of a block (and cores of a zone)
are one node, because adaptive routing makes one bundle of their links.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from colossim.cluster.topology import LINK_KINDS, Cluster
from colossim.errors import SimulationError

if TYPE_CHECKING:
    import networkx

#: The whole graph of more GPUs takes seconds and hundreds of megabytes; the quotient says the same.
WHOLE_UP_TO = 50_000
_SWITCHES = ("leaf", "spine", "core", "top")


def _both_ways(graph: networkx.DiGraph[Any], low: Any, high: Any, kinds: tuple[str, str], **facts: float) -> None:
    graph.add_edge(low, high, kind=kinds[0], **facts)
    graph.add_edge(high, low, kind=kinds[1], **facts)


def whole_graph(cluster: Cluster) -> networkx.DiGraph[Any]:
    """Every GPU, NVLink switch, leaf, block of spines, zone of cores. Raises SimulationError above WHOLE_UP_TO GPUs."""
    import networkx as nx

    if cluster.gpus > WHOLE_UP_TO:
        raise SimulationError(
            f"the whole graph of {cluster.gpus:,} GPUs is too large to be useful: ask for cluster.graph(quotient=True)"
        )
    graph: networkx.DiGraph[Any] = nx.DiGraph()
    gpus = np.arange(cluster.gpus)
    hop = cluster.fabric.hop_latency
    leaf = cluster.leaf(gpus)
    for gpu in range(cluster.gpus):
        me, node, switch = ("gpu", gpu), ("nvswitch", int(cluster.gpu_node[gpu])), ("leaf", int(leaf[gpu]))
        kind = cluster.node_types[int(cluster.gpu_type[gpu])]
        graph.add_node(me, kind="gpu", layer=0, count=1, type=kind.gpu.name, rail=int(cluster.gpu_rail[gpu]))
        graph.add_node(node, kind="nvswitch", layer=1, count=1, type=kind.name)
        graph.add_node(switch, kind="leaf", layer=2, count=1)
        nvlink = {"capacity": float(cluster.nvlink[gpu]), "latency": kind.nvlink_ring.hop / 2, "count": 1}
        _both_ways(graph, me, node, ("nvlink-out", "nvlink-in"), **nvlink)
        _both_ways(graph, me, switch, ("nic-out", "nic-in"), capacity=float(cluster.nic[gpu]), latency=hop / 2, count=1)
    places = (cluster.leaf, cluster.block, cluster.zone)
    for level in (1, 2, 3):
        capacity = cluster.bundle_capacity(level)
        if not capacity.size:
            break
        below = places[level - 1](gpus)
        above = places[level](gpus) if level < 3 else np.zeros(cluster.gpus, np.int64)
        for group, parent in sorted(set(zip(below.tolist(), above.tolist(), strict=True))):
            low, high = (_SWITCHES[level - 1], group), (_SWITCHES[level], parent)
            graph.add_node(high, kind=_SWITCHES[level], layer=level + 2, count=1)
            kinds = (LINK_KINDS[2 + 2 * level], LINK_KINDS[3 + 2 * level])
            _both_ways(graph, low, high, kinds, capacity=float(capacity[group]), latency=hop, count=1)
    return graph


def quotient_graph(cluster: Cluster) -> networkx.DiGraph[Any]:
    """One node a kind of part (node type, tier) with its `count`, one edge a kind of link with its `count`."""
    import networkx as nx

    graph: networkx.DiGraph[Any] = nx.DiGraph()
    hop = cluster.fabric.hop_latency
    gpus = np.arange(cluster.gpus)
    groups = [int(np.unique(place(gpus)).size) for place in (cluster.leaf, cluster.block, cluster.zone)]
    graph.add_node("leaf", kind="leaf", layer=2, count=groups[0])
    for index, kind in enumerate(cluster.node_types):
        own = cluster.gpu_type == index
        count = int(own.sum())
        gpu, switch = f"gpu {kind.gpu.name}", f"node {kind.name}"
        graph.add_node(gpu, kind="gpu", layer=0, count=count, type=kind.gpu.name)
        graph.add_node(switch, kind="nvswitch", layer=1, count=int((cluster.node_type == index).sum()), type=kind.name)
        nvlink, nic = float(np.median(cluster.nvlink[own])), float(np.median(cluster.nic[own]))
        half = kind.nvlink_ring.hop / 2
        _both_ways(graph, gpu, switch, ("nvlink-out", "nvlink-in"), capacity=nvlink, latency=half, count=count)
        _both_ways(graph, gpu, "leaf", ("nic-out", "nic-in"), capacity=nic, latency=hop / 2, count=count)
    for level in (1, 2, 3):
        capacity = cluster.bundle_capacity(level)
        if not capacity.size:
            break
        low, high = _SWITCHES[level - 1], _SWITCHES[level]
        graph.add_node(high, kind=high, layer=level + 2, count=groups[level] if level < 3 else 1)
        kinds = (LINK_KINDS[2 + 2 * level], LINK_KINDS[3 + 2 * level])
        _both_ways(graph, low, high, kinds, capacity=float(capacity[0]), latency=hop, count=groups[level - 1])
    return graph
