"""Writes to storage beside a step: what they put on links."""

from __future__ import annotations

import numpy as np

from colossim.cluster import NIC_OUT, Cluster
from colossim.footprint import LEVELS, Edges, Footprint, Ints


def storage(cluster: Cluster, members: Ints, *, tiers: int) -> Footprint:
    """Every GPU writes to storage through its own NIC, and up `tiers` - 1 levels of bundles. members: (G, 1)."""
    gpus, src = cluster.gpus, members[:, 0]
    groups = src.size
    edges = Edges(cluster, groups)
    for level in LEVELS[: tiers - 1]:
        if not cluster.bundle_capacity(level).size:
            break
        edges.crossings[level - 1] = 1.0
        edges.feeds[0, level - 1, src] = True
        if cluster.can_bind(level):
            where = (cluster.leaf, cluster.block, cluster.zone)[level - 1](src)
            edges.add(np.arange(groups), cluster.bundle_offset(level, False) + where, np.ones(groups))
    column = np.zeros(gpus)
    column[src] = 1.0
    rows = edges.rows()
    none = np.zeros(groups)
    return Footprint(
        own=((0, NIC_OUT, column),),
        group=rows[0],
        link=rows[1],
        weight=rows[2],
        share=np.ones(groups),
        nodes=np.ones(groups, np.int64),
        nvlink_steps=none,
        network_steps=none,
        switches=none,
        nvlink_weight=none,
        nic_weight=np.ones(groups),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=np.ones(groups, dtype=bool),
        flows=edges.flows(),
    )
