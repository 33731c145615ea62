"""A collective's pipeline filling: what each edge of one lane moves, from when to when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colossim.engine.chunked import ChunkedRun, Row, pipeline_rows
from colossim.plot.canvas import new_axes, plain, title
from colossim.units import format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_EDGES = 64
#: Bars wider than this share of the picture hold their number; up to this many parts have one.
_WIDE, _NUMBERED = 0.02, 64


def pipeline_fill(run: ChunkedRun, ax: Axes | None = None, *, lane: int = 0, group: int = 0) -> Axes:
    """One row an edge of a lane, in the order of its chain; a bar a message, coloured and numbered by its part of the buffer.

    A thin line leads to each bar: the message's latency. run: of `colossim.engine.chunked.play_collective`.
    Raises ValueError if the group has no such lane.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    bars = [row for row in pipeline_rows(run) if row.lane == lane and row.group == group]
    if not bars:
        raise ValueError(f"group {group} has no lane {lane}")
    edges = _chain(bars)[:_MOST_EDGES]
    place = {edge: i for i, edge in enumerate(edges)}
    parts = sorted({(bar.chunk, bar.slice) for bar in bars})
    number = {part: i for i, part in enumerate(parts)}
    if ax is None:
        ax = new_axes(10, 1.6 + 0.3 * max(3, len(edges)))
    last = max(bar.end for bar in bars)
    scale, unit = (1e6, "us") if last < 1e-3 else (1e3, "ms")
    palette = colormaps["viridis"]
    # The line of a latency begins where the message began to wait for its first byte.
    mine = (run.messages.lane == lane) & (run.group == group)
    columns = (run.messages.src, run.messages.dst, run.start, run.ready)
    since = {
        ((src, dst), begin): ready
        for src, dst, begin, ready in zip(*(column[mine].tolist() for column in columns), strict=True)
    }
    for bar in bars:
        if bar.edge not in place:
            continue
        row, part = place[bar.edge], number[bar.chunk, bar.slice]
        colour = to_rgb(palette(0.95 * part / max(1, len(parts) - 1)))
        begin, end = bar.start * scale, bar.end * scale
        ax.plot([since[bar.edge, bar.start] * scale, begin], [row, row], color="#888888", linewidth=0.8, zorder=1)
        ax.barh(row, end - begin, left=begin, height=0.78, color=colour, edgecolor="white", linewidth=0.8, zorder=2)
        if len(parts) <= _NUMBERED and bar.end - bar.start > _WIDE * last:
            light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 0.5
            ink = "black" if light else "white"
            ax.text((begin + end) / 2, row, str(part), ha="center", va="center", fontsize=7.5, color=ink, zorder=3)
    names = ["the switch" if gpu < 0 else str(gpu) for edge in edges for gpu in edge]
    ax.set_yticks(range(len(edges)), [f"{a} to {b}" for a, b in zip(names[::2], names[1::2], strict=True)], fontsize=8)
    ax.set_ylim(len(edges) - 0.5, -0.5)
    ax.set_xlim(0, last * scale * 1.005)
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("edge: GPU to GPU")
    ax.set_xlabel(f"time ({unit}); bars: bytes of a part of the buffer on their way; lines: latency")
    lanes = len(set(run.messages.lane[run.group == group].tolist()))
    of_lanes = f"lane {lane} of {lanes}, " if lanes > 1 else ""
    shown = f"; {len(edges)} of its edges" if len(edges) == _MOST_EDGES else ""
    title(ax, f"messages of one collective: {of_lanes}{len(parts)} parts, {format_time(last)}{shown}")
    plain(ax)
    return ax


def _chain(bars: list[Row]) -> list[tuple[int, int]]:
    """The edges, each after the one that it takes over from: along a ring or a chain; branches by when they begin."""
    edges = list(dict.fromkeys(bar.edge for bar in bars))
    following: dict[int, list[tuple[int, int]]] = {}
    for edge in edges:
        following.setdefault(edge[0], []).append(edge)
    ends = {dst for _, dst in edges}
    roots = [edge for edge in edges if edge[0] not in ends] or sorted(edges)[:1]
    ordered: dict[tuple[int, int], None] = {}
    waiting = [*reversed(edges), *reversed(roots)]
    while waiting:
        edge = waiting.pop()
        if edge not in ordered:
            ordered[edge] = None
            waiting.extend(reversed(following.get(edge[1], [])))
    return list(ordered)
