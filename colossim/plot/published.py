"""Published runs and what is predicted for them: step times, and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from colossim.plot.canvas import new_axes, new_figure, plain, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bounds of the bands around a right prediction, as relative errors, and their shades.
BANDS = ((0.1, "#ececec"), (0.05, "#d4d4d4"))
#: A colour and a marker a source, by name; both repeat, with different periods.
_COLORS = ("#1b4f72", "#c0561b", "#5a8f5a", "#7d5ba6", "#b8860b", "#2a9d8f", "#a83253")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


def published(report: dict[str, Any], ax: Axes | None = None) -> Axes:
    """Predicted over measured step times in s, on logarithmic scales, with bands of 5 and 10 %.

    report: of `validation.validate`.  Flagged rows are hollow. Without `ax` a figure of its own, with memory beside it if
    any was measured; returns the Axes of the step times.
    """
    cases, memory = report["cases"], report["memory"]["cases"]
    if ax is None:
        if not cases:
            return published_memory(report)
        figure = new_figure(15 if memory else 9, 6.5)
        ax = figure.add_subplot(1, 2 if memory else 1, 1)
        if memory:
            published_memory(report, figure.add_subplot(1, 2, 2))
    _compare(ax, report, cases, "measured_s", "predicted_s", 1.0)
    ax.set_xlabel("measured step time (s)")
    ax.set_ylabel("predicted step time (s)")
    title(ax, f"{len(cases)} published step times and what is predicted for them")
    return ax


def published_memory(report: dict[str, Any], ax: Axes | None = None) -> Axes:
    """Predicted over measured memory of the fullest GPU, in GB, drawn like `published`."""
    if ax is None:
        ax = new_axes(9, 6.5)
    cases = report["memory"]["cases"]
    _compare(ax, report, cases, "measured_bytes", "predicted_bytes", 1e9)
    ax.set_xlabel("measured memory of a GPU (GB)")
    ax.set_ylabel("predicted memory of the fullest GPU (GB)")
    title(ax, f"{len(cases)} published memories and what is predicted for them")
    return ax


def _compare(
    ax: Axes, report: dict[str, Any], cases: list[dict[str, Any]], measured: str, predicted: str, unit: float
) -> None:
    """Draws cases; a source looks the same in both pictures of a report."""
    x = np.array([case[measured] for case in cases]) / unit
    y = np.array([case[predicted] for case in cases]) / unit
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = 0.8 * float(min(x.min(), y.min())), 1.25 * float(max(x.max(), y.max()))
    ends = np.array([low, high])
    for band, shade in BANDS:
        ax.fill_between(
            ends, ends / (1 + band), ends * (1 + band), color=shade, linewidth=0, label=f"within {100 * band:.0f} %"
        )
    ax.plot(ends, ends, color="#333333", linewidth=0.5)
    sources = {case["source"] for part in (report, report["memory"]) for case in part["cases"]}
    for i, source in enumerate(sorted(sources)):
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        for flagged in (False, True):
            some = [j for j, case in enumerate(cases) if case["source"] == source and bool(case["flag"]) == flagged]
            if some:
                face = "none" if flagged else color
                label = f"{source}, flagged" if flagged else source
                ax.plot(
                    x[some], y[some], marker, color=color, markerfacecolor=face, markersize=4.5, alpha=0.7, label=label
                )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    plain(ax)
