"""The fluid network: activities share link classes max-min fairly, and SimPy is told when the next thing happens.

One object stands for all activities of a class and one for all links of a class; `weight` is what one link of the class
carries of the whole class, so loads are those of the unfolded network. An activity pays its latency, then moves its
bytes at a rate that changes whenever its neighbours change. All changes of an instant are settled once, at low priority,
and only the connected component that changed is solved again.

Times are deadlines of the clock, which a change of rate supersedes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import simpy

from colossim.engine.clock import SAME_INSTANT, Clock
from colossim.engine.rates import Rates
from colossim.flows import Pace

if TYPE_CHECKING:
    from colossim.engine.trace import Trace

#: SimPy orders events of one instant by priority; 0 and 1 are its own.
_LAST: Any = 2


class Activity:
    """A transfer class in flight. links: (link class, weight); size: bytes an edge; cap: bytes/s an edge."""

    __slots__ = (
        "began",
        "beside",
        "cap",
        "done",
        "ended",
        "links",
        "log",
        "owner",
        "pinned",
        "rate",
        "reach",
        "ready",
        "remaining",
        "since",
        "size",
        "stretch",
        "version",
        "watchers",
    )  # fmt: skip
    #: whether nobody needs to know when its bytes begin to move
    quiet: ClassVar[bool] = True

    def __init__(self, links: tuple[tuple[int, float], ...], size: float, cap: float) -> None:
        self.links = links
        self.size = size
        self.remaining = size
        self.cap = cap
        self.rate = 0.0
        self.since = 0.0
        self.version = 0
        self.began: float | None = None
        #: (channel, class of groups) if its flows are pinned to paths, and its cap without the others'
        self.pinned: tuple[int, int] | None = None
        self.reach = cap
        self.ended: float | None = None
        self.done: simpy.Event | None = None
        self.owner: Any = None
        self.log: list[tuple[float, float, float]] | None = None
        #: the factor 1 + y on its weights while something computes beside it
        self.stretch = 1.0
        self.beside = 0
        self.watchers: tuple[Any, ...] = ()

    def disturbed(self, network: Network) -> None:
        """Its weights have changed."""
        network.disturb(self)

    def due(self, network: Network) -> None:
        """A deadline of the activity: its latency is over, or its bytes have arrived."""
        if self.began is None:
            network.begin(self)
        else:
            network.finish(self)


class Network:
    """Link classes with capacities (bytes/s of one link) and the activities on them.

    pace: what flows that routing pins to single paths leave the activities that they belong to.  trace: what happens is
    written there, if somebody wants it.
    """

    def __init__(
        self, env: Clock, capacity: Iterable[float], pace: Pace | None = None, trace: Trace | None = None
    ) -> None:
        self.env = env
        env.network = self
        self.trace = trace
        self._pace = pace
        self._pinned: dict[Activity, None] = {}
        self._changed = False
        self.capacity = list(capacity)
        self._on: list[dict[Activity, float]] = [{} for _ in self.capacity]
        self._dirty: dict[Activity, None] = {}
        self._dirty_links: set[int] = set()
        self._settling = self._waking = False
        self._rates = Rates(self.capacity)

    def add_link(self, capacity: float) -> int:
        """Number of a further link."""
        self.capacity.append(capacity)
        self._on.append({})
        return len(self.capacity) - 1

    def wake(self) -> None:
        """Deadlines of this instant fall due."""
        self._waking = True
        for item in self.env.due():
            item.due(self)
        self._waking = False
        if self._settling:
            if self.env.peek() > self.env.now:
                self._settle()  # nothing else happens at this instant
            else:
                self._schedule_settling()

    # -- activities --------------------------------------------------------------------------------------------------
    def start(self, activity: Activity, latency: float) -> None:
        """The activity's bytes begin to move after its latency.

        Where nothing else is on its links its end is known now, and its beginning takes no event, unless somebody watches.
        """
        free = activity.quiet and activity.pinned is None and not activity.watchers and activity.remaining > 0
        if free and not any(self._on[link] for link, _ in activity.links):
            self._begin_ahead(activity, self.env.now + latency)
        elif latency > 0:
            self.env.deadline(self.env.now + latency, activity.version, activity)
        else:
            activity.due(self)

    def _begin_ahead(self, activity: Activity, when: float) -> None:
        activity.began = activity.since = when
        activity.version += 1
        for link, weight in activity.links:
            self._on[link][activity] = weight
        activity.rate = self._rates.alone(activity)
        self.env.deadline(when + activity.remaining / activity.rate, activity.version, activity)

    def _take_back(self, activity: Activity) -> None:
        """Others begin on its links before its latency is over: it begins by an event of its own."""
        when = activity.began
        assert when is not None
        for link, _ in activity.links:
            del self._on[link][activity]
        activity.began = None
        activity.rate = 0.0
        activity.version += 1
        self.env.deadline(when, activity.version, activity)

    def begin(self, activity: Activity) -> None:
        now = self.env.now
        activity.began = activity.since = now
        activity.version += 1
        if activity.remaining <= 0:
            self.finish(activity)
            return
        for link, weight in activity.links:
            on = self._on[link]
            for other in [other for other in on if other.since > now] if on else ():
                self._take_back(other)
            on[activity] = weight
        if activity.pinned is not None:
            self._pinned[activity] = None
            self._changed = True
        for watcher in activity.watchers:
            watcher.transfer_began(activity)
        self.disturb(activity)

    def finish(self, activity: Activity) -> None:
        now = self.env.now
        self._record(activity, now)
        activity.version += 1
        activity.remaining = 0.0
        activity.ended = now
        if activity.size > 0:
            for link, _ in activity.links:
                on = self._on[link]
                del on[activity]
                if on:
                    self._dirty_links.add(link)
                    self._request()
            if activity.pinned is not None:
                del self._pinned[activity]
                self._changed = True
                self._request()
            for watcher in activity.watchers:
                watcher.transfer_ended(activity)
        self._dirty.pop(activity, None)
        activity.owner.ended(activity)

    def disturb(self, activity: Activity) -> None:
        """The activity's rate, and those of its neighbours, must be found again."""
        self._dirty[activity] = None
        self._request()

    def _request(self) -> None:
        if not self._settling:
            self._settling = True
            if not self._waking:
                self._schedule_settling()

    def _schedule_settling(self) -> None:
        event = simpy.Event(self.env)
        event._ok = True
        event._value = None
        event.callbacks.append(self._settle)
        self.env.schedule(event, priority=_LAST)

    def _record(self, activity: Activity, now: float) -> None:
        if activity.log is not None and now > activity.since and activity.rate > 0:
            activity.log.append((activity.since, now, activity.rate))

    # -- rates -------------------------------------------------------------------------------------------------------
    def _settle(self, _: simpy.Event | None = None) -> None:
        self._settling = False
        if self._changed:
            self._repace()
        seeds = dict(self._dirty)
        for link in sorted(self._dirty_links):
            seeds.update(dict.fromkeys(self._on[link]))
        self._dirty = {}
        self._dirty_links = set()
        seen: set[Activity] = set()
        for seed in seeds:
            if seed in seen or seed.ended is not None:
                continue
            component = self._component(seed, seen)
            rates = self._rates.of(component)
            now = self.env.now
            for activity, rate in zip(component, rates, strict=True):
                # A rate that did not change keeps its deadline: most do not.
                if abs(rate - activity.rate) > SAME_INSTANT * rate:
                    self._set_rate(activity, rate, now)

    def _component(self, seed: Activity, seen: set[Activity]) -> list[Activity]:
        component = [seed]
        seen.add(seed)
        on = self._on
        visited: set[int] = set()
        for activity in component:
            for link, _ in activity.links:
                if link not in visited:
                    visited.add(link)
                    if len(on[link]) > 1:
                        for other in on[link]:
                            if other not in seen:
                                seen.add(other)
                                component.append(other)
        return component

    def _repace(self) -> None:
        """Other flows are in flight: what the fabric leaves each pinned activity is looked up again."""
        self._changed = False
        assert self._pace is not None
        limits = self._pace.limits(activity.pinned for activity in self._pinned if activity.pinned is not None)
        for activity in self._pinned:
            assert activity.pinned is not None
            cap = min(activity.reach, limits[activity.pinned])
            if cap != activity.cap:
                activity.cap = cap
                self._dirty[activity] = None

    def _set_rate(self, activity: Activity, rate: float, now: float) -> None:
        if now > activity.since:
            activity.remaining -= activity.rate * (now - activity.since)
            self._record(activity, now)
            activity.since = now
        activity.rate = rate
        activity.version += 1
        self.env.deadline(now + max(0.0, activity.remaining) / rate, activity.version, activity)
