"""Where hashed flows go in the Clos: the single links of each bundle, and the one path that a queue pair is given.

    top (i, j, k)    zone-up/-down    cores (i, j) of every zone: W links each, link k to top (i, j, k)
    core (i, j)      block-up/-down   spine i of every block: V links, link j to core (i, j)
    spine i          leaf-up/-down    every leaf: U links, link i to spine i of its block
    leaf

A choice at the leaf (i), the spine (j) and the core (k) is the whole path: nothing is left to choose on the way down. A message
of level 2 (see `Cluster.routes`) crosses leaf-up (its leaf, i) and leaf-down (the destination's leaf, i); from level 3 on also
block-up (its block, i, j) and block-down (the destination's block, i, j), at level 4 zone-up and zone-down (zone, i, j, k).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from colossim.cluster.topology import Cluster, Floats, Ints, nics_below_a_leaf
from colossim.errors import SimulationError

Bools = NDArray[np.bool_]
Hashes = NDArray[np.uint64]
#: For each path of a crowd and how many ways it has: which way, counted from 0.
Pick = Callable[[Ints, Ints], Ints]


@dataclass(frozen=True)
class Members:
    """The single up- and downlinks of a cluster's fabric, by level, up before down, then group, then path.

    ways: (U, V, W) choices at a leaf, a spine and a core: its ports down over the oversubscription, rounded, at least one.
    A leaf, block or zone has U, U V, U V W links up and as many down, each with that part of the bundle's capacity, so that
    rounding neither adds nor takes any. Planes are side by side in each link: a NIC spreads every flow over all of them.
    """

    cluster: Cluster
    ways: tuple[int, int, int]

    @staticmethod
    def of(cluster: Cluster) -> Members:
        return Members(cluster, cluster.ways)

    def paths(self, level: int) -> int:
        """Links up (and down) of one leaf (level 1), block (2) or zone (3)."""
        return int(np.prod(self.ways[:level]))

    def groups(self, level: int) -> int:
        """Leaves, blocks or zones; 0 where the fabric has no such tier, or only one group below it."""
        return self.cluster.bundle_capacity(level).size

    def offset(self, level: int, down: bool) -> int:
        """Number of the first link of a level and direction."""
        before = sum(2 * self.groups(below) * self.paths(below) for below in range(1, level))
        return before + int(down) * self.groups(level) * self.paths(level)

    @property
    def links(self) -> int:
        """How many there are."""
        return self.offset(3, True) + self.groups(3) * self.paths(3)

    def number(self, level: int, down: bool, group: Ints, path: Ints) -> Ints:
        """Numbers of the links of groups (leaves, blocks or zones) on paths: i, i V + j or (i V + j) W + k."""
        return self.offset(level, down) + np.asarray(group, np.int64) * self.paths(level) + path

    def capacity(self) -> Floats:
        """(links,) bytes/s of every link: 0 of a dead one."""
        each = [self.cluster.member_capacity(level).ravel() for level in (1, 2, 3)]
        return np.concatenate([link for pair in each for link in (pair, pair)])

    def table(self, of_links: NDArray[Any], level: int, down: bool) -> NDArray[Any]:
        """(groups, paths) view of what is known of each link (links,)."""
        first, size = self.offset(level, down), self.groups(level) * self.paths(level)
        return of_links[first : first + size].reshape(self.groups(level), self.paths(level))

    def name(self, link: int) -> str:
        """ "uplink 17 of leaf (pod 3, rail 2)", "downlink 4 of spine 17 of block 0", or of core (17, 4) of zone 1."""
        _, spines_up, cores_up = self.ways
        for level in (1, 2, 3):
            for down in (False, True):
                place = link - self.offset(level, down)
                if not 0 <= place < self.groups(level) * self.paths(level):
                    continue
                group, path = divmod(place, self.paths(level))
                which = "downlink" if down else "uplink"
                if level == 1:
                    return f"{which} {path} of {self.leaf_name(group)}"
                if level == 2:
                    return f"{which} {path % spines_up} of spine {path // spines_up} of block {group}"
                i, j = divmod(path // cores_up, spines_up)
                return f"{which} {path % cores_up} of core ({i}, {j}) of zone {group}"
        raise IndexError(f"link {link} of {self.links}")

    def leaf_name(self, leaf: int) -> str:
        """For people: "leaf (pod 3, rail 2)", or "leaf (pod 3)" where a pod has one."""
        pod, rail = divmod(leaf, self.cluster.rails)
        return f"leaf (pod {pod}, rail {rail})" if self.cluster.rails > 1 else f"leaf (pod {pod})"

    @cached_property
    def _below_leaf(self) -> Ints:
        """(G,) index of each GPU's NIC below its leaf."""
        cluster, fabric = self.cluster, self.cluster.fabric
        each = nics_below_a_leaf(fabric, cluster.node_types) // fabric.nodes_per_pod
        slot = cluster.gpu_local.astype(np.int64)
        if fabric.type == "rail-optimized":
            slot = slot // np.array([t.rails for t in cluster.node_types])[cluster.gpu_type]
        return (cluster.gpu_node % fabric.nodes_per_pod).astype(np.int64) * each + slot


