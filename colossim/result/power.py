"""Power while a step runs: each GPU by what it does, nodes and switches beside it, the site around them.

A timeline says what its ranks do at each instant: kernels that arithmetic or memory bounds, communicating, waiting. What a GPU
draws doing so is a fact of its type (`catalog.gpu.ActivityPower`); what a node draws besides, and a fabric's switches, are
facts of theirs. Their sum through the step is a step function (`Course`): stages are out of phase. All else is read off it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from colossim.catalog.types import NodeType
from colossim.engine.record import CATEGORIES, Floats, StepRecord, Timeline
from colossim.scenario.power import fixed_power
from colossim.scenario.schema import ClusterSpec

#: What a GPU does, as power tells it apart; in the order of `Gpu.watts`.
ACTIVITIES = ("arithmetic", "memory", "communicating", "waiting")
_COMMUNICATING = [CATEGORIES.index(name) for name in CATEGORIES if name.endswith("_comm")]
_KERNELS, _OPTIMIZER = CATEGORIES.index("compute"), CATEGORIES.index("optimizer")
#: s of a window, at most: what is shorter stays inside the node. A GPU's limit holds for a mean, power supplies bridge some
#: milliseconds, and on the mains power is what flows in a cycle: 20 ms at 50 Hz.
WINDOW = 20e-3
_MOST_WINDOWS = 100_000


@dataclass(frozen=True)
class Load:
    """What a timeline's ranks run on. arithmetic: share of their kernels' time that it bounds, by `Timeline.direction`."""

    node: NodeType
    arithmetic: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Course:
    """Power through the step, in windows as long as each other. times: (n + 1,) s from 0 to its end.

    gpus: (n, activities) W of the job's GPUs, by what they do.

    idle: W of GPUs that the job leaves free.  nodes: W of nodes beside their GPUs.  switches: W.  pue: the site's over IT's.
    """

    times: Floats
    gpus: Floats
    idle: float
    nodes: float
    switches: float
    pue: float

    @property
    def seconds(self) -> Floats:
        """(n,) s that each window lasts."""
        return np.diff(self.times)

    @property
    def site(self) -> Floats:
        """(n,) W of the site."""
        it: Floats = self.gpus.sum(axis=1) + (self.idle + self.nodes + self.switches)
        return self.pue * it

    @property
    def mean(self) -> float:
        """W of the site over the step."""
        return float(self.seconds @ self.site) / float(self.times[-1])


@dataclass(frozen=True)
class Power:
    """A step's power. W, J, s; of the site where nothing else is said.

    it_W: of nodes and switches, mean.  site_W: with the site's PUE, mean.  peak_W, trough_W: the most and the least in a window
    of 20 ms; swing_W: between them; swing_period_s: of the strongest wave in it, None if there is none.  battery_J: what a
    battery must hold for the site to draw its mean all the time: the range of the integral of (power - mean).
    provisioned_W: for which a site is built: rated nodes and switches, with the PUE.
    measured_nodes_W: IT, if each node drew what such nodes drew in a measured training run; None if one wasn't measured.
    idle_W, waiting_W: while all GPUs idle, and while all of the job wait for each other.  gpu_W: of a GPU in the job, mean.
    share: of the time of the job's GPUs by what they do.  parts_W: what site_W is made of.
    energy_per_step_J, energy_per_token_J: of the site.  cap: what a cap costs (`with_cap`), if there is one.
    """

    it_W: float
    site_W: float
    peak_W: float
    trough_W: float
    swing_W: float
    swing_period_s: float | None
    battery_J: float
    provisioned_W: float
    measured_nodes_W: float | None
    idle_W: float
    waiting_W: float
    gpu_W: float
    share: dict[str, float]
    parts_W: dict[str, float]
    energy_per_step_J: float
    energy_per_token_J: float
    cap: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; what isn't known or wasn't asked for stays out."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}


def doing(line: Timeline, load: Load) -> Floats:
    """(intervals, activities) what share of each interval a rank spends in each activity.

    The optimizer's kernels are bound by memory; what launching takes, and a host's work, is waiting.
    """
    shares = np.zeros((line.category.size, len(ACTIVITIES)))
    kernels = line.category == _KERNELS
    shares[kernels, 0] = np.array(load.arithmetic)[line.direction[kernels]]
    shares[kernels, 1] = 1.0 - shares[kernels, 0]
    shares[line.category == _OPTIMIZER, 1] = 1.0
    shares[np.isin(line.category, _COMMUNICATING), 2] = 1.0
    shares[:, 3] = 1.0 - shares[:, :3].sum(axis=1)
    return shares


def windows_of(step: float) -> Floats:
    """(n + 1,) s: the edges of the windows of a step of so many s."""
    return np.linspace(0.0, step, 1 + min(_MOST_WINDOWS, max(1, math.ceil(step / WINDOW - 1e-9))))


def drawn(line: Timeline, load: Load, times: Floats) -> Floats:
    """(windows, activities) W that a rank of a timeline draws. times: edges of the windows; it waits after its last interval.

    In each window it asks for idle + sum_k share_k (watts_k - idle), and what of that is above the limit is taken from all
    activities alike.
    """
    gpu = load.node.gpu
    spent = np.diff(np.concatenate([[0.0], line.end]))[:, None] * doing(line, load)
    until = np.concatenate([np.zeros((1, len(ACTIVITIES))), np.cumsum(spent, axis=0)])
    ends = np.concatenate([[0.0], line.end])
    if times[-1] > ends[-1]:
        rest = np.array([[0.0, 0.0, 0.0, times[-1] - ends[-1]]])
        ends, until = np.append(ends, times[-1]), np.concatenate([until, until[-1:] + rest])
    shares = np.stack([np.diff(np.interp(times, ends, column)) for column in until.T], axis=1)
    shares /= shares.sum(axis=1, keepdims=True)
    asked = shares * (np.array(gpu.watts) - gpu.idle)
    whole = asked.sum(axis=1, keepdims=True)
    above = np.minimum(whole, max(0.0, gpu.limit - gpu.idle))
    given: Floats = shares * gpu.idle + asked * np.divide(above, whole, out=np.ones_like(whole), where=whole > 0)
    return given


def course_of(record: StepRecord, loads: Sequence[Load], cluster: ClusterSpec, step: float | None = None) -> Course:
    """The step function. loads: of each timeline, which stands for `count` ranks.

    step: s that it takes, if GPUs that differ make it longer: for the rest all wait.
    """
    times = windows_of(record.step_time if step is None else max(step, record.step_time))
    gpus = np.zeros((times.size - 1, len(ACTIVITIES)))
    idle = sum(group.count * group.type.gpus * group.type.gpu.idle for group in cluster.nodes)
    for line, load in zip(record.timelines, loads, strict=True):
        gpus += line.count * drawn(line, load, times)
        idle -= line.count * load.node.gpu.idle
    switches = cluster.fabric.power * cluster.gpus
    return Course(times, gpus, idle, fixed_power(cluster) - switches, switches, cluster.pue)


def power_of(
    record: StepRecord, loads: Sequence[Load], cluster: ClusterSpec, tokens: float, step: float | None = None
) -> Power:
    """Power of a cluster that plays this step after step. loads: of each timeline.  tokens: a step.  step: of `course_of`."""
    with np.errstate(over="ignore", invalid="ignore"):  # what no float holds is told of the result
        return _power_of(record, loads, cluster, tokens, record.step_time if step is None else step)


def _power_of(record: StepRecord, loads: Sequence[Load], cluster: ClusterSpec, tokens: float, step: float) -> Power:
    course = course_of(record, loads, cluster, step)
    mean, ranks, whole = course.mean, sum(line.count for line in record.timelines), float(course.times[-1])
    gpus = course.seconds @ course.gpus / whole
    peak, trough = float(course.site.max()), float(course.site.min())
    share = sum(
        (
            line.count * ((line.end - line.start) @ doing(line, load))
            for line, load in zip(record.timelines, loads, strict=True)
        ),
        start=np.array([0.0, 0.0, 0.0, ranks * (whole - record.step_time)]),
    )
    fixed = course.nodes + course.switches
    waiting = sum(
        line.count * load.node.gpu.watts[ACTIVITIES.index("waiting")]
        for line, load in zip(record.timelines, loads, strict=True)
    )
    idle = sum(line.count * load.node.gpu.idle for line, load in zip(record.timelines, loads, strict=True))
    measured = [(group.count, group.type.measured_power) for group in cluster.nodes]
    known = [count * power for count, power in measured if power is not None]
    it = mean / course.pue
    return Power(
        it_W=it,
        site_W=mean,
        peak_W=peak,
        trough_W=trough,
        swing_W=peak - trough,
        swing_period_s=_period(course) if peak - trough > 1e-9 * mean else None,
        battery_J=battery(course),
        provisioned_W=course.pue * (sum(g.count * g.type.rated for g in cluster.nodes) + course.switches),
        measured_nodes_W=sum(known) + course.switches if len(known) == len(measured) else None,
        idle_W=course.pue * (fixed + course.idle + idle),
        waiting_W=course.pue * (fixed + course.idle + waiting),
        gpu_W=float(gpus.sum()) / ranks,
        share=dict(zip(ACTIVITIES, (share / (ranks * whole)).tolist(), strict=True)),
        parts_W={
            **dict(zip(ACTIVITIES, gpus.tolist(), strict=True)),
            "idle_gpus": course.idle,
            "nodes": course.nodes,
            "switches": course.switches,
            "cooling": mean - it,
        },
        energy_per_step_J=mean * step,
        energy_per_token_J=mean * step / tokens,
    )


def _energy(course: Course) -> Floats:
    """(n + 1,) J that the site has drawn by each instant."""
    return np.concatenate(([0.0], np.cumsum(course.seconds * course.site)))


def battery(course: Course) -> float:
    """J between a battery's fullest and emptiest if it makes the site draw its mean: the range of E(t) - mean t."""
    missing = _energy(course) - course.mean * course.times
    return float(missing.max() - missing.min())


