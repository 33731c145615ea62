"""Plays every message of a collective on the fluid network: the reference that the collectives' closed forms must meet.

A message waits for what its sender must have received, and for the message before it on its lane and edge; it pays its
latency, then its bytes share the links of its route with whatever else is in flight. What the collective pays once, and
the rates that it reaches, are those of its fluid timing (`collective.Library.message_cost`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from colossim.chunks import by_node, collective_messages
from colossim.cluster import Cluster
from colossim.collective import Library, MessageCost
from colossim.engine.clock import Clock
from colossim.engine.network import Network
from colossim.engine.script import Ground, Limits, Message, Play, Script
from colossim.footprint import Floats, Ints, Shape
from colossim.messages import Messages, joined


@dataclass(frozen=True)
class ChunkedRun:
    """What happened. Times in s from the common start; M messages of all groups, group after group.

    messages: of all groups, in one.  group: (M,) whose.  ready: (M,) when each began to pay its latency.  start: (M,) its first
    byte.  end: (M,) its last byte arrived.  group_end: (G,).  link_bytes: (cluster.links,).  events: SimPy events played.
    """

    messages: Messages
    group: Ints
    ready: Floats
    start: Floats
    end: Floats
    group_end: Floats
    link_bytes: Floats
    events: int

    @property
    def seconds(self) -> float:
        """s until the last message of the last group has arrived."""
        return float(self.group_end.max(initial=0.0))


class Row(NamedTuple):
    """One bar of a picture: from `start` to `end` (s) edge (src, dst) of a lane of a group moves a slice of a chunk."""

    start: float
    end: float
    group: int
    lane: int
    edge: tuple[int, int]
    chunk: int
    slice: int


def shape_of(cluster: Cluster, members: Ints, algorithm: str) -> Shape:
    """What `Library.message_cost` asks of a group: algorithm, ranks, nodes and hardware."""
    types = tuple(int(t) for t in np.unique(cluster.gpu_type[members]))
    nodes = len(by_node(cluster, np.sort(members)))
    return Shape(algorithm, int(members.size), types, 0.0, nodes, 0.0, 0.0, 0.0, 0.0, 0.0)


def play_collective(
    cluster: Cluster,
    members: Sequence[Ints] | Ints,
    operation: str,
    size: float,
    *,
    algorithm: str,
    protocol: str = "simple",
    slices: int = 1,
    window: int = 0,
    overlap: bool = False,
    library: Library | None = None,
) -> ChunkedRun:
    """Plays one collective of `size` bytes on each group, all from time 0; see `chunks.collective_messages`.

    members: the GPUs of a group, or a sequence of groups.  overlap: see `play_messages`.  library: that of the cluster's
    machines, if it isn't to be made.
    """
    groups = [np.asarray(members)] if np.ndim(members[0]) == 0 else [np.asarray(group) for group in members]
    library = library or Library(cluster.node_types, cluster.fabric.link)
    paces = [library.message_cost(operation, size, shape_of(cluster, group, algorithm), protocol) for group in groups]
    described = [
        collective_messages(cluster, group, operation, size, algorithm=algorithm, slices=slices, window=window)
        for group in groups
    ]
    return play_messages(cluster, described, paces, overlap=overlap)


def play_messages(
    cluster: Cluster, groups: Sequence[Messages], paces: Sequence[MessageCost], *, overlap: bool = False
) -> ChunkedRun:
    """Plays the messages of several groups on one network.

    paces: of each group; all messages of one group on a GPU's NVLink, or NIC, move together at no more than it says.
    overlap: whether a message may pay its latency while the one before it on its lane and edge still moves (LogP's
    view), or starts when that one has ended (Hockney's, a message costs latency + bytes/rate of its channel).
    Weight 1 on each link: fair per message. Raises RuntimeError if messages wait for each other in a circle.
    """
    env = Clock()
    ground = Ground(cluster, Network(env, cluster.capacity().tolist()), list(range(cluster.links)))
    plays = []
    for messages, pace in zip(groups, paces, strict=True):
        limits = Limits(ground)
        plays.append(Play(ground.network, Script.of(messages, limits, overlap=overlap), pace))
        limits.set(pace)
    for play, pace in zip(plays, paces, strict=True):
        _Start(play, pace.base)
    events = 0
    while env.peek() != float("inf"):
        env.step()
        events += 1
    unfinished = sum(play.unfinished for play in plays)
    if unfinished:
        raise RuntimeError(f"{unfinished} of {sum(m.count for m in groups)} messages wait for each other in a circle")
    played: list[Message] = [play.started[i] for play in plays for i in range(len(play.script.size))]
    group = np.repeat(np.arange(len(groups)), [part.count for part in groups])
    end = np.array([message.ended for message in played], dtype=np.float64)
    group_end = np.zeros(len(groups))
    np.maximum.at(group_end, group, end)
    return ChunkedRun(
        messages=joined(groups),
        group=group,
        ready=np.array([message.ready_at for message in played]),
        start=np.array([message.began for message in played], dtype=np.float64),
        end=end,
        group_end=group_end,
        link_bytes=np.sum([play.script.link_bytes() for play in plays], axis=0),
        events=events,
    )


class _Start:
    """Begins a play once what its collective costs before the first message is over."""

    version = 0

    def __init__(self, play: Play, base: float) -> None:
        self.play = play
        if base > 0:
            play.network.env.deadline(base, 0, self)
        else:
            play.begin()

    def due(self, network: Network) -> None:
        self.play.begin()


def pipeline_rows(run: ChunkedRun) -> list[Row]:
    """The bars of a picture of a pipeline filling, by start, edge and lane: what moves over which edge, from when to when."""
    m = run.messages
    columns = [column.tolist() for column in (run.start, run.end, run.group, m.lane, m.src, m.dst, m.chunk, m.slice)]
    bars = [
        Row(begin, end, g, lane, (src, dst), c, j) for begin, end, g, lane, src, dst, c, j in zip(*columns, strict=True)
    ]
    return sorted(bars, key=lambda bar: (bar.start, bar.group, bar.edge, bar.lane))
