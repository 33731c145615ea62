"""Measured collectives and what is predicted for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from colossim.footprint import Floats
from colossim.plot.canvas import new_axes, new_figure, plain, size_ticks, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.measured import Point

#: Colour of each collective's points.
_OPERATION = {
    "all_reduce": "#1b4f72", "all_to_all": "#d98032", "all_gather": "#5a8f5a", "reduce_scatter": "#7d5ba6",
    "broadcast": "#999999",
}  # fmt: skip
#: Bounds of the bands around a right prediction, as relative errors.
BANDS = (0.1, 0.2)
_RATIOS = {
    1 / 16: "1/16", 1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2", 1 / 1.2: "1/1.2", 1: "1", 1.2: "1.2", 2: "2", 4: "4", 8: "8",
}  # fmt: skip
_SHADES = ("#d4d4d4", "#ececec")


def predicted(points: Sequence[Point], ax: Axes | None = None) -> Axes:
    """Predicted over measured bus bandwidth beside `errors`. With `ax`, only the former is drawn there; returns its Axes.

    Both in GB/s on logarithmic scales, with bands of 10 and 20 %. points: of `measured.points`. Above the line: predicted
    faster than measured.
    """
    if ax is None:
        figure = new_figure(12.5, 6)
        ax = figure.add_subplot(1, 2, 1)
        errors(points, figure.add_subplot(1, 2, 2))
    x = np.array([point.measured for point in points]) / 1e9
    y = np.array([point.predicted for point in points]) / 1e9
    low, high = 0.6 * float(min(x.min(), y.min())), 1.7 * float(max(x.max(), y.max()))
    ends = np.array([low, high])
    for band, shade in reversed(list(zip(BANDS, _SHADES, strict=True))):
        ax.fill_between(ends, ends / (1 + band), ends * (1 + band), color=shade, linewidth=0, label=_within(band))
    ax.plot(ends, ends, color="#333333", linewidth=0.5)
    _scatter(ax, points, x, y)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_xlabel("measured bus bandwidth (GB/s)")
    ax.set_ylabel("predicted bus bandwidth (GB/s)")
    ax.legend(loc="upper left", fontsize=8.5, frameon=False)
    title(ax, f"{len(points)} measured collectives and what is predicted for them")
    plain(ax)
    return ax


def errors(points: Sequence[Point], ax: Axes | None = None) -> Axes:
    """Predicted over measured time, by message size, with bands of 10 and 20 %. Rows without a size aren't drawn."""
    if ax is None:
        ax = new_axes(7, 5)
    sized = [point for point in points if point.row.bytes]
    x = np.array([point.row.bytes for point in sized], dtype=np.float64)
    y = 1 + np.array([point.error for point in sized])
    for band, shade in reversed(list(zip(BANDS, _SHADES, strict=True))):
        ax.axhspan(1 / (1 + band), 1 + band, color=shade, linewidth=0, label=_within(band))
    ax.axhline(1, color="#333333", linewidth=0.5)
    _scatter(ax, sized, x, y)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    low, high = min(0.5, 0.85 * float(y.min())), max(2.0, 1.15 * float(y.max()))
    ax.set_ylim(low, high)
    ticks = [t for t in _RATIOS if low <= t <= high]
    ax.set_yticks(ticks, [_RATIOS[t] for t in ticks])
    ax.set_yticks([], minor=True)
    size_ticks(ax)
    ax.set_xlabel("message size")
    ax.set_ylabel("predicted over measured time")
    title(ax, f"by message size ({len(sized)} rows that print one)")
    plain(ax)
    return ax


def _within(band: float) -> str:
    return f"within {100 * band:.0f} %"


def _scatter(
    ax: Axes,
    points: Sequence[Point],
    x: Floats,
    y: Floats,
) -> None:
    for operation, color in _OPERATION.items():
        for large in (True, False):
            some = [i for i, p in enumerate(points) if p.row.operation == operation and p.row.large == large]
            if some:
                label = f"{operation.replace('_', '-')}, {'from' if large else 'below'} 1 MiB"
                marker = "o" if large else "v"
                ax.plot(
                    x[some], y[some], marker, color=color, markersize=4.5, alpha=0.7, markeredgewidth=0, label=label
                )
