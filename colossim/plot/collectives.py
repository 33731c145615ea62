"""Bus bandwidth of collectives over message size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from colossim.plot.canvas import new_axes, plain, size_ticks, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.alone import Row

#: Colour of each algorithm, dark to light; the marker says the protocol.
ALGORITHM = {
    "nvls": "#1b4f72", "nvls-tree": "#2e86ab", "collnet": "#5a8f5a", "ring": "#8a3b0c", "tree": "#d98032",
    "hierarchical": "#7d5ba6", "pat": "#e5b04b", "direct": "#555555", "send": "#999999",
}  # fmt: skip
MARKER = {"ll": "v", "ll128": "s", "simple": "o"}
_DASH = ("-", "--", ":", "-.")


def collectives(rows: Sequence[Row] | Mapping[str, Sequence[Row]], ax: Axes | None = None) -> Axes:
    """Bus bandwidth in GB/s over message size, a line an operation, a mark a size: colour algorithm, shape protocol.

    rows: of `alone.Row`, or {label: rows} for several clusters, whose lines differ by their dashes.
    """
    if ax is None:
        ax = new_axes(9, 4.8)
    clusters = dict(rows) if isinstance(rows, Mapping) else {"": rows}
    operations = list(dict.fromkeys(row.operation for each in clusters.values() for row in each))
    used = list(dict.fromkeys((row.algorithm, row.protocol) for each in clusters.values() for row in each))
    ends: list[tuple[float, float, str]] = []
    for i, each in enumerate(clusters.values()):
        for operation in operations:
            own = [row for row in each if row.operation == operation]
            if not own:
                continue
            x, y = [row.size for row in own], [row.busbw / 1e9 for row in own]
            ax.plot(x, y, _DASH[i % len(_DASH)], color="#999999", linewidth=1.2, zorder=1)
            for algorithm, protocol in used:
                some = [j for j, row in enumerate(own) if (row.algorithm, row.protocol) == (algorithm, protocol)]
                ax.plot(
                    [x[j] for j in some], [y[j] for j in some], MARKER[protocol], color=ALGORITHM[algorithm],
                    markersize=5.5, linestyle="none", zorder=2,
                )  # fmt: skip
            ends.append((x[-1], y[-1], operation.replace("_", "-")))
    ax.set_xscale("log", base=2)
    ax.set_ylim(bottom=0)
    if len(operations) > 1:
        _name_lines(ax, ends)
    _legend(ax, used, list(clusters))
    size_ticks(ax)
    ax.set_xlabel("message size")
    ax.set_ylabel("bus bandwidth (GB/s)")
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    ax.set_axisbelow(True)
    what = ", ".join(operation.replace("_", "-") for operation in operations)
    only = next(iter(clusters)) if len(clusters) == 1 else ""
    title(ax, f"{only}: {what}" if only else what)
    plain(ax)
    return ax


def _name_lines(ax: Axes, ends: list[tuple[float, float, str]]) -> None:
    """Names beside the right ends of the lines, moved apart where they would overlap; equal ends share one."""
    top = ax.get_ylim()[1]
    right = max(x for x, _, _ in ends)
    named: list[tuple[float, list[str]]] = []
    for _, y, words in sorted(end for end in ends if end[0] >= right / 2):
        near = next((names for at, names in named if abs(at - y) < 0.01 * top), None)
        if near is None:
            named.append((y, [words]))
        elif words not in near:
            near.append(words)
    place = -1.0
    for y, names in sorted(named):
        place = max(y / top, place + 0.045 * len(names))
        ax.annotate(
            "\n".join(names), (1.0, y), xytext=(1.02, place), xycoords=ax.get_yaxis_transform(),
            textcoords="axes fraction", va="center", fontsize=8.5,
        )  # fmt: skip
        place += 0.045 * (len(names) - 1)


def _legend(ax: Axes, used: list[tuple[str, str]], clusters: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=ALGORITHM[a],
            marker=MARKER[p],
            linestyle="none",
            label=f"{a}, {'Simple' if p == 'simple' else p.upper()}",
        )
        for a, p in sorted(used, key=lambda way: (list(ALGORITHM).index(way[0]), list(MARKER).index(way[1])))
    ]
    if len(clusters) > 1:
        handles += [
            Line2D([], [], color="#999999", ls=dash, label=name.replace("$", r"\$"))
            for dash, name in zip(cycle(_DASH), clusters, strict=False)
        ]
    ax.legend(handles=handles, loc="upper left", fontsize=8.5, frameon=False)
