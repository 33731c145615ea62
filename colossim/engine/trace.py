"""What a played step leaves of its order: who did what, who waited for whom. `lateness` plays it again.

Entries stand in the order in which they happened, so that what an entry needs stands before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from colossim.legs import Segment

if TYPE_CHECKING:
    from colossim.engine.group import Call


@dataclass(frozen=True, slots=True)
class Played:
    """Rank classes went through a segment; several of them together, as groups of the channel. member: index of a class."""

    members: tuple[int, ...]
    segments: tuple[Segment, ...]
    channel: int


@dataclass(frozen=True, slots=True)
class Ran:
    """A kernel beside transfers. seconds: undisturbed."""

    member: int
    seconds: float
    grain: float


@dataclass(frozen=True, slots=True)
class Arrived:
    """A class was ready for a collective, or its data for a transfer; no sooner than another call had ended."""

    member: int
    call: Call
    before: Call | None


@dataclass(frozen=True, slots=True)
class Posted:
    """All were ready, and the call took its turn in its communicator's order."""

    call: Call


@dataclass(frozen=True, slots=True)
class Waited:
    """A class waited for the end of a call. role: 1 for the receiver of a transfer."""

    member: int
    call: Call
    role: int


@dataclass(frozen=True, slots=True)
class Streamed:
    """A copy took its place on a stream (seconds), or a class waited until the stream was empty (None)."""

    member: int
    direction: str
    seconds: float | None


Entry = Played | Ran | Arrived | Posted | Waited | Streamed
#: The step of one job, as it happened.
Trace = list[Entry]
