"""What a rank class plays, compiled: legs of a step, segments of a leg, stretches of a segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from colossim.collective import Timing
from colossim.workload.schedule import Kind

#: Index into engine.record.CATEGORIES of what a channel's exposed time is called.
CATEGORY = {
    "compute": 0,
    "tensor": 1,
    "context": 2,
    "expert": 3,
    "expert_tensor": 1,
    "forward": 4,
    "backward": 4,
    "bubble": 5,
    "data": 6,
    "data_shards": 6,
    "data_replicas": 6,
    "expert_data": 6,
    "embedding": 6,
    "amax": 1,
    "optimizer": 7,
    "straggler": 8,
    "host": 9,
}


#: Channels whose transfers slow the kernels that run beside them, and are slowed by them.
SLOWING = frozenset({"data", "data_shards", "data_replicas", "expert_data", "context", "expert"})

#: What a stretch is that no collective fills: a kernel, or what others make it take longer.
KERNEL, WAIT = -1, -2
#: What a leg is called by: forward, backward, and the weights' gradients where they are a pass of their own.
DIRECTION: dict[Kind, int] = {"F": 0, "B": 1, "W": 3}
#: A leg that is no pass: the step's end.
OUTSIDE = 2


@dataclass(frozen=True)
class Part:
    """A stretch of a segment. channel: `KERNEL`, `WAIT` or a collective's. bytes: on an edge.

    grain: of kernels: how much of one kernel's relative variation is left over all of them, sqrt(sum t^2)/sum t; 0 of what
    no GPU computes.  shown: of a collective's own time, what overlap doesn't hide.  began, moving: s at which its bytes
    begin to move, counted from the stretch's own beginning, and for how long; as long as the stretch when absent.  hidden: the
    same of the bytes that overlap hides, in the time of kernels beside them.
    """

    seconds: float
    category: int
    channel: int = KERNEL
    bytes: float = 0.0
    shown: float = 1.0
    began: float = 0.0
    moving: float | None = None
    hidden: tuple[float, float] | None = None
    grain: float = 0.0

    @property
    def flows(self) -> list[tuple[float, float, float]]:
        """When its bytes move: (s from the stretch's beginning, s, bytes an edge)."""
        lasting = self.seconds if self.moving is None else self.moving
        size = self.bytes * min(self.shown, 1.0)
        found = [(self.began, lasting, size)]
        if self.hidden is not None and size < self.bytes:
            found.append((*self.hidden, self.bytes - size))
        return [flow for flow in found if flow[1] > 0]


@dataclass(frozen=True, eq=False)
class Segment:
    """Parts that follow each other without interference. seconds: their sum; compute: kernels alone."""

    parts: tuple[Part, ...]
    seconds: float
    compute: float
    #: channel -> (offsets at which its parts' bytes begin to move, seconds for which they do, their bytes an edge)
    traffic: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
    #: channel -> bytes an edge in all
    bytes: tuple[tuple[int, float], ...]

    @staticmethod
    def of(parts: list[Part]) -> Segment:
        offsets = np.cumsum([0.0, *[part.seconds for part in parts]])
        traffic = {}
        for channel in sorted({part.channel for part in parts if part.channel >= 0}):
            ours = [
                (offset, part) for offset, part in zip(offsets.tolist(), parts, strict=False) if part.channel == channel
            ]
            flows = [(offset + began, *rest) for offset, part in ours for began, *rest in part.flows]
            began, seconds, size = np.array(flows, dtype=np.float64).reshape(-1, 3).T
            traffic[channel] = (began, seconds, size)
        return Segment(
            parts=tuple(parts),
            seconds=float(offsets[-1]),
            compute=sum(part.seconds for part in parts if part.channel == KERNEL),
            traffic=traffic,
            bytes=tuple((c, sum(part.bytes for part in parts if part.channel == c)) for c in traffic),
        )


@dataclass(frozen=True)
class Alone:
    """Play a segment of one rank class."""

    segment: Segment


@dataclass(frozen=True)
class Meeting:
    """Play a segment that the channel's group, several rank classes, goes through together."""

    segment: Segment
    channel: int


@dataclass(frozen=True)
class Slowed:
    """A kernel that transfers may slow. seconds: undisturbed.  grain: as a part's."""

    seconds: float
    category: int
    grain: float = 0.0


@dataclass(frozen=True)
class Blocking:
    """Start a collective with the group and wait for it. exposed: the part of it that overlap doesn't hide."""

    channel: int
    timing: Timing
    category: int
    exposed: float


@dataclass(frozen=True)
class Start:
    """Start a collective beside what follows, or when the one with the tag `after` has ended."""

    channel: int
    timing: Timing
    category: int
    tag: str
    after: str = ""


@dataclass(frozen=True)
class Until:
    """Wait for the collective that was started with this tag."""

    tag: str


@dataclass(frozen=True)
class Ship:
    """Send over a stage boundary. blocking: wait until it has arrived.

    chunk: what to add to the pass's chunk for the receiver's: 1 from the last stage on to the first, -1 back again.
    """

    channel: int
    timing: Timing
    blocking: bool
    chunk: int


@dataclass(frozen=True)
class Fetch:
    """Wait for what the other side of a stage boundary ships."""

    channel: int


@dataclass(frozen=True)
class Haul:
    """Start a copy on the stream of its direction, behind those before it. seconds: alone."""

    direction: str
    seconds: float


@dataclass(frozen=True)
class Hauled:
    """Wait until the stream of this direction has nothing left to copy."""

    direction: str


@dataclass(eq=False)
class Gate:
    """All ranks of a job wait for each other: the end of a step. needed: rank classes.  time: s at which the last came."""

    needed: int
    arrived: int = 0
    event: Any = None
    time: float | None = None


Step = Alone | Meeting | Slowed | Blocking | Start | Until | Ship | Fetch | Haul | Hauled | Gate


@dataclass(frozen=True)
class Leg:
    """One pass, compiled. direction: of DIRECTION, or OUTSIDE the pipeline."""

    direction: int
    micro_batch: int
    chunk: int
    steps: tuple[Step, ...]
