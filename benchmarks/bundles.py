"""`fold: bundles` against `fold: exact` where stages end inside pods of an oversubscribed fabric.

Small cases play both; 100,000 GPUs play bundles alone (exact takes minutes: `--exact` plays it, too).
Prints a Markdown table.
"""

from __future__ import annotations

import sys
import time

import colossim

#: (nodes, nodes a pod, replicas, oversubscription of leaf:spine)
SMALL = ((24, 7, 12, 7), (40, 7, 20, 7), (40, 7, 20, 3), (60, 9, 30, 7), (96, 13, 48, 4), (160, 24, 80, 7))


def play(changes: list[str], fold: str) -> tuple[colossim.Result, float]:
    began = time.perf_counter()
    result = colossim.simulate(colossim.load_scenario("two-pods", set=[*changes, f"run.fold={fold}"]))
    return result, time.perf_counter() - began


def main() -> None:
    print(
        "| GPUs | ratio | classes exact | classes bundles | exact | bundles | difference | seconds exact | seconds bundles |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for nodes, pod, replicas, ratio in SMALL:
        changes = [
            f"cluster.nodes.0.count={nodes}",
            f"cluster.fabric.nodes_per_pod={pod}",
            "cluster.fabric.pods_per_block=16",
            f"cluster.fabric.oversubscription=[{ratio}, 1]",
            "job.parallelism.tensor=8",
            "job.parallelism.pipeline=2",
            "job.parallelism.virtual_pipeline=4",
            f"job.parallelism.data={replicas}",
            f"job.global_batch={8 * replicas}",
        ]
        exact, exact_s = play(changes, "exact")
        estimate, estimate_s = play(changes, "bundles")
        print(
            f"| {exact.gpus_in_job:,} | {ratio}:1 | {exact.classes['ranks']} | {estimate.classes['ranks']} "
            f"| {exact.step_time_s:.4f} s | {estimate.step_time_s:.4f} s "
            f"| {100 * (estimate.step_time_s / exact.step_time_s - 1):+.2f} % | {exact_s:.2f} | {estimate_s:.2f} |",
            flush=True,
        )
    for fold in ("bundles", "exact") if "--exact" in sys.argv else ("bundles",):
        began = time.perf_counter()
        scenario = colossim.load_scenario(
            "colossus-100k",
            set=["job.global_batch=12480", "cluster.fabric.oversubscription=[7, 1]", f"run.fold={fold}"],
        )
        result = colossim.simulate(scenario)
        print(
            f"\ncolossus-100k unaligned at 7:1, {fold}: {result.step_time_s:.5f} s, {result.classes['ranks']:,} rank classes, "
            f"{result.events:,} events, {time.perf_counter() - began:.1f} s all told"
        )


if __name__ == "__main__":
    main()
