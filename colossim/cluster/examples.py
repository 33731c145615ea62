"""Fabrics as networkx graphs: examples to look at, to change, and to save with `networkx.write_graphml`.

Every GPU is a vertex of kind `gpu` with its `node` and `gpu` index; capacities are bytes/s of one direction, latencies s.
Read them with `colossim.cluster.own.own_fabric(graph, [gpus_per_node] * nodes, latency=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx

#: 400 Gb/s, and the way through one switch.
PORT, HOP = 50e9, 600e-9


def dragonfly_plus(
    groups: int,
    leaves: int,
    spines: int,
    nodes_per_leaf: int,
    *,
    gpus_per_node: int = 8,
    nic: float = PORT,
    leaf_spine: float = PORT,
    between_groups: float = PORT,
    latency: float = HOP,
) -> networkx.Graph[Any]:
    """Groups of leaves and spines; spine s of each group has a link to spine s of every other group.

            group 0                          group 1
      spine0       spine1              spine0       spine1      spine0 -- spine0, spine1 -- spine1:
        |  \\     /  |                   |  \\     /  |         every pair of groups by one link a spine
        |     X     |                   |     X     |
        |  /     \\  |                   |  /     \\  |         every leaf of a group to every spine of it
      leaf0       leaf1               leaf0       leaf1
       | |         | |                 | |         | |
      nodes       nodes               nodes       nodes       all GPUs of a node on one leaf

    groups, leaves, spines: counts, the latter two in each group.  nic, leaf_spine, between_groups: bytes/s of one link.
    latency: s of a switch: of each link above the NICs, half of it on the NICs' links, so that n switches in a row cost n.
    From group to group a shortest path is up, across, down (Shpiner et al., Dragonfly+, HiPINEB 2017; there a spine's
    links may lead anywhere, here to its namesakes).
    """
    import networkx as nx

    graph: networkx.Graph[Any] = nx.Graph()
    node = 0
    for group in range(groups):
        for leaf in range(leaves):
            switch = f"group{group} leaf{leaf}"
            graph.add_node(switch, kind="leaf", group=group)
            for _ in range(nodes_per_leaf):
                _add_node(graph, node, gpus_per_node, [switch], nic, latency / 2)
                node += 1
            for spine in range(spines):
                above = f"group{group} spine{spine}"
                graph.add_node(above, kind="spine", group=group)
                graph.add_edge(switch, above, capacity=leaf_spine, latency=latency)
    for group in range(groups):
        for other in range(group):
            for spine in range(spines):
                ends = f"group{other} spine{spine}", f"group{group} spine{spine}"
                graph.add_edge(*ends, capacity=between_groups, latency=latency)
    return graph


def multi_plane(
    planes: int,
    leaves: int,
    spines: int,
    nodes_per_leaf: int,
    *,
    gpus_per_node: int = 8,
    nic: float = PORT,
    leaf_spine: float = PORT,
    latency: float = HOP,
) -> networkx.Graph[Any]:
    """A NIC's ports go to as many separate networks of leaves and spines, which meet only in the NICs.

      spine0       spine1              spine0       spine1
        |  \\     /  |                   |  \\     /  |
        |     X     |                   |     X     |
        |  /     \\  |                   |  /     \\  |
      leaf0       leaf1               leaf0       leaf1
        |  plane 0                      |  plane 1
        +----- port 0 - GPU - port 1 ---+                     each GPU on the same leaf of every plane

    leaves, spines: counts in each plane.  nic: bytes/s of the NIC, of which each plane's port has 1/planes.
    leaf_spine: bytes/s of a link from leaf to spine.  latency: s of a switch, as above.
    """
    import networkx as nx

    graph: networkx.Graph[Any] = nx.Graph()
    for plane in range(planes):
        for leaf in range(leaves):
            switch = f"plane{plane} leaf{leaf}"
            graph.add_node(switch, kind="leaf", plane=plane)
            for spine in range(spines):
                above = f"plane{plane} spine{spine}"
                graph.add_node(above, kind="spine", plane=plane)
                graph.add_edge(switch, above, capacity=leaf_spine, latency=latency)
    for leaf in range(leaves):
        switches = [f"plane{plane} leaf{leaf}" for plane in range(planes)]
        for node in range(leaf * nodes_per_leaf, (leaf + 1) * nodes_per_leaf):
            _add_node(graph, node, gpus_per_node, switches, nic / planes, latency / 2)
    return graph


def _add_node(
    graph: networkx.Graph[Any], node: int, gpus: int, switches: list[str], capacity: float, latency: float
) -> None:
    """A server whose every GPU has a link to each of the switches."""
    for gpu in range(gpus):
        name = f"node{node} gpu{gpu}"
        graph.add_node(name, kind="gpu", node=node, gpu=gpu)
        for switch in switches:
            graph.add_edge(name, switch, capacity=capacity, latency=latency)
