"""Which algorithm and protocol NCCL takes: the cost table of its tuner, for choosing only.

NCCL prices every (algorithm, protocol) as latency + size/bandwidth and takes the cheapest; there are no thresholds. The
constants are those of NCCL 2.30 (src/graph/tuning.cc). How long the choice then takes is `collective.py`'s matter: the
tuner's prices are up to twice off, and knowing its mistakes is part of predicting it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from colossim.footprint import Shape

US = 1e-6
#: LL sends 4 B of flags with 4 B of data, LL128 8 B with 120 B; both save the fences that Simple pays for.
PROTOCOLS = ("ll", "ll128", "simple")
#: s before the first step: {algorithm: (LL, LL128, Simple)}.
BASE = {"ring": (6.6 * US, 14.0 * US, 8.4 * US), "tree": (6.8 * US, 14.0 * US, 8.4 * US)}
#: s of a step over NVLink.
NVLINK_STEP = {"ring": (0.6 * US, 1.9 * US, 3.4 * US), "tree": (0.6 * US, 1.25 * US, 4.0 * US)}
#: s of a step over the network, before the NIC's own latency (twice in Simple). Rings of one rank a node pay the tree's.
NETWORK_STEP = {"ring": (2.7 * US, 4.0 * US, 14.0 * US), "tree": (5.0 * US, 8.5 * US, 14.0 * US)}
#: s of in-switch reduction on NVLink, of a step of the tree between nodes, and of SHARP.
NVLS, NVLS_STEP, COLLNET, COLLNET_STEP = 25.0 * US, 20.9 * US, 31.0 * US, 0.4 * US
#: s of PAT: before, and of each rank; its steps overlap 3.5 deep.
PAT, PAT_RANK, PAT_OVERLAP = 8.0 * US, 2.8 * US, 3.5
#: Bytes/s that LL moves at most over two nodes and over more (Intel hosts); in a node, as a share of the ring's.
LL_MOST, LL_SHARE = (39.0e9, 20.4e9), 0.38
#: A tree's bandwidth over its nominal one, for 64 B, 128 B, ... 256 MB: (LL, LL128, Simple).
TREE_CORRECTION = (
    (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.9, 0.9, 0.92, 0.92),
    (0.9,) * 7 + (0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9),
)
#: What a ring of several nodes in Simple pays for, over its latency ("plateau effect").
PLATEAU = 1.4

#: Bytes of payload that a channel hands on at a time: an eighth (NCCL_STEPS) of its buffer, of which LL fills a half and
#: LL128 15/16 (src/include/device.h; src/init.cc, computeBuffSizes). A broadcast's chunk is one of them (BROADCAST_CHUNKSTEPS).
STEP_BYTES = {"ll": 8 * 512 * 16 / 2, "ll128": 120 * 640 * 8 * 15 / 16, "simple": 4 * 2**20 / 8}
#: Channels of a group over nodes for each ring that its search finds, one a NIC (src/graph/connect.cc, ncclTopoPostset).
CHANNELS_PER_NIC = 2

#: Operations that an algorithm can do. A ring does them all, and what can do nothing else falls back to it.
CAN = {
    "ring": frozenset({"all_reduce", "reduce_scatter", "all_gather", "broadcast"}),
    "tree": frozenset({"all_reduce"}),
    "nvls": frozenset({"all_reduce"}),
    "collnet": frozenset({"all_reduce"}),
    "pat": frozenset({"reduce_scatter", "all_gather"}),
    "hierarchical": frozenset({"all_reduce", "reduce_scatter", "all_gather"}),
}
#: Algorithms with one protocol only.
SIMPLE_ONLY = frozenset({"nvls", "collnet", "pat", "hierarchical"})


@dataclass(frozen=True)
class Nominal:
    """What the tuner knows of the machine. ring: bytes/s of a node's rings; nic: bytes/s of one NIC; nic_latency: s.

    nvls: nominal share of in-switch reduction over the ring, 0 where the switch can't.
    """

    ring: float
    nic: float
    nic_latency: float
    nvls: float


def estimate(operation: str, size: float, algorithm: str, protocol: str, shape: Shape, facts: Nominal) -> float:
    """The tuner's price in s: latency + size/bandwidth.

    size: bytes S of network.md.  shape: of the group (ranks, nodes).  Hierarchical is not NCCL's and has no price: inf.
    """
    n, nodes = shape.size, shape.nodes
    p = PROTOCOLS.index(protocol)
    per_node = n / nodes
    depth = int(math.log2(nodes))
    nic = facts.nic_latency * (2 if protocol == "simple" else 1)
    nominal = facts.ring if nodes == 1 else min(facts.ring, per_node * facts.nic)
    steps = {"all_reduce": 2 * (n - 1), "broadcast": n}.get(operation, n - 1)
    ll = LL_SHARE * nominal if nodes == 1 else LL_MOST[min(nodes, 3) - 2]
    if algorithm == "ring":
        bandwidth = (min(0.5 * nominal, ll), 0.92 * nominal, nominal)[p] * n / steps
        between = 0 if nodes == 1 else steps * (nodes - 1) // (n - 1)
        hop = NETWORK_STEP["tree" if per_node == 1 else "ring"][p] + nic
        step = max(NVLINK_STEP["ring"][p], 0.0 if nodes == 1 else (3 * US if protocol == "simple" else US))
        latency = BASE["ring"][p] + (steps - between) * step + between * hop
        if operation == "broadcast":
            # Of channels that all take the same way round (in a node) one hop counts, else all as if over the network.
            chunk = "tree" if protocol == "simple" else "ring"
            latency = BASE["ring"][p] + (NVLINK_STEP["ring"][p] if nodes == 1 else n * NETWORK_STEP[chunk][p])
        if protocol == "simple" and nodes > 1 and operation == "all_reduce":
            latency *= PLATEAU
    elif algorithm == "tree":
        full = 0.92 * nominal
        bandwidth = (min(full / 3.8, ll), full * (7 / 9 if nodes == 1 else 120 / 128), full)[p] / 2
        place = int(math.log2(max(1.0, size / 64)))
        bandwidth *= TREE_CORRECTION[p][place] if place < len(TREE_CORRECTION[p]) else 1.0
        latency = BASE["tree"][p] + 2 * (
            (per_node - 1) * NVLINK_STEP["tree"][p] + depth * (NETWORK_STEP["tree"][p] + nic)
        )
    elif algorithm == "nvls":
        # A channel a GPU that holds a part of the buffer: a smaller domain has fewer of them.
        switch = 2 * facts.nvls * facts.ring * min(1.0, per_node / 8)
        network = math.inf if nodes == 1 else per_node * facts.nic * (2 if nodes == 2 else 1)
        bandwidth = min(switch, network) * n / steps
        latency = NVLS + (2 * depth * (NVLS_STEP + nic) if nodes > 1 else 0.0)
    elif algorithm == "collnet":
        bandwidth = per_node * facts.nic * 0.85 / 2
        latency = 2 * COLLNET + 2 * COLLNET_STEP * (per_node - 1)
    elif algorithm == "pat":
        bandwidth = 0.75 * nominal
        latency = PAT + depth * (NETWORK_STEP["tree"][p] + nic) / PAT_OVERLAP + PAT_RANK * n
    else:
        return math.inf
    return latency + size / bandwidth


def choices(operation: str, shape: Shape) -> list[tuple[str, str]]:
    """(algorithm, protocol) that could run an operation on a group of this shape."""
    if not shape.usable or operation not in CAN[shape.algorithm]:
        return []
    if shape.algorithm in SIMPLE_ONLY:
        return [(shape.algorithm, "simple")]
    return [(shape.algorithm, protocol) for protocol in PROTOCOLS]
