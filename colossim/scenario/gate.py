"""How many nodes a site's power runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from colossim.catalog.types import NodeType

#: W of switches and optics a GPU: 59.6 kW for 64 nodes of 8 (Supermicro, MLPerf v4.0).
SWITCHES = 59_570 / 512


def site_power(node: NodeType, per_node: str | float, pue: float) -> float:
    """W of the site for one node.

    provisioned: what its supply is laid out for, and its share of switches, times pue (12.4 kW for 8 x H100 at 1.11: 155 MW
    for 100,000 GPUs, the estimate for Colossus).  measured: what its GPUs draw at their limit and the rest of it in
    training, likewise (8.6 kW there).  A number is itself. Raises ValueError if what is provisioned isn't known.
    """
    if not isinstance(per_node, str):
        return per_node
    if per_node == "measured":
        own = node.gpus * node.gpu.limit + node.overhead_power
    elif node.rated_power is not None:
        own = node.rated_power
    else:
        raise ValueError(
            f"what {node.name} is provisioned for isn't known: write `per_node: measured`, how many W, or the type's"
            " `rated_power`"
        )
    return (own + node.gpus * SWITCHES) * pue


def running(groups: Sequence[tuple[NodeType, int]], power: float, per_node: str | float, pue: float) -> list[int]:
    """How many nodes of each group run on so many W, the first ones first. Raises ValueError as site_power does."""
    if math.isinf(power):
        return [count for _, count in groups]
    found = []
    left = power
    for node, count in groups:
        each = site_power(node, per_node, pue)
        # A power that was written for so many nodes is enough for them, whatever the rounding.
        runs = min(count, math.floor(left / each + 1e-9))
        left -= runs * each
        found.append(runs)
    return found
