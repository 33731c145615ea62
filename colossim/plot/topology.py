"""The cluster as a drawing: its folded graph, tier over tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colossim.plot.canvas import new_axes, title
from colossim.units import format_rate

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes

    from colossim.cluster import Cluster

_SHADE = {
    "gpu": "#1b4f72",
    "nvswitch": "#5a8f5a",
    "leaf": "#c0561b",
    "spine": "#e59c4b",
    "core": "#efb873",
    "top": "#f5cf9a",
}
#: What one and several of a kind are called; a graph's own words stand for themselves.
_CALLED = {
    "gpu": ("GPU", "GPUs"),
    "nvswitch": ("node", "nodes"),
    "leaf": ("leaf switch", "leaf switches"),
    "spine": ("block of spines", "blocks of spines"),
    "core": ("zone of cores", "zones of cores"),
    "top": ("top tier", "top tiers"),
}
_APART = 4.4
#: NVLink switches stand beside their GPUs' way up, on the outer side.
_BESIDE = 1.25


def topology(cluster: Cluster, ax: Axes | None = None) -> Axes:
    """One circle a kind of part with its count, one line a kind of link with its capacity and how many there are."""
    graph = cluster.graph(quotient=True)
    if ax is None:
        ax = new_axes(8, 1.6 + 0.95 * (1 + max(data["layer"] for _, data in graph.nodes(data=True))))
    places = _places(graph)
    for low, high in graph.edges:
        if graph.nodes[low]["layer"] < graph.nodes[high]["layer"]:
            data = graph.edges[low, high]
            label = f"{data['count']:,} x {format_rate(data['capacity'])}"
            _line(ax, places[low], places[high], label, data["kind"].startswith("nvlink"))
    for name, data in graph.nodes(data=True):
        x, y = places[name]
        shade = _SHADE.get(data["kind"], "#b08968")
        ax.plot([x], [y], "o", color=shade, markersize=20, markeredgecolor="#333333", markeredgewidth=0.6)
        own = cluster.fabric.type == "graph" and data["layer"] > 1
        called = f"x {data['kind']}" if own else _CALLED[data["kind"]][data["count"] != 1]
        words = " ".join(part for part in (f"{data['count']:,}", data.get("type", ""), called) if part)
        _label(ax, (x, y), words, 14, left=data["kind"] == "nvswitch" and x < 0, fontsize=9)
    ax.set_xlim(min(x for x, _ in places.values()) - 2.0, max(x for x, _ in places.values()) + 2.6)
    ax.margins(y=0.1)
    title(
        ax,
        f"{cluster.fabric.name}: {cluster.gpus:,} GPUs, {cluster.fabric.type}, capacity of one direction",
    )
    ax.set_axis_off()
    return ax


def _places(graph: networkx.DiGraph[Any]) -> dict[Any, tuple[float, float]]:
    """Where each part stands: tiers over each other, the kinds of a tier side by side."""
    by_layer: dict[int, list[Any]] = {}
    for name, data in graph.nodes(data=True):
        by_layer.setdefault(data["layer"], []).append(name)
    places = {}
    for layer, names in by_layer.items():
        for i, name in enumerate(names):
            across = _APART * (i - (len(names) - 1) / 2)
            if layer == 1:
                across += _BESIDE if across >= 0 else -_BESIDE
            places[name] = (across, float(layer))
    return places


def _line(ax: Axes, low: tuple[float, float], high: tuple[float, float], label: str, nvlink: bool) -> None:
    """A line between two parts; its label stands on the side that nothing else crosses."""
    (x0, y0), (x1, y1) = low, high
    ax.plot([x0, x1], [y0, y1], color="#888888", linewidth=1.2, zorder=1)
    # NVLinks lean outward and have their label there; NICs lean inward and have theirs above the line.
    right = x1 > x0 if nvlink else x0 > x1
    at = 0.45 if nvlink else 0.68
    place = (x0 + at * (x1 - x0), y0 + at * (y1 - y0))
    _label(ax, place, label, 7, left=not right, fontsize=8, color="#555555")


def _label(ax: Axes, place: tuple[float, float], words: str, points: float, *, left: bool, **looks: Any) -> None:
    """Words some points beside a place."""
    ax.annotate(
        words,
        place,
        xytext=(-points if left else points, 0),
        textcoords="offset points",
        va="center",
        ha="right" if left else "left",
        parse_math=False,
        **looks,
    )
