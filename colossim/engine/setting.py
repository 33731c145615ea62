"""What a campaign is played with: eras of the cluster, what can fail in each, what a step of it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colossim.catalog.faults import Component, FaultClass

Part = Literal["gpu", "nic", "nvlink"]


class Wrong(NamedTuple):
    """A part of the cluster that runs below its rate. left: share of it.  place: where in the job, as its source numbers it."""

    part: Part
    left: float
    place: int = 0


class State(NamedTuple):
    """What a step depends on beside the era: of each kind of part at most one, replicas (0: all of the job's)."""

    wrong: tuple[Wrong, ...] = ()
    replicas: int = 0


@dataclass(frozen=True)
class Source:
    """A class of faults and the components that have them. owner: what they are of.

    places: (count,) where in the job each is, for what a slow one costs there; all in place 0 if absent.
    """

    name: str
    kind: FaultClass
    owner: Component
    count: int
    places: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)

    def nodes_of(self, component: int, nodes: int) -> tuple[int, ...]:
        """Of so many nodes of the job those that a fault takes away: a GPU's, itself, a rack's; none of a leaf or a job."""
        if self.owner == "rack":
            size = self.kind.radius.nodes if self.kind.radius is not None else 1
            return tuple(range(component * size, min((component + 1) * size, nodes)))
        return (component * nodes // self.count,) if self.owner in ("gpu", "node") else ()

    def place_of(self, component: int) -> int:
        """Where in the job a component is."""
        return 0 if self.places is None else int(self.places[component])

    @property
    def part(self) -> Part:
        """What runs slower, where it doesn't stop the job."""
        return "gpu" if self.kind.effect == "slow" else "nvlink" if self.name == "nvlink" else "nic"


@dataclass(frozen=True)
class Fewer:
    """The job with fewer replicas than it has nodes for. nodes: that it takes; tokens: a step."""

    replicas: int
    nodes: int
    tokens: float


@dataclass(frozen=True)
class Peers:
    """Checkpoints in the memory of other nodes. interval, write, restart: s; copies: nodes that hold the same, neighbours."""

    interval: float
    write: float
    restart: float
    copies: int


@dataclass(frozen=True)
class Era:
    """The job as it stands from a moment on until the next era.

    begins: s of wall time at which what it needs is there (0 of the first).  step_s: s a step of the whole cluster; tokens: a
    step.  sources: what can fail; nodes: of the job; spares: nodes that stand by.  interval: s of training between
    checkpoints; write: s for which one blocks; durable: s from a write's start until it can be restarted from; restart: s.
    step_of: s a step in a state.  move: s that going over to it takes beyond a restart.  planned: the job writes a checkpoint
    and stops for it at `begins`; else it is taken up at the first restart after that.  fewer: how the job goes on without a
    spare, the most replicas first; without any it waits.  regrow: it stops for a node that is back; else a restart takes it up.
    peers: checkpoints in memory, beside those in storage.  crews: that repair, one thing each; None: as many as it takes.
    warm: spares more, that take `join` s to join.
    """

    begins: float
    step_s: float
    tokens: float
    sources: tuple[Source, ...]
    nodes: int
    spares: int
    interval: float
    write: float
    durable: float
    restart: float
    step_of: Callable[[State], float]
    move: float = 0.0
    planned: bool = False
    fewer: tuple[Fewer, ...] = ()
    regrow: bool = False
    peers: Peers | None = None
    crews: int | None = None
    warm: int = 0
    join: float = 0.0


@dataclass(frozen=True)
class Setting:
    """A campaign. duration: s of wall time; work: tokens after which it is done; eras: one at least, in the order of time."""

    duration: float
    work: float
    seed: int
    eras: tuple[Era, ...]

    @property
    def first(self) -> Era:
        """The era with which it begins."""
        return self.eras[0]
