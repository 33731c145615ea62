"""What can go wrong, as exceptions that a caller would catch.

ScenarioError: the scenario is wrong (exit code 2). SimulationError: it is sound but can't be played (exit 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: which field, what, and what would be right; line and column count from 1."""

    field: str
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        field = "" if place == f"--set {self.field}" else self.field
        return ": ".join(part for part in (place, field, self.message) if part)


class ScenarioError(ValueError):
    """Every problem of a scenario at once, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SimulationError(RuntimeError):
    """The scenario is sound, yet the simulation cannot proceed."""


class DoesNotFit(SimulationError):
    """The model doesn't fit in the memory of a GPU."""


class TooManyClasses(SimulationError):
    """Folding leaves too many classes to play in seconds."""
