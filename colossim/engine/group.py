"""Groups at play: members meet here, and collectives take their turns.

A `Group` is one class of groups (or of stage boundaries) under one algorithm; a `Call` is one of its collectives, and its
`Communicator` runs them first-in first-out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING

import simpy

from colossim.collective import Timing
from colossim.engine.network import Activity, Network
from colossim.engine.trace import Played, Posted
from colossim.legs import CATEGORY, Part, Segment
from colossim.quotient import GroupClass

if TYPE_CHECKING:
    from colossim.engine.rank import Member

STRAGGLER = CATEGORY["straggler"]


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

    def load(self, timing: Timing, exposed: float) -> None:
        """What is to be moved."""
        self.size = self.remaining = timing.bytes * exposed
        self.latency = timing.latency * exposed
        self.cap = self.reach = timing.cap

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


class Carrier:
    """What counts the bytes that a class of groups, or an edge of one, moves. watched: keep the throughput for the plots."""

    def __init__(self, kind: GroupClass, watched: bool) -> None:
        self.kind = kind
        self.bytes = 0.0
        self.log: list[tuple[float, float, float]] | None = [] if watched else None
        self.segments: list[tuple[float, Segment]] = []
        self.watched = watched


class Group(Carrier):
    """A class of groups at play, under one algorithm; those of one kind of communication share a communicator.

    watchers: members whose kernels it slows.  pinned: (channel, class) if routing pins its flows to paths.
    """

    def __init__(
        self, communicator: Communicator, kind: GroupClass, boundary: bool, watched: bool,
        pinned: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(kind, watched)
        self.carriers: list[Carrier] = [self]
        self.pinned = pinned
        self.communicator = communicator
        self.network = communicator.network
        self.boundary = boundary
        self.needed = 1 if boundary else len(kind.members)
        self.leader = kind.members[0]
        self.watchers: tuple[Member, ...] = ()
        self._calls: dict[Hashable, Call] = {}
        self._meetings: dict[int, list[tuple[Member, float, Segment]]] = {}

    def call(self, key: Hashable) -> Call:
        """The call that goes by this key, made by whoever asks first."""
        found = self._calls.get(key)
        if found is None:
            found = self._calls[key] = self.new_call()
        return found

    def new_call(self) -> Call:
        """A call that nobody has asked for yet."""
        return Call(self)

    def arrive(self, key: Hashable, timing: Timing, exposed: float = 1.0) -> Call:
        """One member is ready; when all are, the call takes its turn. exposed: part of its time that isn't hidden."""
        call = self.call(key)
        call.arrived += 1
        if call.arrived == self.needed:
            if self.network.trace is not None:
                self.network.trace.append(Posted(call))
            if not self.boundary:
                del self._calls[key]
            self.bytes += timing.bytes
            call.load(timing, exposed)
            call.posted = self.network.env.now
            self.communicator.post(call)
        return call

    def arrive_after(self, before: Call | None, key: Hashable, timing: Timing) -> Call:
        """One member is ready as soon as another call has ended, if it hasn't yet."""
        if before is None or before.ended is not None:
            return self.arrive(key, timing)

        def follow(_: simpy.Event) -> None:
            self.arrive(key, timing)

        before.wait(self.network.env).callbacks.append(follow)
        return self.call(key)

    def ended(self, call: Activity) -> None:
        """A call's bytes have arrived: the next one takes its turn."""
        if call.done is not None:
            call.done.succeed()
        self.communicator.turn()

    def book(self, part: Part, begin: float) -> None:
        """Counts the bytes on an edge that a part of a segment moved."""
        self.bytes += part.bytes
        if self.log is not None:
            self.log += [
                (begin + began, begin + began + lasting, size / lasting) for began, lasting, size in part.flows
            ]

    def forget(self) -> None:
        """The step is over, and what it was has been told."""
        self._calls.clear()
        self.segments.clear()
        if self.log is not None:
            self.log.clear()

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
            if self.network.trace is not None:
                members, _, segments = zip(*arrived, strict=True)
                self.network.trace.append(Played(tuple(m.index for m in members), segments, self.kind.channel))
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
