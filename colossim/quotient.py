"""The folded job: one representative a class, with the links that it touches and the weights that a link sees.

The engine plays a `Quotient` and knows nothing of ranks and links behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from colossim.footprint import Floats, Ints, Shape
from colossim.partition import Partition, firsts
from colossim.traffic import BOUNDARY_CHANNELS, STORAGE, Channel, Traffic

#: Sums of rows are looked up in a table of this many entries, or of a few for each row, instead of sorting the rows.
_TABLE = 1 << 20


@dataclass(frozen=True)
class GroupClass:
    """Groups that behave alike. members: rank classes, a role each for boundaries (sender, receiver).

    links: (link class, summed weight of the whole class on one such link).  passive: the same for `Quotient.passive`,
    averaged over the links.  shape: what timing needs of each of its groups.
    """

    channel: int
    count: int
    members: tuple[int, ...]
    links: tuple[tuple[int, float], ...]
    passive: tuple[tuple[int, float], ...]
    shape: Shape


@dataclass(frozen=True)
class LinkClass:
    """Links that behave alike. kind: a name of LINK_KINDS.  capacity: bytes/s of one.  first: the lowest link.

    name: that of the lowest link, where links have names.
    """

    kind: str
    count: int
    capacity: float
    first: int
    name: str = ""


@dataclass(frozen=True)
class RankClass:
    """Ranks that behave alike. groups: the class of their group in each (channel, role), -1 where they have none.

    kind: of their replica, which says what they play.
    """

    stage: int
    hardware: int
    count: int
    first: int
    groups: tuple[tuple[int, ...], ...]
    kind: int = 0


@dataclass(frozen=True)
class Quotient:
    """The folded job: what the engine plays. channels: (name, algorithm); groups: classes a channel.

    A name stands once for each algorithm that its groups may run; the classes of all of them are the same groups.

    links: classes of links that can bind.  passive: the fabric's other bundles, one entry a level and direction, which
    carry bytes but never bind.  foreign: channels that use NICs or NVLinks of GPUs which are not members (relays).
    pinned: channels whose flows routing pins to paths, which others share.  jobs: of each channel; empty: there is one.
    approximate: whether `bundles` made the answer an estimate.
    """

    ranks: tuple[RankClass, ...]
    channels: tuple[tuple[str, str], ...]
    groups: tuple[tuple[GroupClass, ...], ...]
    links: tuple[LinkClass, ...]
    passive: tuple[LinkClass, ...]
    partition: Partition
    foreign: frozenset[int]
    approximate: bool
    pinned: frozenset[int] = frozenset()
    jobs: tuple[int, ...] = ()

    def job_of(self, channel: int) -> int:
        """Whose a channel is."""
        return self.jobs[channel] if self.jobs else 0


def quotient(traffic: Traffic, partition: Partition) -> Quotient:
    """One representative a class, with the links that it touches and the weights that a link sees."""
    cluster, ranks = traffic.cluster, traffic.ranks
    gpus = cluster.gpus
    rank_first = firsts(partition.rank)
    rank_count = np.bincount(partition.rank)
    seen = np.flatnonzero(partition.link >= 0)
    link_first = seen[firsts(partition.link[seen])]
    link_count = np.bincount(partition.link[seen])
    links = tuple(
        LinkClass(cluster.link_kind_name(int(f)), int(c), float(traffic.capacity[f]), int(f), cluster.link_name(int(f)))
        for f, c in zip(link_first, link_count, strict=True)
    )
    passive, passive_of = _passive_links(traffic, partition)
    group_classes = []
    for number, channel in enumerate(traffic.channels):
        first = firsts(partition.groups[number])
        rows = _link_rows(channel, partition, number, link_first, gpus, ranks)
        carried = _passive_weights(traffic, channel, partition.groups[number], passive, passive_of)
        group_classes.append(_group_classes(traffic, channel, number, partition, first, rows, carried))
    rank_classes = tuple(
        RankClass(
            stage=int(traffic.stage[f]),
            hardware=int(traffic.hardware[f]),
            count=int(c),
            first=int(f),
            groups=tuple(
                tuple(int(partition.groups[number][role[f]]) if role[f] >= 0 else -1 for role in channel.roles)
                for number, channel in enumerate(traffic.channels)
            ),
            kind=int(traffic.kind[f]),
        )
        for f, c in zip(rank_first, rank_count, strict=True)
    )
    names = tuple((channel.name, channel.algorithm) for channel in traffic.channels)
    foreign = frozenset(i for i, c in enumerate(traffic.channels) if np.any(c.footprint.link < 4 * gpus))
    jobs = tuple(channel.job for channel in traffic.channels)
    return Quotient(rank_classes, names, tuple(group_classes), links, passive, partition, foreign, False, jobs=jobs)


def _passive_links(traffic: Traffic, partition: Partition) -> tuple[tuple[LinkClass, ...], Ints]:
    """Bundles that the partition leaves out, a class a level and direction; (links,) the class of each link, or -1."""
    cluster = traffic.cluster
    classes: list[LinkClass] = []
    class_of = np.full(traffic.capacity.size, -1, np.int32)
    for _, first, size in cluster.ranges:
        out = first + np.flatnonzero(partition.link[first : first + size] < 0)
        if out.size:
            mean = float(traffic.capacity[out].mean())
            class_of[out] = len(classes)
            classes.append(LinkClass(cluster.link_kind_name(first), int(out.size), mean, int(out[0])))
    return tuple(classes), class_of


def _passive_weights(
    traffic: Traffic, channel: Channel, colours: Ints, passive: tuple[LinkClass, ...], passive_of: Ints
) -> list[Floats]:
    """For each passive class the (group classes,) edges that a whole class puts on one of its links, on average.

    colours: (G,) class of each group.  passive_of: (links,) passive class of each link, or -1.
    """
    cluster, footprint = traffic.cluster, channel.footprint
    classes = int(colours.max()) + 1
    which = passive_of[footprint.link]
    here = which >= 0
    at = which[here] * classes + colours[footprint.group[here]]
    booked = np.bincount(at, weights=footprint.weight[here], minlength=len(passive) * classes)
    columns = []
    for number, link_class in enumerate(passive):
        level = next(tier[0] for tier in cluster.ranges if 0 <= link_class.first - tier[1] < tier[2])
        if cluster.can_bind(level):
            total = booked[number * classes : (number + 1) * classes]
        elif channel.name == STORAGE and link_class.kind.endswith("down"):
            total = np.zeros(classes, np.int64)  # what is written comes down nowhere
        else:
            total = np.bincount(colours, weights=footprint.crossings[level - 1], minlength=classes)
        columns.append(total / link_class.count)
    return columns


def _link_rows(
    channel: Channel, partition: Partition, number: int, link_first: Ints, gpus: int, ranks: int
) -> tuple[Ints, Ints, Floats]:
    """(group class, link class, summed weight) as one link of each class sees it."""
    colours = partition.groups[number]
    classes, found, weights = [], [], []
    for role, kind, column in channel.footprint.own:
        here = np.flatnonzero((link_first >= kind * gpus) & (link_first < kind * gpus + ranks))
        gpu = link_first[here] - kind * gpus
        group_of = channel.roles[role][gpu]
        used = (column[gpu] > 0) & (group_of >= 0)
        classes.append(colours[group_of[used]])
        found.append(here[used])
        weights.append(column[gpu[used]])
    footprint = channel.footprint
    if footprint.link.size:
        shown = np.full(partition.link.size, -1)
        shown[link_first] = np.arange(link_first.size)
        match = np.flatnonzero(shown[footprint.link] >= 0)
        classes.append(colours[footprint.group[match]])
        found.append(shown[footprint.link[match]])
        weights.append(footprint.weight[match])
    return _summed(np.concatenate(classes), np.concatenate(found), link_first.size, np.concatenate(weights))


def _summed(group: Ints, link: Ints, links: int, weight: Floats) -> tuple[Ints, Ints, Floats]:
    """(group class, link, summed weight) of each pair there is among rows, in ascending order. links: more than any."""
    width = max(1, links)
    at = group.astype(np.int64) * width + link
    many = (int(group.max(initial=0)) + 1) * width
    if many > _TABLE + 4 * at.size:
        key, at = np.unique(at, return_inverse=True)
        return key // width, key % width, np.bincount(at, weights=weight, minlength=key.size).astype(np.float64)
    key = np.flatnonzero(np.bincount(at, minlength=many))
    return key // width, key % width, np.bincount(at, weights=weight, minlength=many)[key].astype(np.float64)


def _group_classes(
    traffic: Traffic,
    channel: Channel,
    number: int,
    partition: Partition,
    first: Ints,
    rows: tuple[Ints, Ints, Floats],
    carried: list[Floats],
) -> tuple[GroupClass, ...]:
    count = np.bincount(partition.groups[number])
    members = partition.rank[channel.members[first]]
    hardware = traffic.hardware[channel.members[first]]
    boundary = channel.name in BOUNDARY_CHANNELS
    bounds = np.searchsorted(rows[0], np.arange(first.size + 1))
    footprint = channel.footprint
    # A class of an estimate may hold groups whose edges pass more switches than others': the most counts.
    switches = np.zeros(first.size)
    np.maximum.at(switches, partition.groups[number], footprint.switches)
    classes = []
    for i, f in enumerate(first):
        part = slice(int(bounds[i]), int(bounds[i + 1]))
        row = members[i]
        types = np.unique(hardware[i])
        classes.append(
            GroupClass(
                channel=number,
                count=int(count[i]),
                members=tuple(int(m) for m in (row if boundary else np.unique(row))),
                links=tuple(
                    (int(link), float(weight)) for link, weight in zip(rows[1][part], rows[2][part], strict=True)
                ),
                passive=tuple((j, float(column[i])) for j, column in enumerate(carried) if column[i] > 0),
                shape=replace(
                    footprint.shape(int(f), channel.algorithm, channel.size, tuple(int(t) for t in types)),
                    switches=float(switches[i]),
                ),
            )
        )
    return tuple(classes)


def with_worst_bundles(traffic: Traffic, partition: Partition) -> Quotient:
    """`bundles`: ranks and groups folded as if the fabric never bound; each class then rides its worst bundles.

    For every class of groups, level and direction the bundle with the largest load over capacity that any of its
    groups touches is played, with the summed weight of every class on it. An estimate: it neither lets groups of a
    class part, nor lets a bundle's neighbours free it earlier.
    """
    bundles_from = 4 * traffic.cluster.gpus
    total = traffic.capacity.size
    loads = np.zeros(total)
    sums = []
    binding = ~traffic.slack
    binding[:bundles_from] = False
    for number, channel in enumerate(traffic.channels):
        footprint = channel.footprint
        keep = np.flatnonzero(binding[footprint.link])
        bundle = footprint.link[keep] - bundles_from
        colours = partition.groups[number][footprint.group[keep]]
        classes, bundle, weight = _summed(colours, bundle, total - bundles_from, footprint.weight[keep])
        sums.append((classes, bundle + bundles_from, weight))
        np.add.at(loads, bundle + bundles_from, weight)
    # A NIC that is gone has no capacity, and no load.
    pressure = loads / np.where(traffic.capacity > 0, traffic.capacity, 1.0)
    chosen: set[int] = set()
    for classes, link, _ in sums:
        for _, first, size in traffic.cluster.ranges:
            inside = (link >= first) & (link < first + size)
            if inside.any():
                order = np.lexsort((-link[inside], pressure[link[inside]], classes[inside]))
                last = np.diff(classes[inside][order], append=-1) != 0
                chosen.update(int(x) for x in link[inside][order][last])
    kept = np.array(sorted(chosen), dtype=np.int64)
    colours_of_links = partition.link.copy()
    colours_of_links[kept] = np.arange(kept.size) + int(partition.link.max(initial=-1)) + 1
    folded = quotient(traffic, Partition(partition.rank, partition.groups, colours_of_links, partition.rounds))
    return replace(folded, approximate=bool(kept.size))
