"""What a calibration found, for people and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

    from colossim.calibrate import Fit


def facts(fitted: Fit) -> dict[str, Any]:
    """constants: {name: {before, after, low, high}}; sources: {name: n and mean absolute errors in percent}."""
    return {
        "constants": {
            constant.name: {"before": before, "after": after, "low": constant.low, "high": constant.high}
            for constant, before, after in zip(
                fitted.constants, fitted.start.tolist(), fitted.value.tolist(), strict=True
            )
        },
        "sources": {
            source: {
                "n": len(mine),
                "before_mean_pct": _mean(fitted.before[mine]),
                "after_mean_pct": _mean(fitted.after[mine]),
                "left_out_mean_pct": _mean(fitted.left_out[mine]),
            }
            for source, mine in _by_source(fitted).items()
        },
    }


def _by_source(fitted: Fit) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, row in enumerate(fitted.rows):
        found.setdefault(row.source, []).append(i)
    return found


def _mean(errors: np.ndarray) -> float:
    return 100 * float(np.abs(errors).mean())


def show_calibration(fitted: Fit, console: Console) -> None:
    """Two tables: constants, and errors by source."""
    from rich.table import Table

    report = facts(fitted)
    table = Table(title="constants", title_justify="left", box=None)
    for title in ("constant", "before", "after", "from", "to"):
        table.add_column(title, justify="left" if title == "constant" else "right")
    for name, row in report["constants"].items():
        table.add_row(name, *(f"{row[key]:.4g}" for key in ("before", "after", "low", "high")))
    console.print(table)
    errors = Table(title="mean absolute error of the step time", title_justify="left", box=None)
    for title in ("source", "rows", "before", "after", "left out"):
        errors.add_column(title, justify="left" if title == "source" else "right")
    for name, row in report["sources"].items():
        errors.add_row(
            name, str(row["n"]), *(f"{row[f'{key}_mean_pct']:.1f} %" for key in ("before", "after", "left_out"))
        )
    console.print(errors)
