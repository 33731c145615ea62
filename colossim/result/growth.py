"""Numbers of a cluster that changed: what each stretch did, what its change cost, and when that was paid back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossim.engine.log import Log
from colossim.engine.setting import Era
from colossim.result.power import Power, power_standing
from colossim.scenario.stretch import Stretch

Trace = Sequence[tuple[float, float]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A stretch as it was played. tokens: that count.  power: of its steps.  laid: s at which the job was laid so, or None.

    down: s for which it stood still for that (a fault meanwhile included).  paid_back: s at which that is made up for.
    """

    stretch: Stretch
    era: Era
    power: Power
    tokens: float
    laid: float | None
    down: float
    paid_back: float | None


@dataclass(frozen=True)
class Growth:
    """stretches: see `told`. without: what the job of the first stretch alone would have done in the same time.

    power: (n + 1,) s and (n,) W of the site over the campaign.  log, without_log: of the campaigns, for plots.
    """

    stretches: tuple[dict[str, Any], ...]
    without: dict[str, float]
    notes: tuple[str, ...]
    power: tuple[Floats, Floats]
    log: Log
    without_log: Log

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"stretches": self.stretches, "without": self.without}

    @property
    def energy(self) -> float:
        """J of the site."""
        return float(sum(row["energy_J"] for row in self.stretches))

    @property
    def gpu_seconds(self) -> float:
        """Of GPUs that have power, in the job or not."""
        edges = [*(row["begins_s"] for row in self.stretches), self.log.wall]
        return float(sum(row["gpus"] * seconds for row, seconds in zip(self.stretches, np.diff(edges), strict=True)))

    def undisturbed(self, times: Floats) -> Floats:
        """Tokens until these times (s), had the job never stood still."""
        laid = [row for row in self.stretches if row["laid_s"] is not None]
        edges = [row["laid_s"] for row in laid] + [max(self.log.wall, float(times[-1]))]
        made = np.diff(edges) * np.array([row["tokens_per_s"] for row in laid])
        found: Floats = np.interp(times, edges, np.concatenate([[0.0], np.cumsum(made)]))
        return found


def build_growth(rows: Sequence[Row], log: Log, without: Log, flops_per_token: Sequence[float]) -> Growth:
    """flops_per_token: that the model needs, of each stretch. Steps that count are whole ones."""
    told = []
    tokens = flops = 0.0
    power, energy = _energy(rows, log)
    for row, needed, joules in zip(rows, flops_per_token, energy, strict=True):
        steps = whole_steps(row.tokens, row.era)
        tokens += steps * row.era.tokens
        flops += steps * row.era.tokens * needed
        so_far = {"tokens_so_far": tokens, "flops_so_far": flops, "energy_J": joules}
        told.append({**_told(row, steps, needed), **so_far})
    alone = whole_steps(without.done, rows[0].era) * rows[0].era.tokens
    return Growth(
        stretches=tuple(told),
        without={"tokens": alone, "flops": alone * flops_per_token[0], "gpus_in_job": rows[0].stretch.plan.world},
        notes=tuple(note for row in rows for note in row.stretch.notes),
        power=power,
        log=log,
        without_log=without,
    )


def _energy(rows: Sequence[Row], log: Log) -> tuple[tuple[Floats, Floats], list[float]]:
    """Power of the site over a campaign, and J of each stretch from when the job was laid so on.

    Checkpoints aren't told apart; while the job stands still for a change the stretch before goes on.
    """
    laid = [i for i, row in enumerate(rows) if row.laid is not None]
    begins = np.array([rows[i].laid for i in laid], dtype=float)
    training = np.array([rows[i].power.site_W for i in laid])
    standing = np.array([power_standing(log.spent, rows[i].power) for i in laid])
    times, done = _columns(log.trace)
    kept = np.diff(times) > 0
    which = np.searchsorted(begins, times[:-1][kept], side="right") - 1
    watts = np.where(np.diff(done)[kept] > 0, training[which], standing[which])
    joules = np.bincount(which, np.diff(times)[kept] * watts, len(laid)).tolist()
    of = dict(zip(laid, joules, strict=True))
    return (np.append(times[:-1][kept], times[-1]), watts), [of.get(i, 0.0) for i in range(len(rows))]


def whole_steps(tokens: float, era: Era) -> int:
    """Steps that are whole, or all but a rounding."""
    return math.floor(tokens / era.tokens + 1e-9)


