"""One training step, played: SimPy runs the rank classes through their programs, and a record remains."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import simpy
from simpy.core import EmptySchedule

from colossim.collective import Timing
from colossim.engine.chunked_step import Chunking, Stage
from colossim.engine.clock import Clock
from colossim.engine.group import STRAGGLER, Carrier, Communicator, Group
from colossim.engine.network import Network
from colossim.engine.rank import BUBBLE, Member
from colossim.engine.record import Floats, Ints, LinkUse, StepRecord, Timeline
from colossim.engine.trace import Trace
from colossim.flows import Pace
from colossim.legs import SLOWING, Gate, Leg, Segment
from colossim.quotient import GroupClass, LinkClass, Quotient, RankClass
from colossim.traffic import BOUNDARY_CHANNELS, STORAGE

#: s for which ranks write to storage: beyond any step.
_WRITING = 1e7
#: Up to this many link classes all are watched through the step; above, the first of each kind.
_WATCH_ALL = 64
#: Events between two words of progress.
_PROGRESS_EVERY = 10_000

Progress = Callable[[float], None]


@contextmanager
def no_collections() -> Iterator[None]:
    """A step makes many objects for a collector to look at: a third of the time of a large one."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@no_collections()
def play(
    quotient: Quotient,
    legs: list[tuple[Leg, ...]],
    node_names: tuple[str, ...],
    slowdown: tuple[float, float],
    progress: Progress | None = None,
    pace: Pace | None = None,
    chunking: Chunking | None = None,
    writes: float = 0.0,
    until: Sequence[Gate] = (),
    trace: Trace | None = None,
) -> StepRecord:
    """Plays one step of the folded job.

    legs: a compiled program a rank class.  slowdown: (x, y) of overlap.  progress: called with the share of the
    passes that have been played.  pace: of flows that routing pins to paths.  chunking: play messages one by one; the
    quotient is that of the identity partition.  writes: bytes/s that every rank writes to storage beside the step.
    until: gates at which the play ends when all have been passed, though ranks have more to do; none: when nobody has.
    trace: filled with what happens, in order; of one job, fluid.
    """
    env = Clock()
    network = Network(env, (link.capacity for link in quotient.links), pace, trace)
    watched = _watched(quotient)

    def seen(kind: GroupClass) -> bool:
        return bool(kind.passive) or any(link in watched for link, _ in kind.links)

    # Whatever algorithm a channel stands for, its classes are those of the name's groups.
    communicators = {
        (quotient.job_of(number), name): [Communicator(network) for _ in quotient.groups[number]]
        for number, (name, _) in enumerate(quotient.channels)
    }
    stage = None if chunking is None else Stage(chunking, quotient, network)

    def made(number: int, name: str, i: int, kind: GroupClass) -> Group:
        if stage is not None:
            return stage.group(communicators[quotient.job_of(number), name][i], kind, name, watched)
        pinned = (number, i) if number in quotient.pinned else None
        kept = seen(kind) or name == STORAGE
        communicator = communicators[quotient.job_of(number), name][i]
        return Group(communicator, kind, name in BOUNDARY_CHANNELS, kept, pinned)

    groups = [
        [made(number, name, i, kind) for i, kind in enumerate(classes)]
        for number, ((name, _), classes) in enumerate(zip(quotient.channels, quotient.groups, strict=True))
    ]
    like: Counter[tuple[int, int, int]] = Counter()
    for kind in quotient.ranks:
        like[_likes(kind)] += kind.count
    recorded: set[tuple[int, int, int]] = set()
    members = []
    for index, kind in enumerate(quotient.ranks):
        # GPUs between jobs have nothing to play.
        first_of_its_kind = bool(legs[index]) and _likes(kind) not in recorded
        recorded.add(_likes(kind))
        places = tuple(
            tuple(groups[channel][place] if place >= 0 else None for place in roles)
            for channel, roles in enumerate(kind.groups)
        )
        members.append(Member(network, kind, index, places, slowdown, first_of_its_kind))
    if slowdown[0] or slowdown[1]:
        for (name, _), classes in zip(quotient.channels, groups, strict=True):
            if name in SLOWING:
                for group in classes:
                    group.watchers = tuple(members[index] for index in group.kind.members)
    processes = [env.process(member.play(legs[i])) for i, member in enumerate(members)]
    writing = [g for (name, _), own in zip(quotient.channels, groups, strict=True) if name == STORAGE for g in own]
    for group in writing:
        group.arrive("writes", Timing(writes * _WRITING, 0.0, writes))
    if until:
        for gate in until:
            gate.event = env.event()
        env.run(until=env.all_of([gate.event for gate in until]))
        for member, process in zip(members, processes, strict=True):
            if process.is_alive:
                member.end = env.now
    else:
        _run(env, members, processes, progress)
    step_time = max(member.end for member in members)
    for group in writing:
        # They go on when the step is over; these are its own.
        group.bytes = sum(
            (min(end, step_time) - start) * rate for start, end, rate in group.log or () if start < step_time
        )
    timelines = tuple(
        _timeline(m, like[_likes(m.kind)], legs[i], node_names, step_time, len(_stages(quotient)) > 1)
        for i, m in enumerate(members)
        if m.recorded
    )
    order = sorted(range(len(timelines)), key=lambda i: (timelines[i].stage, timelines[i].rank))
    timelines = tuple(timelines[i] for i in order)
    kept = [m for m in members if m.recorded]
    busiest = max(range(len(timelines)), key=lambda i: (round(kept[order[i]].computed / step_time, 9), -i))
    record = StepRecord(
        step_time=step_time,
        timelines=timelines,
        links=_link_uses(quotient, groups, watched, step_time),
        critical=busiest,
        processes=len(members),
        events=env.events,
        rank_end=np.array([member.end for member in members]),
    )
    # All of these know each other; what they remember goes with it at once, and is left to no collector.
    for member in members:
        member.forget()
    for group in (group for classes in groups for group in classes):
        group.forget()
    return record


