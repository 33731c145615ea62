"""How a collective is timed: bytes on one edge, latency, and the rate that it can reach at best.

This is the file to change when an all-reduce should be timed differently. What each algorithm puts on which links is
counted in `patterns.py`; sharing links with others happens in `engine/network.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from colossim.catalog.types import NodeType
from colossim.quotient import GroupClass

#: Passes over the group: an all-reduce is a reduce-scatter and an all-gather.
PASSES = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "all_to_all": 1, "shift": 1, "send": 1}
#: Operations that run as rings inside a node and pay the ramp over message size.
_RINGS = frozenset({"all_reduce", "reduce_scatter", "all_gather"})


@dataclass(frozen=True)
class Timing:
    """bytes: on one network edge (NVLink edge inside a node).  latency: s before the first byte.  cap: bytes/s of an edge."""

    bytes: float
    latency: float
    cap: float


def timing(operation: str, size: float, group: GroupClass, node: NodeType) -> Timing:
    """Timing of one collective of `size` bytes (S of network.md) on a group.

    Ring: an all-reduce puts 2(n-1)/n S/C bytes on an edge of each of C rings and waits 2(n-1) steps (Patarasuk & Yuan
    2009); reduce-scatter and all-gather half of each. Inside a node the ring's rate ramps up with the message:
    B / (1 + (S0 n/8 / S)^g), fitted per node type on measured tables.
    """
    passes = PASSES[operation]
    inside = group.nic_load == 0
    curve = node.nvlink_ring
    ramp = 1.0
    if inside and operation in _RINGS and size > 0:
        ramp += (curve.half_size * group.size / 8 / size) ** curve.exponent
    base = curve.base if inside else node.network.base
    return Timing(
        bytes=passes * group.share * size,
        latency=base + passes * group.latency,
        cap=1.0 / max(group.nvlink_load * ramp, group.nic_load),
    )
