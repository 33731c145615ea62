"""The coarsest partition that folds exactly, found by colour refinement.

The classes are an **equitable partition**: links of a class have the same capacity and the same summed weight from each
class of groups; groups of a class touch the same set of link classes and have members of the same set of rank classes;
ranks of a class run the same program (stage and kind of replica) on the same hardware and belong to groups of the same
classes. In progressive filling all flows of a class then see the same loads and freeze together, so every event happens
when it would unfolded.
One pass of signatures is not enough: classes are refined on hashed arrays until they stand still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossim.cluster import LINK_KINDS
from colossim.footprint import Floats, Ints
from colossim.traffic import BOUNDARY_CHANNELS, Traffic

Hashes = NDArray[np.uint64]

#: Weights enter hashes as whole multiples of 2^-36, so that sums are exact, and parts of messages that differ stay apart.
_PER_UNIT = 2.0**36
#: Odd factors that keep link kinds and roles apart in sums of hashes.
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)


def _mix(values: NDArray[np.generic] | int, salt: int) -> Hashes:
    """splitmix64 of integers: a 64-bit hash whose sums identify multisets (Steele et al. 2014, mix13)."""
    x = np.asarray(values).astype(np.uint64)
    with np.errstate(over="ignore"):
        x = x + np.uint64((0x9E3779B97F4A7C15 * (salt + 1)) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _colours(signature: Hashes) -> tuple[Ints, int]:
    """Dense colours of equal signatures, and how many there are."""
    if signature.size == 0:
        return np.zeros(0, np.int32), 0
    values = np.unique(signature)
    if values.size == 1:
        return np.zeros(signature.size, np.int32), 1
    return np.searchsorted(values, signature).astype(np.int32), int(values.size)


@dataclass(frozen=True)
class Partition:
    """Classes of ranks, groups (a channel at a time) and links. Colours are dense from 0.

    rank: (R,).  groups: (G,) a channel.  link: (links,) -1 where nothing binding crosses.  rounds: of refinement.
    """

    rank: Ints
    groups: tuple[Ints, ...]
    link: Ints
    rounds: int


@dataclass(frozen=True)
class _Static:
    """What refinement starts from and what its rounds reuse.

    own: (channel, role, link kind, weights over the ranks' GPUs) where any is positive.  extras: a channel's further
    (group, link, weight).  touched: links that carry anything binding.  capacity: a hash of each link's capacity and kind.
    group_start: a hash of the static facts of each group, a channel, or of all of them.  alike: (R,) ranks with the same
    number have the same weights and capacities on their own links, which nobody else uses.
    """

    own: tuple[tuple[int, int, int, Hashes], ...]
    extras: tuple[tuple[Ints, Ints, Hashes], ...]
    touched: NDArray[np.bool_]
    capacity: Hashes
    group_start: tuple[Hashes, ...]
    alike: Ints


@dataclass(frozen=True)
class _Kinds:
    """Ranks by their colour and `_Static.alike`: their own links' signatures, too, are equal then, and found once a kind.

    of: (R,) kind of each rank.  one: a rank of each kind.
    """

    of: Ints
    one: Ints

    @staticmethod
    def joined(alike: Ints, rank: Ints) -> _Kinds:
        colours = int(rank.max(initial=0)) + 1
        of = rank
        if alike.any():
            key = alike.astype(np.int64) * colours + rank
            of = np.unique(key, return_inverse=True)[1].astype(np.int32)
        one = np.zeros(int(of.max(initial=-1)) + 1, np.int64)
        one[of] = np.arange(of.size)
        return _Kinds(of, one)


def _quantised(weights: Floats) -> Hashes:
    return np.rint(weights * _PER_UNIT).astype(np.uint64)


def _bits(values: Floats, salt: int) -> Hashes:
    """A hash of floats by their bits."""
    return _mix(np.ascontiguousarray(values, dtype=np.float64).view(np.uint64), salt)


def _static(traffic: Traffic, bundles: bool) -> _Static:
    gpus, ranks = traffic.cluster.gpus, traffic.ranks
    own, extras, starts = [], [], []
    touched = np.zeros(traffic.capacity.size, dtype=bool)
    for number, channel in enumerate(traffic.channels):
        footprint = channel.footprint
        for role, kind, weights in footprint.own:
            used = weights[:ranks] > 0
            if used.any():
                own.append((number, role, kind, _quantised(weights[:ranks])))
                touched[kind * gpus : kind * gpus + ranks] |= used
        keep = ~traffic.slack[footprint.link]
        if not bundles:
            keep &= footprint.link < 4 * gpus
        link = footprint.link[keep]
        extras.append((footprint.group[keep], link, _quantised(footprint.weight[keep])))
        touched[link] = True
        start = _mix(np.array([channel.size]), 11 + number)
        for salt, column in enumerate(footprint.facts(bundles)):
            start = start + _bits(column[:1] if _constant(column) else column, 101 + salt)
        starts.append(start)
    capacity = _bits(traffic.capacity, 7) + _table(len(LINK_KINDS), 5)[traffic.cluster.link_kinds()]
    columns = [weights for *_, weights in own] + [capacity[kind * gpus : kind * gpus + ranks] for kind in range(4)]
    facts = np.zeros(ranks, np.uint64)
    for salt, column in enumerate(columns):
        if not _constant(column):
            facts += _mix(column, 151 + salt)
    for _, link, _ in extras:
        foreign = link[link < 4 * gpus] % gpus
        foreign = foreign[foreign < ranks]
        facts[foreign] = _mix(foreign, 149)
    return _Static(tuple(own), tuple(extras), touched, capacity, tuple(starts), _colours(facts)[0])


def _constant(column: NDArray[Any]) -> bool:
    return column.size > 0 and bool(np.all(column == column[0]))


def refine(
    traffic: Traffic,
    *,
    bundles: bool = True,
    apart: Ints | None = None,
    most_rounds: int | None = None,
    most: int | None = None,
) -> Partition:
    """The coarsest equitable partition, by colour refinement until the number of classes stands still.

    Links are coloured from groups alone, so that they stand still when the groups do. bundles: whether the fabric takes
    part: its binding bundles, and how many switches a group's edges pass.  apart: (R,) ranks with other numbers are kept
    in other classes.  most_rounds stops early, which is *wrong* and exists for the test that shows so.  most: of rank classes:
    it stops, too, when they become more, and what it returns then is of use to nobody but who sees that they are.
    """
    static = _static(traffic, bundles)
    start = _mix(traffic.stage, 1) + _mix(traffic.hardware, 2) + _mix(traffic.kind, 4)
    rank, ranks = _colours(start if apart is None else start + _mix(apart, 3))
    groups: list[Ints] = [np.zeros(channel.groups, np.int32) for channel in traffic.channels]
    counts: tuple[int, ...] = ()
    link_signature, kinds = static.capacity, _Kinds.joined(static.alike, rank)
    rounds = 0
    while most_rounds is None or rounds < most_rounds:
        rounds += 1
        groups, group_counts = _refine_groups(traffic, static, rank, kinds, groups, link_signature)
        rank, ranks = _refine_ranks(traffic, rank, groups)
        kinds = _Kinds.joined(static.alike, rank)
        link_signature = _refine_links(traffic, static, kinds, groups)
        now = (ranks, *group_counts)
        if now == counts or (most is not None and ranks > most):
            break
        counts = now
    link = np.full(traffic.capacity.size, -1, np.int32)
    touched = np.flatnonzero(static.touched)
    link[touched] = _by_first(_colours(link_signature[touched])[0])
    return Partition(_by_first(rank), tuple(_by_first(colours) for colours in groups), link, rounds)


def _by_first(colours: Ints) -> Ints:
    """The same partition with classes numbered by their first element, so that classes read in the order of ranks."""
    first = firsts(colours)
    position = np.empty(first.size, np.int32)
    position[np.argsort(first, kind="stable")] = np.arange(first.size, dtype=np.int32)
    return position[colours]


def _table(largest: int, salt: int) -> Hashes:
    """Hashes of 0 to `largest`, to be looked up by colour."""
    return _mix(np.arange(largest + 1), salt)


def _hashed(colours: Ints, salt: int) -> Hashes:
    return _table(int(colours.max(initial=0)), salt)[colours]


def _refine_groups(
    traffic: Traffic, static: _Static, rank: Ints, kinds: _Kinds, groups: list[Ints], link_signature: Hashes
) -> tuple[list[Ints], list[int]]:
    """Groups by static facts, the set of their members' (rank colour, own links with weights), and other links touched."""
    gpus = traffic.cluster.gpus
    refined: list[Ints] = [np.zeros(0, np.int32)] * len(traffic.channels)
    counts = []
    one = kinds.one
    rank_hash = [_hashed(rank[one], 21 + role) for role in (0, 1)]
    for ways in traffic.ways():
        # The algorithms that groups may run share their classes: one signature says what tells them apart under any.
        channel = traffic.channels[ways[0]]
        seen = [rank_hash[role] for role in range(len(channel.roles))]
        for owner, role, kind, weights in static.own:
            if owner in ways:
                touched = (link_signature[kind * gpus + one] ^ weights[one]) * _ODD[kind]
                if owner != ways[0]:
                    touched = touched * _ODD[0] ** np.uint64(owner - ways[0])
                seen[role] = seen[role] + np.where(weights[one] > 0, touched, np.uint64(0))
        signature = _hashed(groups[ways[0]], 3)
        for number in ways:
            signature = signature + static.group_start[number] * (_ODD[1] ** np.uint64(number - ways[0]))
        if channel.name in BOUNDARY_CHANNELS:
            for role in (0, 1):
                signature = signature + _mix(seen[role], 41 + role)[kinds.of[channel.members[:, role]]]
        else:
            signature = signature + _set_hash(seen[0], kinds.of, channel.members)
        for number in ways:
            group, link, weights = static.extras[number]
            if group.size:
                rows = _set_rows(group, link_signature[link] ^ _mix(weights, 37 + number - ways[0]), channel.groups)
                signature = signature + rows
        colours, count = _colours(signature)
        counts.append(count)
        for number in ways:
            refined[number] = colours
    return refined, counts


def _set_hash(items: Hashes, kind: Ints, members: Ints) -> Hashes:
    """items over kinds, kind (R,), members (G, n) -> (G,) hash of the *set* of items of each group's members."""
    groups, n = members.shape
    colours, many = _colours(items)
    if many <= 64:
        bits = (np.uint64(1) << colours.astype(np.uint64))[kind]
        return _mix(np.bitwise_or.reduce(bits[members], axis=1), 51)
    items = items[kind]
    if n <= 8:
        ordered = np.sort(items[members], axis=1)
        fresh = np.ones(ordered.shape, dtype=bool)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        hashes: Hashes = np.where(fresh, _mix(ordered, 51), np.uint64(0))
        return np.asarray(hashes.sum(axis=1, dtype=np.uint64))
    if groups * many <= 8 * members.size + 4096:
        colours = colours[kind]
        present = np.zeros((groups, many), dtype=bool)
        present[np.arange(groups)[:, None], colours[members]] = True
        values = np.zeros(many, np.uint64)
        values[colours] = items
        return np.asarray(np.where(present, _mix(values, 51), np.uint64(0)).sum(axis=1, dtype=np.uint64))
    return _set_rows(np.repeat(np.arange(groups), n), items[members].ravel(), groups)


def _set_rows(group: Ints, item: Hashes, groups: int) -> Hashes:
    """(groups,) hash of the set of items that each group has among rows (group, item)."""
    order = np.lexsort((item, group))
    group, item = group[order], item[order]
    fresh = np.ones(group.size, dtype=bool)
    fresh[1:] = (group[1:] != group[:-1]) | (item[1:] != item[:-1])
    total = np.zeros(groups, np.uint64)
    np.add.at(total, group[fresh], _mix(item[fresh], 51))
    return total


def _refine_links(traffic: Traffic, static: _Static, kinds: _Kinds, groups: list[Ints]) -> Hashes:
    """Links by capacity and the summed weight from each class of groups."""
    gpus, ranks = traffic.cluster.gpus, traffic.ranks
    signature = static.capacity.copy()
    colour_hash = [_hashed(colours, 61 + number) for number, colours in enumerate(groups)]
    added = np.zeros((4, kinds.one.size), np.uint64)
    for number, role, kind, weights in static.own:
        # Where a rank has no group of the channel (-1) its weight is 0.
        added[kind] += colour_hash[number][traffic.channels[number].roles[role][kinds.one]] * weights[kinds.one]
    for kind in range(4):
        signature[kind * gpus : kind * gpus + ranks] += added[kind][kinds.of]
    for number, (group, link, weights) in enumerate(static.extras):
        if group.size:
            np.add.at(signature, link, colour_hash[number][group] * weights)
    return signature


def _refine_ranks(traffic: Traffic, rank: Ints, groups: list[Ints]) -> tuple[Ints, int]:
    """Ranks by their colour so far and the colours of their groups, role by role."""
    signature = _hashed(rank, 71)
    for number, *_ in traffic.ways():
        # The last entry is for ranks without a group (-1).
        hashes = np.append(_hashed(groups[number], 73 + 2 * number), np.uint64(0))
        for role, group_of in enumerate(traffic.channels[number].roles):
            signature += (hashes * _ODD[role])[group_of]
    return _colours(signature)


def identity(traffic: Traffic) -> Partition:
    """Every rank, group and link a class of its own: `fold: off`, the reference."""
    touched = _static(traffic, True).touched
    link = np.full(traffic.capacity.size, -1, np.int32)
    link[touched] = np.arange(int(touched.sum()), dtype=np.int32)
    return Partition(
        np.arange(traffic.ranks, dtype=np.int32),
        tuple(np.arange(c.groups, dtype=np.int32) for c in traffic.channels),
        link,
        0,
    )


def firsts(colours: Ints) -> Ints:
    """(classes,) index of the first element of each colour."""
    count = int(colours.max()) + 1 if colours.size else 0
    first = np.full(count, colours.size, np.int64)
    np.minimum.at(first, colours, np.arange(colours.size))
    return first
