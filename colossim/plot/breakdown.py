"""Where the step goes: a bar a category, longest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colossim.engine.record import LABEL
from colossim.plot.canvas import STYLE, new_axes, plain, title
from colossim.units import format_share, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.result import Result


def breakdown(result: Result, ax: Axes | None = None) -> Axes:
    """Seconds of the step by what they went to, on the stage that computes longest."""
    parts = [(name, s) for name, s in result.breakdown_s.items() if s >= 5e-4 * result.step_time_s]
    parts.sort(key=lambda item: -item[1])
    if ax is None:
        ax = new_axes(8, 1.3 + 0.38 * len(parts))
    milli = result.step_time_s < 1
    scale, unit = (1e3, "ms") if milli else (1.0, "s")
    for row, (name, seconds) in enumerate(parts):
        colour, hatch = STYLE[name]
        ax.barh(row, seconds * scale, color=colour, hatch=hatch, edgecolor="#555555", linewidth=0.5, height=0.72)
        label = f" {format_time(seconds)}  ({format_share(seconds / result.step_time_s)})"
        ax.text(seconds * scale, row, label, va="center", ha="left", fontsize=9)
    ax.set_yticks(range(len(parts)), [LABEL[name] for name, _ in parts])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.28 * max(seconds for _, seconds in parts) * scale)
    ax.set_xlabel(f"time in one step ({unit})")
    place = result.bottleneck
    where = (
        f"stage {place['stage']} of {place['stages']}, which computes longest" if place["stages"] > 1 else "every rank"
    )
    step = f"a step of {format_time(result.step_time_s)} at {format_share(result.mfu)} MFU"
    title(ax, f"{result.scenario}: {step}\n{where}")
    plain(ax)
    return ax
