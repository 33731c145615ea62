"""Throughput: tokens over the run, and each link class through one step against its capacity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colossim.engine.record import Floats, LinkUse
from colossim.plot.canvas import new_axes, new_figure, plain, title
from colossim.units import format_count, format_rate, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.result import Result

#: Points along a step at most; finer detail is averaged.
_POINTS = 600
_MOST_LINKS = 6


def throughput(result: Result, ax: Axes | None = None) -> Axes:
    """Both panels, tokens above links. With `ax`, the links alone are drawn there. Returns the links' Axes."""
    if ax is not None:
        return link_throughput(result, ax)
    shown = len(_busiest(result))
    figure = new_figure(9, 3.2 + 0.85 * shown)
    grid = figure.add_gridspec(2, 1, height_ratios=[1.3, 0.85 * shown + 0.6])
    tokens(result, figure.add_subplot(grid[0]))
    return link_throughput(result, figure.add_subplot(grid[1]))


def tokens(result: Result, ax: Axes | None = None) -> Axes:
    """Tokens/s over the run, a level a step."""
    if ax is None:
        ax = new_axes(9, 2.5)
    edges = [result.steps[0]["start_s"], *(step["end_s"] for step in result.steps)]
    rates = [step["tokens_per_s"] for step in result.steps]
    scale, unit = _scale(max(rates))
    ax.stairs(np.array(rates) / scale, edges, color="#1b4f72", linewidth=2, baseline=None)
    ax.plot(edges, [rates[0] / scale, *(r / scale for r in rates)], "|", color="#1b4f72", markersize=7)
    ax.set_ylim(0, 1.25 * max(rates) / scale)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_xlabel("time (s); one step" if len(rates) == 1 else f"time (s); {len(rates)} steps, a mark each")
    ax.set_ylabel(f"throughput\n({unit}tokens/s)")
    title(
        ax,
        f"{result.scenario}: {format_count(result.tokens_per_s)} tokens/s on {result.gpus_in_job:,} GPUs "
        f"({result.tokens_per_s_per_gpu:,.0f} a GPU), {format_time(result.step_time_s)} a step",
    )
    plain(ax)
    return ax


def _scale(value: float) -> tuple[float, str]:
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return scale, prefix
    return 1.0, ""


def _busiest(result: Result) -> list[LinkUse]:
    """The most loaded link class of each kind that was watched, the most loaded kinds first."""
    best: dict[str, LinkUse] = {}
    for use in result.record.links:
        # Of many classes only some are watched through the step; the others are one level.
        if (
            use.bytes
            and use.rate.size > 1
            and (use.kind not in best or use.bytes / use.capacity > best[use.kind].bytes / best[use.kind].capacity)
        ):
            best[use.kind] = use
    return sorted(best.values(), key=lambda use: -use.bytes / use.capacity)[:_MOST_LINKS]


def link_throughput(result: Result, ax: Axes | None = None) -> Axes:
    """One band a kind of link: what one link of its most loaded class carries through the step, of its capacity."""
    links = _busiest(result)
    if ax is None:
        ax = new_axes(9, 1.5 + 0.85 * max(1, len(links)))
    step = result.record.step_time
    milli = step < 1
    scale, unit = (1e3, "ms") if milli else (1.0, "s")
    for row, use in enumerate(links):
        edges, share, peak = binned(use, step, _POINTS)
        base = len(links) - 1 - row
        ax.axhline(base + 0.8, color="#999999", linewidth=0.6, linestyle=":")
        ax.stairs(base + 0.8 * peak, edges * scale, baseline=base, fill=True, color="#f3c9ae", linewidth=0)
        ax.stairs(base + 0.8 * share, edges * scale, baseline=base, fill=True, color="#b3460f", linewidth=0)
        ax.axhline(base, color="#333333", linewidth=0.8)
    ax.set_yticks(
        [len(links) - 1 - row + 0.4 for row in range(len(links))],
        [f"{use.name}\n{format_rate(use.capacity)}" for use in links],
        fontsize=8.5,
    )
    for row, use in enumerate(links):
        ax.text(
            1.01, (len(links) - 1 - row + 0.4), f"{100 * use.bytes / use.capacity / step:.1f} %",
            transform=ax.get_yaxis_transform(), va="center", fontsize=9,
        )  # fmt: skip
    ax.text(1.01, len(links) + 0.02, "mean\nload", transform=ax.get_yaxis_transform(), va="bottom", fontsize=8.5)
    ax.set_ylim(0, max(1, len(links)))
    ax.set_xlim(0, step * scale)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(
        f"time in the step ({unit}); dark: mean of {format_time(step / _POINTS)}, light: peak; dotted: capacity"
    )
    title(ax, "what one link of each kind carries through a step")
    plain(ax)
    ax.spines["left"].set_visible(False)
    return ax


def binned(use: LinkUse, step: float, points: int) -> tuple[Floats, Floats, Floats]:
    """(points + 1,) edges, (points,) mean and (points,) peak throughput as shares of capacity."""
    edges = np.linspace(0.0, step, points + 1)
    carried = np.concatenate(([0.0], np.cumsum(use.rate * np.diff(use.times))))
    mean = np.diff(np.interp(edges, use.times, carried)) / np.diff(edges)
    running = np.searchsorted(use.times, edges[:-1], side="right") - 1
    peak = use.rate[np.minimum(running, use.rate.size - 1)].copy()
    begins = np.clip(np.searchsorted(edges, use.times[:-1], side="right") - 1, 0, points - 1)
    np.maximum.at(peak, begins, use.rate)
    return edges, np.clip(mean / use.capacity, 0.0, 1.0), np.clip(peak / use.capacity, 0.0, 1.0)
