"""Node-limited routing: a token's copies go to few nodes, each of which gets the token once and hands it on over NVLink.

node 0: g0  g1  g2  g3         g1 sends what node 1's experts need to the member at its own place there, g5, over the
            |                  network; g5 has copies for g4, g6, g7. Combining sums in the node, then goes back the same
node 1: g4  g5  g6  g7         way: as many bytes.
"""

from __future__ import annotations

import math

import numpy as np

from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster
from colossim.errors import Problem, ScenarioError
from colossim.footprint import Edges, Floats, Footprint, Ints, Runs
from colossim.patterns import MOST_FLOWS, PAIRS_AT_ONCE, relayed_by_members
from colossim.scenario.plan import NodeLimit


def nodes_of_a_token(limit: NodeLimit, nodes: int) -> float:
    """Nodes that a token goes to, on average: of N nodes the M with the best experts, k of their M E/N experts.

    Equally likely experts leave a chosen node without a copy with the probability C(P - E/N, k)/C(P, k), P = M E/N.
    (DeepSeek-V3, section 2.1.2: at most M = 4 nodes; 3.6 of 8 with 8 of 256 experts.)  Raises ScenarioError if M nodes have
    fewer than k experts.
    """
    chosen, each, k = min(limit.nodes, nodes), limit.experts / nodes, limit.per_token
    pool = chosen * each
    if pool < k * (1 - 1e-12):
        enough = math.ceil(k * nodes / limit.experts)
        message = (
            f"{chosen} of the {nodes} nodes of a group have {pool:g} experts, a token visits {k}: {enough} would do"
        )
        raise ScenarioError([Problem("job.experts.limit_nodes", message)])
    missed = math.prod(max(0.0, pool - each - i) / (pool - i) for i in range(k))
    return chosen * (1 - missed)


def node_limited(cluster: Cluster, members: Ints, limit: NodeLimit) -> Footprint:
    """Weights are copies that would be a message each: S/n of an all-to-all's S bytes, k copies a token.

    Of a token's k (N-1)/N copies for other nodes d (N-1)/N go over the network, d of `nodes_of_a_token`: a message to a node
    of q members weighs q d/k. NVLink carries every copy but those for the member at the same place. Both at once (DeepEP).
    members: (G, n) GPUs, ascending in each row.
    """
    groups, n = members.shape
    flat, gpus = members.ravel(), cluster.gpus
    runs = Runs.of(cluster, members)
    counts, which = np.unique(runs.count, return_inverse=True)
    ratio = np.array([nodes_of_a_token(limit, int(count)) / limit.per_token for count in counts])[which]
    edges = Edges(cluster, groups)
    leaving, entering, received = np.zeros(gpus), np.zeros(gpus), np.zeros(gpus)
    out, switches = np.zeros(gpus), np.zeros(groups)
    run_of = np.repeat(np.arange(runs.size.size), runs.size)
    place = np.arange(flat.size) - runs.start[run_of]
    together = max(1, PAIRS_AT_ONCE // (n * int(runs.count.max())))
    for begin in range(0, groups, together):
        senders = np.arange(begin * n, min(groups, begin + together) * n)
        many = runs.count[senders // n]
        sender = np.repeat(senders, many)
        group = sender // n
        to = runs.first[group] + np.arange(sender.size) - np.repeat(np.cumsum(many) - many, many)
        away = to != run_of[sender]
        sender, group, to = sender[away], group[away], to[away]
        src, dst = flat[sender], flat[runs.start[to] + place[sender] * runs.size[to] // runs.size[run_of[sender]]]
        received += np.bincount(dst, minlength=gpus)
        out += np.bincount(dst, weights=runs.size[to] - 1, minlength=gpus)
        weight = runs.size[to] * ratio[group]
        for one in np.unique(weight):
            same = weight == one
            routes = cluster.routes(src[same], dst[same])
            np.maximum.at(switches, group[same], routes.latency)
            leaves, enters = edges.message(group[same], src[same], dst[same], routes, float(one))
            leaving += one * np.bincount(src[same][leaves], minlength=gpus)
            entering += one * np.bincount(dst[same][enters], minlength=gpus)
    inside = np.zeros(gpus)
    inside[flat] = runs.size[run_of] - 1
    into = np.zeros(gpus)
    into[flat] = n - 1 - received[flat]
    columns = {NVLINK_OUT: out + inside, NVLINK_IN: into, NIC_OUT: leaving, NIC_IN: entering}
    group_rows, link_rows, weight_rows = relayed_by_members(members, gpus, edges.rows(), columns)
    start = np.arange(groups) * n

    def heaviest(one: Floats, other: Floats) -> Floats:
        return np.maximum.reduceat(np.maximum(one, other)[flat], start)

    many_nodes = runs.count > 1
    messages = int((n * (runs.count - 1)).sum())
    return Footprint(
        own=tuple((0, kind, column) for kind, column in columns.items()),
        group=group_rows,
        link=link_rows,
        weight=weight_rows,
        share=np.full(groups, 1.0 / n),
        nodes=runs.count,
        nvlink_steps=np.where(many_nodes & (runs.lanes == 1), 0.0, 1.0),
        network_steps=np.where(many_nodes, 1.0, 0.0),
        switches=switches,
        nvlink_weight=heaviest(columns[NVLINK_OUT], columns[NVLINK_IN]),
        nic_weight=heaviest(columns[NIC_OUT], columns[NIC_IN]),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=np.ones(groups, dtype=bool),
        flows=None if edges.pinned and messages > MOST_FLOWS else edges.flows(),
    )
