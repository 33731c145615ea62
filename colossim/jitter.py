"""Steps of GPUs that aren't alike: what each draws, how long the steps take, what it costs and whose pace it is.

A folded step is played once and gone through again with arrays over its ranks (`engine.lateness`); unfolded, every GPU is
played with a program of its own (`engine.paced`), which is what the arrays are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from colossim.cluster import Cluster
from colossim.cluster.variation import paces_of, slow_gpus
from colossim.draws import generator
from colossim.engine.lateness import Lateness
from colossim.engine.paced import draws_of, paced
from colossim.engine.record import StepRecord
from colossim.engine.trace import Trace
from colossim.footprint import Floats
from colossim.legs import Leg
from colossim.quotient import Quotient
from colossim.scenario.jitter import Jitter
from colossim.scenario.schema import Scenario
from colossim.traffic import Traffic

#: Draws that are made for all steps together, about 20 ns each; GPU by GPU, about 2 us each. More steps aren't played.
_DRAWS, _DRAWS_UNFOLDED = 40_000_000, 1_000_000
#: What all kernels are stretched by to see what a step makes of it.
_NUDGE = 1.01

Legs = list[tuple[Leg, ...]]
#: One step of these legs; what happens goes into the trace, if there is one.
Play = Callable[[Legs, Trace | None], StepRecord]


@dataclass(frozen=True)
class Late:
    """Steps with jitter. seconds: (steps,) of each; one if they are all alike.  undisturbed: s of the step without.

    costs: s in the median, of each kind of jitter alone.  pace: as long as if all kernels took so many times their time;
    percentile: share of the job's GPUs that are no slower, None if all have one pace.  slow: GPUs of the job on slow machines.
    approximate: whether transfers that meet could be late by other than what is told.
    """

    seconds: Floats
    undisturbed: float
    costs: dict[str, float]
    pace: float
    percentile: float | None
    slow: int
    approximate: bool

    @property
    def median(self) -> float:
        """s."""
        return float(np.median(self.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "undisturbed_s": self.undisturbed,
            "cost_s": self.median - self.undisturbed,
            "of_each_s": dict(self.costs),
            "steps": int(self.seconds.size),
            "slow_gpus": self.slow,
            "pace": self.pace,
            "percentile": self.percentile,
        }


def late_steps(
    scenario: Scenario, cluster: Cluster, traffic: Traffic, quotient: Quotient, legs: Legs, play: Play
) -> tuple[StepRecord, Late]:
    """The step of GPUs that are alike, and steps with the scenario's jitter. legs: a compiled program a rank class."""
    jitter, run = scenario.jitter, scenario.run
    assert jitter is not None
    whole = run.fold == "off" or run.collectives == "chunked"
    trace: Trace = []
    record = play(legs, None if whole else trace)
    steps: _Played
    if whole:
        each = sum(draws_of(program) for program in legs)
        count = min(run.steps, max(1, _DRAWS_UNFOLDED // max(1, each)))
        steps = _Unfolded(quotient, legs, play, jitter.kernel, run.seed, count)
    else:
        lateness = Lateness(trace, traffic, quotient, scenario.job.software.overlap.compute)
        count = min(run.steps, max(1, _DRAWS // max(1, lateness.draws)))
        steps = _Folded(lateness, jitter.kernel, run.seed, count)
    return record, _told(jitter, cluster, traffic.ranks, run.seed, record.step_time, steps)


class _Played(Protocol):
    """How steps are played. approximate: as of `Late`."""

    @property
    def approximate(self) -> bool: ...

    def lasting(self, paces: Floats) -> Floats:
        """(steps,) s of steps with these paces, (steps, R)."""

    def drawn(self, paces: Floats) -> Floats:
        """(steps,) s of steps with these paces, (R,), and kernels that vary."""


@dataclass(frozen=True)
class _Folded:
    """Arrays over the ranks of classes. kernel: their variation; count: of steps."""

    lateness: Lateness
    kernel: float
    seed: int
    count: int

    @property
    def approximate(self) -> bool:
        return self.lateness.approximate

    def lasting(self, paces: Floats) -> Floats:
        return self.lateness.steps(paces)

    def drawn(self, paces: Floats) -> Floats:
        return self.lateness.drawn(paces, self.kernel, self.count, generator(self.seed, "jitter.kernel"))


@dataclass(frozen=True)
class _Unfolded:
    """GPU by GPU. kernel: their variation; count: of steps."""

    quotient: Quotient
    legs: Legs
    play: Play
    kernel: float
    seed: int
    count: int
    approximate: bool = False

    def lasting(self, paces: Floats) -> Floats:
        return np.array([self._step(row, 0.0, 0) for row in paces])

    def drawn(self, paces: Floats) -> Floats:
        return np.array([self._step(paces, self.kernel, step) for step in range(self.count)])

    def _step(self, paces: Floats, kernel: float, step: int) -> float:
        draws = generator(self.seed, f"jitter.kernel {step}")
        ranks = zip(self.legs, self.quotient.ranks, strict=True)
        own = [paced(program, float(paces[rank.first]), kernel, draws) for program, rank in ranks]
        return self.play(own, None).step_time


def _told(jitter: Jitter, cluster: Cluster, ranks: int, seed: int, undisturbed: float, steps: _Played) -> Late:
    """What the steps are, and what of it each kind of jitter costs alone."""
    paces = paces_of(cluster, jitter, seed)[:ranks]
    kinds = {name: Jitter(**{name: getattr(jitter, name)}) for name in ("gpu", "slow") if getattr(jitter, name)}
    alone = [paces_of(cluster, kind, seed)[:ranks] for kind in kinds.values()]
    lasting, nudged, *each = steps.lasting(np.stack([paces, np.full(ranks, _NUDGE), *alone])).tolist()
    seconds = steps.drawn(paces) if jitter.kernel else np.array([lasting])
    costs = {name: own - undisturbed for name, own in zip(kinds, each, strict=True)}
    if jitter.kernel:
        kernels = steps.drawn(np.ones(ranks)) if kinds else seconds
        costs["kernel"] = float(np.median(kernels)) - undisturbed
    # As long as if all kernels took 1 + (t - t0)/t' of their time, where t' is what a hundredth more costs, times 100.
    slope = (nudged - undisturbed) / (_NUDGE - 1.0)
    pace = 1.0 + (lasting - undisturbed) / slope if slope > 0 else 1.0
    alike = bool(np.all(paces == paces[0]))
    return Late(
        seconds=seconds,
        undisturbed=undisturbed,
        costs=costs,
        pace=pace,
        percentile=None if alike else float(np.mean(paces <= pace * (1 + 1e-9))),
        slow=int(slow_gpus(cluster, jitter, seed)[:ranks].sum()),
        approximate=steps.approximate,
    )
