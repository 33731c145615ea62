"""A step of GPUs that aren't alike: what was played of classes once, gone through again with an array over their ranks.

Ranks of a class do the same and differ in when. They meet at collectives, which begin when the last member is there:

    kernels        t += s x own pace x draw           (steps, seats)
    a collective   t = max over the group's members + its own time
    a receiver     t = max(t, the sender's t when it sent + the transfer's own time), one after the other on a channel

That is max-plus, and exact where a collective's or a transfer's own time doesn't hang on who is late: on links that nobody
shares then, and beside kernels that nothing slows. Elsewhere these times are those of the step without jitter: an estimate.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from colossim.draws import log_spread, lognormal
from colossim.engine.group import Call, Communicator
from colossim.engine.seats import Seating, Seats
from colossim.engine.trace import Arrived, Played, Posted, Ran, Streamed, Trace, Waited
from colossim.footprint import Floats
from colossim.legs import Part, Segment
from colossim.quotient import Quotient
from colossim.traffic import Traffic

#: Ranks of one pace, in the mean, from which on it is worth while to look for those that share a seat.
_SHARED = 16


@dataclass(frozen=True)
class Stretch:
    """What a segment has up to a collective, or its end. kernels: s, with their grain; others: s of what isn't a GPU's work.

    channel: the collective's, -1 at the end; seconds: its own.
    """

    kernels: float
    grain: float
    others: float
    channel: int
    seconds: float

    @staticmethod
    def cut(parts: tuple[Part, ...]) -> list[Stretch]:
        """A segment's stretches, one for each collective, and the last."""
        found: list[Stretch] = []
        kernels = squares = others = 0.0
        for part in parts:
            if part.channel >= 0:
                grain = squares**0.5 / kernels if kernels else 0.0
                found.append(Stretch(kernels, grain, others, part.channel, part.seconds))
                kernels = squares = others = 0.0
            elif part.grain:
                kernels += part.seconds
                squares += (part.seconds * part.grain) ** 2
            else:
                others += part.seconds
        return [*found, Stretch(kernels, squares**0.5 / kernels if kernels else 0.0, others, -1, 0.0)]


class Lateness:
    """Goes through a step again. trace: of the folded step.

    traffic: the ranks and groups behind the quotient's classes.  slowdown: x: kernels run at 1/(1 + x) beside transfers.
    """

    def __init__(self, trace: Trace, traffic: Traffic, quotient: Quotient, slowdown: float) -> None:
        partition = quotient.partition
        self.trace, self.traffic, self.partition, self.slowdown = trace, traffic, partition, slowdown
        self._capacity = [link.capacity for link in quotient.links]
        self._stretches: dict[int, list[Stretch]] = {}

    def steps(self, paces: Floats, *, together: bool = True) -> Floats:
        """(steps,) s of steps whose kernels take `paces` times as long: (steps, R), of each rank.

        together: whether ranks share a seat that will be at the same place at the same time.
        """
        kind = None
        if together:
            different, numbers = np.unique(paces.T, axis=0, return_inverse=True)
            # Where nearly every rank has a pace of its own nobody shares, and looking for it costs more than it gains.
            kind = numbers.reshape(-1) if different.shape[0] * _SHARED < paces.shape[1] else None
        return _Replay(self, Seating(self.traffic, self.partition, kind), paces, paces.shape[0]).play()

    def drawn(self, paces: Floats, kernel: float, count: int, rng: np.random.Generator) -> Floats:
        """(count,) s of steps whose kernels vary as well. paces: (R,).

        kernel: standard deviation of one kernel's time over its mean, lognormal, drawn from `rng`.
        """
        return _Replay(self, Seating(self.traffic, self.partition), paces[None], count, kernel, rng).play()

    @property
    def draws(self) -> int:
        """How many draws a step takes whose kernels vary."""
        ranks = np.bincount(self.partition.rank).tolist()
        found = 0
        for entry in self.trace:
            match entry:
                case Played(members, segments, _):
                    for member, segment in zip(members, segments, strict=True):
                        found += ranks[member] * sum(stretch.grain > 0 for stretch in self.stretches(segment))
                case Ran(member, _, grain):
                    found += ranks[member] * (grain > 0)
        return found

    @property
    def approximate(self) -> bool:
        """Whether a transfer's own time could hang on who is late: where others use its links, or kernels slow it."""
        users: dict[int, set[Communicator]] = {}
        for entry in self.trace:
            if isinstance(entry, Ran):
                return True
            if isinstance(entry, Posted) and entry.call.size > 0:
                call = entry.call
                # Others of its class may share a link, without jitter at the same time.
                if any(weight > 1 and self._capacity[link] < call.reach * weight for link, weight in call.links):
                    return True
                for link, _ in call.links:
                    users.setdefault(link, set()).add(call.owner.communicator)
        return any(len(those) > 1 for those in users.values())

    def stretches(self, segment: Segment) -> list[Stretch]:
        """Those of a segment, which the trace keeps alive."""
        if id(segment) not in self._stretches:
            self._stretches[id(segment)] = Stretch.cut(segment.parts)
        return self._stretches[id(segment)]


