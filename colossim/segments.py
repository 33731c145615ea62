"""Programs compiled for a rank class: straight lines between the places where others can interfere.

Most of a program is kernels and tensor collectives that nobody else can touch; a *segment* plays them as one event. A
blocking collective may join a segment if every link it touches is touched only by groups that have the rank as a member,
none of those is in flight here (a transfer that a peer can start counts as always in flight), and, with overlap slowdown,
nothing at all is in flight. Found by walking the program. A segment keeps its parts for the breakdown and the links.

If the members of the collective are several rank classes, the segment is a meeting of the group (`Meeting`): it ends at
the maximum over members of (arrival + first part), plus the later parts' maxima and the collectives; each member then
plays its own tail. A segment of one class ends after the sum of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from colossim.collective import Library, Timing
from colossim.footprint import Shape
from colossim.legs import (
    CATEGORY,
    DIRECTION,
    KERNEL,
    OUTSIDE,
    SLOWING,
    WAIT,
    Alone,
    Blocking,
    Fetch,
    Haul,
    Hauled,
    Leg,
    Meeting,
    Part,
    Segment,
    Ship,
    Slowed,
    Start,
    Step,
    Until,
)
from colossim.quotient import GroupClass, Quotient, RankClass
from colossim.traffic import STORAGE
from colossim.workload.offload import copy_time, host_step_time
from colossim.workload.program import (
    Collective,
    Compute,
    Copied,
    Copy,
    HostStep,
    Op,
    Post,
    Receive,
    Send,
    StageProgram,
    Wait,
    launched_apart,
)


def _isolated(t: Timing, group: GroupClass, capacity: Callable[[int], float]) -> float:
    """Seconds of a collective that nobody disturbs."""
    rate = min([t.cap, *(capacity(link) / weight for link, weight in group.links)])
    return t.latency + t.bytes / rate


@dataclass
class Compiler:
    """Compiles stage programs for rank classes; equal situations are compiled once.

    kernel_seconds(op, node type index) prices a Compute. slowdowns: (x, y) of the software; blocking collectives that
    cannot join a segment become activities of the network.  job: whose programs these are;
    stages: the first and the last number of its stages, if there are several jobs.
    """

    quotient: Quotient
    library: Library
    kernel_seconds: Callable[[Compute, int], float]
    slowdowns: tuple[float, float]
    job: int = 0
    stages: tuple[int, int] | None = None
    #: whether collectives may join segments
    absorb: bool = True
    #: whether anybody asks how much kernels vary
    grains: bool = False
    #: (channel name, operation, bytes, nodes, algorithm, protocol) of every collective that was compiled
    chosen: set[tuple[str, str, float, int, str, str]] = field(default_factory=set)
    _bodies: dict[tuple[object, ...], tuple[tuple[Step, ...], frozenset[tuple[str, int]]]] = field(default_factory=dict)
    _conflicts: list[frozenset[int]] = field(default_factory=list)
    _always: frozenset[int] = frozenset()
    _private: frozenset[int] = frozenset()
    _meets: frozenset[int] = frozenset()
    _shapes: dict[tuple[Shape, float], int] = field(default_factory=dict)
    _held: list[object] = field(default_factory=list)
    _programs: dict[tuple[object, ...], tuple[Leg, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        quotient = self.quotient
        touched = [
            {link for group in classes for link, _ in group.links} if classes else set() for classes in quotient.groups
        ]
        self._conflicts = [frozenset(j for j, other in enumerate(touched) if mine & other) for mine in touched]
        # Members of a group must cut their programs alike, so that whether groups meet is decided for whole channels.
        self._meets = frozenset(
            i for i, classes in enumerate(quotient.groups) if any(len(group.members) > 1 for group in classes)
        )
        self._first, self._last = self.stages or (0, max(rank.stage for rank in quotient.ranks))
        # Each name's channels, one an algorithm.
        self._numbers: dict[str, list[int]] = {}
        for i, (name, _) in enumerate(quotient.channels):
            if quotient.job_of(i) == self.job:
                self._numbers.setdefault(name, []).append(i)
        # Bundles of the fabric are shared with groups that this rank knows nothing of.
        own = {i for i, link in enumerate(quotient.links) if link.kind.startswith(("nvlink", "nic"))}
        self._private = (
            frozenset(i for i, mine in enumerate(touched) if mine <= own) - quotient.foreign - quotient.pinned
        )
        # What a peer can start at any time: boundary transfers, and whatever crosses a GPU without asking it.
        self._always = quotient.foreign | {
            i for i, (name, _) in enumerate(quotient.channels) if name in ("forward", "backward", STORAGE)
        }

    # -- what a rank class sees --------------------------------------------------------------------------------------
    def _group(self, rank: RankClass, channel: int, role: int = 0) -> GroupClass | None:
        index = rank.groups[channel][role]
        return self.quotient.groups[channel][index] if index >= 0 else None

    def _shape(self, group: GroupClass | None) -> int:
        """A number that is equal for groups that a program cannot tell apart."""
        if group is None:
            return -1
        rates = tuple(self.quotient.links[link].capacity / weight for link, weight in group.links)
        key = (group.shape, min(rates, default=0.0))
        return self._shapes.setdefault(key, len(self._shapes))

    def compile(self, program: StageProgram, rank: RankClass) -> tuple[Leg, ...]:
        """The legs of one rank class: the prologue, passes in the schedule's order, the epilogue."""
        shapes = tuple(self._shape(self._group(rank, i, 0)) for i in range(len(self.quotient.channels)))
        # Of the rank class nothing else is looked at.
        whole = (id(program), rank.hardware, rank.stage, shapes)
        if whole in self._programs:
            return self._programs[whole]
        self._held.append(program)  # keeps its id taken
        posted: frozenset[tuple[str, int]] = frozenset()
        legs = []
        outside = (OUTSIDE, -1, -1)
        for body, host, where in [
            (program.prologue, (0.0,), outside),
            *((p.body, p.host, (DIRECTION[p.kind], p.micro_batch, p.chunk)) for p in program.passes),
            (program.epilogue, (0.0,), outside),
        ]:
            if not body:
                continue
            key = (id(body), host, rank.hardware, rank.stage == self._first, rank.stage == self._last, shapes, posted)
            found = self._bodies.get(key)
            if found is None:
                self._held.append(body)  # keeps id(body) taken
                found = self._bodies[key] = self._body(body, host, program.host_exponent, rank, posted)
            steps, posted = found
            legs.append(Leg(*where, steps))
        self._programs[whole] = tuple(legs)
        return self._programs[whole]

    # -- one body ----------------------------------------------------------------------------------------------------
    def _body(
        self,
        ops: tuple[Op, ...],
        host: tuple[float, ...],
        exponent: float,
        rank: RankClass,
        posted: frozenset[tuple[str, int]],
    ) -> tuple[tuple[Step, ...], frozenset[tuple[str, int]]]:
        in_flight = dict(posted)
        steps: list[Step] = []
        parts: list[Part] = []
        meeting = -1

        def close() -> None:
            nonlocal meeting
            if parts:
                segment = Segment.of(parts)
                steps.append(Meeting(segment, meeting) if meeting >= 0 else Alone(segment))
                parts.clear()
            meeting = -1

        skip = 0
        whole = tuple(self._with_host(ops, host, exponent, rank))
        for at, op in enumerate(whole):
            if skip:
                skip -= 1
                continue
            quiet = not (any(self.slowdowns) and in_flight)
            if isinstance(op, Compute | _Host):
                seconds, category = self._kernel(op, rank)
                grain = self._grain(op, seconds, rank)
                if seconds <= 0:
                    continue
                if quiet:
                    parts.append(Part(seconds, category, grain=grain))
                else:
                    close()
                    steps.append(Slowed(seconds, category, grain))
            elif isinstance(op, Collective):
                channel, group, t = self._timing(op, rank)
                category = CATEGORY[op.channel]
                exposed = self._exposed(op, rank)
                several = channel in self._meets
                busy = self._always | set(in_flight.values())
                free = self.absorb and quiet and channel in self._private and not (self._conflicts[channel] & busy)
                if free and several and meeting not in (-1, channel):
                    close()
                if free:
                    seconds = exposed * _isolated(t, group, lambda link: self.quotient.links[link].capacity)
                    hidden = self._hidden(op, seconds, parts, whole[at + 1 : at + 2], rank)
                    parts.append(Part(seconds, category, channel, t.bytes, exposed, hidden=hidden))
                    meeting = channel if several else meeting
                else:
                    close()
                    steps.append(Blocking(channel, t, category, exposed))
            elif isinstance(op, HostStep):
                parts.append(Part(self._on_host(op, rank), CATEGORY["optimizer"], WAIT))
            elif isinstance(op, Send):
                close()
                ship, seconds = self._shipped(op, rank)
                steps.append(ship)
                if op.held:
                    parts.append(Part(op.held * seconds, CATEGORY[op.direction], WAIT))
            elif (beside := self._beside(whole[at : at + 3], rank, in_flight)) is not None:
                parts += beside
                skip = 2
            else:
                close()
                self._asynchronous(op, rank, steps, in_flight)
        close()
        return tuple(steps), frozenset(in_flight.items())

    def _hidden(
        self, op: Collective, seconds: float, before: list[Part], after: tuple[Op | _Host, ...], rank: RankClass
    ) -> tuple[float, float] | None:
        """When what products hide of a collective moves, from its shown part's beginning; None if no kernels are beside it.

        Evenly: a gather beside the kernels behind it, a reduction beside those before it.
        """
        if op.beside is None:
            return None
        if op.operation != "all_gather":
            last = before[-1] if before else None
            return (-last.seconds, last.seconds) if last is not None and last.channel == KERNEL else None
        return (seconds, self._kernel(after[0], rank)[0]) if after and isinstance(after[0], Compute) else None

    def _beside(self, ops: Sequence[Op | _Host], rank: RankClass, in_flight: dict[str, int]) -> list[Part] | None:
        """Kernels beside one transfer that nobody disturbs, from its post to the wait for it; None for anything else.

        Latency L first, then T s of bytes; while both run, the kernel at 1/(1+x) and the transfer at 1/(1+y).
        """
        match ops:
            case [Post(call, tag, after=""), Compute() as kernels, Wait(waited)] if waited == tag:
                pass
            case _:
                return None
        channel, group, t = self._timing(call, rank)
        busy = self._always | set(in_flight.values())
        alone = channel in self._private and not (self._conflicts[channel] & busy)
        if not (self.absorb and alone and channel not in self._meets) or (any(self.slowdowns) and in_flight):
            return None
        seconds, category = self._kernel(kernels, rank)
        moving = _isolated(t, group, lambda link: self.quotient.links[link].capacity) - t.latency
        x, y = self.slowdowns if call.channel in SLOWING else (0.0, 0.0)
        both = max(0.0, seconds - t.latency)  # kernel seconds that are left when the first byte moves
        if both * (1 + x) <= moving * (1 + y):
            slowed = both * (1 + x)
            arrived = t.latency + slowed + moving - slowed / (1 + y)
        else:
            slowed = moving * (1 + y)
            arrived = t.latency + slowed
        done = seconds + slowed * x / (1 + x)
        end = max(done, arrived)
        grain = self._grain(kernels, seconds, rank)
        found = [Part(seconds, category, grain=grain), Part(done - seconds, CATEGORY["data"], WAIT)]
        return [
            *(part for part in found if part.seconds > 0),
            Part(end - done, CATEGORY[call.channel], channel, t.bytes, 1.0, t.latency - done, arrived - t.latency),
        ]

    def _asynchronous(self, op: Op, rank: RankClass, steps: list[Step], in_flight: dict[str, int]) -> None:
        if isinstance(op, Post):
            channel, _, t = self._timing(op.collective, rank)
            steps.append(Start(channel, t, CATEGORY[op.collective.channel], op.tag, op.after))
            in_flight[op.tag] = channel
        elif isinstance(op, Wait):
            steps.append(Until(op.tag))
            in_flight.pop(op.tag, None)
        elif isinstance(op, Receive):
            steps.append(Fetch(self._numbers[op.direction][0]))
        elif isinstance(op, Copy):
            steps.append(Haul(op.direction, self._on_host(op, rank)))
        elif isinstance(op, Copied):
            steps.append(Hauled(op.direction))
        else:
            raise TypeError(f"not an operation of a program: {op!r}")

    def _shipped(self, op: Send, rank: RankClass) -> tuple[Ship, float]:
        """The transfer, and the seconds that it takes alone."""
        (channel,) = self._numbers[op.direction]
        group = self._group(rank, channel)
        assert group is not None
        wraps = (op.direction == "forward" and rank.stage == self._last) - (
            op.direction == "backward" and rank.stage == self._first
        )
        timing = self.library.timing("send", op.size, (group.shape,))
        return Ship(channel, timing, op.blocking, wraps), timing.alone

    def _kernel(self, op: Compute | _Host, rank: RankClass) -> tuple[float, int]:
        if isinstance(op, _Host):
            return op.seconds, CATEGORY["host"]
        return self.kernel_seconds(op, rank.hardware), CATEGORY[op.category]

    def _grain(self, op: Compute | _Host, seconds: float, rank: RankClass) -> float:
        """A part's, of so many s in all."""
        if isinstance(op, _Host) or not self.grains:
            return 0.0 if isinstance(op, _Host) else 1.0
        alone = (self.kernel_seconds(Compute((kernel,)), rank.hardware) for kernel in op.kernels)
        return math.sqrt(sum(each * each for each in alone)) / seconds if seconds > 0 else 1.0

    def _on_host(self, op: Copy | HostStep, rank: RankClass) -> float:
        """Seconds of what a rank does with its host's memory."""
        node = self.library.nodes[rank.hardware]
        assert node.host is not None
        return copy_time(op, node.host) if isinstance(op, Copy) else host_step_time(op, node.host, node.gpus)

    def _timing(self, op: Collective, rank: RankClass) -> tuple[int, GroupClass, Timing]:
        groups = [(i, group) for i in self._numbers[op.channel] if (group := self._group(rank, i)) is not None]
        t = self.library.timing(op.operation, op.size, [group.shape for _, group in groups])
        self.chosen.add((op.channel, op.operation, op.size, groups[0][1].shape.nodes, t.algorithm, t.protocol))
        channel, group = groups[t.which]
        return channel, group, t

    def _exposed(self, op: Collective, rank: RankClass) -> float:
        """Part of a collective that overlap doesn't hide, links to itself, where the slowest of the group's GPUs set the pace.

        What products lose beside it counts as well: it may be more than the whole.
        """
        beside = op.beside
        if beside is None:
            return 1.0 - op.hidden
        _, group, t = self._timing(op, rank)
        call = self.library.timing(op.operation, op.size / beside.calls, (group.shape,)).alone

        def price(hardware: int) -> Callable[[Compute], float]:
            return lambda kernels: self.kernel_seconds(kernels, hardware)

        return max(beside.shown(price(hardware), call, t.alone) for hardware in group.shape.hardware)

    def _with_host(
        self, ops: tuple[Op, ...], host: tuple[float, ...], exponent: float, rank: RankClass
    ) -> Iterator[Op | _Host]:
        """Adds what launching each part of the pass costs beyond running it: (gpu^q + host^q)^(1/q) - gpu (models.md 2)."""
        for part, seconds in zip(launched_apart(ops), host, strict=True):
            yield from self._with_floor(part, seconds, exponent, rank) if seconds > 0 else part

    def _with_floor(self, ops: list[Op], host: float, exponent: float, rank: RankClass) -> Iterator[Op | _Host]:
        gpu = 0.0
        for op in ops:
            if isinstance(op, Compute):
                gpu += self.kernel_seconds(op, rank.hardware)
            elif isinstance(op, Collective):
                # As fast as the group could alone: what its links carry of others is no matter of the host's.
                gpu += self._exposed(op, rank) * self._timing(op, rank)[2].alone
        peak = max(gpu, host)
        extra = peak * ((gpu / peak) ** exponent + (host / peak) ** exponent) ** (1 / exponent) - gpu
        # What follows the part's last kernel (its sends) waits for the launches, too.
        last = max((i for i, op in enumerate(ops) if isinstance(op, Compute | Collective)), default=-1) + 1
        yield from (*ops[:last], _Host(extra), *ops[last:])


@dataclass(frozen=True)
class _Host:
    seconds: float
