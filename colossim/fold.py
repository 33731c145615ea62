"""Folding: identical ranks, groups and links become classes, and the answer stays equal.

`exact` plays the coarsest equitable partition, `off` the identity partition through the same code (the reference),
`bundles` an estimate that folds the fabric's bundles by what they carry. Where routing pins flows to single links, all
but `off` is an estimate: some replicas stand for the others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from colossim.errors import TooManyClasses
from colossim.flows import Pace, Pinned
from colossim.footprint import Ints
from colossim.partition import Partition, firsts, identity, refine
from colossim.quotient import GroupClass, LinkClass, Quotient, RankClass, quotient, with_worst_bundles
from colossim.traffic import Traffic

#: Above this many rank classes `exact` stops with advice: seconds become minutes.
MOST_CLASSES = 2000

__all__ = ["GroupClass", "LinkClass", "Partition", "Quotient", "RankClass", "fold", "identity", "quotient", "refine"]


def fold(traffic: Traffic, how: str, seed: int = 0) -> tuple[Quotient, Pace | None]:
    """Folds by `exact`, `bundles` or `off`; with pinned flows also what they leave each class. seed: of the hash.

    Raises TooManyClasses when there are too many to play in seconds.
    """
    if traffic.cluster.fabric.routing != "adaptive":
        return _fold_pinned(traffic, how, Pinned.of(traffic, seed))
    if how == "off":
        return quotient(traffic, identity(traffic)), None
    partition = refine(traffic, bundles=how == "exact")
    classes = _classes(partition)
    if classes > MOST_CLASSES:
        raise TooManyClasses(_advice(traffic, classes, how))
    if how == "exact":
        return quotient(traffic, partition), None
    return with_worst_bundles(traffic, partition), None


def _fold_pinned(traffic: Traffic, how: str, pinned: Pinned) -> tuple[Quotient, Pace]:
    """Pinned flows share single links, which no two groups share alike: `off` plays every group, else some replicas.

    The replicas with the slowest flows are played apart, each at the pace of its own; the others stand together at their
    mean. The fabric's bundles are left out: what passes them is the sum of their links.
    """
    number = tuple(np.arange(channel.groups) for channel in traffic.channels)
    if how == "off":
        partition = replace(identity(traffic), link=_without_bundles(traffic, identity(traffic).link))
        pace = Pace(pinned, number, number, tuple(np.zeros(g.size, dtype=bool) for g in number))
        return replace(quotient(traffic, partition), pinned=pace.governed), pace
    together = refine(traffic, bundles=False)
    if _classes(together) > MOST_CLASSES:
        raise TooManyClasses(_advice(traffic, _classes(together), how))
    apart = pinned.apart()
    partition = refine(traffic, bundles=False, apart=apart)
    kinds, typical = [], []
    for channel, folded, whole in zip(traffic.channels, partition.groups, together.groups, strict=True):
        first = firsts(folded)
        kinds.append(whole[first])
        typical.append(np.all(apart[channel.members[first]] == 0, axis=1))
    pace = Pace(pinned, partition.groups, tuple(kinds), tuple(typical))
    folded_job = quotient(traffic, partition)
    sampled = bool(np.any(apart == 0))
    return replace(folded_job, pinned=pace.governed, approximate=sampled or bool(pinned.sprayed)), pace


def _without_bundles(traffic: Traffic, link: Ints) -> Ints:
    """Colours of links with those of the fabric's bundles taken away; NICs and NVLinks are numbered before them."""
    kept = link.copy()
    kept[4 * traffic.cluster.gpus :] = -1
    return kept


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
