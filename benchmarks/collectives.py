"""How long one collective of one group takes to time: the first line of a table (set-up and choice), and every further one.

Prints a Markdown table. Groups of colossus-100k: a flat ring of 1,024 GPUs, a hierarchical all-reduce of 8,192, all of it.
"""

from __future__ import annotations

import time

import numpy as np

from colossim.alone import Alone
from colossim.cluster import build_cluster
from colossim.scenario.reader import load_scenario
from colossim.simulation import library_of

CASES = (
    ("all_reduce", 1_024, "ring"),
    ("all_reduce", 8_192, "hierarchical"),
    ("all_reduce", 8_192, "auto"),
    ("all_gather", 8_192, "auto"),
    ("all_to_all", 8_192, "auto"),
    ("all_reduce", 100_000, "auto"),
)
REPEATS = 5


def main() -> None:
    scenario = load_scenario("colossus-100k")
    cluster = build_cluster(scenario.cluster)
    print("| operation | GPUs | algorithm | first size | each further size | 1 GiB takes | bus bandwidth |")
    print("|---|---|---|---|---|---|---|")
    for operation, gpus, algorithm in CASES:
        job = scenario.job.model_copy(update={"collectives_algorithm": algorithm})
        first, further = [], []
        for _ in range(REPEATS):
            alone = Alone(cluster, np.arange(gpus), library_of(cluster, job))
            began = time.perf_counter()
            alone.row(operation, 8 * 2**30)
            first.append(time.perf_counter() - began)
            began = time.perf_counter()
            for power in range(20, 30):
                alone.row(operation, 2**power)
            further.append((time.perf_counter() - began) / 10)
        row = alone.row(operation, 2**30)
        print(
            f"| {operation} | {gpus:,} | {row.algorithm} | {1e3 * min(first):.1f} ms | {1e6 * min(further):.0f} us "
            f"| {1e3 * row.time:.1f} ms | {row.busbw / 1e9:.0f} GB/s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
