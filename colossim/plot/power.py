"""Power of the site through the step, by what GPUs do; of a campaign also over wall time, with the dips of interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colossim.plot.canvas import new_axes, new_figure, plain, title
from colossim.units import format_energy, format_power, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.result import Result

_ORANGE = "#c0561b"
#: Colour of each part, from below; each of another lightness.
_PARTS = (
    ("nodes, switches, idle GPUs", "#8a97a1"),
    ("GPUs: arithmetic", "#1b4f72"),
    ("GPUs: memory-bound", "#5a8f5a"),
    ("GPUs: communicating", "#e59c4b"),
    ("GPUs: waiting", "#d4d4d4"),
)
#: Interruptions that wall time is drawn for: more would be a hatching.
_MOST_STOPS = 30
_UNITS = ((86400.0, "days", 3.0), (3600.0, "h", 3.0), (60.0, "min", 3.0), (1.0, "s", 1.0), (1e-3, "ms", 0.0))
_POWERS = ((1e9, "GW"), (1e6, "MW"), (1e3, "kW"), (1.0, "W"))


def _scale(value: float) -> tuple[float, str]:
    return next(((scale, name) for scale, name in _POWERS if value >= scale), _POWERS[-1])


def _clock(seconds: float) -> tuple[float, str]:
    return next((scale, name) for scale, name, least in _UNITS if seconds >= least * scale)


def power(result: Result, ax: Axes | None = None) -> Axes:
    """The step; below it, of a campaign, wall time. With `ax`, the step alone is drawn there. Returns its Axes."""
    if ax is not None:
        return _step(result, ax)
    if result.campaign is None or result.campaign.growth is not None:
        # Of a cluster that changes the first stops are no picture of its weeks.
        return _step(result, new_axes(10, 4.6))
    figure = new_figure(10, 7.4)
    upper, lower = figure.subplots(2, 1, height_ratios=[4.6, 2.6])
    power_over_time(result, lower)
    return _step(result, upper)


def _step(result: Result, ax: Axes) -> Axes:
    course, told = result.course, result.power
    (scale, unit), (clock, seconds) = _scale(told.provisioned_W), _clock(result.step_time_s)
    fixed = np.full(course.seconds.shape, course.nodes + course.switches + course.idle)
    below = np.zeros(course.seconds.shape)
    edges = course.times / clock
    for (label, colour), part in zip(_PARTS, (fixed, *course.gpus.T), strict=True):
        above = below + course.pue * part / scale
        ax.stairs(above, edges, baseline=below, fill=True, color=colour, label=label, linewidth=0)
        below = above
    ax.stairs(below, edges, color="black", linewidth=0.7, baseline=None)
    ax.set_xlim(0, edges[-1])
    ax.set_ylim(0, 1.12 * max(told.provisioned_W, told.peak_W) / scale)
    ax.axhline(told.provisioned_W / scale, color="#555555", linestyle="--", linewidth=1.2)
    ax.text(0.005 * edges[-1], told.provisioned_W / scale, f"provisioned {format_power(told.provisioned_W)}: rated nodes and"
            f" switches, x PUE {course.pue:g}", va="bottom", fontsize=9, color="#555555")  # fmt: skip
    for name, value in (("peak", told.peak_W), ("mean", told.site_W), ("trough", told.trough_W)):
        mean = name == "mean"
        ax.axhline(value / scale, color=_ORANGE, linewidth=1.6 if mean else 0.9, linestyle="-" if mean else ":")
    _beside(ax, told.trough_W / scale, told.site_W / scale, told.peak_W / scale, scale)
    ax.set_ylabel(f"power of the site ({unit})")
    ax.set_xlabel(f"time in the step ({seconds})")
    ax.legend(
        *(side[::-1] for side in ax.get_legend_handles_labels()),
        loc="upper left",
        bbox_to_anchor=(1.12, 1.0),
        frameon=False,
        fontsize=8.5,
        title=f"PUE {course.pue:g} in all parts",
        title_fontsize=8.5,
        alignment="left",
    )
    wave = "" if told.swing_period_s is None else f", above all in waves of {format_time(told.swing_period_s)}"
    title(
        ax,
        f"{result.scenario}: {format_power(told.site_W)} in the mean, {format_power(told.it_W)} of it IT\n"
        f"swings by {format_power(told.swing_W)} each step of {format_time(result.step_time_s)}{wave}; "
        f"a battery of {format_energy(told.battery_J)} would level it",
    )
    plain(ax)
    return ax


def _beside(ax: Axes, trough: float, mean: float, peak: float, scale: float) -> None:
    """Names of the lines, right of the Axes, kept from each other; an arrow over the swing."""
    height = ax.get_ylim()[1]
    gap = 0.052 * height
    places = [trough, max(mean, trough + gap), 0.0]
    places[2] = max(peak, places[1] + gap)
    for name, value, at in zip(("trough", "mean", "peak"), (trough, mean, peak), places, strict=True):
        ax.text(1.005, at / height, f"{name} {format_power(value * scale)}", color=_ORANGE, fontsize=9, va="center",
                transform=ax.transAxes)  # fmt: skip
    if peak - trough > 0.02 * height:
        x = 0.985 * ax.get_xlim()[1]
        ax.annotate("", (x, peak), (x, trough), arrowprops={"arrowstyle": "<->", "color": _ORANGE, "linewidth": 1.2})


def power_over_time(result: Result, ax: Axes | None = None) -> Axes:
    """Power over the wall time of a campaign's first seed, up to its 30th interruption: means of steps, dips where it stands.

    Raises SimulationError if the result has no campaign.
    """
    from colossim.plot.campaign import campaign_of

    campaign = campaign_of(result)
    if ax is None:
        ax = new_axes(10, 3.2)
    edges, drawn = result.power_over_time()
    stops = [item["time_s"] for item in campaign.interruptions]
    until = stops[_MOST_STOPS] if len(stops) > _MOST_STOPS else campaign.wall_s
    (scale, unit), (clock, time) = _scale(result.power.site_W), _clock(until)
    ax.stairs(drawn / scale, edges / clock, color="#1b4f72", fill=True, alpha=0.85, baseline=0)
    mean = result.cost["mean_W"]
    ax.axhline(mean / scale, color=_ORANGE, linewidth=1.6)
    ax.text(1.005, mean / scale, f"mean {format_power(mean)}", color=_ORANGE, fontsize=9, va="center",
            transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set_xlim(0, until / clock)
    ax.set_ylim(0, 1.15 * result.power.site_W / scale)
    ax.set_ylabel(f"power of the site ({unit})")
    ax.set_xlabel(f"wall time ({time}); means of steps, checkpoints not shown")
    part = f"the first {format_time(until)} of " if until < campaign.wall_s else ""
    shown = min(len(stops), _MOST_STOPS)
    title(
        ax,
        f"{part}{format_time(campaign.wall_s)}, {shown:,} interruptions; {format_energy(result.cost['energy_J'])} in all",
    )
    plain(ax)
    return ax
