"""Fitting constants of the catalogue on measured steps: few of them, robustly, and tried on configurations left out.

A *constant* is one number of a GPU type or of a software stack (`catalog/constants.yaml` lists which, with bounds and a
spread of what is believed beforehand). The fit is a robust least-squares of log(predicted/measured), in which a
configuration counts once however many rows it has: rows that differ in replicas only are near-duplicates, and share their
sensitivities. Cross-validation leaves whole configurations out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from colossim import catalog
from colossim.scenario.schema import Measured, Scenario
from colossim.simulation import simulate

Floats = NDArray[np.float64]
#: Relative error beyond which a row counts less than in proportion to its square (soft L1).
ROBUST = 0.05
#: What a measured step is uncertain by, whatever was measured: weighs rows against what is believed of constants.
NOISE = 0.02
#: Relative change of a constant by which sensitivities are found.
STEP = 0.02
FOLDS = 5


@dataclass(frozen=True)
class Constant:
    """One number of a catalogue entry. low, high: bounds, SI.  spread: of what is believed beforehand, relative."""

    kind: str
    entry: str
    path: str
    low: float
    high: float
    spread: float

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.entry}.{self.path}"


@dataclass(frozen=True)
class Row:
    """A measured step. configuration: rows of one are near-duplicates of each other."""

    source: str
    case: str
    scenario: Scenario
    measured: float
    configuration: tuple[Any, ...]


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


def row_of(source: str, case: str, scenario: Scenario, measured: Measured) -> Row:
    """A row whose configuration is its model, tensor group, micro-batch, precision and recompute."""
    assert measured.step_time is not None
    job, gpu = scenario.job, scenario.cluster.nodes[0].type.gpu.name
    shape = (job.model.hidden, job.model.ffn, job.model.experts, job.sequence_length)
    cut = (job.parallelism.tensor, job.parallelism.context, job.micro_batch)
    key = (gpu, job.software.name, *shape, *cut, job.precision, job.recompute)
    return Row(source, case, scenario, measured.step_time, key)


def touches(constant: Constant, scenario: Scenario) -> bool:
    """Whether the scenario has an entry that is the constant's, or is based on it."""
    return any(constant.entry in catalog.lineage(constant.kind, name) for name in _names(scenario, constant.kind))


def _names(scenario: Scenario, kind: str) -> set[str]:
    if kind == "software":
        return {scenario.job.software.name}
    return {group.type.gpu.name for group in scenario.cluster.nodes}


def value_of(scenario: Scenario, constant: Constant) -> float:
    """What the scenario's entry has."""
    if constant.kind == "software":
        owner: Any = scenario.job.software
    else:
        owner = next(
            group.type.gpu
            for group in scenario.cluster.nodes
            if constant.entry in catalog.lineage(constant.kind, group.type.gpu.name)
        )
    for part in constant.path.split("."):
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    return float(owner)


def with_values(scenario: Scenario, values: dict[Constant, float]) -> Scenario:
    """The scenario with other values of constants that it touches."""
    for constant, value in values.items():
        if not touches(constant, scenario):
            continue
        path = constant.path.split(".")
        if constant.kind == "software":
            job = scenario.job.model_copy(update={"software": _with(scenario.job.software, path, value)})
            scenario = scenario.model_copy(update={"job": job})
            continue
        groups = []
        for group in scenario.cluster.nodes:
            node = group.type
            if constant.entry in catalog.lineage(constant.kind, node.gpu.name):
                node = node.model_copy(update={"gpu": _with(node.gpu, path, value)})
            groups.append(group.model_copy(update={"type": node}))
        cluster = scenario.cluster.model_copy(update={"nodes": tuple(groups)})
        scenario = scenario.model_copy(update={"cluster": cluster})
    return scenario


def _with(owner: Any, path: Sequence[str], value: float) -> Any:
    """A copy of an entry, or of a part of it, with one number changed."""
    name, *rest = path
    if isinstance(owner, dict):
        return {**owner, name: _with(owner[name], rest, value) if rest else value}
    assert isinstance(owner, BaseModel)
    return owner.model_copy(update={name: _with(getattr(owner, name), rest, value) if rest else value})


def predict(task: tuple[Scenario, dict[Constant, float]]) -> float:
    """Seconds a step, whether or not the job fits."""
    scenario, values = task
    return simulate(with_values(scenario, values), must_fit=False).step_time_s


def fit(
    rows: Sequence[Row],
    constants: Sequence[Constant],
    *,
    pool: Executor | None = None,
    rounds: int = 4,
    progress: Callable[[str, float], None] | None = None,
) -> Fit:
    """Fits the constants that the rows touch.

    pool: plays rows side by side.  rounds: of sensitivities found anew.
    Raises ValueError if there are fewer configurations than constants.
    """
    used = tuple(c for c in constants if any(touches(c, row.scenario) for row in rows))
    configurations = {row.configuration for row in rows}
    if len(configurations) < len(used):
        raise ValueError(f"{len(rows)} rows of {len(configurations)} configurations can't tell {len(used)} constants")
    problem = _Problem(tuple(rows), used, pool, progress)
    return problem.solve(rounds)


@dataclass
class _Problem:
    rows: tuple[Row, ...]
    constants: tuple[Constant, ...]
    pool: Executor | None
    progress: Callable[[str, float], None] | None

    def __post_init__(self) -> None:
        self.keys = list(dict.fromkeys(row.configuration for row in self.rows))
        self.of = np.array([self.keys.index(row.configuration) for row in self.rows])
        self.touch = np.array([[touches(c, row.scenario) for c in self.constants] for row in self.rows])
        self.start = np.array([
            value_of(self.rows[int(np.flatnonzero(self.touch[:, k])[0])].scenario, c)
            for k, c in enumerate(self.constants)
        ])  # fmt: skip
        # The smallest row of a configuration stands for its sensitivities.
        gpus = [row.scenario.cluster.gpus for row in self.rows]
        self.first = [int(min(np.flatnonzero(self.of == k), key=lambda i: gpus[i])) for k in range(len(self.keys))]
        self.weight = 1.0 / np.sqrt(np.bincount(self.of)[self.of])

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
        for k, i in enumerate(self.first):
            for c in np.flatnonzero(self.touch[i]).tolist():
                moved = logs.copy()
                moved[c] += STEP
                tasks.append((i, moved))
                places.append((k, c))
        found = np.zeros((len(self.keys), len(self.constants)))
        for (k, c), error in zip(places, self._play(tasks), strict=True):
            found[k, c] = (error - errors[self.first[k]]) / STEP
        whole: Floats = found[self.of]
        return whole

    # -- solving -----------------------------------------------------------------------------------------------------
    def solve(self, rounds: int) -> Fit:
        logs = begin = np.log(self.start)
        errors = before = self.errors(logs)
        for _ in range(rounds):
            jacobian = self.sensitivities(logs, errors)
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
        """(R,) errors of rows whose configurations weren't in the fit, fold by fold, played with what that fit found."""
        folds = np.array([sorted(self.keys, key=str).index(key) % FOLDS for key in self.keys])[self.of]
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
