"""How much slower than its type's mean the slowest of a job's GPUs runs, which a synchronous step waits for.

Under its power limit each GPU finds a clock of its own: GPUs of one kind differ by several percent (Sinha et al. 2022, "Not All
GPUs Are Created Equal", SC22). Memory and links keep their rates.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np

from colossim.cluster.topology import Cluster


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
