"""Machines: nodes, the fabric that joins them, and the way of a message. Knows nothing of jobs."""

from colossim.cluster.fabric import build_cluster
from colossim.cluster.graph_cluster import GraphCluster, GraphRoutes
from colossim.cluster.topology import (
    LINK_KINDS,
    NIC_IN,
    NIC_OUT,
    NVLINK_IN,
    NVLINK_OUT,
    Cluster,
    Routes,
)

__all__ = [
    "LINK_KINDS",
    "NIC_IN",
    "NIC_OUT",
    "NVLINK_IN",
    "NVLINK_OUT",
    "Cluster",
    "GraphCluster",
    "GraphRoutes",
    "Routes",
    "build_cluster",
]
