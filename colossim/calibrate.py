"""Fitting constants of the catalogue on measured steps: few of them, robustly, and tried on configurations left out.

A *constant* is one number of a GPU type or of a software stack (`catalog/constants.yaml` lists which, with bounds and a
spread of what is believed beforehand). The fit is a robust least-squares of log(predicted/measured), in which a
configuration counts once however many rows it has: rows that differ in replicas only are near-duplicates, and share their
sensitivities. Cross-validation leaves whole configurations out.
"""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from colossim import catalog
from colossim.constants import Constant, shipped_constants, touches, value_of, with_values
from colossim.errors import Problem, ScenarioError
from colossim.processes import processes
from colossim.scenario.schema import Measured, Scenario
from colossim.simulation import simulate
from colossim.validation import Run, published

Floats = NDArray[np.float64]
#: Relative error beyond which a row counts less than in proportion to its square (soft L1).
ROBUST = 0.05
#: What a measured step is uncertain by, whatever was measured: weighs rows against what is believed of constants.
NOISE = 0.02
#: Relative change of a constant by which sensitivities are found.
STEP = 0.02
FOLDS = 5


@dataclass(frozen=True)
class Row:
    """A measured step.

    configuration: rows of one are near-duplicates of each other.  fits: whether a fit may learn from it, or the beginnings of
    the fields of which it may; else it is predicted only.
    """

    source: str
    case: str
    scenario: Scenario
    measured: float
    configuration: tuple[Any, ...]
    fits: bool | tuple[str, ...] = True

    def tells(self, constant: Constant) -> bool:
        """Whether a fit may move the constant for it."""
        if isinstance(self.fits, bool):
            asked = self.fits
        else:
            asked = any(path.startswith(self.fits) for path in constant.paths)
        return asked and touches(constant, self.scenario)

    @property
    def cell(self) -> tuple[int, int, int]:
        """Hidden width, tensor group and micro-batch: what cross-validation leaves out together, of all sources."""
        job = self.scenario.job
        return job.model.hidden, job.parallelism.tensor, job.micro_batch


@dataclass(frozen=True)
class Fit:
    """constants with their values, before and after; the rows' relative errors before, after, and when left out (R,)."""

    constants: tuple[Constant, ...]
    start: Floats
    value: Floats
    rows: tuple[Row, ...]
    before: Floats
    after: Floats
    left_out: Floats


