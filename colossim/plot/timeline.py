"""The step on a clock: one row a pipeline stage, computing, communicating, waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from colossim.engine.record import CATEGORIES, Timeline
from colossim.plot.canvas import new_axes, plain
from colossim.units import format_share, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.result import Result

#: Legend, colour (each of another lightness). The order is that of the index in `_shades`.
_SHADES = (
    ("forward", "#6fa3cc"),
    ("backward", "#12304a"),
    ("optimizer, launches", "#3f7d4e"),
    ("communicating", "#f7bb66"),
    ("waiting", "#f4f4f4"),
)
_COMMUNICATING = [CATEGORIES.index(name) for name in CATEGORIES if name.endswith("_comm")]
_WAITING = [CATEGORIES.index(name) for name in ("pipeline_bubble", "straggler")]
_COLUMNS = 1600


def _shades(timeline: Timeline) -> np.ndarray[Any, Any]:
    """(intervals,) index into _SHADES."""
    shade = np.where(timeline.direction == 1, 1, 0)
    own = np.isin(timeline.category, [CATEGORIES.index("optimizer"), CATEGORIES.index("other")])
    shade[own] = 2
    shade[np.isin(timeline.category, _COMMUNICATING)] = 3
    shade[np.isin(timeline.category, _WAITING)] = 4
    return shade


def raster(timeline: Timeline, step: float, columns: int) -> np.ndarray[Any, Any]:
    """(columns, shades) share of each column of the clock that the stage spends in each shade."""
    shade = _shades(timeline)
    edges = np.linspace(0.0, step, columns + 1)
    shares = np.empty((columns, len(_SHADES)))
    bounds = np.concatenate((timeline.start, timeline.end[-1:]))
    for i in range(len(_SHADES)):
        spent = np.concatenate(([0.0], np.cumsum(np.where(shade == i, timeline.end - timeline.start, 0.0))))
        shares[:, i] = np.diff(np.interp(edges, bounds, spent)) / np.diff(edges)
    return shares


def timeline(result: Result, ax: Axes | None = None) -> Axes:
    """One row a stage (its first rank class); each pixel shows the mix of what the stage does in it."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    record = result.record
    rows: dict[tuple[int, str], Timeline] = {}
    for line in record.timelines:
        rows.setdefault((line.stage, line.hardware), line)
    if len(rows) > 64:
        # More stages than pixels: every n-th.
        keep = sorted(rows)[:: -(-len(rows) // 64)]
        rows = {key: rows[key] for key in keep}
    if ax is None:
        ax = new_axes(10, 1.7 + min(8.0, 0.26 * max(3, len(rows))))
    milli = record.step_time < 1
    scale, unit = (1e3, "ms") if milli else (1.0, "s")
    colours = np.array([to_rgb(colour) for _, colour in _SHADES])
    image = np.stack([np.clip(raster(line, record.step_time, _COLUMNS) @ colours, 0, 1) for line in rows.values()])
    ax.imshow(
        image, aspect="auto", interpolation="nearest", extent=(0.0, record.step_time * scale, len(rows) - 0.5, -0.5)
    )
    for row in range(1, len(rows)):
        ax.axhline(row - 0.5, color="white", linewidth=1.2)
    several = len({hardware for _, hardware in rows}) > 1
    ax.set_yticks(
        range(len(rows)), [f"{stage} {hardware}" if several else str(stage) for stage, hardware in rows], fontsize=8
    )
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("pipeline stage")
    ax.set_xlabel(f"time in the step ({unit})")
    bubble = result.breakdown_s["pipeline_bubble"] / result.step_time_s
    ax.set_title(
        f"{result.scenario}: one step of {format_time(result.step_time_s)} on {result.gpus_in_job:,} GPUs; "
        f"the pipeline bubble takes {format_share(bubble)}",
        loc="left",
        fontsize=10,
    )
    ax.legend(
        handles=[Patch(facecolor=colour, edgecolor="#777777", linewidth=0.5, label=label) for label, colour in _SHADES],
        loc="upper left",
        bbox_to_anchor=(1.005, 1.0),
        frameon=False,
        fontsize=8.5,
    )
    plain(ax)
    return ax
