"""Weeks of training: what came out over time, where the rest went, what other checkpoint intervals would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from colossim.errors import SimulationError
from colossim.plot.canvas import new_axes, new_figure, plain, title
from colossim.reliability import ettr, wall_over_work
from colossim.units import format_share, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.campaign import Campaign
    from colossim.result.result import Result

_DARK, _ORANGE, _PALE = "#1b4f72", "#c0561b", "#efb873"
#: Levels along the wall time.
_WINDOWS = 120
_MOST_CAUSES = 9
#: What no fault costs: what it is called, and its account.
_OTHERS = (("checkpoints", "checkpoint"), ("slower running", "degraded"), ("changes of the cluster", "growth"))
_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def campaign_of(result: Result) -> Campaign:
    """The campaign of a result. Raises SimulationError if it has none."""
    if result.campaign is None:
        raise SimulationError(f"{result.scenario} played a step: `faults` or `run.duration` make a campaign of it")
    return result.campaign


def goodput(result: Result, ax: Axes | None = None) -> Axes:
    """Both panels, throughput above what stopped the job. With `ax`, throughput alone is drawn there. Returns its Axes."""
    campaign = campaign_of(result)
    if ax is not None:
        return _throughput(result, campaign, ax)
    causes = _causes(Counter(item["cause"] for item in campaign.interruptions))
    figure = new_figure(9, 3.4 + 0.24 * len(causes))
    grid = figure.add_gridspec(2, 1, height_ratios=[2.6, 0.3 + 0.24 * len(causes)])
    upper = _throughput(result, campaign, figure.add_subplot(grid[0]))
    _stops(campaign, causes, figure.add_subplot(grid[1], sharex=upper))
    upper.tick_params(labelbottom=False)
    upper.set_xlabel("")
    return upper


def unit_of(seconds: float) -> tuple[float, str]:
    """(s, name) of the unit that a time is best told in."""
    return next((scale, name) for scale, name in _UNITS if seconds >= 2 * scale or scale == 1.0)


def _throughput(result: Result, campaign: Campaign, ax: Axes) -> Axes:
    times, done = (np.array(column) for column in zip(*campaign.logs[0].trace, strict=True))
    scale, unit = unit_of(campaign.wall_s)
    edges = np.linspace(0.0, campaign.wall_s, _WINDOWS + 1)
    # Where the pace changes at once, as in a roll-back, what stands last counts.
    last = np.append(times[1:] > times[:-1], True)
    whole = edges * (result.tokens_per_step / result.step_time_s)
    if campaign.growth is not None:
        whole = campaign.growth.undisturbed(edges)
    share = np.diff(np.interp(edges, times[last], done[last])) / np.diff(whole)
    ax.axhline(1.0, color="#999999", linewidth=0.8, linestyle="--")
    ax.stairs(share, edges / scale, color=_DARK, fill=True, alpha=0.85, baseline=0)
    ax.axhline(campaign.goodput, color=_ORANGE, linewidth=1.6)
    ax.text(1.005, campaign.goodput, f"goodput\n{format_share(campaign.goodput)}", color=_ORANGE, fontsize=9, va="center",
            transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set_xlim(0, campaign.wall_s / scale)
    ax.set_ylim(min(0.0, float(share.min())), 1.1)
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.set_ylabel("of the throughput\nwithout faults")
    ax.set_xlabel(f"wall time ({unit})")
    window = campaign.wall_s / _WINDOWS
    title(
        ax,
        f"{result.scenario}: {len(campaign.interruptions):,} interruptions on {_gpus(result, campaign)} GPUs in "
        f"{format_time(campaign.wall_s)}\ntraining that counts, means of {format_time(window)}",
    )
    plain(ax)
    return ax


def _gpus(result: Result, campaign: Campaign) -> str:
    """In the job, at the least and at the most."""
    rows = campaign.growth.stretches if campaign.growth is not None else ()
    counts = [row["gpus_in_job"] for row in rows] or [result.gpus_in_job]
    return f"{min(counts):,}" + (f" to {max(counts):,}" if max(counts) > min(counts) else "")


def _causes(weights: Mapping[str, float]) -> list[str]:
    """Causes, the weightiest first; the least of many together as `others`."""
    names = sorted(weights, key=lambda name: (-weights[name], name))
    return names if len(names) <= _MOST_CAUSES else [*names[: _MOST_CAUSES - 1], "others"]


def _row(cause: str, causes: list[str]) -> int:
    return causes.index(cause) if cause in causes else len(causes) - 1


def _stops(campaign: Campaign, causes: list[str], ax: Axes) -> None:
    scale, unit = unit_of(campaign.wall_s)
    rows = [_row(item["cause"], causes) for item in campaign.interruptions]
    times = [item["time_s"] / scale for item in campaign.interruptions]
    ax.plot(times, rows, "|", color=_ORANGE, markersize=8)
    counts = Counter(rows)
    ax.set_yticks(range(len(causes)), [f"{name}  {counts[i]:,}" for i, name in enumerate(causes)], fontsize=9)
    ax.set_ylim(max(0.5, len(causes) - 0.5), -0.5)
    ax.set_xlabel(f"wall time ({unit}); a mark is an interruption")
    plain(ax)


def lost_time(result: Result, ax: Axes | None = None) -> Axes:
    """Wall time that was no training that counts: by what stopped the job, beside checkpoints and slower running."""
    campaign = campaign_of(result)
    weights: dict[str, float] = {}
    for item in campaign.interruptions:
        weights[item["cause"]] = weights.get(item["cause"], 0.0) + item["lost_s"] + item["restart_s"]
    causes = _causes(weights)
    lost, away = np.zeros(len(causes)), np.zeros(len(causes))
    for item in campaign.interruptions:
        row = _row(item["cause"], causes)
        lost[row] += item["lost_s"]
        away[row] += item["restart_s"]
    rows = list(zip(causes, lost.tolist(), away.tolist(), strict=True))
    spent = campaign.spent_s
    rows += [(word, 0.0, spent[name]) for word, name in _OTHERS]
    rows = sorted((row for row in rows if row[1] + row[2] > 0), key=lambda row: -row[1] - row[2])
    if ax is None:
        ax = new_axes(8.5, 1.6 + 0.34 * max(1, len(rows)))
    most = max((left + right for _, left, right in rows), default=1.0)
    scale, unit = unit_of(most)
    for row, (_, first, second) in enumerate(rows):
        ax.barh(row, first / scale, color=_DARK, height=0.7)
        ax.barh(row, second / scale, left=first / scale, color=_PALE, edgecolor="#555555", linewidth=0.5, height=0.7)
        share = f" {format_time(first + second)}  ({format_share((first + second) / campaign.wall_s)})"
        ax.text((first + second) / scale, row, share, va="center", fontsize=9)
    ax.barh(0, 0, color=_DARK, label="work lost since the last checkpoint")
    ax.barh(0, 0, color=_PALE, edgecolor="#555555", linewidth=0.5, label="standing still, or what ran slower cost")
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.set_ylim(max(0.5, len(rows) - 0.5), -0.5)
    ax.set_xlim(0, 1.3 * most / scale)
    ax.set_xlabel(f"wall time ({unit})")
    if rows:
        ax.legend(loc="lower right", frameon=False, fontsize=9)
    idle = campaign.wall_s - spent["productive"]
    share = format_share(idle / campaign.wall_s) if campaign.wall_s else "0 %"
    title(
        ax,
        f"{result.scenario}: {format_time(idle)} of {format_time(campaign.wall_s)} ({share}) were no training that counts",
    )
    plain(ax)
    return ax


def interval(result: Result, ax: Axes | None = None) -> Axes:
    """Goodput against the interval between checkpoints by the exact formula, the first-order ETTR beside it, and the run.

    The formula (`reliability.wall_over_work`) is for exponential faults that all stop the job at once, spares at hand and
    writes that block. Raises SimulationError where nothing stops the job or checkpoints take no time.
    """
    campaign = campaign_of(result)
    mtbf, best, write, restart = campaign.mtbf_s, campaign.best_s, campaign.write_s, campaign.restart_s
    if mtbf is None or best is None or campaign.young_s is None or campaign.daly_s is None:
        raise SimulationError(
            f"{result.scenario}: checkpoints that take time and faults that stop the job have a best interval"
        )
    if ax is None:
        ax = new_axes(8, 5.2)
    chosen = campaign.interval_s
    marks = [best, *([chosen] if chosen is not None else [])]
    grid = np.geomspace(min(marks) / 12, max(*marks, mtbf) * 1.5, 400)
    exact = [1.0 / wall_over_work(at, mtbf, write, restart) for at in grid]
    linear = [ettr(1.0, 1.0 / mtbf, at, write, restart) for at in grid]
    ax.plot(grid / 60, exact, color=_DARK, linewidth=2, label="exact formula: spares at hand, nothing else wrong")
    ax.plot(
        grid / 60, linear, color="#888888", linestyle="--", linewidth=1.2, label="to first order (Kokolis et al. 2024)"
    )
    for name, at, marker in (("best", best, "o"), ("Young", campaign.young_s, "^"), ("Daly", campaign.daly_s, "v")):
        ax.plot(at / 60, 1.0 / wall_over_work(at, mtbf, write, restart), marker, color=_DARK, markersize=7,
                label=f"{name}: {format_time(at)}")  # fmt: skip
    if chosen is not None:
        over = campaign.replicas["goodput"] if campaign.replicas else None
        value = over["mean"] if over else campaign.goodput
        bars = [[value - over["low"]], [over["high"] - value]] if over else None
        seeds = f"mean and 90 % of {campaign.replicas['n']} seeds" if campaign.replicas else "one seed"
        ax.errorbar(chosen / 60, value, bars, fmt="D", color=_ORANGE, capsize=4,
                    label=f"played: {format_time(chosen)}, {format_share(value)} ({seeds})")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(grid[0] / 60, grid[-1] / 60)
    ax.set_ylim(0, 1)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.set_xlabel("training between two checkpoints (min)")
    ax.set_ylabel("goodput")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)
    title(
        ax,
        f"{result.scenario}: something stops the job every {format_time(mtbf)}; a checkpoint blocks it for "
        f"{format_time(write)},\na restart takes {format_time(restart)} from the fault on",
    )
    plain(ax)
    return ax
