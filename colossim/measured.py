"""Collectives measured in the real world, and how far their predictions are off: `colossim validate --collectives`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from colossim import catalog
from colossim.alone import BUS_FACTOR, Alone
from colossim.catalog.types import Fabric, NodeType
from colossim.cluster import build_cluster
from colossim.collective import Library
from colossim.footprint import Ints
from colossim.scenario.schema import ClusterSpec, NodeGroup

MEASURED = Path(__file__).parent / "catalog" / "measured" / "collectives.csv"
#: What is compared for a row that prints a bandwidth without a size: bytes.
LARGE = 16 * 2**30
#: Bytes from which a message counts as large.
BORDER = 2**20


@dataclass(frozen=True)
class Measured:
    """One measured row. bytes: nccl-tests' size, 0 where it isn't known.  nodes: of this node type, or NVLink domains.

    quantity: of `value`: time (s), bus_bandwidth, nic_rate or nvlink_rate (bytes/s).  algorithm: `auto`, or as forced.
    flag: why the row is not counted, if it isn't.
    """

    source: str
    hardware: str
    node: str
    nodes: int
    gpus: int
    operation: str
    bytes: int
    quantity: str
    value: float
    algorithm: str
    flag: str

    @property
    def group(self) -> str:
        """Its group on the scoreboard: hardware, GPUs and collective."""
        return f"{self.node} x {self.gpus} {self.operation.replace('_', '-')}"

    @property
    def large(self) -> bool:
        return self.bytes == 0 or self.bytes >= BORDER


@cache
def rows() -> tuple[Measured, ...]:
    """All rows that ship, the flagged ones among them."""
    with MEASURED.open(encoding="utf-8", newline="") as file:
        return tuple(
            Measured(
                source=row["source"],
                hardware=row["hardware"],
                node=row["node"],
                nodes=int(row["nodes"] or 0),
                gpus=int(row["gpus"] or 0),
                operation=row["operation"],
                bytes=int(row["bytes"] or 0),
                quantity=row["quantity"],
                value=float(row["value"] or "nan"),
                algorithm=row["algorithm"],
                flag=row["flag"],
            )
            for row in csv.DictReader(file)
        )


def counted() -> tuple[Measured, ...]:
    """The rows without a flag."""
    return tuple(row for row in rows() if not row.flag)


def fabric_of(node: NodeType, sharp: bool) -> Fabric:
    """What the benchmark's few nodes hang on: one pod of a two-tier fabric, its ports as fast as the NICs."""
    return Fabric.model_validate(
        {"type": "rail-optimized", "link": f"{node.nic:g} B/s", "switch_ports": 1024, "nodes_per_pod": 16,
         "pods_per_block": 8, "sharp": sharp}
    )  # fmt: skip


class Bench:
    """Predicts measured rows; groups are laid out once. types: node types by name, to replace the catalogue's."""

    def __init__(self, types: dict[str, NodeType] | None = None) -> None:
        self.types = types or {}
        self._alone: dict[tuple[str, int, int, str, bool], Alone] = {}

    def alone(self, row: Measured) -> Alone:
        """The row's group on its machines: as many GPUs on each node, the first ones."""
        sharp = "SHARP" in row.hardware
        key = (row.node, row.nodes, row.gpus, row.algorithm, sharp)
        if key not in self._alone:
            node = self.types.get(row.node) or node_type(row.node)
            spec = ClusterSpec(nodes=(NodeGroup(type=node, count=row.nodes),), fabric=fabric_of(node, sharp))
            cluster = build_cluster(spec)
            each = row.gpus // row.nodes
            members: Ints = (np.arange(row.nodes)[:, None] * node.gpus + np.arange(each)[None, :]).ravel()
            able = {"ring", "tree", "pat"} | ({"nvls"} if node.nvls else set())
            library = Library((node,), node.nic, frozenset(able | ({"collnet"} if sharp else set())), row.algorithm)
            self._alone[key] = Alone(cluster, members, library)
        return self._alone[key]

    def value(self, row: Measured) -> float:
        """The predicted counterpart of a row's value."""
        node = self.types.get(row.node) or node_type(row.node)
        if row.quantity == "nic_rate":
            return node.network.efficiency * node.nic
        if row.quantity == "nvlink_rate":
            return node.nvlink_ring.bandwidth
        size = row.bytes or LARGE
        seconds, _ = self.alone(row).seconds(row.operation, size)
        return seconds if row.quantity == "time" else size / seconds * BUS_FACTOR[row.operation](row.gpus)


@cache
def node_type(name: str) -> NodeType:
    """A node type of the catalogue."""
    node = catalog.load("nodes", name)
    assert isinstance(node, NodeType)
    return node


def error(row: Measured, predicted: float) -> float:
    """Relative error in time: positive where the prediction is too slow."""
    slow = predicted / row.value if row.quantity == "time" else row.value / predicted
    return slow - 1.0


@dataclass(frozen=True)
class Point:
    """A row beside its prediction. measured, predicted: bytes/s of bus bandwidth (or of a link).  error: relative, in time."""

    row: Measured
    measured: float
    predicted: float
    error: float


def points() -> tuple[Point, ...]:
    """Every counted row with what is predicted for it."""
    bench = Bench()
    found = []
    for row in counted():
        value = bench.value(row)
        rate = [
            row.bytes / time * BUS_FACTOR[row.operation](row.gpus) if row.quantity == "time" else time
            for time in (row.value, value)
        ]
        found.append(Point(row, rate[0], rate[1], error(row, value)))
    return tuple(found)


def report() -> dict[str, Any]:
    """The scoreboard: errors in % by group (hardware, GPUs, collective) and overall, above and below 1 MiB.

    bias_pct: median with its sign, positive where predictions are too slow.  worst_group: that of the largest median.
    flagged: rows that don't count; flags: their number by reason.
    """
    found = points()
    by_group: dict[str, list[Point]] = {}
    for point in found:
        by_group.setdefault(point.row.group, []).append(point)
    large = _median(point.error for point in found if point.row.large)
    small = _median(point.error for point in found if not point.row.large)
    groups = {
        name: {
            "n": len(items),
            "median_pct": _median(point.error for point in items),
            "worst_pct": max((100 * point.error for point in items), key=abs),
            "bias_pct": 100 * float(np.median([point.error for point in items])),
        }
        for name, items in sorted(by_group.items())
    }
    return {
        "groups": groups,
        "overall": {"n": len(found), "median_pct_large": large, "median_pct_small": small},
        "worst_group": max(groups, key=lambda name: groups[name]["median_pct"] or 0.0),
        "flagged": len(rows()) - len(found),
        "flags": dict(Counter(row.flag for row in rows() if row.flag)),
    }


def _median(errors: Iterable[float]) -> float | None:
    values = [100 * abs(off) for off in errors]
    return float(np.median(values)) if values else None
