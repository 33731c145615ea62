"""Numbers of a campaign: what of the wall time was training that counts, and what the rest went to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from colossim.engine.log import ACCOUNTS, Interruption, Log
from colossim.engine.setting import Era, Setting
from colossim.reliability import best_interval, daly, wall_over_work, young
from colossim.result.growth import Growth, whole_steps

#: Keys of an interruption.
INTERRUPTION = ("time_s", "cause", "component", "lost_s", "restart_s")


@dataclass(frozen=True)
class Campaign:
    """A campaign's numbers, of the first seed where nothing else is said.

    goodput: step time that counts over wall time.  ettr: the same with slower running counted whole (Kokolis et al. 2024).
    spent_s: the ledger; it adds up to wall_s.  mtbf_s: between faults that stop the job, in the mean; interval_s: between
    checkpoints, beside Young's, Daly's and the best by the exact formula, and what goodput that formula gives for it (of a
    synchronous checkpoint, spares at hand); None where nothing stops the job.  write_s: for which a checkpoint blocks;
    restart_s: from a fault to training, in the mean.  fewer_replicas_s: of training with some missing.  replicas: mean and 90 %
    of goodput and interruptions over seeds, and the mean ledger.  growth: of a cluster that changes.
    """

    wall_s: float
    steps: int
    tokens: float
    goodput: float
    ettr: float
    checkpoints: int
    checkpoints_in_memory: int
    spent_s: dict[str, float]
    faults: dict[str, int]
    interruptions: tuple[dict[str, Any], ...]
    mtbf_s: float | None
    interval_s: float | None
    write_s: float
    restart_s: float
    young_s: float | None
    daly_s: float | None
    best_s: float | None
    goodput_by_formula: float | None
    replicas: dict[str, Any] | None
    fewer_replicas_s: float
    logs: tuple[Log, ...]
    growth: Growth | None = None

    def by_seed(self, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(seed, interruption) of all replicas. first: the seed of the first."""
        for seed, log in enumerate(self.logs, first):
            for item in log.interruptions:
                yield seed, _told(item)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; goodput, ettr and interruptions stand beside it in the result."""
        apart = ("goodput", "ettr", "interruptions", "logs", "growth")
        told = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in apart}
        return told if self.growth is None else {**told, "growth": self.growth.to_dict()}


def build_campaign(setting: Setting, logs: Sequence[Log], mtbf: float, growth: Growth | None = None) -> Campaign:
    """Numbers of campaigns that differ in their seed alone; closed forms are of the first era. mtbf: s, of that one.

    growth: of the first seed, where the cluster changes.
    """
    log, era = logs[0], setting.first
    steps = [whole_steps(done, one) for done, one in zip(log.by_era, setting.eras, strict=True)]
    stops = math.isfinite(mtbf)
    # The formulas know one kind of checkpoint.
    alone = stops and era.peers is None
    blocks = alone and era.write > 0
    restart = era.restart + _detection(era)
    return Campaign(
        wall_s=log.wall,
        steps=sum(steps),
        tokens=sum(count * one.tokens for count, one in zip(steps, setting.eras, strict=True)),
        goodput=_goodput(log),
        ettr=_ettr(log),
        checkpoints=log.checkpoints,
        checkpoints_in_memory=log.in_memory,
        spent_s={name: log.spent[name] for name in ACCOUNTS},
        faults=dict(log.faults),
        interruptions=tuple(_told(item) for item in log.interruptions),
        mtbf_s=mtbf if stops else None,
        interval_s=era.interval if math.isfinite(era.interval) else None,
        write_s=era.write,
        restart_s=restart,
        young_s=young(mtbf, era.write) if blocks else None,
        daly_s=daly(mtbf, era.write) if blocks else None,
        best_s=best_interval(mtbf, era.write) if blocks else None,
        goodput_by_formula=1.0 / wall_over_work(era.interval, mtbf, era.write, restart)
        if alone and math.isfinite(era.interval)
        else None,
        replicas=_over_seeds(logs) if len(logs) > 1 else None,
        fewer_replicas_s=log.shrunk,
        logs=tuple(logs),
        growth=growth,
    )


def _told(item: Interruption) -> dict[str, Any]:
    values = (item.time, item.cause, item.component, item.lost, item.restart)
    return dict(zip(INTERRUPTION, values, strict=True))


def _detection(era: Era) -> float:
    """s until a fault that stops the job is noticed, in the mean."""
    rates = [(s.count / s.kind.mtbf, s.kind.detect) for s in era.sources if s.kind.effect == "stop"]
    total = sum(rate for rate, _ in rates)
    return sum(rate * detect for rate, detect in rates) / total if total else 0.0


def _goodput(log: Log) -> float:
    return log.spent["productive"] / log.wall if log.wall else 1.0


def _ettr(log: Log) -> float:
    return (log.spent["productive"] + log.spent["degraded"]) / log.wall if log.wall else 1.0


def _over_seeds(logs: Sequence[Log]) -> dict[str, Any]:
    def told(values: Sequence[float]) -> dict[str, float]:
        low, high = np.quantile(values, [0.05, 0.95]).tolist()
        return {"mean": float(np.mean(values)), "low": low, "high": high}

    found: dict[str, Any] = {
        "n": len(logs),
        "goodput": told([_goodput(log) for log in logs]),
        "ettr": told([_ettr(log) for log in logs]),
        "interruptions": told([float(len(log.interruptions)) for log in logs]),
        "wall_s": float(np.mean([log.wall for log in logs])),
        "spent_s": {name: float(np.mean([log.spent[name] for log in logs])) for name in ACCOUNTS},
    }
    found["by_cause"] = {
        name: told([float(sum(item.cause == name for item in log.interruptions)) for log in logs])
        for name in logs[0].faults
    }
    return found
