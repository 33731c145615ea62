"""From a cluster's specification to the cluster, if its switches can wire it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from colossim.catalog.types import Fabric, NodeType
from colossim.cluster.damage import damaged
from colossim.cluster.graph_cluster import GraphCluster
from colossim.cluster.own import OwnFabric, check_connected, own_fabric
from colossim.cluster.topology import Cluster, nics_below_a_leaf, rails_with_gpus
from colossim.errors import Problem, ScenarioError
from colossim.scenario.schema import ClusterSpec


def build_cluster(spec: ClusterSpec) -> Cluster:
    """The cluster of a specification. Raises ScenarioError if its switches can't wire it, naming what would.

    On a graph: ScenarioError with all that is wrong with it, SimulationError if it is partitioned.
    """
    types: list[NodeType] = []
    for group in spec.nodes:
        if group.type not in types:
            types.append(group.type)
    index = [types.index(group.type) for group in spec.nodes]
    node_type = np.repeat(np.array(index, np.int16), [group.count for group in spec.nodes])
    sizes = np.array([t.gpus for t in types], np.int64)[node_type]
    first_gpu = np.cumsum(sizes) - sizes
    gpus = int(sizes.sum())
    gpu_node = np.repeat(np.arange(node_type.size, dtype=np.int32), sizes)
    gpu_local = (np.arange(gpus, dtype=np.int32) - first_gpu[gpu_node].astype(np.int32)).astype(np.int16)
    gpu_type = node_type[gpu_node]
    rails = np.array([t.rails for t in types], np.int16)[gpu_type]
    fabric = spec.fabric
    nic = np.array([min(t.nic, fabric.link) * fabric.efficiency for t in types])[gpu_type]
    nvlink = np.array([t.gpu.nvlink for t in types])[gpu_type]
    own = None
    if fabric.type == "graph":
        own, problems = _graph(spec, sizes.tolist())
    else:
        problems = _wiring(fabric, types, int(node_type.size), gpus)
    cluster = Cluster(
        node_types=tuple(types),
        fabric=fabric,
        node_type=node_type,
        first_gpu=first_gpu,
        gpu_node=gpu_node,
        gpu_local=gpu_local,
        gpu_rail=gpu_local % rails,
        gpu_type=gpu_type,
        nvlink=nvlink,
        nic=nic,
    )
    if spec.degraded:
        cluster, wrong = damaged(cluster, spec.degraded)
        problems += wrong
    if problems:
        raise ScenarioError(problems)
    if own is None:
        return cluster
    check_connected(own)
    return GraphCluster.of(cluster, own)


def _graph(spec: ClusterSpec, gpus_per_node: list[int]) -> tuple[OwnFabric | None, list[Problem]]:
    """The fabric of the graph that the specification names or holds, or all that is wrong with it."""
    try:
        own = own_fabric(spec.graph, gpus_per_node, latency=spec.fabric.hop_latency, connected=False)
        return own, []
    except ScenarioError as error:
        # The field's place in the scenario comes first, the graph's file and line are said behind it.
        return None, [Problem(p.field, str(replace(p, field=""))) for p in error.problems]


def _wiring(fabric: Fabric, types: list[NodeType], nodes: int, gpus: int) -> list[Problem]:
    """Whether switches of `switch_ports` can join so many nodes in so many tiers.

    A leaf has a port down for each node of its pod (rail-optimized) or for each of their GPUs (fat-tree), and ports up
    for what the oversubscription leaves. A spine has a port for each leaf of its block, a core one for each block, a top
    switch one for each zone; below the last tier, ports up take their share. Planes split each port.
    """
    ports = fabric.switch_ports * fabric.planes
    if fabric.type == "single-switch":
        if gpus <= ports:
            return []
        message = f"one switch of {ports:,} ports cannot take {gpus:,} GPUs: a fat-tree or rail-optimized fabric would"
        return [Problem("cluster.fabric.switch_ports", message)]
    problems = []
    boundaries = fabric.tiers - 1
    rails = {rails_with_gpus(t) for t in types}
    optimized = fabric.type == "rail-optimized"
    if optimized and not boundaries and (fabric.rails == "spine" or len(rails) > 1):
        message = (
            "with one tier rails meet over NVLink only: use `rails: forward` and nodes with as many rails, or tiers: 2"
        )
        problems.append(Problem("cluster.fabric.rails", message))
    leaves_a_pod = max(rails) if optimized else 1
    down = nics_below_a_leaf(fabric, types)
    per_leaf = down // fabric.nodes_per_pod
    up = math.ceil(down / fabric.ratio(0)) if boundaries else 0
    if down + up > ports:
        fits = max(1, _down_ports(ports, fabric.ratio(0) if boundaries else math.inf) // per_leaf)
        message = (
            f"a leaf needs {down:,} ports down and {up:,} up, its switch has {ports:,}: {fits:,} nodes a pod would fit"
        )
        problems.append(Problem("cluster.fabric.nodes_per_pod", message))

    pods = math.ceil(nodes / fabric.nodes_per_pod)
    blocks = math.ceil(pods / fabric.pods_per_block)
    zones = math.ceil(blocks / fabric.blocks_per_zone)
    # (what meets here, how many, the field that says how many, leaves a unit, nodes a unit)
    tiers = [
        (
            "leaves",
            leaves_a_pod * pods,
            leaves_a_pod * min(pods, fabric.pods_per_block),
            "pods_per_block",
            leaves_a_pod,
        ),
        ("blocks", blocks, min(blocks, fabric.blocks_per_zone), "blocks_per_zone", 1),
        ("zones", zones, zones, "", 1),
    ]
    size = fabric.nodes_per_pod
    for tier, (what, everything, share, field, each) in enumerate(tiers[: max(1, boundaries)]):
        last = tier == boundaries - 1
        if not boundaries:
            if pods > 1:
                problems.append(_too_small(fabric, nodes, gpus, size))
            break
        room = ports if last else _down_ports(ports, fabric.ratio(tier + 1))
        needed = everything if last else share
        if needed > room and last:
            problems.append(_too_small(fabric, nodes, gpus, room // each * size))
        elif needed > room:
            message = f"a switch above needs a port for each of {needed:,} {what}, it has {room:,} down"
            problems.append(Problem(f"cluster.fabric.{field}", f"{message}: {room // each:,} would fit"))
        size *= (fabric.pods_per_block, fabric.blocks_per_zone, 1)[tier]
    return problems


def _down_ports(ports: int, ratio: float) -> int:
    """Ports down of a switch that has down/ratio ports up."""
    return int(ports / (1 + 1 / ratio))


def _too_small(fabric: Fabric, nodes: int, gpus: int, most: int) -> Problem:
    more = f"tiers: {fabric.tiers + 1}, " if fabric.tiers < 4 else ""
    tiers = "1 tier" if fabric.tiers == 1 else f"{fabric.tiers} tiers"
    return Problem(
        "cluster.fabric",
        f"{tiers} of {fabric.switch_ports:,}-port switches can join at most {most:,} nodes; the cluster has "
        f"{nodes:,} ({gpus:,} GPUs). What would: {more}more ports, planes, or oversubscription",
    )
