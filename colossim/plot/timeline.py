"""The step on a clock: one row a pipeline stage, computing, communicating, waiting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from colossim.engine.record import CATEGORIES, StepRecord, Timeline
from colossim.legs import DIRECTION
from colossim.plot.canvas import new_axes, plain, title
from colossim.units import format_share, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.result import Result

#: Legend, colour (each of another lightness). The order is that of the index in `_shades`.
_SHADES = (
    ("forward", "#6fa3cc"),
    ("backward", "#12304a"),
    ("weight gradients", "#7d6aa8"),
    ("optimizer, launches", "#3f7d4e"),
    ("communicating", "#f7bb66"),
    ("waiting", "#f4f4f4"),
)
_WEIGHTS = 2
_COMMUNICATING = [CATEGORIES.index(name) for name in CATEGORIES if name.endswith("_comm")]
_WAITING = [CATEGORIES.index(name) for name in ("pipeline_bubble", "straggler")]
#: Columns of the clock: no more than the figure has pixels, or some would be left out.
_COLUMNS = 1000
_MOST_ROWS = 64
#: A forward and a backward pass on fewer columns than this cannot be told apart.
_FEW_COLUMNS = 5
_COMPUTE = CATEGORIES.index("compute")


def _shades(timeline: Timeline) -> np.ndarray[Any, Any]:
    """(intervals,) index into _SHADES."""
    shade = np.zeros(timeline.direction.shape, dtype=np.int64)
    shade[timeline.direction == DIRECTION["B"]] = 1
    shade[timeline.direction == DIRECTION["W"]] = _WEIGHTS
    own = np.isin(timeline.category, [CATEGORIES.index("optimizer"), CATEGORIES.index("other")])
    shade[own] = 3
    shade[np.isin(timeline.category, _COMMUNICATING)] = 4
    shade[np.isin(timeline.category, _WAITING)] = 5
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


def _turns(timeline: Timeline) -> int:
    """Forward passes of the stage: each has one backward, and one for the weights where they have passes of their own."""
    forward = timeline.direction == DIRECTION["F"]
    return len(np.unique(np.stack((timeline.micro_batch, timeline.chunk))[:, forward], axis=1).T)


def blurred(shares: np.ndarray[Any, Any], turns: int) -> np.ndarray[Any, Any]:
    """The shares as they are, or their moving mean where a forward and a backward pass take less than a few columns.

    Columns that cut such passes here and there beat with them: waves across the picture that nobody computed. A Hann
    window two periods wide takes that frequency out.
    """
    columns = len(shares)
    period = columns / max(1, turns)
    if period > _FEW_COLUMNS:
        return shares
    half = max(1, math.ceil(period))
    window = np.hanning(2 * half + 1)
    padded = np.pad(shares, ((half, half), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, window / window.sum(), mode="valid") for column in padded.T], axis=1)


def _rows(record: StepRecord) -> dict[tuple[int, str], Timeline]:
    """Of each stage and node type the rank class that computes longest, as in the breakdown."""
    rows: dict[tuple[int, str], Timeline] = {}
    longest: dict[tuple[int, str], float] = {}
    for line in record.timelines:
        key = (line.stage, line.hardware)
        computing = float(line.seconds()[_COMPUTE])
        if key not in rows or computing > longest[key] * (1 + 1e-9):
            rows[key], longest[key] = line, computing
    # More stages than pixels: every n-th.
    return {key: rows[key] for key in sorted(rows)[:: -(-len(rows) // _MOST_ROWS)]}


def timeline(result: Result, ax: Axes | None = None) -> Axes:
    """One row a stage (its rank class that computes longest); each pixel shows the mix of what it does in it."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    record = result.record
    rows = _rows(record)
    if ax is None:
        ax = new_axes(10, 1.7 + min(8.0, 0.26 * max(3, len(rows))))
    milli = record.step_time < 1
    scale, unit = (1e3, "ms") if milli else (1.0, "s")
    colours = np.array([to_rgb(colour) for _, colour in _SHADES])
    drawn = [blurred(raster(line, record.step_time, _COLUMNS), _turns(line)) for line in rows.values()]
    image = np.clip(np.stack(drawn) @ colours, 0, 1)
    ax.imshow(
        image, aspect="auto", interpolation="nearest", extent=(0.0, record.step_time * scale, len(rows) - 0.5, -0.5)
    )
    for row in range(1, len(rows)):
        ax.axhline(row - 0.5, color="white", linewidth=1.2)
    several = len({hardware for _, hardware in rows}) > 1
    ax.set_yticks(
        range(len(rows)),
        [f"{stage} {hardware}" if several else str(stage) for stage, hardware in rows],
        fontsize=8,
        parse_math=False,
    )
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("pipeline stage")
    ax.set_xlabel(f"time in the step ({unit})")
    bubble = result.breakdown_s["pipeline_bubble"] / result.step_time_s
    title(
        ax,
        f"{result.scenario}: one step of {format_time(result.step_time_s)} on {result.gpus_in_job:,} GPUs; "
        f"the pipeline bubble takes {format_share(bubble)}",
    )
    apart = any(np.any(line.direction == DIRECTION["W"]) for line in rows.values())
    legend = [shade for i, shade in enumerate(_SHADES) if apart or i != _WEIGHTS]
    ax.legend(
        handles=[Patch(facecolor=colour, edgecolor="#777777", linewidth=0.5, label=label) for label, colour in legend],
        loc="upper left",
        bbox_to_anchor=(1.005, 1.0),
        frameon=False,
        fontsize=8.5,
    )
    plain(ax)
    return ax
