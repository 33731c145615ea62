"""Where ranks of a class sit in groups of another: who is the last of each group, and who hears of it.

A *seat* is a rank; or several that will always be at the same place at the same time, because they and all whom they meet have
the same pace: colour refinement finds them, as it finds classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossim.footprint import Floats, Ints
from colossim.partition import Partition, firsts, refine
from colossim.traffic import BOUNDARY_CHANNELS, Traffic

#: Groups with up to this many members are compared member by member, larger ones by numpy's reduction.
_FEW = 32
#: Ranks of a seat, in the mean, from which on sharing is worth while.
_SHARED = 4


@dataclass(frozen=True)
class Seats:
    """The n seats of one class in the G groups of another. of: (n,) group of each seat.

    order: seats by the groups in which they have members; None if that is how they stand. bounds: (G,) where each group begins
    in it.  each: seats of every group, 0 if these differ.
    """

    groups: int
    of: Ints
    order: Ints | None
    bounds: Ints
    each: int

    @staticmethod
    def taken(of: Ints, groups: int, rows: tuple[Ints, Ints] | None = None) -> Seats:
        """rows: (group, seat) of each pair that belongs together; each seat in its one group when absent."""
        group, seat = (of, np.arange(of.size)) if rows is None else rows
        counts = np.bincount(group, minlength=groups)
        order = seat[np.argsort(group, kind="stable")]
        alike = order.size == of.size and bool(np.all(order == np.arange(order.size)))
        each = int(counts[0]) if np.all(counts == counts[0]) else 0
        return Seats(groups, of, None if alike else order, np.cumsum(counts) - counts, each)

    def last(self, times: NDArray[Any]) -> NDArray[Any]:
        """(..., G) the largest of each group's, of (..., n)."""
        at = times if self.order is None else times[..., self.order]
        if not self.each:
            return np.asarray(np.maximum.reduceat(at, self.bounds, axis=-1))
        if self.each > _FEW:
            return np.asarray(at.reshape(*at.shape[:-1], self.groups, self.each).max(axis=-1))
        found = at[..., :: self.each].copy()
        for member in range(1, self.each):
            np.maximum(found, at[..., member :: self.each], out=found)
        return np.asarray(found)

    def told(self, times: Floats) -> Floats:
        """(..., n) what each rank hears of its group, of (..., G)."""
        return np.asarray(np.take(times, self.of, axis=-1))


class Seating:
    """All classes of a folded job, seat by seat.

    kind: (R,) ranks with the same number have the same pace, and share a seat if all whom they meet are alike, too. Every rank
    has a seat of its own when absent, or where hardly any would share.
    """

    def __init__(self, traffic: Traffic, partition: Partition, kind: Ints | None = None) -> None:
        self.traffic, self.partition = traffic, partition
        self._alike: Partition | None = None
        seat = np.arange(traffic.ranks)
        if kind is not None:
            apart = partition.rank.astype(np.int64) * (int(kind.max()) + 1) + kind
            most = traffic.ranks // _SHARED
            alike = refine(traffic, bundles=False, apart=apart, most=most)
            if int(alike.rank.max()) < most:
                self._alike, seat = alike, alike.rank
        first = firsts(seat)
        of_class = partition.rank[first]
        by_class = np.argsort(of_class, kind="stable")
        bounds = np.cumsum(np.bincount(of_class))
        #: By class, the (seats,) first rank of each.
        self.ranks = np.split(first[by_class], bounds[:-1])
        number = np.empty(first.size, np.int64)
        number[by_class] = np.arange(first.size) - (bounds - np.bincount(of_class))[of_class[by_class]]
        self._number = number[seat]
        self._seats: dict[tuple[int, int, int], Seats] = {}
        self._places: dict[int, tuple[Ints, Ints]] = {}

    def seats(self, channel: int, role: int, member: int) -> Seats:
        """Where a class sits in its class of groups of a channel, in a role."""
        key = (channel, role, member)
        if key not in self._seats:
            of_rank = self.traffic.channels[channel].roles[role]
            place, first = self._groups(channel)
            group = of_rank[self.ranks[member]]
            here = first[self.partition.groups[channel][first] == self.partition.groups[channel][group[0]]]
            rows = None if self._alike is None else self._rows(channel, role, member, here)
            self._seats[key] = Seats.taken(place[group], here.size, rows)
        return self._seats[key]

    def _groups(self, channel: int) -> tuple[Ints, Ints]:
        """(G,) the number of each group within its class, and the first group of each number; groups of one seat are one."""
        if channel not in self._places:
            classes = self.partition.groups[channel].astype(np.int64)
            own = np.arange(classes.size) if self._alike is None else self._alike.groups[channel]
            _, first, which = np.unique(classes * (int(own.max()) + 1) + own, return_index=True, return_inverse=True)
            # Sorted by class: numbers within one follow each other.
            starts = np.cumsum(np.bincount(classes[first])) - np.bincount(classes[first])
            self._places[channel] = which.reshape(-1) - starts[classes], first
        return self._places[channel]

    def _rows(self, channel: int, role: int, member: int, groups: Ints) -> tuple[Ints, Ints]:
        """(group, seat) of all seats of a class that have members in these groups."""
        members = self.traffic.channels[channel].members[groups]
        if self.traffic.channels[channel].name in BOUNDARY_CHANNELS:
            members = members[:, [role]]
        group, at = np.nonzero(self.partition.rank[members] == member)
        width = self.ranks[member].size
        rows = np.unique(group * width + self._number[members[group, at]])
        return rows // width, rows % width
