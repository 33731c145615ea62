"""A cluster as arrays: GPUs, their nodes, pods, blocks and zones, and the links between them.

    top                 zone-up/-down      (4 tiers)
    cores of a zone     block-up/-down     (3 tiers)
    spines of a block   leaf-up/-down      (2 tiers)
    leaves of a pod     one a rail (rail-optimized), one for all (fat-tree)
    NICs of the GPUs    nic-out/-in
    GPUs of a node      nvlink-out/-in

Parallel links that adaptive routing sprays over are one *bundle* with their summed capacity, so that 100,000 GPUs on three
tiers have a few thousand bundles. Every link is directed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colossim.catalog.types import Fabric, NodeType
from colossim.errors import SimulationError

if TYPE_CHECKING:
    import networkx

Floats = NDArray[np.float64]
Ints = NDArray[Any]

NVLINK_OUT, NVLINK_IN, NIC_OUT, NIC_IN = range(4)
#: Kinds of links, in the order in which they are numbered: four a GPU, then the fabric's bundles by level, or a graph's links.
LINK_KINDS = (
    "nvlink-out", "nvlink-in", "nic-out", "nic-in",
    "leaf-up", "leaf-down", "block-up", "block-down", "zone-up", "zone-down",
    "fabric",
)  # fmt: skip


def rails_with_gpus(node: NodeType) -> int:
    """Rails of a node that have a GPU: GPU i is on rail i % rails, so that 4 GPUs of an 8-rail node leave 4 rails empty."""
    return min(node.rails, node.gpus)


def nics_below_a_leaf(fabric: Fabric, types: Sequence[NodeType]) -> int:
    """NICs that a full pod puts on one leaf: of one rail (rail-optimized) or of its nodes whole, the fullest type counting.

    The ports down of a leaf switch and the capacity of its bundle are both this number, or they would contradict.
    """
    optimized = fabric.type == "rail-optimized"
    return fabric.nodes_per_pod * max(-(-t.gpus // t.rails) if optimized else t.gpus for t in types)


@dataclass(frozen=True)
class Routes:
    """The ways of E messages.

    level: (E,) 0 same node, 1 one leaf, 2 over the spines of a block, 3 over the cores of a zone, 4 over the top tier.
    exit_gpu: (E,) the GPU whose NIC the message leaves by: the source, unless it is forwarded over NVLink to the GPU of
    its node on the destination's rail, or its NIC is gone and a neighbour stands in.  entry_gpu: (E,) the GPU whose NIC
    it enters by: the destination, or who stands in for it.  latency: (E,) s of the switches (1, 3, 5, 7 of them); 0 in
    the node.
    A message of level 2 or more crosses the up bundle of leaf(exit_gpu) and the down bundle of leaf(entry_gpu); from
    level 3 on also those of their blocks, at level 4 those of their zones.
    """

    level: NDArray[np.int8]
    exit_gpu: Ints
    entry_gpu: Ints
    latency: Floats


@dataclass(frozen=True)
class Cluster:
    """Nodes on a fabric. G GPUs, N nodes; nodes are numbered as they stand, GPUs in the order in which jobs take them.

    node_type: (N,) index into node_types.  first_gpu: (N,) of each node.  gpu_node, gpu_local, gpu_rail, gpu_type: (G,).
    nvlink, nic: (G,) bytes/s of one direction, degraded links and the fabric's efficiency applied; 0 for a NIC below a
    dead leaf switch.
    health: share of its rate that each single link above a leaf, then above a spine, keeps: (leaves, U), (blocks, U V),
    numbered as in `colossim.cluster.hashed`. Empty: all are whole.
    """

    node_types: tuple[NodeType, ...]
    fabric: Fabric
    node_type: NDArray[np.int16]
    first_gpu: Ints
    gpu_node: NDArray[np.int32]
    gpu_local: NDArray[np.int16]
    gpu_rail: NDArray[np.int16]
    gpu_type: NDArray[np.int16]
    nvlink: Floats
    nic: Floats
    health: tuple[Floats, ...] = ()

    @property
    def gpus(self) -> int:
        return int(self.gpu_node.size)

    @property
    def nodes(self) -> int:
        return int(self.node_type.size)

    def placed(self, nodes: Ints) -> Cluster:
        """The same machines with their GPUs taken in another order of nodes. nodes: (N,) each once."""
        sizes = np.array([t.gpus for t in self.node_types], np.int64)[self.node_type[nodes]]
        start = np.cumsum(sizes) - sizes
        order = np.repeat(self.first_gpu[nodes] - start, sizes) + np.arange(self.gpus)
        first = np.empty_like(self.first_gpu)
        first[nodes] = start
        columns = ("gpu_node", "gpu_local", "gpu_rail", "gpu_type", "nvlink", "nic")
        return replace(self, first_gpu=first, **{name: getattr(self, name)[order] for name in columns})

    @cached_property
    def line_rate(self) -> Floats:
        """(G,) bytes/s of each NIC's line in full health, before what the fabric's efficiency leaves."""
        return np.array([min(t.nic, self.fabric.link) for t in self.node_types])[self.gpu_type]

    @cached_property
    def _type_rails(self) -> Ints:
        return np.array([t.rails for t in self.node_types], np.int16)

    @cached_property
    def _type_rails_with_gpus(self) -> Ints:
        return np.array([rails_with_gpus(t) for t in self.node_types], np.int16)

    @cached_property
    def rails(self) -> int:
        """Leaves a pod: one a rail on a rail-optimized fabric, else one."""
        return int(self.gpu_rail.max()) + 1 if self.fabric.type == "rail-optimized" else 1

    # -- where a GPU stands ------------------------------------------------------------------------------------------
    def pod(self, gpus: Ints) -> Ints:
        """Pod of each GPU; the whole cluster is one pod behind a single switch."""
        if self.fabric.type == "single-switch":
            return np.zeros(np.shape(gpus), np.int32)
        return self.gpu_node[gpus] // np.int32(self.fabric.nodes_per_pod)

    @cached_property
    def _places(self) -> tuple[Ints, Ints, Ints]:
        """(G,) leaf, block and zone of every GPU: messages by the million look them up rather than divide again."""
        pod = self.pod(np.arange(self.gpus))
        leaf = pod if self.rails == 1 else pod * np.int32(self.rails) + self.gpu_rail
        block = pod // np.int32(self.fabric.pods_per_block) if self.tiers > 2 else np.zeros_like(pod)
        return leaf, block, block // np.int32(self.fabric.blocks_per_zone) if self.tiers > 3 else np.zeros_like(pod)

    def leaf(self, gpus: Ints) -> Ints:
        """Leaf switch of each GPU, numbered pod by pod."""
        return self._places[0][gpus]

    def block(self, gpus: Ints) -> Ints:
        """Block of each GPU: pods that share their spines. With two tiers the spines join all pods."""
        return self._places[1][gpus]

    def zone(self, gpus: Ints) -> Ints:
        """Zone of each GPU: blocks that share their cores. With three tiers the cores join all blocks."""
        return self._places[2][gpus]

    @property
    def tiers(self) -> int:
        """Of switches: one if all meet at a single switch."""
        return 1 if self.fabric.type == "single-switch" else self.fabric.tiers

    # -- links -------------------------------------------------------------------------------------------------------
    @cached_property
    def ways(self) -> tuple[int, int, int]:
        """(U, V, W) links up of a leaf, a spine and a core: its ports down over the oversubscription, rounded, at least 1."""
        fabric = self.fabric
        down = (nics_below_a_leaf(fabric, self.node_types), self.rails * fabric.pods_per_block, fabric.blocks_per_zone)
        leaf, spine, core = (max(1, round(ports / fabric.ratio(tier))) for tier, ports in enumerate(down))
        return leaf, spine, core

    @cached_property
    def groups(self) -> tuple[int, int, int]:
        """Leaves, blocks and zones that there are, also where nothing is above them."""
        last = np.array([int(np.argmax(self.gpu_node))])
        return (int(self.pod(last)[0]) + 1) * self.rails, int(self.block(last)[0]) + 1, int(self.zone(last)[0]) + 1

    def member_capacity(self, level: int) -> Floats:
        """(groups, paths) bytes/s of the single links of the bundles of a level, up as down.

        Each has its part of the bundle, so that rounding the number of links neither adds nor takes any.
        """
        whole = self._whole_bundles[level - 1]
        paths = int(np.prod(self.ways[:level]))
        members = np.repeat(whole[:, None] / paths, paths, axis=1)
        return members * self.health[level - 1] if whole.size and level <= len(self.health) else members

    @cached_property
    def _bundles(self) -> tuple[Floats, ...]:
        kept = [*self.health, *[np.ones((1, 1))] * (3 - len(self.health))]
        # Sorted, so that bundles which have lost as much are equal to the last bit.
        return tuple(
            whole * np.sort(share, axis=1).mean(axis=1) if whole.size else whole
            for whole, share in zip(self._whole_bundles, kept, strict=True)
        )

    @cached_property
    def _whole_bundles(self) -> tuple[Floats, ...]:
        """Capacities of the bundles as if all their links were whole."""
        fabric = self.fabric
        leaf = nics_below_a_leaf(fabric, self.node_types) * fabric.link * fabric.efficiency
        block = leaf * self.rails * fabric.pods_per_block
        sizes = (leaf, block, block * fabric.blocks_per_zone)
        above = 1.0
        bundles = []
        for level, count in enumerate(self.groups):
            above *= fabric.ratio(level)
            needed = level + 1 < self.tiers and count > 1
            bundles.append(np.full(count if needed else 0, sizes[level] / above))
        return tuple(bundles)

    def bundle_capacity(self, level: int) -> Floats:
        """(groups,) bytes/s of the up (and of the down) bundle of each leaf (level 1), block (2) or zone (3).

        A full pod's ports over the oversubscription of this boundary and those below, also when the pod is part-filled,
        less what degraded and dead links take: adaptive routing sprays over the links of a bundle in proportion to their
        capacity. That leaves out where a link leads: a flow to a leaf whose link to spine i is dead can't use spine i
        either, and here each end of it loses no more than its own links.
        Empty where the fabric has no such tier, or has only one group below it.
        """
        return self._bundles[level - 1]

    @cached_property
    def _binding(self) -> tuple[bool, ...]:
        gpus = np.arange(self.gpus, dtype=np.int32)
        can = []
        for capacity, place in zip(self._bundles, (self.leaf, self.block, self.zone), strict=True):
            below = np.bincount(place(gpus), weights=self.nic, minlength=capacity.size) if capacity.size else capacity
            can.append(bool(np.any(below > capacity * (1 + 1e-9))))
        return tuple(can)

    def can_bind(self, level: int) -> bool:
        """Whether some bundle of this level (1 to 3) offers less than the NICs under it."""
        return self._binding[level - 1]

    def bundle_offset(self, level: int, down: bool) -> int:
        """Number of the first bundle of a level and direction."""
        before = sum(2 * self._bundles[below].size for below in range(level - 1))
        return 4 * self.gpus + before + int(down) * self._bundles[level - 1].size

    @property
    def links(self) -> int:
        """How many links there are."""
        return 4 * self.gpus + 2 * sum(bundle.size for bundle in self._bundles)

    def capacity(self) -> Floats:
        """(links,) bytes/s: NVLink out, in, NIC out, in of every GPU, then the bundles."""
        bundles = [bundle for pair in self._bundles for bundle in (pair, pair)]
        return np.concatenate([self.nvlink, self.nvlink, self.nic, self.nic, *bundles])

    def link_kinds(self) -> NDArray[np.int8]:
        """(links,) index into LINK_KINDS."""
        sizes = [self.gpus] * 4 + [bundle.size for bundle in self._bundles for _ in range(2)]
        return np.repeat(np.arange(len(sizes), dtype=np.int8), sizes)

    def link_kind_name(self, link: int) -> str:
        """Name of LINK_KINDS of a link."""
        if link < 4 * self.gpus:
            return LINK_KINDS[link // self.gpus]
        for level in (1, 2, 3):
            for down in (False, True):
                if 0 <= link - self.bundle_offset(level, down) < self._bundles[level - 1].size:
                    return LINK_KINDS[2 + 2 * level + int(down)]
        raise IndexError(f"link {link} of {self.links}")

    def link_name(self, link: int) -> str:
        """A name that the link alone has; none where links are many of a kind."""
        return ""

    @property
    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """(level, first link, links) of the fabric, for each level and direction."""
        return tuple(
            (level, self.bundle_offset(level, down), self.bundle_capacity(level).size)
            for level in (1, 2, 3)
            for down in (False, True)
        )

    def above(self, link: int) -> str:
        """For people: all links of the bundle `link`, such as "every uplink of leaf 11 (pod 1, rail 3)"."""
        for level, word in ((1, "leaf"), (2, "block"), (3, "zone")):
            for down in (False, True):
                group = link - self.bundle_offset(level, down)
                if 0 <= group < self._bundles[level - 1].size:
                    pod, rail = divmod(group, self.rails)
                    where = f" (pod {pod}, rail {rail})" if level == 1 and self.rails > 1 else ""
                    return f"every uplink of {word} {group}{where}"
        raise IndexError(f"link {link} is no bundle")

    # -- routes ------------------------------------------------------------------------------------------------------
    @cached_property
    def any_dark(self) -> bool:
        """Whether the NIC of some GPU is gone."""
        return bool(np.any(self.nic == 0))

    @cached_property
    def stand_in(self) -> Ints:
        """(G,) the GPU whose NIC takes each GPU's traffic: its own, or the next one of its node whose NIC is there; -1: none.

        A NIC is gone when its leaf switch is dead. Traffic reaches the neighbour over NVLink, and shares its NIC.
        """
        found = np.arange(self.gpus)
        gone = np.flatnonzero(self.nic == 0)
        found[gone] = -1
        sizes = np.array([t.gpus for t in self.node_types])[self.gpu_type[gone]]
        first, local = self.first_gpu[self.gpu_node[gone]], self.gpu_local[gone].astype(np.int64)
        for step in range(1, int(sizes.max(initial=0))):
            neighbour = first + (local + step) % sizes
            takes = (found[gone] < 0) & (self.nic[neighbour] > 0)
            found[gone[takes]] = neighbour[takes]
        return found

    @cached_property
    def forwards(self) -> bool:
        """Whether NVLink takes a message to its destination's rail before it leaves the node."""
        return self.rails > 1 and self.fabric.rails == "forward"

    @cached_property
    def latency(self) -> Floats:
        """(5,) s in the switches of a message of each level of `Routes`."""
        return np.array([0.0, 1.0, 3.0, 5.0, 7.0]) * self.fabric.hop_latency

    def own_ways(self, members: Ints) -> bool:
        """Whether all messages within groups, (G, n) GPUs, that leave a node use the NICs of their ends."""
        rail = self.gpu_rail[members]
        return not self.any_dark and not (self.forwards and bool(np.any(rail != rail[:, :1])))

    def routes(self, src: Ints, dst: Ints) -> Routes:
        """The ways of messages from GPUs src to GPUs dst (E,). Raises SimulationError if a node has no NIC left for one."""
        inside = self.gpu_node[src] == self.gpu_node[dst]
        exit_gpu, entry_gpu = np.asarray(src), np.asarray(dst)
        if self.any_dark:
            self._check_joined(src[~inside], dst[~inside])
            entry_gpu = np.where(inside, dst, self.stand_in[dst])
        if self.forwards and np.any(self.gpu_rail[src] != self.gpu_rail[entry_gpu]):
            # With fewer rails than GPUs the neighbour in the same tray is the one to forward to; a node that hasn't the
            # destination's rail sends over the spine.
            kind = self.gpu_type[src]
            there = inside | (self.gpu_rail[entry_gpu] >= self._type_rails_with_gpus[kind])
            exit_gpu = np.where(there, src, src + (self.gpu_rail[entry_gpu] - self.gpu_rail[src]))
            if any(t.gpus % t.rails for t in self.node_types):
                # The last tray of a node may lack the rail: the tray before it has it.
                sizes = np.array([t.gpus for t in self.node_types])
                beyond = exit_gpu >= self.first_gpu[self.gpu_node[src]] + sizes[kind]
                exit_gpu = exit_gpu - np.where(beyond, self._type_rails[kind], 0)
        if self.any_dark:
            exit_gpu = np.where(inside, src, self.stand_in[exit_gpu])
        level = np.ones(inside.shape, np.int8)
        for place in self._places[: self.tiers - 1]:
            level += place[exit_gpu] != place[entry_gpu]
        level[inside] = 0
        return Routes(level, exit_gpu, entry_gpu, self.latency[level])

    def _check_joined(self, src: Ints, dst: Ints) -> None:
        for end, other in ((src, dst), (dst, src)):
            alone = np.flatnonzero(self.stand_in[end] < 0)
            if alone.size:
                node, to = int(self.gpu_node[end[alone[0]]]), int(self.gpu_node[other[alone[0]]])
                raise SimulationError(
                    f"node {node} is cut off: the leaf switches of all its GPUs are dead, and it has messages to or from "
                    f"node {to}"
                )

    def graph(self, *, quotient: bool | None = None) -> networkx.DiGraph[Any]:
        """The topology as a networkx graph (see `colossim.cluster.graph`). None: whole if it is small, else folded."""
        from colossim.cluster.graph import WHOLE_UP_TO, quotient_graph, whole_graph

        if quotient is None:
            quotient = self.gpus > WHOLE_UP_TO
        return quotient_graph(self) if quotient else whole_graph(self)