def _likes(kind: RankClass) -> tuple[int, int, int]:
    """What ranks share that one timeline stands for: stage, node type, kind of replica."""
    return kind.stage, kind.hardware, kind.kind


def _stages(quotient: Quotient) -> set[int]:
    return {kind.stage for kind in quotient.ranks}


def _run(env: Clock, members: list[Member], processes: list[simpy.Process], progress: Progress | None) -> None:
    """Plays until nothing is left to happen. Raises RuntimeError if some rank class is still waiting then."""
    if progress is None:
        env.run()
    else:
        try:
            while True:
                for _ in range(_PROGRESS_EVERY):
                    env.step()
                progress(sum(member.share for member in members) / len(members))
        except EmptySchedule:
            pass
    stuck = [i for i, process in enumerate(processes) if process.is_alive]
    if stuck:
        raise RuntimeError(f"deadlock: rank classes {stuck[:8]} wait for ever; the programs do not match")


def _watched(quotient: Quotient) -> set[int]:
    links = range(len(quotient.links))
    if len(links) <= _WATCH_ALL:
        return set(links)
    firsts: dict[tuple[str, float], int] = {}
    for i in links:
        firsts.setdefault((quotient.links[i].kind, quotient.links[i].capacity), i)
    return set(firsts.values())


def _timeline(
    member: Member, count: int, legs: tuple[Leg, ...], names: tuple[str, ...], step_time: float, pipeline: bool
) -> Timeline:
    """Segments laid out part by part, waits between them, and the final barrier. count: ranks that it stands for."""
    rows: list[tuple[Floats, Floats, Ints, Ints]] = []
    by_segment: dict[int, tuple[Segment, list[float], list[int]]] = {}
    for begun, segment, number in member.segments:
        _, starts, where = by_segment.setdefault(id(segment), (segment, [], []))
        starts.append(begun)
        where.append(number)
    for segment, starts, where in by_segment.values():
        seconds = np.array([part.seconds for part in segment.parts])
        offsets = np.cumsum(seconds) - seconds
        begin = np.add.outer(np.array(starts), offsets)
        category = np.broadcast_to(np.array([part.category for part in segment.parts]), begin.shape)
        place = np.broadcast_to(np.array(where)[:, None], begin.shape)
        rows.append((begin.ravel(), (begin + seconds).ravel(), category.ravel(), place.ravel()))
    spans = list(member.spans)
    if member.end < step_time:
        spans.append((member.end, step_time, BUBBLE if pipeline else STRAGGLER, len(legs) - 1))
    if spans:
        table = np.array(spans, dtype=np.float64)
        rows.append((table[:, 0], table[:, 1], table[:, 2].astype(int), table[:, 3].astype(int)))
    start, end, category, leg = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.argsort(start, kind="stable")
    start, end, category, leg = start[order], end[order], category[order], leg[order]
    # Sums of parts and the event clock differ by rounding: each interval begins where the last one ended.
    end = np.maximum.accumulate(end)
    start = np.concatenate(([0.0], end[:-1]))
    keep = end > start
    passes = np.array([(x.direction, x.micro_batch, x.chunk) for x in legs], dtype=np.int64)
    shown = passes[leg[keep]]
    return Timeline(
        stage=member.kind.stage,
        hardware=names[member.kind.hardware],
        count=count,
        rank=member.kind.first,
        start=start[keep],
        end=end[keep],
        category=category[keep].astype(np.int64),
        direction=shown[:, 0],
        micro_batch=shown[:, 1],
        chunk=shown[:, 2],
    )


