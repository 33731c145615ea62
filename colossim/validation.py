"""Predicting every published run that ships: the scoreboard of `colossim validate`.

A published run is a case with `measured:` of a scenario that ships. Nothing is fitted here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colossim.errors import Problem, ScenarioError
from colossim.scenario.reader import read
from colossim.scenario.variants import load_variants
from colossim.shipped import scenario_names, scenario_path
from colossim.simulation import simulate

Progress = Callable[[str, float], None]


def published() -> list[str]:
    """Names of the scenarios that ship with measured cases."""
    found = []
    for name in scenario_names():
        document, _ = read(name)
        cases = document.value.get("cases", ()) if isinstance(document.value, dict) else ()
        if any(isinstance(case, dict) and "measured" in case for case in cases):
            found.append(name)
    return found


def validate(source: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Predicts the published runs of one source, or of all.

    Returns `sources` ({name: n, mean_pct, median_pct, worst_pct, bias_pct}), `overall` and `cases` (source, case, measured_s,
    predicted_s, error_pct, flag). Errors are of the step time in percent; flagged cases, whose measurement is to be
    distrusted, count too. Raises ScenarioError if the source isn't known.
    """
    names = published() if source is None else [source]
    cases: list[dict[str, Any]] = []
    work = []
    for name in names:
        own = [v for v in load_variants(name) if v.measured is not None and v.measured.step_time is not None]
        if not own:
            known = ", ".join(published())
            raise ScenarioError(
                [Problem("", f"`{name}` has no measured cases: those that have are {known}", str(scenario_path(name)))]
            )
        work += [(Path(name).stem, variant) for variant in own]
    for i, (name, variant) in enumerate(work):
        if progress is not None:
            progress(f"{name}: {variant.label}", i / len(work))
        predicted = simulate(variant.scenario).step_time_s
        assert variant.measured is not None
        assert variant.measured.step_time is not None
        measured = variant.measured.step_time
        cases.append(
            {
                "source": name,
                "case": variant.label,
                "measured_s": measured,
                "predicted_s": predicted,
                "error_pct": 100 * (predicted / measured - 1),
                "flag": variant.measured.flag,
            }
        )
    return {
        "sources": {
            name: _summary([c["error_pct"] for c in cases if c["source"] == name])
            for name in dict.fromkeys(name for name, _ in work)
        },
        "overall": _summary([c["error_pct"] for c in cases]),
        "cases": cases,
    }


def _summary(errors: list[float]) -> dict[str, Any]:
    sizes = [abs(error) for error in errors]
    return {
        "n": len(errors),
        "mean_pct": statistics.fmean(sizes),
        "median_pct": statistics.median(sizes),
        "worst_pct": max(sizes),
        "bias_pct": statistics.fmean(errors),
    }
