"""Rank processes: each plays its program in order, and waits for others where the program says so.

A `Member` is one rank class at play: its compute stream, its place in each group, and what it remembers of the step.
A `Group` is one class of groups (or of stage boundaries): its members meet here, and its collectives run first-in
first-out on the group's `Communicator`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Hashable
from typing import Any

import simpy

from colossim.collective import Timing
from colossim.engine.network import Activity, Network
from colossim.quotient import GroupClass, RankClass
from colossim.segments import (
    CATEGORY,
    Alone,
    Blocking,
    Fetch,
    Leg,
    Meeting,
    Part,
    Segment,
    Ship,
    Slowed,
    Start,
)

BUBBLE = CATEGORY["bubble"]
STRAGGLER = CATEGORY["straggler"]
BOUNDARY = CATEGORY["forward"]
DATA = CATEGORY["data"]


class Call(Activity):
    """One collective of a group class, or one transfer over a boundary. posted: when its last member was ready."""

    __slots__ = ("arrived", "latency", "posted")

    def __init__(self, group: Group) -> None:
        super().__init__(group.kind.links, 0.0, 0.0)
        self.owner = group
        self.log = group.log
        self.watchers = group.watchers
        self.arrived = 0
        self.posted: float | None = None
        self.latency = 0.0
        self.pinned = group.pinned

    def wait(self, env: simpy.Environment) -> simpy.Event:
        """An event for its end; asked for only while it runs."""
        if self.done is None:
            self.done = simpy.Event(env)
        return self.done


class Communicator:
    """The order of a group's collectives: first-in first-out, whatever algorithm each runs."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._queue: deque[Call] = deque()
        self._busy = False

    def post(self, call: Call) -> None:
        """The call takes its turn."""
        if self._busy:
            self._queue.append(call)
        else:
            self._busy = True
            self.network.start(call, call.latency)

    def turn(self) -> None:
        """A call has ended: the next one begins."""
        if self._queue:
            following = self._queue.popleft()
            self.network.start(following, following.latency)
        else:
            self._busy = False


class Group:
    """A class of groups at play, under one algorithm; those of one kind of communication share a communicator.

    watched: keep the throughput for the plots; watchers: members whose kernels it slows.  pinned: (channel, class) if
    routing pins its flows to paths.
    """

    def __init__(
        self,
        communicator: Communicator,
        kind: GroupClass,
        boundary: bool,
        watched: bool,
        pinned: tuple[int, int] | None = None,
    ) -> None:
        self.pinned = pinned
        self.communicator = communicator
        self.network = communicator.network
        self.kind = kind
        self.boundary = boundary
        self.needed = 1 if boundary else len(kind.members)
        self.leader = kind.members[0]
        self.bytes = 0.0
        self.log: list[tuple[float, float, float]] | None = [] if watched else None
        self.segments: list[tuple[float, Segment]] = []
        self.watched = watched
        self.watchers: tuple[Member, ...] = ()
        self._calls: dict[Hashable, Call] = {}
        self._meetings: dict[int, list[tuple[Member, float, Segment]]] = {}

    def call(self, key: Hashable) -> Call:
        """The call that goes by this key, made by whoever asks first."""
        found = self._calls.get(key)
        if found is None:
            found = self._calls[key] = Call(self)
        return found

    def arrive(self, key: Hashable, timing: Timing, exposed: float = 1.0) -> Call:
        """One member is ready; when all are, the call takes its turn. exposed: part of its time that isn't hidden."""
        call = self.call(key)
        call.arrived += 1
        if call.arrived == self.needed:
            if not self.boundary:
                del self._calls[key]
            self.bytes += timing.bytes
            call.size = call.remaining = timing.bytes * exposed
            call.latency = timing.latency * exposed
            call.cap = call.reach = timing.cap
            call.posted = self.network.env.now
            self.communicator.post(call)
        return call

    def ended(self, call: Activity) -> None:
        """A call's bytes have arrived: the next one takes its turn."""
        if call.done is not None:
            call.done.succeed()
        self.communicator.turn()

    def book(self, part: Part, begin: float) -> None:
        """Counts the bytes on an edge that a part of a segment moved; what overlap hides of it is in no instant's rate."""
        self.bytes += part.bytes
        if self.log is not None and part.seconds > 0:
            self.log.append((begin, begin + part.seconds, part.bytes * part.shown / part.seconds))

    def meet(self, number: int, member: Member, segment: Segment) -> simpy.Event:
        """A member enters a segment that all members play together; returns an event for the member's own end.

        With arrivals a_i and parts p_ij between collectives c_j: T_0 = max(a_i + p_i0) + c_0,
        T_j = T_(j-1) + max(p_ij) + c_j, and member i ends after its own last part.
        """
        env = self.network.env
        arrived = self._meetings.setdefault(number, [])
        member.gate = simpy.Event(env)
        arrived.append((member, env.now, segment))
        if len(arrived) == self.needed:
            del self._meetings[number]
            self._play(arrived, env)
        return member.gate

    def _play(self, arrived: list[tuple[Member, float, Segment]], env: simpy.Environment) -> None:
        clocks = [start for _, start, _ in arrived]
        places = [0] * len(arrived)
        while True:
            # What is a member's own up to the next collective of this group: kernels, collectives with its likes.
            together = None
            for i, (member, _, segment) in enumerate(arrived):
                parts = segment.parts
                at, clock = places[i], clocks[i]
                while at < len(parts) and parts[at].channel != self.kind.channel:
                    part = parts[at]
                    member.log_span(clock, clock + part.seconds, part.category)
                    if part.channel >= 0:
                        member.book(part, clock)
                    clock += part.seconds
                    at += 1
                places[i], clocks[i] = at, clock
                together = parts[at] if at < len(parts) else None
            if together is None:
                break
            begin = max(clocks)
            end = begin + together.seconds
            for i, (member, _, _) in enumerate(arrived):
                member.log_span(clocks[i], begin, STRAGGLER)
                member.log_span(begin, end, together.category)
                places[i] += 1
                clocks[i] = end
            self.book(together, begin)
        now = env.now
        for (member, _, segment), clock in zip(arrived, clocks, strict=True):
            member.computed += segment.compute
            gate = member.gate
            gate._ok, gate._value = True, None
            env.schedule(gate, delay=max(0.0, clock - now))