@dataclass(frozen=True)
class Paths:
    """The links of S subflows of E messages as coordinates, those of a subflow side by side, subflows in order.

    flow: (S,) message of each subflow.  who, where: (rows,) subflow, and the link of `Members` that it crosses.
    Messages below level 2 have their subflows, too, on no link.
    """

    flow: Ints
    who: Ints
    where: Ints


def hashed_paths(
    members: Members,
    src_exit: Ints,
    dst: Ints,
    level: Ints,
    *,
    flow_key: Ints,
    seed: int = 0,
    paths_per_flow: int = 1,
    policy: Literal["ecmp", "static"] = "ecmp",
    alive: Bools | None = None,
) -> Paths:
    """The path of every subflow of E messages that leave by the NICs of GPUs src_exit, enter those of dst and have `level`.

    flow_key: (E,) whole number that is the message's own, whatever its place among the others: what switches hash.
    alive: (links of members,) whether a link works; None: all do.

    ecmp: each of `paths_per_flow` queue pairs is a subflow of its own, hashed with splitmix64 (Steele, Lea and Flood 2014) of
    (seed, flow_key, queue pair, tier).  static: one subflow, pinned by its destination, D-mod-K (Zahavi 2010): at the leaf by
    the index of its NIC below its leaf, at the spine by what remains of that and its leaf, and so on: shifts don't collide.
    Routing has converged: a switch spreads over the ways that are alive all the way to the destination's leaf, in equal shares,
    however many ways lead on from each. A link that is slow, not dead, keeps its share of flows.

    Raises SimulationError if no path from one leaf to another is alive.
    """
    if policy not in ("ecmp", "static") or paths_per_flow < 1:
        raise ValueError(f"no such routing: {policy!r} over {paths_per_flow} paths")
    level = np.asarray(level, np.int64)
    pairs = paths_per_flow if policy == "ecmp" else 1
    flow = np.repeat(np.arange(level.size), pairs)
    crossed = 2 * np.maximum(level - 1, 0)[flow]
    start = np.cumsum(crossed) - crossed
    where = np.zeros(int(crossed.sum()), np.int64)
    path = np.zeros(flow.size, np.int64)
    cluster = members.cluster
    ends = [(place(src_exit), place(dst)) for place in (cluster.leaf, cluster.block, cluster.zone)]
    detours = None if alive is None or alive.all() else _Detours(members, alive, ends, level)
    for tier, ways in enumerate(members.ways):
        on = np.flatnonzero(level[flow] >= tier + 2)
        if not on.size:
            break
        message = flow[on]
        if policy == "ecmp":
            pick = _hashed(np.asarray(flow_key)[message], on % pairs, tier, seed)
        else:
            pick = _pinned(members, np.asarray(dst)[message], ends[0][1][message], tier)
        choice = pick(np.arange(on.size), np.full(on.size, ways))
        if detours is not None:
            detours.take(tier, message, path[on], pick, choice)
        path[on] = path[on] * ways + choice
        for down in (False, True):
            group = ends[tier][int(down)][message]
            where[start[on] + 2 * tier + int(down)] = members.number(tier + 1, down, group, path[on])
    return Paths(flow, np.repeat(np.arange(flow.size), crossed), where)


