"""Folding: identical ranks, groups and links become classes, and the answer stays equal.

`exact` plays the coarsest equitable partition, `off` the identity partition through the same code (the reference),
`bundles` an estimate that folds the fabric's bundles by what they carry.
"""

from __future__ import annotations

import numpy as np

from colossim.errors import TooManyClasses
from colossim.partition import Partition, identity, refine
from colossim.quotient import GroupClass, LinkClass, Quotient, RankClass, quotient, with_worst_bundles
from colossim.traffic import Traffic

#: Above this many rank classes `exact` stops with advice: seconds become minutes.
MOST_CLASSES = 2000

__all__ = ["GroupClass", "LinkClass", "Partition", "Quotient", "RankClass", "fold", "identity", "quotient", "refine"]


def fold(traffic: Traffic, how: str) -> Quotient:
    """Folds by `exact`, `bundles` or `off`. Raises TooManyClasses when there are too many to play in seconds."""
    if how == "off":
        return quotient(traffic, identity(traffic))
    partition = refine(traffic, bundles=how == "exact")
    classes = _classes(partition)
    if classes > MOST_CLASSES:
        raise TooManyClasses(_advice(traffic, classes, how))
    if how == "exact":
        return quotient(traffic, partition)
    return with_worst_bundles(traffic, partition)


def _classes(partition: Partition) -> int:
    return int(partition.rank.max()) + 1


def _advice(traffic: Traffic, classes: int, how: str) -> str:
    """Why the classes are many, and what would make them few."""
    cluster, fabric = traffic.cluster, traffic.cluster.fabric
    lines = [f"run.fold: {how} leaves {classes:,} classes of ranks; above {MOST_CLASSES:,} a step takes minutes."]
    gpus = np.arange(cluster.gpus)
    odd = sum(
        int(
            np.sum(
                links
                != np.array([np.median(links[cluster.gpu_type == t]) for t in range(len(cluster.node_types))])[
                    cluster.gpu_type
                ]
            )
        )
        for links in (cluster.nic, cluster.nvlink)
    )
    if odd:
        lines.append(
            f"{odd:,} links run below their rate, and each gives its peers a pace of their own: fewer of them fold better."
        )
    binding = bool(np.any(~traffic.slack[4 * cluster.gpus :]))
    if binding and fabric.type == "graph":
        tight = np.flatnonzero(~traffic.slack[4 * cluster.gpus :]) + 4 * cluster.gpus
        named = ", ".join(cluster.link_name(int(link)) for link in tight[:3])
        lines.append(f"{tight.size:,} links of the graph can bind ({named}, ...), and are wired alike for few GPUs.")
    elif binding and not traffic.aligned:
        pod = int(np.bincount(cluster.pod(gpus)).max())
        per_stage = traffic.ranks // (int(traffic.stage.max()) + 1)
        nearest = max(pod, per_stage // pod * pod)
        ratios = ", ".join(f"{fabric.ratio(i):g}:1" for i in range(fabric.tiers - 1))
        lines.append(
            f"Pipeline stages ({per_stage:,} GPUs) end inside pods ({pod:,} GPUs) of a fabric that is {ratios}: "
            f"stages of {nearest:,} GPUs would end where pods do."
        )
    if how == "exact" and binding and _classes(refine(traffic, bundles=False)) <= MOST_CLASSES:
        lines.append("`--set run.fold=bundles` answers in seconds, as an estimate (within about 2 %).")
    return " ".join(lines)
