"""The clock of a play: SimPy's queue of events, and beside it a heap of deadlines, which cost nothing to supersede.

A transfer's end moves whenever its neighbours come or go. A deadline is therefore no event: it stands in the heap with the
version of what it belongs to, and is passed over if that has moved on.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any

import simpy

if TYPE_CHECKING:
    from colossim.engine.network import Network

#: Deadlines this close (relative to now) are one instant: differences of an ulp must not multiply events.
SAME_INSTANT = 1e-13


class Clock(simpy.Environment):
    """Moves on by events and by deadlines; where both are at one instant, the deadlines come first.

    network: whose deadlines they are; it is told of each instant at which some fall due.
    """

    network: Network

    def __init__(self) -> None:
        super().__init__()
        self._deadlines: list[tuple[float, int, int, Any]] = []
        self._sequence = 0
        self._instants = 0

    @property
    def events(self) -> int:
        """Events made so far, and instants at which deadlines fell due: what a play costs."""
        return next(self._eid) + self._instants

    def deadline(self, when: float, version: int, item: Any) -> None:
        """Calls item.due(network) at `when`, unless item.version has moved on by then."""
        self._sequence += 1
        heapq.heappush(self._deadlines, (when, self._sequence, version, item))

    def due(self) -> Iterator[Any]:
        """What is due at this instant, with what becomes due meanwhile."""
        limit = self._now * (1 + SAME_INSTANT)
        heap = self._deadlines
        while heap and heap[0][0] <= limit:
            _, _, version, item = heapq.heappop(heap)
            if version == item.version:
                yield item

    def peek(self) -> float:
        """s at which the next thing happens; infinity if nothing is left."""
        return min(super().peek(), self._earliest())

    def step(self) -> None:
        """The next thing happens."""
        earliest, queue = self._earliest(), self._queue
        if earliest < inf and (not queue or earliest <= queue[0][0]):
            self._now = max(self._now, earliest)
            self._instants += 1
            self.network.wake()
        else:
            super().step()

    def _earliest(self) -> float:
        """s of the first deadline that stands; infinity without."""
        heap = self._deadlines
        while heap and heap[0][2] != heap[0][3].version:
            heapq.heappop(heap)
        return heap[0][0] if heap else inf