class Member:
    """One rank class at play. index: of the class in the quotient.

    slowdown: (x, y): its kernels run at 1/(1+x) while a transfer that it watches runs, the transfer's weights at 1+y.
    spans: (start, end, category, leg) of the step, kept if `recorded`; segments stand in `segments` as (start, segment, leg).
    """

    def __init__(
        self, network: Network, kind: RankClass, index: int, groups: tuple[tuple[Group | None, ...], ...],
        slowdown: tuple[float, float], recorded: bool,
    ) -> None:  # fmt: skip
        self.network = network
        self.index = index
        self.kind = kind
        self.groups = groups
        self.recorded = recorded
        self.spans: list[tuple[float, float, int, int]] = []
        self.segments: list[tuple[float, Segment, int]] = []
        self.computed = 0.0
        self.end = 0.0
        self.gate: simpy.Event = network.env.event()
        self._x, self._y = slowdown
        self._counts = [0] * len(groups)
        self._leg = 0
        self._legs = 1
        # the compute stream while it plays a kernel that transfers may slow
        self.version = 0
        self._left = 0.0
        self._since = 0.0
        self._flying: dict[Activity, None] = {}
        self._computing = False

    def _group(self, channel: int, role: int = 0) -> Group:
        """Its group of a channel that its program uses."""
        group = self.groups[channel][role]
        assert group is not None
        return group

    @property
    def share(self) -> float:
        """How much of its program it has begun."""
        return self._leg / self._legs

    # -- what it remembers -------------------------------------------------------------------------------------------
    def log_span(self, start: float, end: float, category: int) -> None:
        if self.recorded and end > start:
            self.spans.append((start, end, category, self._leg))

    # -- the process -------------------------------------------------------------------------------------------------
    def play(self, legs: tuple[Leg, ...]) -> Generator[simpy.Event, Any, None]:
        """The SimPy process of the class."""
        env = self.network.env
        posted: dict[str, tuple[Call, int]] = {}
        counts = self._counts
        self._legs = len(legs)
        for number, leg in enumerate(legs):
            self._leg = number
            key = (leg.micro_batch, leg.chunk)
            for step in leg.steps:
                if isinstance(step, Alone):
                    segment = step.segment
                    if segment.bytes:
                        self._book_segment(segment)
                    if self.recorded:
                        self.segments.append((env.now, segment, number))
                    self.computed += segment.compute
                    yield env.timeout(segment.seconds)
                elif isinstance(step, Fetch):
                    call = self._group(step.channel, 1).call(key)
                    if call.ended is None:
                        start = env.now
                        yield call.wait(env)
                        self._log_wait(start, call, BUBBLE, BOUNDARY)
                elif isinstance(step, Ship):
                    call = self._group(step.channel).arrive((leg.micro_batch, leg.chunk + step.chunk), step.timing)
                    if step.blocking and call.ended is None:
                        start = env.now
                        yield call.wait(env)
                        self._log_wait(start, call, BUBBLE, BOUNDARY)
                elif isinstance(step, Blocking):
                    group = self._group(step.channel)
                    counts[step.channel] += 1
                    call = group.arrive(counts[step.channel], step.timing, step.exposed)
                    start = env.now
                    if call.ended is None:
                        yield call.wait(env)
                        self._log_wait(start, call, STRAGGLER, step.category)
                elif isinstance(step, Meeting):
                    counts[step.channel] += 1
                    yield self._group(step.channel).meet(counts[step.channel], self, step.segment)
                elif isinstance(step, Slowed):
                    start = env.now
                    yield self._compute(step.seconds)
                    self.computed += step.seconds
                    self.log_span(start, start + step.seconds, step.category)
                    self.log_span(start + step.seconds, env.now, DATA)
                elif isinstance(step, Start):
                    counts[step.channel] += 1
                    call = self._group(step.channel).arrive(counts[step.channel], step.timing)
                    posted[step.tag] = (call, step.category)
                else:
                    call, category = posted.pop(step.tag)
                    if call.ended is None:
                        start = env.now
                        yield call.wait(env)
                        self._log_wait(start, call, STRAGGLER, category)
        self.end = env.now

    def _log_wait(self, start: float, call: Call, before: int, during: int) -> None:
        """Waiting until the call was posted is the peers' doing; from then on it is communication."""
        now = self.network.env.now
        posted = now if call.posted is None else min(max(call.posted, start), now)
        self.log_span(start, posted, before)
        self.log_span(posted, now, during)

    def book(self, part: Part, begin: float) -> None:
        """Counts what a collective of its group moved; a group's first member class counts for all."""
        group = self._group(part.channel)
        if group.leader == self.index:
            group.book(part, begin)

    def _book_segment(self, segment: Segment) -> None:
        for channel, size in segment.bytes:
            group = self._group(channel)
            if group.leader == self.index:
                group.bytes += size
                if group.watched:
                    group.segments.append((self.network.env.now, segment))

    # -- compute beside communication --------------------------------------------------------------------------------
    def _compute(self, seconds: float) -> simpy.Event:
        self.gate = simpy.Event(self.network.env)
        self._left = seconds
        self._since = self.network.env.now
        self._computing = True
        for activity in self._flying:
            self._beside(activity, 1)
        self._predict()
        return self.gate

    def _rate(self) -> float:
        return 1.0 / (1.0 + self._x) if self._flying else 1.0

    def _predict(self) -> None:
        self.version += 1
        self.network.deadline(self.network.env.now + self._left / self._rate(), self.version, self)

    def _advance(self) -> None:
        now = self.network.env.now
        self._left = max(0.0, self._left - (now - self._since) * self._rate())
        self._since = now

    def due(self, network: Network) -> None:
        """The kernel is done."""
        self.version += 1
        self._computing = False
        for activity in self._flying:
            self._beside(activity, -1)
        self.gate.succeed()

    def _beside(self, activity: Activity, change: int) -> None:
        """Counts the members that compute beside a transfer; the first and the last change its weights."""
        before = activity.beside
        activity.beside += change
        if self._y and (before == 0 or activity.beside == 0):
            activity.stretch = 1.0 + self._y if activity.beside else 1.0
            self.network.disturb(activity)

    def transfer_began(self, activity: Activity) -> None:
        """A transfer that slows this member's kernels, and is slowed by them, moves its first byte."""
        if self._computing:
            self._advance()
            self._flying[activity] = None
            self._predict()
            self._beside(activity, 1)
        else:
            self._flying[activity] = None

    def transfer_ended(self, activity: Activity) -> None:
        """Its last byte has arrived."""
        if self._computing:
            self._advance()
            del self._flying[activity]
            self._predict()
        else:
            del self._flying[activity]