def _period(course: Course) -> float:
    """s of the strongest wave of the site's power: a step, or a whole part of it."""
    return float(course.times[-1]) / (1 + int(np.argmax(np.abs(np.fft.rfft(course.site))[1:])))


#: Accounts of a campaign in which the job trains, whatever becomes of it; and those in which its GPUs wait for each other.
TRAINING = frozenset({"productive", "lost_work", "degraded"})
WAITING = frozenset({"checkpoint", "detection"})


def energy_by_account(spent: Mapping[str, float], power: Power) -> dict[str, float]:
    """J of the site by account of a campaign's ledger. spent: s.

    Training, lost or slowed too, draws the step's mean. While a checkpoint blocks, and until a fault is noticed, the job's GPUs
    wait for each other; in all other accounts (restarts, waiting for repair) they idle.
    """

    def drawn(account: str) -> float:
        return power.site_W if account in TRAINING else power.waiting_W if account in WAITING else power.idle_W

    return {account: seconds * drawn(account) for account, seconds in spent.items()}


def power_standing(spent: Mapping[str, float], power: Power) -> float:
    """W of the site in the mean while a campaign's job stands still after a fault. spent: s by account."""
    still = {name: spent.get(name, 0.0) for name in ("detection", "restart", "waiting")}
    seconds = sum(still.values())
    return sum(energy_by_account(still, power).values()) / seconds if seconds else power.idle_W


def power_of_trace(
    trace: Sequence[tuple[float, float]], spent: Mapping[str, float], power: Power
) -> tuple[Floats, Floats]:
    """(n + 1,) s, (n,) W of the site over a campaign.

    trace: (s, training done) wherever its pace changed.  spent: s by account.
    """
    times, done = (np.array(column) for column in zip(*trace, strict=True))
    kept = np.diff(times) > 0
    watts = np.where(np.diff(done)[kept] > 0, power.site_W, power_standing(spent, power))
    return np.append(times[:-1][kept], times[-1]), watts
