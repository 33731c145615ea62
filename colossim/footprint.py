"""What groups of ranks put on links, as arrays over all groups of a channel, and how edges become links.

A *group* communicates over *edges* (one rank's message to the next). A `Footprint` holds, for all groups of one channel at
once, how many edges cross each link. Progress of a group is counted in bytes on **one network edge** (an NVLink edge if the
group sits in one node), so the weight of a link is the number of edges on it and filling is fair per flow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossim.cluster import NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster, GraphCluster, GraphRoutes, Routes

Floats = NDArray[np.float64]
Ints = NDArray[Any]
#: Levels of bundles: leaf, block, zone.
LEVELS = (1, 2, 3)


@dataclass(frozen=True)
class Footprint:
    """Links under the groups of one channel. G groups; own links are those of the ranks' own GPUs.

    own: (role, link kind, weights over the cluster's GPUs); a rank's role says which of its groups is meant.
    group, link, weight: further links, coordinate by coordinate (bundles of the fabric, a neighbour's NIC or NVLink).
    share: (G,) part of a collective's S bytes that one pass puts on one edge.
    nodes: (G,) that a group spans.  nvlink_steps, network_steps: (G,) that one pass waits for, one after the other.
    switches: (G,) s that a pass spends in the fabric's switches.
    nvlink_weight, nic_weight: (G,) largest number of edges on such a link.
    crossings: (3, G) edges that use the up (and the down) bundles of level 1, 2, 3.
    feeds: (2, 3, gpus) bool: whether that GPU's NIC out (0) or in (1) carries traffic over bundles of level 1, 2, 3.
    usable: (G,) bool: whether a group can be played so at all; the others' columns mean nothing.
    flows: where routing pins flows to paths, the edges that cross the fabric; None if they were too many to tell apart.
    Bundles of a level that cannot bind whatever the job are in `crossings` only, not in the coordinates.
    """

    own: tuple[tuple[int, int, Floats], ...]
    group: Ints
    link: Ints
    weight: Floats
    share: Floats
    nodes: Ints
    nvlink_steps: Floats
    network_steps: Floats
    switches: Floats
    nvlink_weight: Floats
    nic_weight: Floats
    crossings: Floats
    feeds: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    flows: Flows | None

    def facts(self, switches: bool = True) -> tuple[NDArray[Any], ...]:
        """(G,) columns that tell groups apart before any link is looked at; `switches` among them or not."""
        columns = (
            self.share, self.nodes, self.nvlink_steps, self.network_steps, self.nvlink_weight, self.nic_weight, self.usable,
        )  # fmt: skip
        return (*columns, self.switches) if switches else columns

    def shape(self, group: int, algorithm: str, size: int, hardware: tuple[int, ...]) -> Shape:
        """One group's facts as numbers. size: its ranks.  hardware: the node types among them."""
        return Shape(
            algorithm=algorithm,
            size=size,
            hardware=hardware,
            share=float(self.share[group]),
            nodes=int(self.nodes[group]),
            nvlink_steps=float(self.nvlink_steps[group]),
            network_steps=float(self.network_steps[group]),
            switches=float(self.switches[group]),
            nvlink_weight=float(self.nvlink_weight[group]),
            nic_weight=float(self.nic_weight[group]),
            usable=bool(self.usable[group]),
        )


@dataclass(frozen=True)
class Flows:
    """Edges above the leaves, F in all. group: whose.  src: the GPU whose NIC it leaves by.  dst.  level: of `Routes`.

    weight: edges that a flow stands for.
    """

    group: Ints
    src: Ints
    dst: Ints
    level: Ints
    weight: Floats

    @staticmethod
    def joined(parts: list[Flows]) -> Flows:
        """All flows of several lists."""
        if not parts:
            none = np.zeros(0, np.int64)
            return Flows(none, none, none, none, np.zeros(0))
        names = ("group", "src", "dst", "level", "weight")
        return Flows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Shape:
    """What timing needs of one group under one algorithm; fields as in `Footprint`. hardware: its node types' indices."""

    algorithm: str
    size: int
    hardware: tuple[int, ...]
    share: float
    nodes: int
    nvlink_steps: float
    network_steps: float
    switches: float
    nvlink_weight: float
    nic_weight: float
    usable: bool = True


class Edges:
    """Collects the links under network edges (src, dst GPUs, one weight each) of given groups."""

    def __init__(self, cluster: Cluster, groups: int) -> None:
        self.cluster = cluster
        self.crossings = np.zeros((3, groups))
        self.feeds = np.zeros((2, 3, cluster.gpus), dtype=bool)
        self.pinned = cluster.fabric.routing != "adaptive"
        self._rows: list[tuple[Ints, Ints, Floats]] = []
        self._flows: list[Flows] = []

    def add(self, group: Ints, link: Ints, weight: Floats) -> None:
        if group.size:
            self._rows.append((group, link, weight))

    def message(self, group: Ints, src: Ints, dst: Ints, routes: Routes) -> NDArray[np.bool_]:
        """Books bundles and relays of edges outside the node; returns which edges leave by their own NIC."""
        cluster = self.cluster
        if isinstance(cluster, GraphCluster) and isinstance(routes, GraphRoutes):
            cluster.book(group, routes, self.add)
            outside: NDArray[np.bool_] = routes.level > 0
            return outside
        gpus = cluster.gpus
        relayed = (routes.exit_gpu != src) & (routes.level > 0)
        if relayed.any():
            via, one = routes.exit_gpu[relayed], np.ones(int(relayed.sum()))
            for link in (NVLINK_OUT * gpus + src[relayed], NVLINK_IN * gpus + via, NIC_OUT * gpus + via):
                self.add(group[relayed], link, one)
        if self.pinned:
            far = np.flatnonzero(routes.level > 1)
            self._flows.append(
                Flows(group[far], routes.exit_gpu[far], np.asarray(dst)[far], routes.level[far], np.ones(far.size))
            )
        for level in LEVELS:
            crossing = routes.level > level
            if not crossing.any():
                break
            who, out, into = group[crossing], routes.exit_gpu[crossing], dst[crossing]
            self.crossings[level - 1] += np.bincount(who, minlength=self.crossings.shape[1])
            self.feeds[0, level - 1, out] = True
            self.feeds[1, level - 1, into] = True
            if cluster.can_bind(level):
                member_of = (cluster.leaf, cluster.block, cluster.zone)[level - 1]
                one = np.ones(who.size)
                self.add(who, cluster.bundle_offset(level, False) + member_of(out), one)
                self.add(who, cluster.bundle_offset(level, True) + member_of(into), one)
        own: NDArray[np.bool_] = ~relayed & (routes.level > 0)
        return own

    def take(self, other: Edges, share: float) -> None:
        """Adds what another collection holds, each of its edges standing for `share` of one here."""
        self._rows += [(group, link, weight * share) for group, link, weight in other._rows]
        self._flows += [replace(part, weight=part.weight * share) for part in other._flows]
        self.crossings += other.crossings * share
        self.feeds |= other.feeds

    def flows(self) -> Flows:
        """The edges above the leaves, where routing pins them."""
        return Flows.joined(self._flows)

    def rows(self) -> tuple[Ints, Ints, Floats]:
        if not self._rows:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        group, link, weight = (np.concatenate(column) for column in zip(*self._rows, strict=True))
        return group, link, weight


@dataclass(frozen=True)
class Runs:
    """Members of each group that share a node: (runs,) arrays; members ascend, so a node's members are neighbours.

    start: index into the flat member list.  size: members (q_i).  group: whose.  first: (G,) first run of each group.
    count: (G,) runs (nodes, N).  lanes: (G,) rings side by side: the largest q_i, or 1 inside one node.
    """

    start: Ints
    size: Ints
    group: Ints
    first: Ints
    count: Ints
    lanes: Ints

    @staticmethod
    def of(cluster: Cluster, members: Ints) -> Runs:
        groups, n = members.shape
        node = cluster.gpu_node[members]
        new = np.ones(node.shape, dtype=bool)
        new[:, 1:] = node[:, 1:] != node[:, :-1]
        start = np.flatnonzero(new.ravel())
        size = np.diff(start, append=groups * n)
        group = start // n
        count = new.sum(axis=1)
        first = np.concatenate(([0], np.cumsum(count)[:-1]))
        widest = np.maximum.reduceat(size, first)
        return Runs(start, size, group, first, count, np.where(count > 1, widest, 1))
