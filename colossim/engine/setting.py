"""What a campaign is played with: eras of the cluster, what can fail in each, what a step of it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from colossim.catalog.faults import Component, FaultClass

Part = Literal["gpu", "nic", "nvlink"]
#: What is wrong with the cluster while the job trains: the worst of each kind of part, and what is left of its rate.
State = tuple[tuple[Part, float], ...]


@dataclass(frozen=True)
class Source:
    """A class of faults and the components that have them. owner: what they are of; away: whether a fault takes a node away."""

    name: str
    kind: FaultClass
    owner: Component
    count: int

    @property
    def away(self) -> bool:
        return self.owner in ("gpu", "node")

    def node_of(self, component: int, nodes: int) -> int | None:
        """The job's node that a component is in or is, of so many; None if a fault takes no node away."""
        return component * nodes // self.count if self.away else None

    @property
    def part(self) -> Part:
        """What runs slower, where it doesn't stop the job."""
        return "gpu" if self.kind.effect == "slow" else "nvlink" if self.name == "nvlink" else "nic"


@dataclass(frozen=True)
class Era:
    """The job as it stands from a moment on until the next era.

    begins: s of wall time at which what it needs is there (0 of the first).  step_s: s a step of the whole cluster; tokens: a
    step.  sources: what can fail; nodes: of the job; spares: nodes that stand by.  interval: s of training between
    checkpoints; write: s for which one blocks; durable: s from a write's start until it can be restarted from; restart: s.
    step_of: s a step in a state.  move: s that going over to it takes beyond a restart.  planned: the job writes a checkpoint
    and stops for it at `begins`; else it is taken up at the first restart after that.
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
