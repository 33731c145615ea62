"""Variants of a scenario: explicit `cases`, and the product that `grid` spans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from colossim.errors import Problem, ScenarioError
from colossim.scenario.messages import NOWHERE
from colossim.scenario.reader import Change, build, case_changes, change_of, read
from colossim.scenario.schema import Measured, Scenario
from colossim.yaml12 import Document

#: More variants than this are a mistake in a grid and not a study.
MOST_VARIANTS = 10_000


class Variant(NamedTuple):
    """One scenario of a file. label: what it is called.  measured: what the real world gave, if it did."""

    label: str
    scenario: Scenario
    measured: Measured | None


def load_variants(source: str | Path, set: Iterable[str] = (), case: str | None = None) -> list[Variant]:
    """All variants of a scenario file: each case with each point of the grid; itself, if it has neither.

    set: changes as `path=value` that every variant has.  case: only the variants of the case of that name.
    Raises ScenarioError with the problems of all of them.
    """
    document, file = read(source)
    given = [change_of(text) for text in set]
    base = build(document, file, given)
    if case is not None:
        case_changes(document, file, case)
    cases: list[tuple[str, list[Change], Measured | None]] = []
    for i, entry in enumerate(base.cases):
        label = entry.name or str(i)
        if case in (None, label):
            changes = [_change(base, file, path, ("cases", i, "set", path), value) for path, value in entry.set.items()]
            cases.append((label, changes, entry.measured))
    axes = [
        [_change(base, file, path, ("grid", path, i), value) for i, value in enumerate(values)]
        for path, values in base.grid.items()
    ]
    count = max(1, len(cases)) * math.prod(len(axis) for axis in axes)
    if count > MOST_VARIANTS:
        message = f"spans {count:,} variants: at most {MOST_VARIANTS:,}"
        raise base.located(ScenarioError([Problem("grid", message)]))
    points = [(", ".join(map(_short, point)), list(point)) for point in itertools.product(*axes)]
    if not cases and not axes:
        return [Variant(base.name, base, None)]
    alone = _without_variants(document)
    variants: list[Variant] = []
    problems: dict[Problem, str] = {}
    for (name, changes, measured), (label, more) in itertools.product(cases or [("", [], None)], points):
        full = ", ".join(part for part in (name, label) if part)
        try:
            variants.append(Variant(full, build(alone, file, [*changes, *more, *given]), measured))
        except ScenarioError as error:
            for problem in error.problems:
                problems.setdefault(problem, full)
    if problems:
        raise ScenarioError(
            Problem(p.field, f"{p.message} (in the variant `{first}`)", p.file, p.line, p.column)
            for p, first in problems.items()
        )
    return variants


def _without_variants(document: Document) -> Document:
    """The document less its cases and grid: a variant is one of them, and has none itself."""
    if not isinstance(document.value, dict):
        return document
    dropped = ("cases", "grid")
    return Document(
        {key: part for key, part in document.value.items() if key not in dropped},
        {path: place for path, place in document.marks.items() if not path or path[0] not in dropped},
        {path: place for path, place in document.keys.items() if not path or path[0] not in dropped},
    )


def _change(base: Scenario, file: str, path: str, at: tuple[str | int, ...], value: object) -> Change:
    """A change of a case or the grid, with its place in the file."""
    return path, value, base.place(".".join(map(str, at))) or (file, *NOWHERE[1:])


def _short(change: Change) -> str:
    """`tensor=4` for a change of job.parallelism.tensor."""
    path, value, _ = change
    name = path.rpartition(".")[2]
    if isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    return f"{name}={list(value) if isinstance(value, tuple) else value}"
