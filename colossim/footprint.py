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

from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster, GraphCluster, GraphRoutes, Routes

Floats = NDArray[np.float64]
Ints = NDArray[Any]
Bools = NDArray[np.bool_]
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
    spacing: (G,) as `Runs.spacing`; None where no protocol is chosen by it.
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
    spacing: Ints | None = None

    def facts(self, switches: bool = True) -> tuple[NDArray[Any], ...]:
        """(G,) columns that tell groups apart before any link is looked at; `switches` among them or not."""
        columns: tuple[NDArray[Any], ...] = (
            self.share, self.nodes, self.nvlink_steps, self.network_steps, self.nvlink_weight, self.nic_weight, self.usable,
        )  # fmt: skip
        columns += () if self.spacing is None else (self.spacing,)
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
            spacing=0 if self.spacing is None else int(self.spacing[group]),
        )


def with_stand_ins(footprint: Footprint, cluster: Cluster, members: Ints) -> Footprint:
    """The footprint with `nic_weight` raised where a member's NIC also carries what it takes for its neighbours.

    members: (G, n) GPUs. Only within a group: what groups put on each other's NICs is shared link by link.
    """
    owner = np.full(cluster.gpus, -1)
    owner[members] = np.arange(members.shape[0])[:, None]
    columns = {kind: weights for _, kind, weights in footprint.own}
    heaviest = footprint.nic_weight.copy()
    for kind in (NIC_OUT, NIC_IN):
        here = footprint.link // cluster.gpus == kind
        group, gpu = footprint.group[here], footprint.link[here] % cluster.gpus
        key, inverse = np.unique(group.astype(np.int64) * cluster.gpus + gpu, return_inverse=True)
        whose, via = key // cluster.gpus, key % cluster.gpus
        load = np.bincount(inverse, weights=footprint.weight[here], minlength=key.size).astype(np.float64)
        load += np.where(owner[via] == whose, columns[kind][via], 0.0)
        np.maximum.at(heaviest, whose, load)
    return replace(footprint, nic_weight=heaviest)


@dataclass(frozen=True)
class Flows:
    """Edges above the leaves, F in all. group: whose.  src, dst: the GPUs whose NICs it leaves and enters by.

    weight: edges that a flow stands for.  level: of `Routes`.
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
    spacing: int = 0


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

    def message(self, group: Ints, src: Ints, dst: Ints, routes: Routes, share: float = 1.0) -> tuple[Bools, Bools]:
        """Books bundles and relays of edges outside the node; which edges leave, and which enter, by their end's own NIC.

        share: of an edge that each stands for.
        """
        cluster = self.cluster
        if isinstance(cluster, GraphCluster) and isinstance(routes, GraphRoutes):
            cluster.book(group, routes, lambda whose, link, weight: self.add(whose, link, weight * share))
            away: Bools = routes.level > 0
            return away, away
        gpus = cluster.gpus
        outside = routes.level > 0
        leaves, enters = routes.exit_gpu == src, routes.entry_gpu == dst
        relayed = outside & ~leaves
        if relayed.any():
            via, one = routes.exit_gpu[relayed], np.full(int(relayed.sum()), share)
            for link in (NVLINK_OUT * gpus + src[relayed], NVLINK_IN * gpus + via, NIC_OUT * gpus + via):
                self.add(group[relayed], link, one)
        received = outside & ~enters
        if received.any():
            via, one = routes.entry_gpu[received], np.full(int(received.sum()), share)
            for link in (NIC_IN * gpus + via, NVLINK_OUT * gpus + via, NVLINK_IN * gpus + dst[received]):
                self.add(group[received], link, one)
        if self.pinned:
            far = np.flatnonzero(routes.level > 1)
            ends = routes.exit_gpu[far], np.asarray(routes.entry_gpu)[far]
            self._flows.append(Flows(group[far], *ends, routes.level[far], np.full(far.size, share)))
        for level in LEVELS:
            crossing = np.flatnonzero(routes.level > level)
            if not crossing.size:
                break
            who, out, into = group[crossing], routes.exit_gpu[crossing], routes.entry_gpu[crossing]
            self.crossings[level - 1] += np.bincount(who, minlength=self.crossings.shape[1]) * share
            self.feeds[0, level - 1, out] = True
            self.feeds[1, level - 1, into] = True
            if cluster.can_bind(level):
                member_of = (cluster.leaf, cluster.block, cluster.zone)[level - 1]
                one = np.full(who.size, share)
                self.add(who, cluster.bundle_offset(level, False) + member_of(out), one)
                self.add(who, cluster.bundle_offset(level, True) + member_of(into), one)
        return outside & leaves, outside & enters

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

    def spacing(self, cluster: Cluster, members: Ints) -> Ints:
        """(G,) places between the two nearest members of a node, of the node where that is most; 0: no node has two."""
        local = cluster.gpu_local[members].ravel().astype(np.int64)
        apart = np.diff(local, prepend=0)
        apart[self.start] = cluster.gpus
        nearest = np.where(self.size > 1, np.minimum.reduceat(apart, self.start), 0)
        return np.maximum.reduceat(nearest, self.first)