def rows_of(runs: Iterable[Run]) -> tuple[Row, ...]:
    """The rows of published runs that a fit looks at: without a flag, of each configuration the smallest and the largest."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        if run.measured.step_time is not None and not run.measured.flag:
            row = row_of(run.source, run.case, run.scenario, run.measured)
            found.setdefault(row.configuration, []).append(row)
    kept = []
    for rows in found.values():
        rows.sort(key=lambda row: (row.scenario.cluster.gpus, row.scenario.job.global_batch, row.case))
        kept += rows if len(rows) < 3 else [rows[0], rows[-1]]
    return tuple(kept)


def row_of(source: str, case: str, scenario: Scenario, measured: Measured) -> Row:
    """A row whose configuration is its model, tensor group, micro-batch, precision and recompute."""
    assert measured.step_time is not None
    job, gpu = scenario.job, scenario.cluster.nodes[0].type.gpu.name
    shape = (job.model.hidden, job.model.ffn, job.model.experts, job.sequence_length)
    cut = (job.parallelism.tensor, job.parallelism.context, job.micro_batch)
    key = (source, gpu, job.software.name, *shape, *cut, job.precision, job.recompute)
    return Row(source, case, scenario, measured.step_time, key, measured.fits)


def predict(task: tuple[Scenario, dict[Constant, float]]) -> float:
    """Seconds a step, whether or not the job fits."""
    scenario, values = task
    return simulate(with_values(scenario, values), must_fit=False).step_time_s


def fit(
    rows: Sequence[Row],
    constants: Sequence[Constant],
    *,
    pool: Executor | None = None,
    rounds: int = 3,
    progress: Callable[[str, float], None] | None = None,
    calibrated: bool = False,
) -> Fit:
    """Fits the constants that the rows touch.

    pool: plays rows side by side.  rounds: of steps towards the best fit.  calibrated: begins at what an earlier fit found,
    not at what the entries say, and believes in that.
    Raises ValueError if there are fewer configurations than constants, or none to learn from.
    """
    counted = [row for row in rows if row.fits]
    if constants and not counted:
        raise ValueError(f"a fit may learn from none of {len(rows)} rows (measured.fits)")
    used = tuple(c for c in constants if any(row.tells(c) for row in counted))
    configurations = {row.configuration for row in counted}
    if len(configurations) < len(used):
        raise ValueError(
            f"{len(counted)} rows of {len(configurations)} configurations can't tell {len(used)} constants"
        )
    problem = _Problem(tuple(rows), used, pool, progress, calibrated)
    return problem.solve(rounds)


@dataclass
class _Problem:
    rows: tuple[Row, ...]
    constants: tuple[Constant, ...]
    pool: Executor | None
    progress: Callable[[str, float], None] | None
    calibrated: bool

    def __post_init__(self) -> None:
        self.keys = list(dict.fromkeys(row.configuration for row in self.rows))
        self.of = np.array([self.keys.index(row.configuration) for row in self.rows])
        self.touch = np.array([[row.tells(c) for c in self.constants] for row in self.rows])
        self.start = np.array([value_of(c, calibrated=self.calibrated) for c in self.constants])
        # The smallest row of a configuration stands for its sensitivities.
        gpus = [row.scenario.cluster.gpus for row in self.rows]
        self.first = [int(min(np.flatnonzero(self.of == k), key=lambda i: gpus[i])) for k in range(len(self.keys))]
        # A configuration counts once however many rows it has, and a source as the root of its configurations.
        sources = [self.rows[i].source for i in self.first]
        many = np.array([sources.count(row.source) for row in self.rows])
        self.weight = 1.0 / np.sqrt(np.bincount(self.of)[self.of] * np.sqrt(many))
        self.weight *= np.array([bool(row.fits) for row in self.rows])

    # -- playing -----------------------------------------------------------------------------------------------------
    def _values(self, logs: Floats) -> dict[Constant, float]:
        return dict(zip(self.constants, np.exp(logs).tolist(), strict=True))

    def _play(self, tasks: list[tuple[int, Floats]]) -> Floats:
        """log(predicted/measured) of rows with constants as logs."""
        work = [(self.rows[i].scenario, self._values(logs)) for i, logs in tasks]
        seconds = map(predict, work) if self.pool is None else self.pool.map(predict, work, chunksize=4)
        found = []
        for (i, _), predicted in zip(tasks, seconds, strict=True):
            found.append(math.log(predicted / self.rows[i].measured))
            if self.progress is not None:
                self.progress(self.rows[i].source, len(found) / len(tasks))
        return np.array(found)

    def errors(self, logs: Floats) -> Floats:
        """(R,) log(predicted/measured)."""
        return self._play([(i, logs) for i in range(len(self.rows))])

    def sensitivities(self, logs: Floats, errors: Floats) -> Floats:
        """(R, K) of log time to log constant, those of a configuration's smallest row for all of its rows."""
        tasks, places = [], []
        # Away from the upper bound, where a constant may count no more (what is sustained never passes the benchmark).
        step = np.where(logs + 2 * STEP > np.log([c.high for c in self.constants]), -STEP, STEP)
        for k, i in enumerate(self.first):
            for c in np.flatnonzero(self.touch[i]).tolist():
                moved = logs.copy()
                moved[c] += step[c]
                tasks.append((i, moved))
                places.append((k, c))
        found = np.zeros((len(self.keys), len(self.constants)))
        for (k, c), error in zip(places, self._play(tasks), strict=True):
            found[k, c] = (error - errors[self.first[k]]) / step[c]
        whole: Floats = found[self.of]
        return whole

    # -- solving -----------------------------------------------------------------------------------------------------
    def solve(self, rounds: int) -> Fit:
        logs = begin = np.log(self.start)
        errors = before = self.errors(logs)
        if not self.constants:
            off = np.exp(errors) - 1
            return Fit((), self.start, self.start, self.rows, off, off, off)
        # Sensitivities hardly change on the way: they are found once.
        jacobian = self.sensitivities(logs, errors)
        for _ in range(rounds):
            moved = self._linear(logs, errors, jacobian, np.ones(len(self.rows), dtype=bool))
            done = float(np.abs(moved - logs).max(initial=0.0)) < 1e-3
            logs = moved
            errors = self.errors(logs)
            if done:
                break
        return Fit(
            constants=self.constants,
            start=np.exp(begin),
            value=np.exp(logs),
            rows=self.rows,
            before=np.exp(before) - 1,
            after=np.exp(errors) - 1,
            left_out=np.exp(self._left_out(logs, errors, jacobian)) - 1,
        )

    def _linear(self, logs: Floats, errors: Floats, jacobian: Floats, kept: NDArray[np.bool_]) -> Floats:
        """Constants (as logs) that fit the kept rows best, if times were straight lines of them from here on."""
        from scipy.optimize import least_squares  # type: ignore[import-untyped]

        low, high = (np.log([getattr(c, end) for c in self.constants]) for end in ("low", "high"))
        spread = np.array([c.spread for c in self.constants])
        begin = np.log(self.start)
        scale = self.weight[kept] / NOISE

        def residuals(at: Floats) -> Floats:
            left = errors[kept] + jacobian[kept] @ (at - logs)
            # Soft L1 by hand, so that what is believed of constants stays quadratic.
            soft = np.sign(left) * ROBUST * np.sqrt(2 * (np.sqrt(1 + (left / ROBUST) ** 2) - 1))
            return np.concatenate([scale * soft, (at - begin) / spread])

        inside = np.clip(logs, low + 1e-9, high - 1e-9)
        moved: Floats = least_squares(residuals, inside, bounds=(low, high)).x
        return moved

    def _left_out(self, logs: Floats, errors: Floats, jacobian: Floats) -> Floats:
        """(R,) errors of rows whose cells weren't in the fit, fold by fold, played with what that fit found."""
        cells = sorted({row.cell for row in self.rows})
        folds = np.array([cells.index(row.cell) % FOLDS for row in self.rows])
        tasks, places = [], []
        for fold in range(FOLDS):
            out = np.flatnonzero(folds == fold)
            if out.size:
                moved = self._linear(logs, errors, jacobian, folds != fold)
                tasks += [(int(i), moved) for i in out]
                places += out.tolist()
        found = np.empty(len(self.rows))
        found[places] = self._play(tasks)
        return found


