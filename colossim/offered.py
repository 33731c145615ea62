"""Traffic that is offered to the fabric alone: every NIC sends at once, and max-min fairness says what arrives.

    permutation   each NIC to another, drawn at random: what vendors' benchmarks of routing send
    shift         each NIC to the same one some nodes on: a ring in rank order, or a stage boundary
    all_to_all    each NIC to `flows_per_nic` peers on its rail, spread evenly over the cluster, all at once

No message is relayed over NVLink: it leaves by its own NIC and changes rails over the spine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from colossim import __version__
from colossim.cluster import Cluster, build_cluster
from colossim.cluster.hashed import Members, hashed_paths
from colossim.cluster.topology import Floats, Ints, Routes
from colossim.errors import ScenarioError
from colossim.maxmin import max_min
from colossim.result.fabric import FabricResult
from colossim.result.routing import distribution, hottest
from colossim.scenario.schema import Scenario, TrafficSpec

Progress = Callable[[str, float], None]


def offer(scenario: Scenario, progress: Progress | None = None) -> FabricResult:
    """Plays the scenario's `traffic` over its fabric.

    progress: called with what is being done and the share of it that is done.
    Raises ScenarioError (located), ValueError if the scenario has no `traffic`.
    """
    traffic, fabric = scenario.traffic, scenario.cluster.fabric
    if traffic is None:
        raise ValueError(f"`{scenario.name}` has no `traffic`: colossim.simulate plays a step of its job")
    tell = progress or (lambda what, share: None)
    began = time.perf_counter()
    try:
        tell("wiring the cluster", 0.0)
        built = build_cluster(scenario.cluster)
    except ScenarioError as error:
        raise scenario.located(error) from None
    cluster = replace(built, fabric=fabric.model_copy(update={"rails": "spine"}))
    src, dst = ends(cluster, traffic, scenario.run.seed)
    routes = cluster.routes(src, dst)
    tell("sharing the links", 0.2)
    pairs = 1
    hot: list[dict[str, object]] = []
    if fabric.routing == "adaptive":
        rates = _sprayed(cluster, src, dst, routes)[:, None]
    else:
        rates, hot = _pinned(cluster, src, dst, routes, traffic.flows_per_nic, scenario.run.seed)
        pairs = rates.shape[1]
    line = cluster.line_rate
    # (NICs, flows and queue pairs of each): flows stand peer by peer, all NICs of each.
    by_nic = rates.reshape(traffic.flows_per_nic, cluster.gpus, pairs).transpose(1, 0, 2).reshape(cluster.gpus, -1)
    return FabricResult(
        scenario=scenario.name,
        description=scenario.description,
        gpus=cluster.gpus,
        nodes=cluster.nodes,
        seed=scenario.run.seed,
        version=__version__,
        pattern=traffic.pattern,
        flows_per_nic=traffic.flows_per_nic,
        routing=fabric.routing,
        queue_pairs=pairs,
        flows=src.size,
        line_rate_Bps=float(line.mean()),
        efficiency=fabric.efficiency,
        nic_share=distribution(by_nic.sum(axis=1) / line),
        split_share=distribution(by_nic.min(axis=1) * by_nic.shape[1] / line),
        hottest=tuple(hot),
        wall_s=time.perf_counter() - began,
        assumptions=tuple(scenario.assumptions),
    )


def ends(cluster: Cluster, traffic: TrafficSpec, seed: int) -> tuple[Ints, Ints]:
    """(flows,) sending and receiving GPUs, flow by flow of a NIC, all NICs of each."""
    gpu = np.arange(cluster.gpus)
    size = cluster.gpus // cluster.nodes
    if traffic.pattern == "permutation":
        peers = [np.random.default_rng(seed).permutation(cluster.gpus)] * traffic.flows_per_nic
    elif traffic.pattern == "shift":
        distance = traffic.distance or cluster.fabric.nodes_per_pod
        peers = [(gpu + distance * size) % cluster.gpus] * traffic.flows_per_nic
    else:
        apart = cluster.nodes // (traffic.flows_per_nic + 1)
        peers = [(gpu + i * apart * size) % cluster.gpus for i in range(1, traffic.flows_per_nic + 1)]
    return np.tile(gpu, traffic.flows_per_nic), np.concatenate(peers)


def _sprayed(cluster: Cluster, src: Ints, dst: Ints, routes: Routes) -> Floats:
    """(flows,) bytes/s when the links of a leaf, block or zone are one bundle."""
    gpus, flow = cluster.gpus, np.arange(src.size)
    who, where = [flow, flow], [2 * gpus + src, 3 * gpus + dst]
    for level, place in enumerate((cluster.leaf, cluster.block, cluster.zone), start=1):
        far = np.flatnonzero(routes.level > level)
        for down, end in ((False, src), (True, dst)):
            who.append(far)
            where.append(cluster.bundle_offset(level, down) + place(end[far]))
    rows = np.concatenate(who)
    return max_min(rows, np.concatenate(where), np.ones(rows.size), cluster.capacity(), np.full(src.size, np.inf))


def _pinned(
    cluster: Cluster, src: Ints, dst: Ints, routes: Routes, flows_per_nic: int, seed: int
) -> tuple[Floats, list[dict[str, object]]]:
    """(flows, queue pairs) bytes/s on the single links that routing pins each to, and the links with most on them."""
    fabric, gpus = cluster.fabric, cluster.gpus
    members = Members.of(cluster)
    number = np.arange(src.size) // gpus
    paths = hashed_paths(
        members,
        src,
        dst,
        routes.level,
        flow_key=(number * gpus + src) * gpus + dst,
        seed=seed,
        paths_per_flow=fabric.paths_per_flow,
        policy="static" if fabric.routing == "static" else "ecmp",
    )
    pair, pairs = np.arange(paths.flow.size), paths.flow.size // src.size
    who = np.concatenate([pair, pair, paths.who])
    nics = [members.links + src[paths.flow], members.links + gpus + dst[paths.flow]]
    capacity = np.concatenate([members.capacity(), cluster.nic, cluster.nic])
    rates = max_min(who, np.concatenate([*nics, paths.where]), np.ones(who.size), capacity, np.full(pair.size, np.inf))
    asked = cluster.nic[src] / (flows_per_nic * pairs)
    hot = hottest(members, paths.where, paths.flow[paths.who], asked, capacity)
    return rates.reshape(-1, pairs), hot
