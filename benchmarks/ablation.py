"""What each mechanism is worth: published steps predicted with one of them off at a time, nothing refitted.

`python -m benchmarks.ablation` prints a Markdown table of mean absolute errors by source, in percent, over the rows that a fit
looks at (`calibrate.rows_of`). Nothing is refitted, so that a mechanism whose loss a constant could make up for looks worth
more than it is; one that does nothing for a source leaves its error where it was.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, get_args

from colossim.calibrate import rows_of
from colossim.catalog.gpu import Gpu
from colossim.catalog.overlap import TensorOverlap
from colossim.catalog.types import Fusion, Software
from colossim.scenario.schema import Scenario
from colossim.simulation import simulate
from colossim.validation import published

Change = Callable[[Scenario], Scenario]


def software(**changes: Any) -> Change:
    """Other facts of the stack."""
    return stack(lambda _: changes)


def stack(changed: Callable[[Software], dict[str, Any]]) -> Change:
    """Facts of the stack that follow from what it says."""

    def change(scenario: Scenario) -> Scenario:
        own = scenario.job.software
        job = scenario.job.model_copy(update={"software": own.model_copy(update=changed(own))})
        return scenario.model_copy(update={"job": job})

    return change


def gpu(changed: Callable[[Gpu], dict[str, Any]]) -> Change:
    """Facts of the GPUs that follow from what they say."""

    def change(scenario: Scenario) -> Scenario:
        groups = []
        for group in scenario.cluster.nodes:
            own = group.type.gpu.model_copy(update=changed(group.type.gpu))
            groups.append(group.model_copy(update={"type": group.type.model_copy(update={"gpu": own})}))
        return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": tuple(groups)})})

    return change


def nodes(**changes: Any) -> Change:
    """Other facts of the network of all nodes."""

    def change(scenario: Scenario) -> Scenario:
        groups = []
        for group in scenario.cluster.nodes:
            network = group.type.network.model_copy(update=changes)
            groups.append(group.model_copy(update={"type": group.type.model_copy(update={"network": network})}))
        return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": tuple(groups)})})

    return change


def curves(**changes: float) -> Change:
    """Other facts of all products."""
    return gpu(lambda own: {"gemm": {name: curve.model_copy(update=changes) for name, curve in own.gemm.items()}})


def _no_host(own: Software) -> dict[str, Any]:
    return {"host": own.host.model_copy(update={"forward": 0.0, "micro_batch": 0.0})} if own.host else {}


def _no_slowdown(own: Software) -> dict[str, Any]:
    return {"overlap": own.overlap.model_copy(update={"compute": 0.0, "transfer": 0.0})}


def _short_benchmark(own: Gpu) -> dict[str, Any]:
    return {
        "gemm": {
            name: curve.model_copy(update={"sustained": curve.benchmark or curve.sustained})
            for name, curve in own.gemm.items()
        }
    }


def _free_attention(own: Gpu) -> dict[str, Any]:
    flat = {"keys": 0.0, "keys_backward": 0.0, "tiles": 0.0, "tiles_backward": 0.0}
    return {"attention": {name: curve.model_copy(update=flat) for name, curve in own.attention.items()}}


#: What is left out, and how.
MECHANISMS: dict[str, Change] = {
    "nothing": lambda scenario: scenario,
    "launch floor of the host": stack(_no_host),
    "element-wise kernels": software(elementwise=0.0, loss_bytes_per_logit=0.0),
    "eager kernels: all stacks fuse": software(fusions=get_args(Fusion), norm_precision="16"),
    "the shape of products": curves(area=0.0, depth=0.0, waves=0.0, group_rows=0.0),
    "sustained pace: short benchmarks instead": gpu(_short_benchmark),
    "what length and heads cost attention": gpu(_free_attention),
    "loss under overlap": stack(_no_slowdown),
    "loss beside boundary transfers": software(boundary_overlap=1.0),
    "what overlap leaves of tensor collectives": software(tensor_overlap=TensorOverlap(share=1.0)),
    "overlap of tensor collectives": software(tensor_overlap=TensorOverlap()),
    "cross entropy": software(loss_bytes_per_logit=0.0),
    "rows off 16 bytes": curves(unaligned=1.0),
    "rings that cross a node": nodes(crossing=1.0),
    "gradients aligned over stages": software(gradients_aligned=False),
    "clearing, checking, scaling gradients": software(gradient_passes=()),
    "maxima of fp8 over all replicas": software(amax_reduction="tensor"),
    "whole weights a rank": software(parameter_gather="all-gather"),
    "boundaries scattered": software(boundary="full"),
    "GPUs whose clocks differ": gpu(lambda own: {"spread": 0.0}),
}


def predict(task: tuple[str, Scenario]) -> float:
    """Seconds a step without the mechanism."""
    name, scenario = task
    return simulate(MECHANISMS[name](scenario), must_fit=False).step_time_s


def main() -> None:
    rows = rows_of(published())
    sources = list(dict.fromkeys(row.source for row in rows))
    print(f"| without | {' | '.join(sources)} | all |")
    print(f"|---|{'---|' * (len(sources) + 1)}")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for name in MECHANISMS:
            seconds = pool.map(predict, [(name, row.scenario) for row in rows], chunksize=4)
            off: dict[str, list[float]] = {source: [] for source in sources}
            for row, predicted in zip(rows, seconds, strict=True):
                off[row.source].append(100 * abs(predicted / row.measured - 1))
            means = [statistics.fmean(off[source]) for source in sources]
            cells = [f"{mean:.1f}" for mean in [*means, statistics.fmean(means)]]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
