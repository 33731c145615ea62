"""A graph of vertices and directed links as arrays, and how far every vertex is from a destination.

Paths are shortest by the links' weight (1 each: by hops). Only vertices that forward are passed through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[Any]
#: Sums of weights that differ by less are the same length: 0.1 + 0.2 is as long as 0.3.
_SAME = 1 + 1e-9
#: Destinations at once x links: bounds memory to some 200 MB.
_AT_ONCE = 4_000_000


class Rows:
    """Values in groups: those of group g are values[start[g] : start[g + 1]]."""

    def __init__(self, group: Ints, values: Ints, groups: int) -> None:
        """group: ascending."""
        self.values = values
        self.start = np.concatenate(([0], np.cumsum(np.bincount(group, minlength=groups))))

    def of(self, groups: Ints) -> tuple[Ints, Ints]:
        """(row of `groups`, value) of every value of these groups, row by row."""
        row, place = spans(self.start[groups], self.start[groups + 1])
        return row, self.values[place]


def spans(start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """(row, integer) of every integer in start[row] .. stop[row] - 1, row by row."""
    count = stop - start
    row = np.repeat(np.arange(start.size), count)
    return row, np.arange(row.size) + np.repeat(start - np.cumsum(count) + count, count)


@dataclass(frozen=True)
class Network:
    """V vertices and L directed links.

    vertices: names.  forwards: (V,) bool, whether others' messages pass through.  tail, head: (L,) vertices.
    capacity: (L,) bytes/s.  latency: (L,) s.  weight: (L,) > 0, what makes a path long.  words: (V,) the graph's `kind`s.
    """

    vertices: tuple[str, ...]
    forwards: NDArray[np.bool_]
    tail: Ints
    head: Ints
    capacity: Floats
    latency: Floats
    weight: Floats
    words: tuple[str, ...] = ()

    @cached_property
    def by_ends(self) -> tuple[Ints, Ints]:
        """(keys, links), both in the order of the keys tail x V + head."""
        key = self.tail * len(self.vertices) + self.head
        order = np.argsort(key, kind="stable")
        return key[order], order

    @cached_property
    def _entering(self) -> Rows:
        order = np.argsort(self.head, kind="stable")
        return Rows(self.head[order], order, len(self.vertices))

    def unreachable(self, ends: Ints) -> NDArray[np.bool_] | None:
        """(E,) which of the vertices `ends` cannot reach one of them, the last there is; None if all reach each other."""
        if self._meet(ends):
            return None
        ends = ends[::-1]
        kinds, kind_of = self.kinds(ends)
        for some, distance in self.distances(kinds):
            lost = np.isinf(distance[:, ends])
            for kind in np.flatnonzero(lost.any(axis=1)):
                for vertex in ends[kind_of == some.start + kind]:
                    cannot: NDArray[np.bool_] = lost[kind] & (ends != vertex)
                    if cannot.any():
                        return cannot[::-1]
        return None

    def _meet(self, ends: Ints) -> bool:
        """Whether all of `ends` reach one vertex that forwards, and are reached from it: then they reach each other."""
        hub = np.flatnonzero(self.forwards)[:1]
        if not hub.size:
            return False
        for way in (self, replace(self, tail=self.head, head=self.tail)):
            for _, distance in way.distances(way.kinds(hub)[0]):
                if (np.isinf(distance[0, ends]) & (ends != hub[0])).any():
                    return False
        return True

    def kinds(self, ends: Ints) -> tuple[list[tuple[Ints, Floats]], Ints]:
        """Destinations by how they are entered: (vertices before them, weights) of each kind, and the kind of each (E,).

        All that hang on one leaf by links of one weight are as far from anywhere, so one search serves them.
        """
        row, link = self._entering.of(ends)
        order = np.lexsort((self.weight[link], self.tail[link], row))
        row, before, weight = row[order], self.tail[link][order], self.weight[link][order]
        shortest: NDArray[np.bool_] = np.ones(row.size, bool)  # of parallel links
        shortest[1:] = (row[1:] != row[:-1]) | (before[1:] != before[:-1])
        row, before, weight = row[shortest], before[shortest], weight[shortest]
        start = np.searchsorted(row, np.arange(ends.size + 1))
        known: dict[bytes, int] = {}
        found: list[tuple[Ints, Floats]] = []
        kind_of = np.zeros(ends.size, np.int64)
        for end in range(ends.size):
            own = slice(start[end], start[end + 1])
            key = before[own].tobytes() + weight[own].tobytes()
            if key not in known:
                known[key] = len(found)
                found.append((before[own], weight[own]))
            kind_of[end] = known[key]
        return found, kind_of

    def distances(self, kinds: list[tuple[Ints, Floats]]) -> Iterator[tuple[slice, Floats]]:
        """(which kinds, distances (kinds, V) to destinations of those kinds; inf where there is no path), in batches.

        A breadth-first search from the destinations backwards, all of a batch at once; with unequal weights a vertex is
        visited again whenever a shorter way to it is found.
        """
        size = len(self.vertices)
        step = max(1, _AT_ONCE // max(1, size, self.tail.size))
        for first in range(0, len(kinds), step):
            some = kinds[first : first + step]
            distance = np.full(len(some) * size, np.inf)
            front = np.concatenate([kind * size + before for kind, (before, _) in enumerate(some)])
            distance[front] = np.concatenate([weight for _, weight in some])
            while front.size:
                front = front[self.forwards[front % size]]
                row, link = self._entering.of(front % size)
                there = front[row] - self.head[link] + self.tail[link]
                length = distance[front[row]] + self.weight[link]
                nearer = length < distance[there]
                np.minimum.at(distance, there[nearer], length[nearer])
                front = np.unique(there[nearer])
            yield slice(first, first + len(some)), distance.reshape(len(some), size)


class Ways:
    """The next links of shortest paths towards destinations of some kinds, from every vertex."""

    def __init__(self, network: Network, distance: Floats) -> None:
        """distance: (kinds, V) as `Network.distances` yields it."""
        self._network, self._distance = network, distance
        order = network.by_ends[1]
        tail, head = network.tail[order], network.head[order]
        rest = np.where(network.forwards[head], distance[:, head], np.inf)
        left = distance[:, tail]
        kind, place = np.nonzero((network.weight[order] + rest <= left * _SAME) & (rest < left))
        #: Grouped by kind x V + vertex; without the links into the destinations themselves.
        self._onward = Rows(kind * len(network.vertices) + tail[place], order[place], distance.size)

    def next_links(self, kind: Ints, at: Ints, dst: Ints) -> tuple[Ints, Ints]:
        """(row of `at`, link) of the next links from vertices `at` to `dst`, row by row.  kind: (rows,) of `dst`."""
        network, size = self._network, len(self._network.vertices)
        keys, links = network.by_ends
        key = at * size + dst
        last, place = spans(np.searchsorted(keys, key), np.searchsorted(keys, key, side="right"))
        arrives = network.weight[links[place]] <= self._distance[kind, at][last] * _SAME
        row, link = self._onward.of(kind * size + at)
        passes = network.head[link] != dst[row]
        row = np.concatenate([last[arrives], row[passes]])
        order = np.argsort(row, kind="stable")
        return row[order], np.concatenate([links[place[arrives]], link[passes]])[order]
