"""A cluster on a fabric of one's own: the GPUs' own links, then the directed links of a graph.

    nodes with a GPU and its NVLink, NIC: 4 links a GPU, as on any fabric
    the graph: link l is number 4 G + l                         kind "fabric", named `leaf0 -> spine1`

A message in a node takes NVLink. Any other leaves by its own GPU's NIC, takes all shortest paths through the graph, as
`paths.spread` has them, and enters by the destination's NIC. Where the graph has the cable between NIC and switch as an edge,
that is one link more on the way, with a capacity of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colossim.cluster.own import OwnFabric
from colossim.cluster.topology import LINK_KINDS, Cluster, Floats, Ints, Routes

if TYPE_CHECKING:
    import networkx

FABRIC = "fabric"
#: Latencies are whole multiples of this many s, so that their sums (up to 8 ms) are the same in any order.
_TICK = 2.0**-60


@dataclass(frozen=True)
class GraphRoutes(Routes):
    """The ways of E messages through a graph; level is the number of switches on the way, at least 1 outside the node.

    message, link, share: (R,) which of the messages puts what part of itself on which link of the cluster.
    """

    message: Ints
    link: Ints
    share: Floats


class Feeds:
    """The largest part of any message that each NIC out (0) and in (1) was seen to put on each link of the graph."""

    def __init__(self) -> None:
        self._seen: tuple[list[tuple[Ints, Floats]], list[tuple[Ints, Floats]]] = ([], [])

    def note(self, way: int, key: Ints, share: Floats) -> None:
        """key: link x GPUs + GPU."""
        keys, row = np.unique(key, return_inverse=True)
        most = np.zeros(keys.size)
        np.maximum.at(most, row, share)
        self._seen[way].append((keys, most))

    def rows(self, way: int) -> tuple[Ints, Floats]:
        """(keys, largest parts), each key once."""
        seen = self._seen[way]
        if len(seen) > 1:
            key, share = (np.concatenate(column) for column in zip(*seen, strict=True))
            seen.clear()
            self.note(way, key, share)
        return seen[0] if seen else (np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class GraphCluster(Cluster):
    """Nodes on a graph. own: the graph's links.  feeds: grows with every message that is routed."""

    own: OwnFabric = field(kw_only=True)
    feeds: Feeds = field(default_factory=Feeds, repr=False, compare=False)

    @staticmethod
    def of(cluster: Cluster, own: OwnFabric) -> GraphCluster:
        """The nodes of a cluster on the graph; what a graph's fabric doesn't have (tiers, SHARP) is taken off."""
        facts: dict[str, Any] = {each.name: getattr(cluster, each.name) for each in fields(Cluster)}
        plain = {"tiers": 1, "oversubscription": (), "planes": 1, "rails": "spine", "sharp": False}
        facts["fabric"] = cluster.fabric.model_copy(update=plain)
        return GraphCluster(own=own, **facts)

    def placed(self, nodes: Ints) -> GraphCluster:
        """The same machines with their GPUs taken in another order of nodes; each keeps its vertex."""
        moved = super().placed(nodes)
        order = self.first_gpu[moved.gpu_node] + moved.gpu_local
        return GraphCluster.of(
            moved, replace(self.own, gpu_vertex=self.own.gpu_vertex[order], gpu_node=self.own.gpu_node[order])
        )

    # -- where a GPU stands ------------------------------------------------------------------------------------------
    @cached_property
    def _leaves(self) -> Ints:
        """(G,) the set of vertices that each GPU's own vertex has links to, as a number."""
        network = self.own.network
        order = np.lexsort((network.head, network.tail))
        tail, head = network.tail[order], network.head[order]
        start = np.searchsorted(tail, np.arange(len(network.vertices) + 1))
        first, last = start[self.own.gpu_vertex], start[self.own.gpu_vertex + 1]
        return _numbered(head[a:b].tobytes() for a, b in zip(first, last, strict=True))

    @cached_property
    def _pods(self) -> Ints:
        """(N,) the set of leaves that each node's GPUs hang on, as a number."""
        bounds = zip(self.first_gpu, self.first_gpu + np.bincount(self.gpu_node, minlength=self.nodes), strict=True)
        return _numbered(np.unique(self._leaves[a:b]).tobytes() for a, b in bounds)

    def pod(self, gpus: Ints) -> Ints:
        """Pod of each GPU: nodes that hang on the same switches."""
        return self._pods[self.gpu_node[gpus]]

    def leaf(self, gpus: Ints) -> Ints:
        """Leaf of each GPU: those that hang on the same switches."""
        return self._leaves[gpus]

    # -- links -------------------------------------------------------------------------------------------------------
    @cached_property
    def _bundles(self) -> tuple[Floats, ...]:
        return (np.zeros(0),) * 3

    @property
    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """The graph's links are one range, of level 0."""
        return ((0, super().links, self.own.links),)

    def can_bind(self, level: int) -> bool:
        return level == 0

    @property
    def links(self) -> int:
        return super().links + self.own.links

    def capacity(self) -> Floats:
        """(links,) bytes/s, the fabric's efficiency applied to the graph's links, too."""
        return np.concatenate([super().capacity(), self.own.capacity * self.fabric.efficiency])

    def link_kinds(self) -> NDArray[np.int8]:
        graph = np.full(self.own.links, LINK_KINDS.index(FABRIC), np.int8)
        return np.concatenate([super().link_kinds(), graph])

    def link_kind_name(self, link: int) -> str:
        return FABRIC if link >= super().links else super().link_kind_name(link)

    def link_name(self, link: int) -> str:
        own = link - super().links
        return self.own.names[own] if own >= 0 else super().link_name(link)

    def slack(self) -> NDArray[np.bool_]:
        """(links,) bool: links of the graph that cannot bind, whatever is sent of the messages that were routed so far.

        A link carries at most what the NICs send, each times the largest part of a message that it puts there; and at
        most what the NICs take in, likewise. The margin of 1e-9 is for the rounding of the sum.
        """
        most = np.full(self.own.links, np.inf)
        for way in (0, 1):
            key, share = self.feeds.rows(way)
            link, gpu = np.divmod(key, self.gpus)
            most = np.minimum(most, np.bincount(link, weights=share * self.nic[gpu], minlength=self.own.links))
        slack = np.zeros(self.links, dtype=bool)
        slack[super().links :] = most <= self.own.capacity * self.fabric.efficiency * (1 + 1e-9)
        return slack

    # -- routes ------------------------------------------------------------------------------------------------------
    def routes(self, src: Ints, dst: Ints) -> GraphRoutes:
        """The ways of messages from GPUs src to GPUs dst (E,). Raises SimulationError if there is none."""
        src, dst = np.asarray(src), np.asarray(dst)
        outside = np.flatnonzero(self.gpu_node[src] != self.gpu_node[dst])
        spread = self.own.spread(src[outside], dst[outside])
        crossed = np.bincount(spread.message, weights=spread.share, minlength=outside.size)
        level, latency = np.zeros(src.shape, np.int8), np.zeros(src.shape)
        level[outside] = np.clip(np.rint(crossed) - 1, 1, 127)
        latency[outside] = np.rint(spread.latency / _TICK) * _TICK
        message = outside[spread.message]
        for way, end in enumerate((src, dst)):
            self.feeds.note(way, spread.link * self.gpus + end[message], spread.share)
        return GraphRoutes(level, src, dst, latency, message, super().links + spread.link, spread.share)

    def own_ways(self, members: Ints) -> bool:
        """Never to be taken for granted: a message's way is a sum over the graph's links."""
        return False

    def book(self, group: Ints, routes: GraphRoutes, add: Callable[[Ints, Ints, Floats], None]) -> None:
        """Adds (group, link, weight) of messages. group: (E,) of each."""
        key, row = np.unique(group[routes.message].astype(np.int64) * self.links + routes.link, return_inverse=True)
        add(
            key // self.links,
            key % self.links,
            np.bincount(row, weights=routes.share, minlength=key.size).astype(float),
        )

    def graph(self, *, quotient: bool | None = None) -> networkx.DiGraph[Any]:
        """The topology as a networkx graph (see `colossim.cluster.graph_view`). None: whole if it is small, else folded."""
        from colossim.cluster.graph import WHOLE_UP_TO
        from colossim.cluster.graph_view import quotient_of_graph, whole_of_graph

        if quotient is None:
            quotient = self.gpus > WHOLE_UP_TO
        return quotient_of_graph(self) if quotient else whole_of_graph(self)


def _numbered(things: Any) -> Ints:
    """A number from 0 for each of some things, in the order of their first appearance."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(thing, len(known)) for thing in things], np.int32)
