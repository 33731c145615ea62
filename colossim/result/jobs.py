"""What several jobs on one fabric cost each other, as numbers and on the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from colossim.result.result import Result
from colossim.units import format_time


@dataclass(frozen=True)
class JobResult:
    """One job. gpus: of its ranks.  alone: its result with the fabric to itself.  together_s: s a step beside the others."""

    name: str
    placement: str
    gpus: int
    alone: Result
    together_s: float

    @property
    def slowdown(self) -> float:
        """Its step beside the others over its step alone."""
        return self.together_s / self.alone.step_time_s

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "placement": self.placement,
            "gpus_in_job": self.gpus,
            "step_time_s": self.together_s,
            "alone_step_time_s": self.alone.step_time_s,
            "slowdown": self.slowdown,
            "alone": self.alone.to_dict(),
        }


@dataclass(frozen=True)
class JobsResult:
    """All jobs of a scenario. classes: of ranks, when all are played together.  command_s: s in all."""

    scenario: str
    description: str
    gpus: int
    seed: int
    fold: str
    jobs: tuple[JobResult, ...]
    classes: int
    assumptions: tuple[str, ...]
    command_s: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "scenario": self.scenario,
            "gpus": self.gpus,
            "seed": self.seed,
            "fold": self.fold,
            "classes": {"ranks": self.classes},
            "jobs": [job.to_dict() for job in self.jobs],
            "assumptions": list(self.assumptions),
            "wall_s": self.command_s,
        }

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, default=list)


def show_jobs(result: JobsResult, console: Console) -> None:
    """The page of a run with several jobs."""
    console.print(f"[bold]{result.scenario}[/bold]: {len(result.jobs)} jobs on {result.gpus:,} GPUs", highlight=False)
    table = Table(box=None, pad_edge=False)
    for title in ("job", "placement"):
        table.add_column(title)
    for title in ("GPUs", "alone", "together", "slowdown"):
        table.add_column(title, justify="right")
    for job in result.jobs:
        table.add_row(
            job.name,
            job.placement,
            f"{job.gpus:,}",
            format_time(job.alone.step_time_s),
            format_time(job.together_s),
            f"{100 * (job.slowdown - 1):+.1f} %",
        )
    console.print(table)
    for text in result.assumptions:
        console.print(f"assumed: {text}", highlight=False, markup=False)
