"""The cluster as a drawing: its folded graph, tier over tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colossim.plot.canvas import new_axes
from colossim.units import format_rate

if TYPE_CHECKING:
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
_CALLED = {
    "gpu": "GPUs",
    "nvswitch": "nodes",
    "leaf": "leaf switches",
    "spine": "blocks of spines",
    "core": "zones of cores",
    "top": "top tier",
}


def topology(cluster: Cluster, ax: Axes | None = None) -> Axes:
    """One circle a kind of part with its count, one line a kind of link with its capacity and how many there are."""
    import networkx as nx

    graph = cluster.graph(quotient=True)
    if ax is None:
        ax = new_axes(8, 1.6 + 0.95 * (1 + max(data["layer"] for _, data in graph.nodes(data=True))))
    places = {}
    by_layer: dict[int, list[str]] = {}
    for name, data in graph.nodes(data=True):
        by_layer.setdefault(data["layer"], []).append(name)
    for layer, names in by_layer.items():
        for i, name in enumerate(names):
            # NVLink switches stand beside their GPUs' way up.
            across = i - (len(names) - 1) / 2
            places[name] = (4.4 * across + (1.25 if layer == 1 else 0.0), float(layer))
    colours = [_SHADE[data["kind"]] for _, data in graph.nodes(data=True)]
    upward = [(u, v) for u, v in graph.edges if graph.nodes[u]["layer"] < graph.nodes[v]["layer"]]
    nx.draw_networkx_edges(graph.to_undirected(), places, edgelist=upward, ax=ax, edge_color="#888888", width=1.2)
    nx.draw_networkx_nodes(
        graph, places, ax=ax, node_color=colours, node_size=420, edgecolors="#333333", linewidths=0.6
    )
    for name, data in graph.nodes(data=True):
        x, y = places[name]
        kind = data.get("type", "")
        label = f"{data['count']:,} {kind + ' ' if kind else ''}{_CALLED[data['kind']]}"
        ax.text(x + 0.2, y, label, va="center", ha="left", fontsize=9)
    for low, high in upward:
        data = graph.edges[low, high]
        (x0, y0), (x1, y1) = places[low], places[high]
        label = f"{data['count']:,} x {format_rate(data['capacity'])}"
        # Labels stand outside: NVLinks right of their line, NICs on the side that their line leans to.
        right = data["kind"].startswith("nvlink") or x0 > x1
        at = 0.45 if data["kind"].startswith("nvlink") else 0.68
        x, y = x0 + at * (x1 - x0), y0 + at * (y1 - y0)
        ax.text(
            x + (0.1 if right else -0.1),
            y,
            label,
            va="center",
            ha="left" if right else "right",
            fontsize=8,
            color="#555555",
        )
    ax.set_xlim(min(x for x, _ in places.values()) - 2.0, max(x for x, _ in places.values()) + 2.6)
    ax.set_title(
        f"{cluster.fabric.name}: {cluster.gpus:,} GPUs, {cluster.fabric.type}, capacity of one direction",
        loc="left",
        fontsize=10,
    )
    ax.set_axis_off()
    return ax
