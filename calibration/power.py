"""Fits what GPUs draw by what they do, and nodes besides, on measured nodes (measured/power.csv), and shows the errors.

    python -m calibration.power           # constants, and errors with them and with those that ship

A node draws its overhead and what its GPUs draw through played steps (`result.power`); while the largest sample was drawn, all
of them were at their limits. Measured means hold within 1 %, largest samples within 3 %; what activities draw lies near what
is believed of it (`PRIOR`). All rows are fitted together.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import least_squares

import colossim
from colossim import catalog
from colossim.catalog.types import NodeType
from colossim.result.power import power_of
from colossim.result.result import Result

#: What is believed of the shares before any node is looked at, and how firmly. memory: an H200 whose decoding waits for its HBM
#: draws up to 300 of 700 W (arXiv 2605.11999): (300 - 75)/625. The others are assumed.
PRIOR = {"arithmetic": (1.2, 0.2), "memory": (0.36, 0.10), "communicating": (0.40, 0.10), "waiting": (0.12, 0.06)}
_MEAN, _LARGEST = 0.01, 0.03
#: Llama 2 70B's layers, eight of them trained whole, stand for LoRA: the same products and gathers, weights' gradients besides.
_LORA = (
    "job.model={base: llama3-70b, vocabulary: 32000, layers: 8}",
    "job.parallelism={tensor: 4, sequence: true, data: 2, sharding: optimizer}",
    "job.sequence_length=8192",
    "job.global_batch=64",
)


@dataclass(frozen=True)
class Row:
    """A measured node. node: its type.  fits: whether it can be played."""

    node: str
    run: str
    metric: str
    watts: float
    fits: bool


@cache
def played(run: str, node: str) -> Result:
    """The step of a run, or what stands for it."""
    if run.startswith("gpt3"):
        return colossim.simulate(colossim.load_scenario("mlperf-v3.1", case="eos-512"))
    # No curve of a B200's products in fp8 is measured.
    precision = "fp8" if node == "hgx-h100" else "bf16"
    changes = [f"cluster.nodes=[{{type: {node}, count: 1}}]", *_LORA, f"job.precision={precision}"]
    return colossim.simulate(colossim.load_scenario("quickstart", set=changes))


def rows() -> list[Row]:
    """All measured ones."""
    with catalog.SCORES.with_name("power.csv").open(encoding="utf-8") as file:
        return [
            Row(row["node"], row["run"], row["metric"], float(row["watts"]), row["fits"] == "yes")
            for row in csv.DictReader(file)
        ]


def node_of(name: str) -> NodeType:
    """A node type of the catalogue."""
    return NodeType.model_validate(catalog.entry("nodes", name), context={"catalog": {}})


def drawn(row: Row, activity: Mapping[str, float], overhead: float) -> float:
    """W of a node. activity: shares of the way from idle to TDP.  overhead: W."""
    node = node_of(row.node)
    if row.metric == "largest":
        return overhead + node.gpus * node.gpu.limit
    result = played(row.run, row.node)
    gpu = node.gpu.model_copy(update={"activity": node.gpu.activity.model_copy(update=dict(activity))})
    loads = [replace(load, node=load.node.model_copy(update={"gpu": gpu})) for load in result.loads]
    return overhead + node.gpus * power_of(result.record, loads, result.cluster, 1.0).gpu_W


def fit(measured: list[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """What activities draw, and W of overhead by node type."""
    fitted = [row for row in measured if row.fits]
    nodes = sorted({row.node for row in fitted})

    def split(values: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
        found = values.tolist()
        return dict(zip(PRIOR, found, strict=False)), dict(zip(nodes, found[len(PRIOR) :], strict=True))

    def off(values: np.ndarray) -> list[float]:
        activity, overhead = split(values)
        errors = [
            (drawn(row, activity, overhead[row.node]) / row.watts - 1) / (_MEAN if row.metric == "mean" else _LARGEST)
            for row in fitted
        ]
        return errors + [(activity[name] - value) / spread for name, (value, spread) in PRIOR.items()]

    start = [value for value, _ in PRIOR.values()] + [node_of(name).overhead_power for name in nodes]
    return split(least_squares(off, start, x_scale=[0.1] * len(PRIOR) + [100.0] * len(nodes)).x)


def main() -> None:
    """Fits and shows."""
    measured = rows()
    activity, overhead = fit(measured)
    print("  ".join(f"{name} {100 * value:.1f} %" for name, value in activity.items()))
    print("  ".join(f"{name} {value:.0f} W" for name, value in overhead.items()))
    for row in measured:
        told = f"{row.node:10} {row.run:28} {row.metric:8} {row.watts:8.0f} W"
        if not row.fits:
            print(f"{told}  not played")
            continue
        node = node_of(row.node)
        shipped = {name: getattr(node.gpu.activity, name) for name in PRIOR}
        now, then = drawn(row, shipped, node.overhead_power), drawn(row, activity, overhead[row.node])
        share = {} if row.metric == "largest" else played(row.run, row.node).power.share
        time = ", ".join(f"{name} {100 * part:.1f} %" for name, part in share.items())
        print(f"{told}  shipped {now:.0f} W ({now / row.watts - 1:+.1%})", end="  ")
        print(f"fitted {then:.0f} W ({then / row.watts - 1:+.1%})  {time}")


if __name__ == "__main__":
    main()
