"""Predicting every published run that ships: the scoreboard of `colossim validate`.

A published run is a case with `measured:` of a scenario below scenarios/published; a user's own file is predicted the same
way. Nothing is fitted here. A run that was published did fit its GPUs: it is played even if the memory model says no, and
listed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from colossim import yaml12
from colossim.catalog import SCORES
from colossim.errors import Problem, ScenarioError
from colossim.processes import processes
from colossim.scenario.derive import derive
from colossim.scenario.reader import read
from colossim.scenario.schema import Measured, Scenario
from colossim.scenario.variants import load_variants
from colossim.shipped import published_names, scenario_path
from colossim.simulation import simulate

Progress = Callable[[str, float], None]

#: Runs that make it worth starting a process.
_WORTH_A_WORKER = 4
_FROM_CALIBRATION = ("untuned_mean_pct", "left_out_mean_pct")


@dataclass(frozen=True)
class Run:
    """One published run."""

    source: str
    case: str
    scenario: Scenario
    measured: Measured


@dataclass(frozen=True)
class Prediction:
    """What is predicted for a run. step_time: s.  memory, capacity: bytes of the fullest GPU, which is of pipeline `stage`."""

    step_time: float
    memory: float
    capacity: float
    stage: int


def published(source: str | None = None) -> list[Run]:
    """The published runs of one source, or of all: those whose step time or memory was measured.

    source: the name of a scenario of published runs, or a path. Raises ScenarioError if it has none.
    """
    runs = []
    for name in published_names() if source is None else [source]:
        found = []
        if source is None or _has_cases(name):
            for label, scenario, measured in load_variants(name):
                if measured is not None and (measured.step_time is not None or measured.memory is not None):
                    found.append(Run(scenario.name, label, scenario, measured))
        if not found:
            known = ", ".join(published_names())
            raise ScenarioError(
                [Problem("", f"`{name}` has no measured cases: those that have are {known}", str(scenario_path(name)))]
            )
        runs += found
    return runs


def _has_cases(name: str) -> bool:
    """Whether a scenario has cases: many of a grid need not be built to say that none is measured."""
    value = read(name)[0].value
    return isinstance(value, dict) and bool(value.get("cases"))


def predict(scenario: Scenario) -> Prediction:
    """Plays the step of a run."""
    result = simulate(scenario, must_fit=False)
    memory = result.memory_bytes
    return Prediction(result.step_time_s, memory["peak"], memory["capacity"], int(memory["stage"]))


def validate(source: str | None = None, progress: Progress | None = None, workers: int = 1) -> dict[str, Any]:
    """Predicts the published runs of one source, or of all.

    workers: processes; what is returned doesn't depend on them. A script that asks for several needs the usual
    `if __name__ == "__main__":`.  Returns, errors being 100 (predicted / measured - 1):

    sources: a source each: n, mean, median and worst absolute error, and bias, in percent, of the step times of rows
    without a flag (flagged: the measurement is to be distrusted); flagged_n and flagged_mean_pct of those with one; all_n,
    all_mean_pct and all_median_pct of both; untuned_mean_pct and left_out_mean_pct as the calibration left them, or None.
    overall: the same with all rows pooled, and equal_weight_mean_pct and equal_weight_median_pct with equal weight a source.
    cases: source, case, measured_s, predicted_s, error_pct, flag.  memory: sources, overall and cases likewise, in bytes.
    does_not_fit: runs that the memory model finds too large: source, case, stage, predicted_bytes, capacity_bytes.
    Raises ScenarioError if the source isn't known, SimulationError if a run can't be played.
    """
    runs = published(source)
    report = scoreboard(runs, _predictions(runs, workers, progress))
    calibrated = _calibrated()
    for name, row in report["sources"].items():
        row |= {key: calibrated.get(name, {}).get(key) for key in _FROM_CALIBRATION}
    return report


def _predictions(runs: Sequence[Run], workers: int, progress: Progress | None) -> list[Prediction]:
    """Predictions of runs, in their order. Raises SimulationError if a worker is killed."""

    def tell(run: Run, done: int) -> None:
        if progress is not None:
            progress(f"{run.source}: {run.case}", done / len(runs))

    found: dict[int, Prediction] = {}
    if min(workers, len(runs) // _WORTH_A_WORKER) <= 1:
        for i, run in enumerate(runs):
            tell(run, i)
            found[i] = predict(run.scenario)
        return list(found.values())
    # The longest first, so that no worker ends with one of them alone; the order of the answers is that of the runs.
    longest = sorted(range(len(runs)), key=lambda i: -_passes(runs[i].scenario))
    with processes(workers) as pool:
        futures = {pool.submit(predict, runs[i].scenario): i for i in longest}
        for future in as_completed(futures):
            i = futures[future]
            found[i] = future.result()
            tell(runs[i], len(found))
    return [found[i] for i in range(len(runs))]


def _passes(scenario: Scenario) -> int:
    """Passes that the event loop plays, in proportion to its time: micro-batches x chunks x stages."""
    plan = derive(scenario)
    return plan.micro_batches * plan.chunks * plan.pipeline


def scoreboard(runs: Sequence[Run], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The report of `validate` on runs and what was predicted for them, without the calibration's columns."""
    cases: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    tight: list[dict[str, Any]] = []
    for run, prediction in zip(runs, predictions, strict=True):
        place, measured = {"source": run.source, "case": run.case}, run.measured
        if measured.step_time is not None:
            cases.append(
                {
                    **place,
                    "measured_s": measured.step_time,
                    "predicted_s": prediction.step_time,
                    "error_pct": _error(prediction.step_time, measured.step_time),
                    "flag": measured.flag,
                }
            )
        if measured.memory is not None:
            memory.append(
                {
                    **place,
                    "measured_bytes": measured.memory,
                    "predicted_bytes": prediction.memory,
                    "error_pct": _error(prediction.memory, measured.memory),
                    "flag": measured.flag,
                }
            )
        if prediction.memory > prediction.capacity:
            size = {"predicted_bytes": prediction.memory, "capacity_bytes": prediction.capacity}
            tight.append({**place, "stage": prediction.stage, **size})
    return {**_summaries(cases), "memory": _summaries(memory), "does_not_fit": tight}