class _Replay:
    """One way through the trace. times: by class, (steps, seats) s."""

    def __init__(
        self, step: Lateness, seating: Seating, paces: Floats, count: int, kernel: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        self.step, self.seating, self.kernel, self.count, self.rng = step, seating, kernel, count, rng
        classes = range(len(seating.ranks))
        self.paces = [paces[:, ranks] for ranks in seating.ranks]
        self.times: list[Floats] = [np.zeros((count, pace.shape[1])) for pace in self.paces]
        self._slowest: dict[int, Floats] = {}
        #: of a call: class, (steps, seats) s at which it was ready, the call that had to end first
        self._ready: dict[Call, list[tuple[int, Floats, Call | None]]] = {}
        #: (steps, G) s at which a call's first byte moves, and its last has arrived
        self._begins: dict[Call, Floats] = {}
        #: s of the first of these and of the last
        self._spans: dict[Call, tuple[float, float]] = {}
        self._ends: dict[Call, Floats] = {}
        self._queues: dict[Communicator, deque[Call]] = {}
        self._free: dict[Communicator, tuple[float, Floats]] = {}
        #: of a class: calls that it has come to and not waited for, which slow its kernels; calls that all have come to
        self._flying: list[list[Call]] = [[] for _ in classes]
        self._posted: set[Call] = set()
        self._streams: dict[tuple[int, str], Floats] = {}

    def play(self) -> Floats:
        for entry in self.step.trace:
            match entry:
                case Played((member,), (segment,), -1):
                    self._alone(member, self.step.stretches(segment))
                case Played(members, segments, channel):
                    self._together(members, [self.step.stretches(segment) for segment in segments], channel)
                case Ran(member, seconds, grain):
                    self.times[member] = self._beside(member, self._kernels(member, seconds, grain))
                case Arrived(member, call, before):
                    self._ready.setdefault(call, []).append((member, self.times[member], before))
                    if call.watchers:
                        self._flying[member].append(call)
                case Posted(call):
                    self._queues.setdefault(call.owner.communicator, deque()).append(call)
                    self._posted.add(call)
                case Waited(member, call, role):
                    if call in self._flying[member]:
                        self._flying[member].remove(call)
                    end = self._heard(self._end(call), call, member, role)
                    self.times[member] = np.maximum(self.times[member], end)
                case Streamed(member, direction, seconds):
                    self._stream(member, direction, seconds)
        return np.asarray(np.max([times.max(axis=1) for times in self.times], axis=0))

    # -- kernels ----------------------------------------------------------------------------------------------------
    def _kernels(self, member: int, seconds: float, grain: float) -> Floats:
        """(steps, seats) s of kernels; the same for all where no GPU is at work."""
        if not grain:
            return np.full(1, seconds)
        return np.asarray(seconds * (self.paces[member] if not self._noisy(grain) else self._drawn(member, grain)))

    def _noisy(self, grain: float) -> bool:
        return self.kernel > 0 and grain > 0

    def _drawn(self, member: int, grain: float, seats: Seats | None = None) -> Floats:
        """(steps, seats) or, of the slowest of each group, (steps, G): pace x draw."""
        assert self.rng is not None
        spread = log_spread(self.kernel * grain)
        pace = self.paces[member]
        draws = self.rng.standard_normal((self.count, pace.shape[1]), dtype=np.float32)
        draws *= np.float32(spread)
        draws += np.log(pace).astype(np.float32)
        found = (draws if seats is None else seats.last(draws)).astype(np.float64)
        return lognormal(found, spread)

    def _beside(self, member: int, seconds: Floats) -> Floats:
        """When kernels of so many s end that run at 1/(1 + x) while one of the class's transfers moves.

        A transfer that others come to after the kernels' end is taken for one that doesn't meet them.
        """
        now, left = self.times[member], seconds
        factor = 1.0 + self.step.slowdown
        posted = [call for call in self._flying[member] if call in self._posted]
        for call in sorted(posted, key=lambda call: call.began or 0.0):
            ended = self._end(call)
            first, last = self._spans[call]
            if last <= now.min() or first >= (now + left).max():
                continue
            begin = self._heard(self._begins[call], call, member, 0)
            before = np.minimum(left, np.maximum(0.0, begin - now))
            now, left = now + before, left - before
            during = np.maximum(0.0, self._heard(ended, call, member, 0) - np.maximum(now, begin))
            during = np.minimum(left * factor, during)
            now, left = now + during, left - during / factor
        return now + left

    # -- segments ---------------------------------------------------------------------------------------------------
    def _alone(self, member: int, stretches: list[Stretch]) -> None:
        """A class by itself: between two collectives of one channel only each group's slowest counts."""
        times = self.times[member]
        together: Floats | None = None
        here = -1
        for stretch in stretches:
            if together is not None and stretch.channel == here:
                seats = self.seating.seats(here, 0, member)
                together = together + self._slowest_of(member, seats, stretch) + (stretch.others + stretch.seconds)
                continue
            if together is not None:
                times = self.seating.seats(here, 0, member).told(together)
                together = None
            times = self._worked(member, times, stretch)
            if stretch.channel >= 0:
                here = stretch.channel
                together = self.seating.seats(here, 0, member).last(times) + stretch.seconds
        self.times[member] = times

    def _worked(self, member: int, times: Floats, stretch: Stretch) -> Floats:
        """(steps, seats) s at which each has done what a stretch has before its collective."""
        if stretch.kernels:
            times = times + self._kernels(member, stretch.kernels, stretch.grain)
        return times + stretch.others if stretch.others else times

    def _slowest_of(self, member: int, seats: Seats, stretch: Stretch) -> Floats:
        """s of a stretch's kernels on the slowest of each group whose members begin together: (steps, G)."""
        if not stretch.kernels:
            return np.zeros(1)
        if self._noisy(stretch.grain):
            return np.asarray(stretch.kernels * self._drawn(member, stretch.grain, seats))
        key = id(seats)
        if key not in self._slowest:
            self._slowest[key] = seats.last(self.paces[member])
        return np.asarray(stretch.kernels * self._slowest[key])

    def _together(self, members: tuple[int, ...], each: list[list[Stretch]], channel: int) -> None:
        """Several classes that meet at the channel's collectives; between them each goes on by itself."""
        places = [0] * len(members)
        while True:
            seconds = 0.0
            for i, member in enumerate(members):
                stretches = each[i]
                while True:
                    stretch = stretches[places[i]]
                    self.times[member] = self._worked(member, self.times[member], stretch)
                    if stretch.channel in (channel, -1):
                        seconds = stretch.seconds
                        break
                    seats = self.seating.seats(stretch.channel, 0, member)
                    self.times[member] = seats.told(seats.last(self.times[member]) + stretch.seconds)
                    places[i] += 1
            if each[0][places[0]].channel == -1:
                return
            seats_of = [self.seating.seats(channel, 0, member) for member in members]
            last = seats_of[0].last(self.times[members[0]])
            for seats, member in zip(seats_of[1:], members[1:], strict=True):
                last = np.maximum(last, seats.last(self.times[member]))
            last = last + seconds
            for i, (seats, member) in enumerate(zip(seats_of, members, strict=True)):
                self.times[member] = seats.told(last)
                places[i] += 1

    # -- calls ------------------------------------------------------------------------------------------------------
    def _heard(self, end: Floats, call: Call, member: int, role: int) -> Floats:
        """(steps, seats) when each rank of a class hears of a call's end."""
        return self.seating.seats(call.owner.kind.channel, role, member).told(end)

    def _end(self, call: Call) -> Floats:
        """(steps, G) when a call ends in each group of its class; those before it in its communicator's order first."""
        while call not in self._ends:
            communicator = call.owner.communicator
            first = self._queues[communicator].popleft()
            assert first.posted is not None
            assert first.began is not None
            assert first.ended is not None
            channel = first.owner.kind.channel
            begin: Floats | None = None
            for member, ready, earlier in self._ready.pop(first):
                if earlier is not None:
                    ready = np.maximum(ready, self._heard(self._end(earlier), earlier, member, 0))
                at = self.seating.seats(channel, 0, member).last(ready)
                begin = at if begin is None else np.maximum(begin, at)
            assert begin is not None
            before, free = self._free.get(communicator, (0.0, np.zeros(1)))
            own = first.ended - max(first.posted, before)
            turn = np.maximum(begin, free)
            self._ends[first] = turn + own
            begins = self._begins[first] = turn + (first.began - max(first.posted, before))
            self._spans[first] = float(begins.min()), float(self._ends[first].max())
            self._free[communicator] = first.ended, self._ends[first]
        return self._ends[call]

    def _stream(self, member: int, direction: str, seconds: float | None) -> None:
        free = self._streams.get((member, direction), np.zeros(1))
        if seconds is None:
            self.times[member] = np.maximum(self.times[member], free)
        else:
            self._streams[member, direction] = np.maximum(self.times[member], free) + seconds