# -- what a fit leaves behind ------------------------------------------------------------------------------------------------
def entries(fitted: Fit) -> catalog.Extra:
    """The fitted constants as a catalogue file: changes of the entries, which keep their names."""
    found: catalog.Extra = {}
    for constant, value in zip(fitted.constants, fitted.value.tolist(), strict=True):
        entry = found.setdefault(constant.kind, {}).setdefault(constant.entry, {"base": constant.entry})
        for path in constant.paths:
            owner = entry
            *parts, last = path.split(".")
            for part in parts:
                owner = owner.setdefault(part, {})
            owner[last] = _text(path, value)
    return found


def _text(path: str, value: float) -> str | float:
    """Four digits, in the unit that the field is written in."""
    if path.startswith("host.forward"):
        return f"{1e3 * value:.4g} ms"
    return float(f"{value:.4g}") if path.startswith(("overlap", "host")) else f"{100 * value:.4g} %"


def scores(fitted: Fit) -> dict[str, dict[str, float]]:
    """By source, mean absolute error in percent: before the fit, and of configurations that a fit left out."""
    found = {}
    for source in dict.fromkeys(row.source for row in fitted.rows):
        mine = [i for i, row in enumerate(fitted.rows) if row.source == source]
        found[source] = {
            "untuned_mean_pct": round(100 * float(np.abs(fitted.before[mine]).mean()), 2),
            "left_out_mean_pct": round(100 * float(np.abs(fitted.left_out[mine]).mean()), 2),
        }
    return found


def bands(fitted: Fit) -> list[dict[str, Any]]:
    """For each GPU, stack and precision (with what they are based on) how far its rows were off while they were left out."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(fitted.rows):
        job, gpu = row.scenario.job, row.scenario.cluster.nodes[0].type.gpu.name
        key = (catalog.lineage("gpus", gpu), catalog.lineage("software", job.software.name), job.precision)
        found.setdefault(key, []).append(i)
    return [
        {
            "gpu": list(gpu),
            "software": list(software),
            "precision": [precision],
            "most_gpus": max(fitted.rows[i].scenario.cluster.gpus for i in mine),
            "off_pct": sorted(round(100 * abs(float(fitted.left_out[i])), 1) for i in mine),
        }
        for (gpu, software, precision), mine in found.items()
    ]


def catalogue_text(fitted: Fit) -> str:
    """A catalogue file, with what it was fitted on."""
    by_source = Counter(row.source for row in fitted.rows if row.fits)
    rows = ", ".join(f"{source} ({count})" for source, count in by_source.items())
    head = textwrap.fill(
        f"Written by `colossim calibrate`, fitted on {by_source.total()} measured steps: {rows}.",
        width=128, initial_indent="# ", subsequent_indent="# ",
    )  # fmt: skip
    return f"{head}\n{yaml.safe_dump(entries(fitted), sort_keys=False, width=128)}"


def fit_sources(
    sources: Sequence[str],
    workers: int,
    progress: Callable[[str, float], None] | None = None,
    constants: Sequence[Constant] | None = None,
) -> Fit:
    """Fits on the published runs of some sources (or a user's file), or of all. constants: those that ship when absent.

    Of all, those whose GPU has constants: the others are predictions. Raises ScenarioError if a source isn't known, or has
    fewer configurations than constants, or if scipy isn't there.
    """
    if importlib.util.find_spec("scipy") is None:
        raise ScenarioError([Problem("", "calibrating needs scipy: pip install 'colossim[calibration]'")])
    constants = shipped_constants() if constants is None else constants
    runs = [run for source in sources for run in published(source)] if sources else published()
    rows = rows_of(runs)
    if not sources:
        of_gpus = [c for c in shipped_constants() if c.kind == "gpus"]
        rows = tuple(row for row in rows if any(touches(c, row.scenario) for c in of_gpus))
    try:
        if workers == 1:
            return fit(rows, constants, progress=progress, calibrated=bool(sources))
        with processes(workers) as pool:
            return fit(rows, constants, pool=pool, progress=progress, calibrated=bool(sources))
    except ValueError as error:
        raise ScenarioError([Problem("", str(error))]) from None