def _link_uses(
    quotient: Quotient, groups: list[list[Group]], watched: set[int], step_time: float
) -> tuple[LinkUse, ...]:
    logs: dict[int, tuple[Floats, Floats, Floats]] = {}

    def log_of(group: Carrier) -> tuple[Floats, Floats, Floats]:
        if id(group) not in logs:
            logs[id(group)] = _throughput(group)
        return logs[id(group)]

    touching: list[list[tuple[Carrier, float]]] = [[] for _ in quotient.links]
    passing: list[list[tuple[Carrier, float]]] = [[] for _ in quotient.passive]
    for classes in groups:
        for group in (carrier for whole in classes for carrier in whole.carriers):
            for index, weight in group.kind.links:
                touching[index].append((group, weight))
            for index, weight in group.kind.passive:
                passing[index].append((group, weight))
    uses = []
    for i, link in enumerate(quotient.links):
        uses.append(_link_use(link, touching[i], log_of if i in watched else None, step_time))
    for i, link in enumerate(quotient.passive):
        if passing[i]:
            use = _link_use(link, passing[i], log_of, step_time)
            # The mean of many links is seldom still, though each of them may be: only the least time is known.
            uses.append(replace(use, busy=use.bytes / use.capacity))
    return tuple(uses)


def _throughput(group: Carrier) -> tuple[Floats, Floats, Floats]:
    """(intervals,) start, end and bytes/s of an edge of the group."""
    rows = [np.array(group.log or np.zeros((0, 3)), dtype=np.float64)]
    channel = group.kind.channel
    by_segment: dict[int, tuple[Segment, list[float]]] = {}
    for start, segment in group.segments:
        by_segment.setdefault(id(segment), (segment, []))[1].append(start)
    for segment, starts in by_segment.values():
        offsets, seconds, size = segment.traffic[channel]
        begin = np.add.outer(np.array(starts), offsets).ravel()
        length = np.tile(seconds, len(starts))
        keep = length > 0
        rate = np.tile(size / np.where(seconds > 0, seconds, 1.0), len(starts))
        rows.append(np.stack([begin, begin + length, rate], axis=1)[keep])
    table = np.concatenate(rows)
    return table[:, 0], table[:, 1], table[:, 2]


def _link_use(
    link: LinkClass, groups: list[tuple[Carrier, float]],
    log_of: Callable[[Carrier], tuple[Floats, Floats, Floats]] | None,
    step_time: float,
) -> LinkUse:  # fmt: skip
    carried = sum(group.bytes * weight for group, weight in groups)
    times, rate = np.array([0.0, step_time]), np.array([carried / step_time])
    # Of a link that nobody watched only the least time is known.
    busy = carried / link.capacity
    if log_of is not None:
        times, rate = _step_function([(log_of(group), weight) for group, weight in groups], step_time)
        # What overlap hides is in the bytes alone: a link is busy for as long as they take, at least.
        busy = max(busy, float(np.sum(np.diff(times)[rate > 0])))
    name = link.name or link.kind.replace("-", " ").replace("nic", "NIC").replace("nvlink", "NVLink")
    return LinkUse(name, link.kind, link.count, link.capacity, carried, busy, times, rate)


def _step_function(logs: list[tuple[tuple[Floats, Floats, Floats], float]], step_time: float) -> tuple[Floats, Floats]:
    """Sum of intervals of constant rate as one step function over [0, step_time]."""
    start = np.concatenate([log[0] for log, _ in logs] or [np.zeros(0)])
    end = np.concatenate([log[1] for log, _ in logs] or [np.zeros(0)])
    rate = np.concatenate([log[2] * weight for log, weight in logs] or [np.zeros(0)])
    when = np.concatenate([start, end])
    change = np.concatenate([rate, -rate])
    edges, where = np.unique(np.concatenate([when, [0.0, step_time]]), return_inverse=True)
    # Times that differ by rounding are one instant, or two transfers that follow each other would seem to overlap.
    apart = np.diff(edges, prepend=-np.inf) > 1e-12 * step_time
    edges, where = edges[apart], (np.cumsum(apart) - 1)[where]
    steps = np.bincount(where[: when.size], weights=change, minlength=edges.size)
    level = np.cumsum(steps)[:-1]
    # A sum of starts and ends leaves rounding behind where nothing flows.
    level[level < 1e-9 * max(1.0, float(level.max(initial=0.0)))] = 0.0
    inside = edges[:-1] < step_time
    return np.append(edges[:-1][inside], step_time).astype(np.float64), level[inside].astype(np.float64)
