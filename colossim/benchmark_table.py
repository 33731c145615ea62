"""nccl-tests on a cluster that may not exist yet: `colossim collectives`.

A group of GPUs has all links to itself; each operation is timed for every size. Conventions of size, count and bandwidth
are those of nccl-tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from colossim.alone import Alone, Row
from colossim.cluster import Cluster, build_cluster
from colossim.errors import ScenarioError, SimulationError
from colossim.options import TYPES, pick, wrong
from colossim.scenario.schema import Scenario
from colossim.site import library_of
from colossim.units import format_rate

#: Types that NCCL's kernels don't reduce in the NVSwitch.
_NOT_ON_SWITCH = frozenset({"int8", "uint8", "fp8_e4m3", "fp8_e5m2"})

#: GPUs of the largest all-to-all whose messages are looked up one by one: ten seconds.
_MOST_LOOKED_UP = 4096


@dataclass(frozen=True)
class Table:
    """A group's rows. cluster, group: in words.  nodes: that the group spans.  rows: by operation, sizes ascending.

    asked: (rows,) the sizes before nccl-tests' rounding.  notes: what was left out or done otherwise, in words.
    """

    scenario: str
    cluster: str
    group: str
    ranks: int
    nodes: int
    rows: tuple[Row, ...]
    asked: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def average(self, operation: str) -> float:
        """Mean bus bandwidth of an operation's rows in bytes/s, as at the end of nccl-tests' output."""
        return float(np.mean([row.busbw for row in self.rows if row.operation == operation]))

    @property
    def operations(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.operation for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """The table as one JSON object; time in us, bandwidths in GB/s."""
        return {
            "scenario": self.scenario,
            "cluster": self.cluster,
            "group": self.group,
            "ranks": self.ranks,
            "nodes": self.nodes,
            "rows": [_as_dict(row) for row in self.rows],
            "avg_busbw_GBps": {operation: self.average(operation) / 1e9 for operation in self.operations},
            "notes": list(self.notes),
        }


def _as_dict(row: Row) -> dict[str, Any]:
    fields = asdict(row)
    return {
        **{key: fields[key] for key in ("operation", "size", "count", "type", "redop")},
        "time_us": 1e6 * row.time,
        "algbw_GBps": row.algbw / 1e9,
        "busbw_GBps": row.busbw / 1e9,
        "algorithm": row.algorithm,
        "protocol": row.protocol,
    }


def tabulate(
    scenario: Scenario,
    operations: Sequence[str] = (),
    group: str = "all",
    sizes: Sequence[int] = (),
    *,
    type: str = "float",
    algorithm: str | None = None,
    protocol: str | None = None,
) -> Table:
    """Times operations on a group of a scenario's cluster.

    operations: of `alone.OPERATIONS`; all_reduce if none is named (send_receive for `pipeline`).  sizes: bytes.
    algorithm, protocol: forced where they can run; None leaves the scenario's own.
    Raises ScenarioError for a group that isn't there, or where no size leaves 16 bytes for every rank; SimulationError.
    """
    try:
        cluster = build_cluster(scenario.cluster)
    except ScenarioError as error:
        raise scenario.located(error) from None
    members = pick(scenario, cluster, group)
    job = scenario.job.model_copy(
        update={
            "collectives_algorithm": algorithm or scenario.job.collectives_algorithm,
            "collectives_protocol": protocol or scenario.job.collectives_protocol,
        }
    )
    library = library_of(cluster, job)
    if type in _NOT_ON_SWITCH:
        library = replace(library, able=library.able - {"nvls", "collnet"})
    alone = Alone(cluster, members, library)
    wanted = operations or (("send_receive",) if group.partition(":")[0] == "pipeline" else ("all_reduce",))
    rows: list[Row] = []
    asked: list[int] = []
    notes = []
    for operation in wanted:
        made = _timed(alone, operation, sizes, type)
        held = [(size, row) for size, row in made if row.count]
        if not held:
            least = 16 * alone.size if made and made[0][1].size == 0 and alone.size > 1 else TYPES[type]
            wrong("--to", f"no size is large enough for {operation} of {alone.size:,} ranks: {least:,} B would be")
        if len(held) < len(made):
            notes.append(
                f"{operation}: {len(made) - len(held)} sizes that leave less than 16 B for a rank are left out"
            )
        for word, at in ((algorithm, "algorithm"), (protocol, "protocol")):
            others = {getattr(row, at) for _, row in held if word not in (None, "auto", *_names(getattr(row, at)))}
            if others:
                notes.append(f"{operation}: {word} can't run everywhere here, NCCL takes {', '.join(sorted(others))}")
        asked += [size for size, _ in held]
        rows += [row for _, row in held]
    return Table(
        scenario=scenario.name,
        cluster=_in_words(cluster),
        group=group,
        ranks=alone.size,
        nodes=int(np.unique(cluster.gpu_node[members]).size),
        rows=tuple(rows),
        asked=tuple(asked),
        notes=tuple(notes),
    )


def _timed(alone: Alone, operation: str, sizes: Sequence[int], type: str) -> list[tuple[int, Row]]:
    """A row a size. Raises SimulationError where numbers leave what a float holds, or messages are too many to look up."""
    fabric = alone.cluster.fabric
    trays = fabric.type == "rail-optimized" and any(t.gpus > t.rails for t in alone.cluster.node_types)
    looked_up = fabric.type == "graph" or (trays and fabric.rails == "forward")
    if operation == "all_to_all" and looked_up and alone.size > _MOST_LOOKED_UP:
        why = "on a graph" if fabric.type == "graph" else "with several on a rail of their node"
        raise SimulationError(
            f"an all-to-all of {alone.size:,} GPUs {why} is counted message by message: "
            f"at most {_MOST_LOOKED_UP:,} GPUs, such as --group gpus:{_MOST_LOOKED_UP}"
        )
    try:
        with np.errstate(over="raise"):
            return [(size, alone.row(operation, size, type=type, width=TYPES[type])) for size in sizes]
    except (FloatingPointError, OverflowError):
        raise SimulationError("a quantity of the scenario is too large or too small to reckon with") from None


def _names(algorithm: str) -> tuple[str, ...]:
    """What an algorithm may be asked for as: NVLSTree is NVLS over several nodes."""
    return ("nvls", algorithm) if algorithm == "nvls-tree" else (algorithm,)


def _in_words(cluster: Cluster) -> str:
    kinds = [f"{int(n):,} x {t.name}" for t, n in zip(cluster.node_types, np.bincount(cluster.node_type), strict=True)]
    fabric = cluster.fabric
    fastest = max(t.nic for t in cluster.node_types) if fabric.type == "graph" else fabric.link
    return (
        f"{cluster.gpus:,} GPUs, {' + '.join(kinds)}, {fabric.type} of {format_rate(min(fabric.link, fastest))} ports"
    )


def time_ratios(table: Table, other: Table) -> list[dict[str, Any]]:
    """Time on the other cluster over time on this one, for what both were asked: above 1 where this one is faster."""
    theirs = {(row.operation, size): row.time for row, size in zip(other.rows, other.asked, strict=True)}
    return [
        {"operation": row.operation, "size": row.size, "time_ratio": theirs[row.operation, size] / row.time}
        for row, size in zip(table.rows, table.asked, strict=True)
        if (row.operation, size) in theirs
    ]
