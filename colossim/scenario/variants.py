"""Variants of a scenario: explicit `cases`, and the product that `grid` spans."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from colossim.errors import Problem, ScenarioError
from colossim.scenario.reader import Change, build, change_of, read
from colossim.scenario.schema import Measured, Scenario


@dataclass(frozen=True)
class Variant:
    """One scenario of a file. label: what it is called; measured: what the real world gave."""

    label: str
    scenario: Scenario
    measured: Measured | None


def load_variants(source: str | Path, *, set: Iterable[str] = (), case: str | None = None) -> list[Variant]:
    """All variants of a scenario file: each case with each point of the grid; itself, if it has neither.

    case: only the variants of the case of that name. Raises ScenarioError with the problems of all of them.
    """
    document, file = read(source)
    given = [change_of(text) for text in set]
    base = build(document, file, given)
    cases: list[tuple[str, list[Change], Measured | None]] = []
    for i, entry in enumerate(base.cases):
        changes: list[Change] = [
            (path, value, (file, *document.marks.get(("cases", i, "set", path), (1, 1))))
            for path, value in entry.set.items()
        ]
        cases.append((entry.name or str(i), changes, entry.measured))
    if case is not None:
        from colossim.scenario.reader import case_changes

        case_changes(document, file, case)
        cases = [item for item in cases if item[0] == case]
    points: list[tuple[str, list[Change]]] = []
    axes = [
        [(path, value, (file, *document.marks.get(("grid", path, i), (1, 1)))) for i, value in enumerate(values)]
        for path, values in base.grid.items()
    ]
    for point in itertools.product(*axes):
        label = ", ".join(f"{path.rpartition('.')[2]}={_short(value)}" for path, value, _ in point)
        points.append((label, list(point)))
    if not cases and not base.grid:
        return [Variant(base.name, base, None)]
    variants, problems = [], []
    for (name, changes, measured), (label, more) in itertools.product(cases or [("", [], None)], points or [("", [])]):
        full = ", ".join(part for part in (name, label) if part)
        try:
            variants.append(Variant(full, build(document, file, [*changes, *more, *given]), measured))
        except ScenarioError as error:
            problems += [Problem(p.field, f"{p.message} (in `{full}`)", p.file, p.line, p.column) for p in error.problems]
    if problems:
        raise ScenarioError(problems)
    return variants


def _short(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)