def _told(row: Row, steps: int, flops_per_token: float) -> dict[str, Any]:
    """begins_s: when it could be laid so; laid_s: when it was, waited_s later; None if never.

    gpus_joined: of nodes that are there; nodes, gpus: that have power; gate: what it runs, if not all.  site_W: of them in
    training; energy_J: of the site.  down_s: the job stood still for it, of which it moved and restarted for move_s and
    restart_s; burn_in_s: tests of what came before.  paid_back_s: wall time.
    """
    stretch, era = row.stretch, row.era
    moved = row.laid is not None and not stretch.same and row.down > 0
    return {
        "begins_s": stretch.begins,
        "laid_s": row.laid,
        "waited_s": None if row.laid is None else row.laid - stretch.begins,
        "what": stretch.what,
        "gate": stretch.gate,
        "nodes": sum(group.count for group in stretch.scenario.cluster.nodes),
        "gpus_joined": stretch.joined,
        "gpus": stretch.plan.gpus,
        "gpus_in_job": stretch.plan.world,
        "replicas": stretch.plan.data,
        "global_batch": stretch.scenario.job.global_batch,
        "step_time_s": era.step_s,
        "tokens_per_s": era.tokens / era.step_s,
        "site_W": row.power.site_W,
        "steps": steps,
        "tokens": steps * era.tokens,
        "flops": steps * era.tokens * flops_per_token,
        "down_s": row.down,
        "move_s": era.move if moved else 0.0,
        "restart_s": era.restart if moved and era.planned else 0.0,
        "burn_in_s": max((stretch.scenario.events[i].burn_in for i in stretch.events), default=0.0),
        "paid_back_s": row.paid_back,
    }


def standstill(trace: Trace, at: float, wall: float) -> float:
    """s around a moment in which a campaign stood still. trace: (s, tokens) where its pace changed.  wall: s, its end."""
    times, done = _columns(trace)
    rising = np.flatnonzero(done[1:] > done[:-1])
    before, after = rising[times[rising + 1] <= at], rising[times[rising] >= at]
    stopped = float(times[before[-1] + 1]) if before.size else 0.0
    return (float(times[after[0]]) if after.size else wall) - stopped


def caught_up(trace: Trace, other: Trace, begins: float, end: float) -> float | None:
    """s at which a campaign that fell behind another has as many tokens again; `begins` if it never fell behind.

    trace, other: (s, tokens) where their paces changed; both are straight in between, and fall at once where work is lost.
    None if it is behind until the end.
    """
    own, others = _columns(trace), _columns(other)
    times = np.union1d(own[0], others[0])
    times = np.concatenate([[begins], times[(times > begins) & (times < end)], [end]])
    lead = _after(own, times[:-1]) - _after(others, times[:-1])
    left = _before(own, times[1:]) - _before(others, times[1:])
    slack = 1e-12 * max(own[1].max(initial=0.0), 1.0)
    behind = False
    for i, (first, last) in enumerate(zip(lead.tolist(), left.tolist(), strict=True)):
        if behind and first >= -slack:
            return float(times[i])
        behind = behind or min(first, last) < -slack
        if behind and first < 0 <= last + slack:
            share = min(1.0, first / (first - last)) if first != last else 1.0
            return float(times[i] + share * (times[i + 1] - times[i]))
    return None if behind else begins


def _columns(trace: Trace) -> tuple[Floats, Floats]:
    times, done = (np.array(column) for column in zip(*trace, strict=True))
    return times, done


def _after(curve: tuple[Floats, Floats], at: Floats) -> Floats:
    """Tokens just after these times."""
    times, done = curve
    i = np.clip(np.searchsorted(times, at, side="right") - 1, 0, times.size - 1)
    return _between(times, done, i, np.minimum(i + 1, times.size - 1), at)


def _before(curve: tuple[Floats, Floats], at: Floats) -> Floats:
    """Tokens just before these times."""
    times, done = curve
    j = np.clip(np.searchsorted(times, at, side="left"), 0, times.size - 1)
    return _between(times, done, np.maximum(j - 1, 0), j, at)


def _between(times: Floats, done: Floats, i: Any, j: Any, at: Floats) -> Floats:
    long = times[j] - times[i]
    share = np.clip((at - times[i]) / np.where(long > 0, long, 1.0), 0.0, 1.0)
    found: Floats = done[i] + (done[j] - done[i]) * share
    return found