def _mixed(x: Hashes) -> Hashes:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hashed(flow_key: Ints, queue_pair: Ints, tier: int, seed: int) -> Pick:
    """Hashes to equal shares: the upper 32 bits of the hash times the ways, over 2^32."""
    state = np.array([seed & (2**64 - 1)], np.uint64)
    for word in (np.array([tier]), flow_key, queue_pair):
        state = _mixed((state ^ word.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
    upper = state >> np.uint64(32)

    def pick(of: Ints, ways: Ints) -> Ints:
        return (upper[of] * ways.astype(np.uint64) >> np.uint64(32)).astype(np.int64)

    return pick


def _pinned(members: Members, dst: Ints, leaf: Ints, tier: int) -> Pick:
    """D-mod-K: digits of the destination's number, the lowest first."""
    up, middle, _ = members.ways
    index = members._below_leaf[dst]
    rest = leaf.astype(np.int64) * -(-nics_below_a_leaf(members.cluster.fabric, members.cluster.node_types) // up)
    digit = (index, rest + index // up, (rest + index // up) // middle)[tier]
    return lambda of, ways: digit[of] % ways


class _Detours:
    """Choices around dead links, for the messages whose leaves, blocks or zones have any."""

    def __init__(self, members: Members, alive: Bools, ends: list[tuple[Ints, Ints]], level: Ints) -> None:
        self.members, self.ends, self.level = members, ends, level
        self.works = [tuple(members.table(alive, tier + 1, down) for down in (False, True)) for tier in range(3)]
        self.touched = np.zeros(level.size, dtype=bool)
        for tier in range(3):
            far = np.flatnonzero(level >= tier + 2)
            for works, group in zip(self.works[tier], ends[tier], strict=True):
                whole: Bools = np.logical_and.reduce(works, axis=1)
                self.touched[far] |= ~whole[group[far]]

    def take(self, tier: int, message: Ints, path: Ints, pick: Pick, choice: Ints) -> None:
        """Replaces the choices of touched messages, which have come by `path` so far."""
        of = np.flatnonzero(self.touched[message])
        if not of.size:
            return
        ways = self.members.ways[tier]
        first, pair = self._pairs(tier, message[of])
        table = self._open(tier, first).reshape(-1, ways)
        row = pair * self.members.paths(tier) + path[of]
        count = np.count_nonzero(table, axis=1)[row]
        if not count.all():
            raise SimulationError(self._cut_off(int(message[of[np.flatnonzero(count == 0)[0]]])))
        # The open ways of each row first, in order.
        order = np.argsort(~table, axis=1, kind="stable")
        choice[of] = order[row, pick(of, count)]

    def _pairs(self, tier: int, message: Ints) -> tuple[Ints, Ints]:
        """One message of each pair of groups, and the pair of each message."""
        src, dst = (end[message].astype(np.int64) for end in self.ends[tier])
        _, first, pair = np.unique(src * (dst.max() + 1) + dst, return_index=True, return_inverse=True)
        return message[first], pair

    def _open(self, tier: int, message: Ints) -> Bools:
        """(messages, paths of the tier): whether a path works up and down from this tier to the top of the message's way."""
        up, down = self.works[tier]
        src, dst = self.ends[tier]
        works: Bools = up[src[message]] & down[dst[message]]
        higher = np.flatnonzero(self.level[message] > tier + 2)
        if higher.size:
            first, pair = self._pairs(tier + 1, message[higher])
            leads = self._open(tier + 1, first).reshape(first.size, -1, self.members.ways[tier + 1])
            works[higher] &= np.logical_or.reduce(leads, axis=2)[pair]
        return works

    def _cut_off(self, message: int) -> str:
        names = [self.members.leaf_name(int(end[message])) for end in self.ends[0]]
        return (
            f"no path is alive from {names[0]} to {names[1]}: every one of {self.members.paths(1):,} spines is cut off"
        )
