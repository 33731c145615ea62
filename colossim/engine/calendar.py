"""A campaign's clock: SimPy's queue, and in it one-shot timers that can be written down and set again.

A timer stands at an absolute time: now + (when - now) is not always `when`, and a campaign that goes on from a file must be
the one that was never interrupted, to the last bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import Any

import simpy
from simpy.events import NORMAL

#: (s, kind, what it is about): what is about is plain, so that it can be written as JSON.
Timer = tuple[float, str, tuple[Any, ...]]


class Calendar(simpy.Environment):
    """Calls `due[kind](*what)` of each timer at its time; of timers at one instant, in the order in which they were set."""

    def __init__(self, now: float = 0.0) -> None:
        super().__init__(now)
        self.due: dict[str, Callable[..., None]] = {}
        self._timers: dict[int, Timer] = {}
        self._sequence = 0

    def at(self, when: float, kind: str, *what: Any) -> int:
        """Sets a timer, not before now; at infinity it never comes. Returns the number by which it can be taken away."""
        self._sequence += 1
        number = self._sequence
        if when < inf:
            when = max(when, self.now)
            self._timers[number] = (when, kind, what)
            event = simpy.Event(self)
            event._ok, event._value = True, None
            assert event.callbacks is not None
            event.callbacks.append(partial(self._fall_due, number))
            heapq.heappush(self._queue, (when, NORMAL, next(self._eid), event))
        return number

    def cancel(self, number: int) -> None:
        """Takes a timer away, if it hasn't come."""
        self._timers.pop(number, None)

    def timers(self) -> dict[int, Timer]:
        """All that stand, by number, in the order in which they were set."""
        return dict(self._timers)

    def set_again(self, timers: Iterable[Timer]) -> None:
        """Sets timers in their order."""
        for when, kind, what in timers:
            self.at(when, kind, *what)

    def _fall_due(self, number: int, event: simpy.Event) -> None:
        timer = self._timers.pop(number, None)
        if timer is not None:
            _, kind, about = timer
            self.due[kind](*about)
