"""What a step costs to simulate as the cluster grows: the job of million-gpus from 1,024 GPUs to 1,024,000.

Prints a Markdown table. Each size runs in a process of its own, so that peak memory is its own; seconds are the least of a
few runs. Events are the figure to compare: no machine changes them.
"""

from __future__ import annotations

import json
import subprocess
import sys

NODES = (128, 512, 2_048, 8_192, 32_768, 128_000)
RUNS = 3


def measure(nodes: int) -> dict[str, float]:
    """One run's cost, from a fresh interpreter."""
    command = [
        sys.executable, "-m", "colossim", "run", "million-gpus", "--json", "--no-plots", "--quiet",
        "--set", f"cluster.nodes.0.count={nodes}", "--set", f"job.global_batch={nodes}",
    ]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    print("| GPUs | rank classes | events | event loop | set-up | peak memory |")
    print("|---|---|---|---|---|---|")
    first = None
    for nodes in NODES:
        runs = [measure(nodes) for _ in range(RUNS)]
        one = runs[0]
        first = first or one["events"]
        loop, setup = (min(run[key] for run in runs) for key in ("wall_s", "setup_s"))
        print(
            f"| {one['gpus']:,} | {one['classes']['ranks']} | {one['events']:,} ({one['events'] / first:.2f} x) "
            f"| {loop:.3f} s | {setup:.2f} s | {one['peak_memory_bytes'] / 1e6:,.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
