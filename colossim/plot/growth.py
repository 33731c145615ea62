"""A cluster that changes: GPUs in the job, what they do, and tokens so far beside those without the changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colossim.errors import SimulationError
from colossim.plot.campaign import campaign_of, unit_of
from colossim.plot.canvas import new_figure, plain, title
from colossim.units import format_count, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.growth import Growth
    from colossim.result.result import Result

_DARK, _ORANGE, _PALE = "#1b4f72", "#c0561b", "#b9c6cf"
#: Levels of throughput along the wall time.
_WINDOWS = 150


def growth(result: Result, ax: Axes | None = None) -> Axes:
    """Three panels over the wall time: GPUs, tokens a second, tokens so far. With `ax`, the last is drawn there alone.

    Returns the last one's Axes. Raises SimulationError if the cluster didn't change.
    """
    found = campaign_of(result).growth
    if found is None:
        raise SimulationError(f"{result.scenario}: its cluster doesn't change: `events` say how it would")
    wall = found.log.wall
    if ax is not None:
        _so_far(found, wall, ax)
        title(ax, f"{result.scenario}: tokens so far")
        return ax
    figure = new_figure(9, 8)
    grid = figure.add_gridspec(3, 1, height_ratios=[1, 1.1, 1.6])
    upper = figure.add_subplot(grid[0])
    _gpus(found, wall, upper)
    rates = figure.add_subplot(grid[1], sharex=upper)
    _rates(found, wall, rates)
    lower = figure.add_subplot(grid[2], sharex=upper)
    _so_far(found, wall, lower)
    for panel in (upper, rates):
        panel.tick_params(labelbottom=False)
        panel.set_xlabel("")
    rows = found.stretches
    title(
        upper,
        f"{result.scenario}: {rows[0]['gpus_in_job']:,} to {max(row['gpus_in_job'] for row in rows):,} GPUs in "
        f"{format_time(wall)}, {format_count(rows[-1]['tokens_so_far'])} tokens",
    )
    return lower


def _edges(growth: Growth, wall: float) -> tuple[list[float], list[int]]:
    """s at which the job was laid anew, and the stretches that it was laid for."""
    laid = [(row["laid_s"], i) for i, row in enumerate(growth.stretches) if row["laid_s"] is not None]
    return [*(at for at, _ in laid), wall], [i for _, i in laid]


def _gpus(growth: Growth, wall: float, ax: Axes) -> None:
    scale, _ = unit_of(wall)
    rows = growth.stretches
    edges, laid = _edges(growth, wall)
    dark = any(row["gpus_joined"] > row["gpus"] for row in rows)
    begins = np.array([*(row["begins_s"] for row in rows), wall])
    ax.stairs([rows[i]["gpus_in_job"] / 1e3 for i in laid], np.array(edges) / scale, fill=True, color=_DARK, alpha=0.85,
              label="in the job")  # fmt: skip
    ax.stairs([row["gpus"] / 1e3 for row in rows], begins / scale, color=_ORANGE, linewidth=1.5, baseline=None,
              label="that have power" if dark else "that have joined")  # fmt: skip
    if dark:
        ax.stairs([row["gpus_joined"] / 1e3 for row in rows], begins / scale, color="#777777", linewidth=1.2, linestyle=":",
                  baseline=None, label="that have joined")  # fmt: skip
    ax.set_ylim(0, 1.3 * max(row["gpus_joined"] for row in rows) / 1e3)
    ax.set_xlim(0, wall / scale)
    ax.set_ylabel("GPUs (thousands)")
    ax.legend(loc="upper left", ncols=3, frameon=False, fontsize=9)
    plain(ax)


def _rates(growth: Growth, wall: float, ax: Axes) -> None:
    scale, _ = unit_of(wall)
    times, done = (np.array(column) for column in zip(*growth.log.trace, strict=True))
    # Where work is lost tokens fall at once: what stands last counts.
    last = np.append(times[1:] > times[:-1], True)
    windows = np.linspace(0.0, wall, _WINDOWS + 1)
    rate = np.diff(np.interp(windows, times[last], done[last])) / np.diff(windows)
    edges, laid = _edges(growth, wall)
    ax.stairs(
        rate / 1e6,
        windows / scale,
        fill=True,
        color=_DARK,
        alpha=0.85,
        label=f"that count, means of {format_time(wall / _WINDOWS)}",
    )
    ax.stairs([growth.stretches[i]["tokens_per_s"] / 1e6 for i in laid], np.array(edges) / scale, color=_ORANGE,
              linewidth=1.5, baseline=None, label="if nothing failed")  # fmt: skip
    ax.set_ylim(min(0.0, float(rate.min()) / 1e6), 1.3 * max(growth.stretches[i]["tokens_per_s"] for i in laid) / 1e6)
    ax.set_ylabel("million tokens/s")
    ax.legend(loc="upper left", ncols=3, frameon=False, fontsize=9)
    plain(ax)


def _so_far(growth: Growth, wall: float, ax: Axes) -> None:
    scale, unit = unit_of(wall)
    most = max(growth.log.done, growth.without_log.done)
    size, prefix = next(
        ((s, p) for s, p in ((1e12, "trillion "), (1e9, "billion "), (1e6, "million ")) if most >= s), (1.0, "")
    )
    for log, color, words in (
        (growth.without_log, _PALE, f"the first {growth.without['gpus_in_job']:,} GPUs alone"),
        (growth.log, _DARK, "with the changes"),
    ):
        times, done = (np.array(column) for column in zip(*log.trace, strict=True))
        ax.plot(times / scale, done / size, color=color, linewidth=2.2)
        ax.text(1.005, log.done / size, f"{format_count(log.done)}\n{words}", transform=ax.get_yaxis_transform(), fontsize=9,
                va="center")  # fmt: skip
    paid = [row for row in growth.stretches if row["paid_back_s"] is not None]
    times, done = (np.array(column) for column in zip(*growth.log.trace, strict=True))
    for row in paid:
        at = row["paid_back_s"]
        ax.plot(at / scale, np.interp(at, times, done) / size, "o", color=_ORANGE, markersize=6)
    if paid:
        ax.plot([], [], "o", color=_ORANGE, label="a change is paid back: as many tokens as without it")
        ax.legend(loc="upper left", frameon=False, fontsize=9)
    ax.set_xlim(0, wall / scale)
    ax.set_ylim(0, 1.05 * most / size)
    ax.set_ylabel(f"{prefix}tokens so far")
    ax.set_xlabel(f"wall time ({unit})")
    plain(ax)
