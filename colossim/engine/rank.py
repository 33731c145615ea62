"""Rank processes: each plays its program in order, and waits for others where the program says so.

A `Member` is one rank class at play: its compute stream, its place in each group, and what it remembers of the step.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from typing import Any

import simpy

from colossim.collective import Timing
from colossim.engine.group import STRAGGLER, Call, Group
from colossim.engine.network import Activity, Network
from colossim.engine.trace import Arrived, Played, Ran, Streamed, Waited
from colossim.legs import (
    CATEGORY,
    Alone,
    Blocking,
    Fetch,
    Gate,
    Haul,
    Hauled,
    Leg,
    Meeting,
    Part,
    Segment,
    Ship,
    Slowed,
    Start,
)
from colossim.quotient import RankClass

BUBBLE = CATEGORY["bubble"]
BOUNDARY = CATEGORY["forward"]
DATA = CATEGORY["data"]
HOST = CATEGORY["host"]


def _pass(gate: Gate, env: simpy.Environment) -> simpy.Event:
    """One more has come to the gate; the last opens it."""
    if gate.event is None:
        gate.event = simpy.Event(env)
    gate.arrived += 1
    if gate.arrived == gate.needed:
        gate.time = env.now
        gate.event.succeed()
    event: simpy.Event = gate.event
    return event


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

    def forget(self) -> None:
        """The step is over, and what it was has been told."""
        self.spans.clear()
        self.segments.clear()

    # -- the process -------------------------------------------------------------------------------------------------
    def play(self, legs: tuple[Leg, ...]) -> Generator[simpy.Event, Any, None]:
        """The SimPy process of the class."""
        env, trace = self.network.env, self.network.trace
        posted: dict[str, tuple[Call, int]] = {}
        free: dict[str, float] = {}  # s at which a copy stream has nothing left
        counts = self._counts
        self._legs = max(1, len(legs))
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
                    if trace is not None:
                        trace.append(Played((self.index,), (segment,), -1))
                    yield env.timeout(segment.seconds)
                elif isinstance(step, Fetch):
                    call = self._group(step.channel, 1).call(key)
                    if call.ended is None:
                        start = env.now
                        yield call.wait(env)
                        self._log_wait(start, call, BUBBLE, BOUNDARY)
                    self._waited(call, 1)
                elif isinstance(step, Ship):
                    there = leg.micro_batch, leg.chunk + step.chunk
                    call = self._arrive(self._group(step.channel), there, step.timing)
                    if step.blocking:
                        if call.ended is None:
                            start = env.now
                            yield call.wait(env)
                            self._log_wait(start, call, BUBBLE, BOUNDARY)
                        self._waited(call, 0)
                elif isinstance(step, Blocking):
                    counts[step.channel] += 1
                    call = self._arrive(self._group(step.channel), counts[step.channel], step.timing, step.exposed)
                    start = env.now
                    if call.ended is None:
                        yield call.wait(env)
                        self._log_wait(start, call, STRAGGLER, step.category)
                    self._waited(call, 0)
                elif isinstance(step, Gate):
                    start = env.now
                    yield _pass(step, env)
                    self.log_span(start, env.now, STRAGGLER)
                elif isinstance(step, Meeting):
                    counts[step.channel] += 1
                    yield self._group(step.channel).meet(counts[step.channel], self, step.segment)
                elif isinstance(step, Slowed):
                    start = env.now
                    yield self._compute(step.seconds)
                    if trace is not None:
                        trace.append(Ran(self.index, step.seconds, step.grain))
                    self.computed += step.seconds
                    self.log_span(start, start + step.seconds, step.category)
                    self.log_span(start + step.seconds, env.now, DATA)
                elif isinstance(step, Start):
                    counts[step.channel] += 1
                    before = posted[step.after][0] if step.after else None
                    group = self._group(step.channel)
                    if trace is not None:
                        trace.append(Arrived(self.index, group.call(counts[step.channel]), before))
                    call = group.arrive_after(before, counts[step.channel], step.timing)
                    posted[step.tag] = (call, step.category)
                elif isinstance(step, Haul):
                    free[step.direction] = max(env.now, free.get(step.direction, 0.0)) + step.seconds
                    if trace is not None:
                        trace.append(Streamed(self.index, step.direction, step.seconds))
                elif isinstance(step, Hauled):
                    start, late = env.now, free.get(step.direction, 0.0) - env.now
                    if late > 0:
                        yield env.timeout(late)
                        self.log_span(start, env.now, HOST)
                    if trace is not None:
                        trace.append(Streamed(self.index, step.direction, None))
                else:
                    call, category = posted.pop(step.tag)
                    if call.ended is None:
                        start = env.now
                        yield call.wait(env)
                        self._log_wait(start, call, STRAGGLER, category)
                    self._waited(call, 0)
        self.end = env.now

    def _arrive(self, group: Group, key: Hashable, timing: Timing, exposed: float = 1.0) -> Call:
        """The class is ready for a call."""
        if self.network.trace is not None:
            self.network.trace.append(Arrived(self.index, group.call(key), None))
        return group.arrive(key, timing, exposed)

    def _waited(self, call: Call, role: int) -> None:
        if self.network.trace is not None:
            self.network.trace.append(Waited(self.index, call, role))

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
        self.network.env.deadline(self.network.env.now + self._left / self._rate(), self.version, self)

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
            activity.disturbed(self.network)

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
