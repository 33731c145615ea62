"""How many nodes a site's power runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from colossim.catalog.types import NodeType


def site_power(node: NodeType, per_node: str | float, switches: float, pue: float) -> float:
    """W of the site for one node. switches: W of them a GPU.

    provisioned: what it is rated at and its share of switches, times pue (12.4 kW for 8 x H100 at 1.11: 155 MW for 100,000
    GPUs, the estimate for Colossus).  measured: what such a node drew in a training run, or its GPUs at their limit and the
    rest of it if none was measured, likewise (8.6 kW there).  A number is itself.
    """
    if not isinstance(per_node, str):
        return per_node
    own = node.rated
    if per_node == "measured":
        own = node.measured_power or node.overhead_power + node.gpus * node.gpu.limit
    return (own + node.gpus * switches) * pue


def running(
    groups: Sequence[tuple[NodeType, int]], power: float, per_node: str | float, switches: float, pue: float
) -> list[int]:
    """How many nodes of each group run on so many W, the first ones first."""
    if math.isinf(power):
        return [count for _, count in groups]
    found = []
    left = power
    for node, count in groups:
        each = site_power(node, per_node, switches, pue)
        # A power that was written for so many nodes is enough for them, whatever the rounding.
        runs = min(count, math.floor(left / each + 1e-9))
        left -= runs * each
        found.append(runs)
    return found
