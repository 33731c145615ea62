"""GPUs of one type that aren't alike: how slow the slowest of a job is, or what each of them draws.

Under its power limit each GPU finds a clock of its own: GPUs of one kind differ by several percent (Sinha et al. 2022, "Not All
GPUs Are Created Equal", SC22). Memory and links keep their rates.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from colossim.cluster.topology import Cluster
from colossim.draws import generator, log_spread, lognormal
from colossim.scenario.jitter import Jitter


def expected_maximum(n: int) -> float:
    """Of n standard normal draws, in the mean: Phi^-1((n - 3/8)/(n + 1/4)) (Blom 1958); 0 for one draw."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def with_slowest(cluster: Cluster, ranks: int) -> Cluster:
    """The cluster with GPUs of each type as fast as the slowest of the job's: 1 - spread x E[max] of its mean.

    ranks: of the job, on the first GPUs.
    """
    counts = np.bincount(cluster.gpu_type[:ranks], minlength=len(cluster.node_types)).tolist()
    types = []
    for node, count in zip(cluster.node_types, counts, strict=True):
        gpu = node.gpu
        if gpu.spread and count > 1:
            pace = gpu.pace * (1.0 - gpu.spread * expected_maximum(count))
            node = node.model_copy(update={"gpu": gpu.model_copy(update={"pace": pace})})
        types.append(node)
    return replace(cluster, node_types=tuple(types))


def slow_gpus(cluster: Cluster, jitter: Jitter, seed: int) -> NDArray[np.bool_]:
    """(gpus,) whether each is on a slow machine: so many as the share says, rounded, at random places.

    Each machine draws a number that it keeps, wherever jobs stand and whatever comes behind it; the lowest are slow.
    """
    found = np.zeros(cluster.gpus, dtype=bool)
    if jitter.slow is not None:
        place = cluster.gpu_node if jitter.slow.per == "node" else _numbers(cluster)
        machines = int(place.max()) + 1
        order = np.argsort(generator(seed, "jitter.slow").random(machines), kind="stable")
        found = np.isin(place, order[: jitter.slow.count(machines)])
    return found


def paces_of(cluster: Cluster, jitter: Jitter, seed: int) -> NDArray[np.float64]:
    """(gpus,) time that each GPU's kernels take over their mean: lognormal with a mean of 1, times the factor of slow ones."""
    spread = log_spread(jitter.gpu)
    draws = generator(seed, "jitter.gpu").standard_normal(cluster.gpus)[_numbers(cluster)]
    paces = lognormal(spread * draws, spread)
    if jitter.slow is not None:
        paces[slow_gpus(cluster, jitter, seed)] *= jitter.slow.factor
    return paces


def _numbers(cluster: Cluster) -> NDArray[np.int64]:
    """(gpus,) of each GPU by node and place in it, whatever job it stands for first."""
    numbers = np.empty(cluster.gpus, np.int64)
    numbers[np.lexsort((cluster.gpu_local, cluster.gpu_node))] = np.arange(cluster.gpus)
    return numbers