def _error(predicted: float, measured: float) -> float:
    return 100 * (predicted / measured - 1)


def _summaries(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """sources, overall and cases of one kind of measurement."""
    names = list(dict.fromkeys(case["source"] for case in cases))
    overall = _summary(cases) | _equal_weight(cases)
    return {
        "sources": {name: _summary([case for case in cases if case["source"] == name]) for name in names},
        "overall": overall,
        "cases": cases,
    }


def _summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of rows; None where there are no rows."""
    counted = [case["error_pct"] for case in cases if not case["flag"]]
    flagged = [abs(case["error_pct"]) for case in cases if case["flag"]]
    sizes = [abs(error) for error in counted]
    every = sizes + flagged
    return {
        "n": len(sizes),
        "mean_pct": statistics.fmean(sizes) if sizes else None,
        "median_pct": statistics.median(sizes) if sizes else None,
        "worst_pct": max(sizes) if sizes else None,
        "bias_pct": statistics.fmean(counted) if counted else None,
        "flagged_n": len(flagged),
        "flagged_mean_pct": statistics.fmean(flagged) if flagged else None,
        "all_n": len(every),
        "all_mean_pct": statistics.fmean(every) if every else None,
        "all_median_pct": statistics.median(every) if every else None,
    }


def _equal_weight(cases: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean and median of the absolute errors of rows without a flag, each row weighing 1 / rows of its source.

    The median is the error up to which half of the weight has come.
    """
    rows = [(abs(case["error_pct"]), case["source"]) for case in cases if not case["flag"]]
    if not rows:
        return {"equal_weight_mean_pct": None, "equal_weight_median_pct": None}
    sizes: dict[str, int] = {}
    for _, source in rows:
        sizes[source] = sizes.get(source, 0) + 1
    weighted = sorted((error, 1 / (sizes[source] * len(sizes))) for error, source in rows)
    return {
        "equal_weight_mean_pct": sum(error * weight for error, weight in weighted),
        "equal_weight_median_pct": _half(weighted),
    }


def _half(weighted: Sequence[tuple[float, float]]) -> float:
    """The value at which half of the weight (1 in all) of sorted values is reached; rounding doesn't pass it by."""
    reached = accumulate(weight for _, weight in weighted)
    return next(value for (value, _), weight in zip(weighted, reached, strict=True) if weight >= 0.5 - 1e-12)


def _calibrated() -> dict[str, dict[str, float]]:
    """{source: {untuned_mean_pct, left_out_mean_pct}} that the calibration wrote."""
    sources: dict[str, dict[str, float]] = yaml12.read_file(SCORES).value["sources"]
    return sources
