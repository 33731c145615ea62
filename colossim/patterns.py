"""The patterns of communication: edges of rings, messages of an all-to-all, transfers over a boundary.

Each function takes the groups of a channel, (G, n) GPUs, and returns their `Footprint`. `network.md`'s table of bytes a link
follows from these counts (tests/test_traffic.py enumerates them). None loops over ranks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster, GraphCluster
from colossim.footprint import LEVELS, Edges, Floats, Flows, Footprint, Ints, Runs


def ring(cluster: Cluster, members: Ints) -> Footprint:
    """NCCL's flat rings: C = max q_i lanes through all members, lane k leaves node i by member floor(k q_i / C).

        node 0: g0 - g1 - g2 - g3          lane 0 leaves by g0 and enters the next node there,
                 |    |    |    |          lane 1 by g1, ...: every NIC carries one edge each way,
        node 1: g4 - g5 - g6 - g7          every NVLink q-1 of the lanes.

    members: (G, n) GPUs, ascending in each row.
    """
    groups, n = members.shape
    flat = members.ravel()
    runs = Runs.of(cluster, members)
    edges = Edges(cluster, groups)
    # One network edge a run and lane, for groups of several nodes.
    crossing = runs.count[runs.group] > 1
    lanes = np.where(crossing, runs.lanes[runs.group], 0)
    run = np.repeat(np.arange(runs.start.size), lanes)
    lane = np.arange(run.size) - np.repeat(np.cumsum(lanes) - lanes, lanes)
    group = runs.group[run]
    last = run == (runs.first + runs.count - 1)[group]
    after = np.where(last, runs.first[group], run + 1)
    width = runs.lanes[group]
    leaves = runs.start[run] + lane * runs.size[run] // width
    enters = runs.start[after] + lane * runs.size[after] // width
    src, dst = flat[leaves], flat[enters]
    routes = cluster.routes(src, dst)
    own_nic, into_own = edges.message(group, src, dst, routes)

    gpus = cluster.gpus
    exits = np.bincount(leaves, minlength=flat.size)
    entries = np.bincount(enters, minlength=flat.size)
    direct = np.bincount(leaves[own_nic], minlength=flat.size)
    received = np.bincount(enters[into_own], minlength=flat.size)
    inside = np.repeat(runs.count == 1, n)
    width_of = np.repeat(runs.lanes, n)
    out = np.where(inside, 1, width_of - exits)
    into = np.where(inside, 1, width_of - entries)

    def spread(weights: Ints) -> Floats:
        column = np.zeros(gpus)
        column[flat] = weights
        return column

    start_of_group = np.arange(groups) * n
    # A pass is as slow as its slowest lane; the last chunk to arrive is the one that skips the ring's shortest edge.
    switches, shortest = np.zeros(groups), np.zeros(groups)
    lanes_of = np.where(runs.count > 1, runs.lanes, 0)
    if run.size:
        offset = np.cumsum(lanes_of) - lanes_of
        per_lane = np.bincount(offset[group] + lane, weights=routes.latency, minlength=int(lanes_of.sum()))
        many = np.flatnonzero(runs.count > 1)
        switches[many] = np.maximum.reduceat(per_lane, offset[many])
        shortest[many] = np.minimum.reduceat(routes.latency, np.flatnonzero(np.diff(group, prepend=-1)))
        shortest[runs.count < n] = 0.0
    group_rows, link_rows, weight_rows = edges.rows()
    return Footprint(
        own=(
            (0, NVLINK_OUT, spread(out)),
            (0, NVLINK_IN, spread(into)),
            (0, NIC_OUT, spread(direct)),
            (0, NIC_IN, spread(received)),
        ),
        group=group_rows,
        link=link_rows,
        weight=weight_rows,
        share=(n - 1) / (n * runs.lanes.astype(np.float64)),
        nodes=runs.count,
        nvlink_steps=np.where(runs.count > 1, n - runs.count, n - 1).astype(np.float64),
        network_steps=np.where(runs.count > 1, runs.count, 0).astype(np.float64),
        switches=switches - shortest,
        nvlink_weight=np.maximum.reduceat(np.maximum(out, into), start_of_group).astype(np.float64),
        nic_weight=np.maximum.reduceat(np.maximum(exits, entries), start_of_group).astype(np.float64),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=np.ones(groups, dtype=bool),
        flows=edges.flows(),
        spacing=runs.spacing(cluster, members),
    )


def hierarchical(cluster: Cluster, members: Ints) -> Footprint:
    """Reduce inside the node, ring between nodes on each rail, gather inside: bytes as the flat ring's, latency of two levels.

    Per unit of a network edge (2 (N-1)/N S/q for an all-reduce) NVLink carries (q-1) N/(N-1) units.
    Groups that sit in one node, or have unequal members a node, are played as flat rings.
    """
    flat_ring = ring(cluster, members)
    _, n = members.shape
    runs = Runs.of(cluster, members)
    smallest = np.minimum.reduceat(runs.size, runs.first)
    even = (runs.count > 1) & (smallest == runs.lanes)
    if not even.any():
        return flat_ring
    nodes, q = runs.count.astype(np.float64), runs.lanes.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        nvlink_weight = np.where(even, (q - 1) * nodes / (nodes - 1), 0.0)
    flat = members.ravel()
    weights = np.repeat(nvlink_weight, n)
    is_even = np.repeat(even, n)
    own = []
    for role, kind, column in flat_ring.own:
        if kind in (NVLINK_OUT, NVLINK_IN):
            column = column.copy()
            column[flat[is_even]] = weights[is_even]
        own.append((role, kind, column))
    return replace(
        flat_ring,
        own=tuple(own),
        share=np.where(even, (nodes - 1) / (nodes * q), flat_ring.share),
        # The flat ring pays n-N NVLink hops a pass; two levels pay q-1.
        nvlink_steps=np.where(even, q - 1, flat_ring.nvlink_steps),
        network_steps=np.where(even, nodes - 1, flat_ring.network_steps),
        # A chunk goes round a rail but for one edge; the flat ring of one rank a node has left that out already.
        switches=flat_ring.switches * np.where(even & (q > 1), (nodes - 1) / nodes, 1.0),
        nvlink_weight=np.where(even, nvlink_weight, flat_ring.nvlink_weight),
    )


def _neighbours(cluster: Cluster, src: Ints, dst: Ints, group: Ints, groups: int, receiver: int) -> Footprint:
    """One message an edge from src to dst; `receiver` is the role of dst (1 for a pair, 0 for a ring of equals)."""
    gpus = cluster.gpus
    edges = Edges(cluster, groups)
    routes = cluster.routes(src, dst)
    own_nic, into_own = edges.message(group, src, dst, routes)
    inside = routes.level == 0

    def marked(where: Ints) -> Floats:
        column = np.zeros(gpus)
        column[where] = 1.0
        return column

    # All send at once: the slowest message is over the network, if one is.
    outside = np.bincount(group[~inside], minlength=groups) > 0
    switches, nvlink_weight = np.zeros(groups), np.zeros(groups)
    np.maximum.at(switches, group, routes.latency)
    nvlink_weight[group[inside]] = 1.0
    group_rows, link_rows, weight_rows = edges.rows()
    return Footprint(
        own=(
            (0, NVLINK_OUT, marked(src[inside])),
            (receiver, NVLINK_IN, marked(dst[inside])),
            (0, NIC_OUT, marked(src[own_nic])),
            (receiver, NIC_IN, marked(dst[into_own])),
        ),
        group=group_rows,
        link=link_rows,
        weight=weight_rows,
        share=np.ones(groups),
        nodes=np.where(outside, 2, 1),
        nvlink_steps=np.where(outside, 0.0, 1.0),
        network_steps=np.where(outside, 1.0, 0.0),
        switches=switches,
        nvlink_weight=nvlink_weight,
        nic_weight=np.where(outside, 1.0, 0.0),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=np.ones(groups, dtype=bool),
        flows=edges.flows(),
    )


def shift(cluster: Cluster, members: Ints) -> Footprint:
    """Every member sends to the next of its group, the last to the first (a hop of ring attention). members: (G, n)."""
    groups, n = members.shape
    group = np.repeat(np.arange(groups), n)
    return _neighbours(cluster, members.ravel(), np.roll(members, -1, axis=1).ravel(), group, groups, 0)


def pair(cluster: Cluster, members: Ints) -> Footprint:
    """Column 0 sends to column 1 (a stage boundary). members: (G, 2)."""
    groups = members.shape[0]
    return _neighbours(cluster, members[:, 0], members[:, 1], np.arange(groups), groups, 1)


def all_to_all(cluster: Cluster, members: Ints) -> Footprint:
    """Every member has a message for every other; counts are messages a link.

    On a rail-optimized fabric that forwards (PXN), a message crosses NVLink to the sender's neighbour on the rail of its
    destination and leaves there: NVLink carries (q-1) n/q messages a GPU, the NIC n-q, and the leaf of a rail only what
    goes to that rail. Otherwise messages leave by the sender's own NIC. These are counted by place, never by pair; only
    where nodes hold other rails of the group than their peers, or several GPUs a rail, or a NIC is gone, each message is
    looked up.
    members: (G, n) GPUs, ascending in each row. Latency: all messages start together, the farthest one counts.
    """
    groups, n = members.shape
    flat, gpus = members.ravel(), cluster.gpus
    runs = Runs.of(cluster, members)
    fabric = cluster.fabric
    forwarding = fabric.type == "rail-optimized" and fabric.rails == "forward"
    alike = _same_rails(cluster, runs, flat, n)
    gone = (cluster.nic[members] == 0).any(axis=1) & (runs.count > 1)
    forwards = alike & forwarding & ~gone
    looked_up = np.full(groups, True) if isinstance(cluster, GraphCluster) else (~alike & forwarding) | gone
    q = np.repeat(runs.size, runs.size)
    pxn = np.repeat(forwards & (runs.count > 1), n)
    nvlink = np.where(pxn, (q - 1) * n / q, q - 1).astype(np.float64)
    nic = (n - q).astype(np.float64)

    def spread(weights: Floats) -> Floats:
        column = np.zeros(gpus)
        column[flat] = weights
        return column

    out, into = spread(nvlink), spread(nic)
    edges = Edges(cluster, groups)
    group = np.repeat(np.arange(groups), n)
    by_lookup = np.repeat(looked_up, n)
    for level in LEVELS:
        by_rail = np.repeat(forwards & (level == 1), n)
        direct = ~by_rail & ~by_lookup
        parts = [
            _rail_messages(cluster, flat[by_rail], group[by_rail], n),
            _direct_messages(cluster, level, flat[direct], group[direct], n, q[direct]),
        ]
        whose, bundle, up, down = (np.concatenate(column) for column in zip(*parts, strict=True))
        edges.crossings[level - 1] = np.bincount(whose, weights=up, minlength=groups)
        crosses = edges.crossings[level - 1] > 0
        if not crosses.any():
            break
        edges.feeds[:, level - 1, flat[np.repeat(crosses, n)]] = True
        if cluster.can_bind(level):
            for weight, downward in ((up, False), (down, True)):
                used = weight > 0
                edges.add(whose[used], cluster.bundle_offset(level, downward) + bundle[used], weight[used])
    leaves = into.copy()
    far = (edges.crossings > 0).sum(axis=0)
    switches = np.where(runs.count > 1, 2 * far + 1, 0) * fabric.hop_latency
    if looked_up.any():
        leaves[flat[by_lookup]] = into[flat[by_lookup]] = 0.0
        leaving, entering, longest = _each_message(cluster, edges, members, np.flatnonzero(looked_up))
        leaves, into = leaves + leaving, into + entering
        switches = np.where(looked_up, longest, switches)
    flows: Flows | None = edges.flows()
    if edges.pinned:
        # Counts by place don't say which flow goes where.
        counted = ~looked_up & (edges.crossings[0] > 0)
        messages = Edges(cluster, groups)
        if int(counted.sum()) * n * n <= MOST_FLOWS:
            _each_message(cluster, messages, members, np.flatnonzero(counted))
            flows = Flows.joined([edges.flows(), messages.flows()])
        else:
            flows = None
    start = np.arange(groups) * n
    columns = {NVLINK_OUT: out, NVLINK_IN: out.copy(), NIC_OUT: leaves, NIC_IN: into}
    rows = edges.rows()
    group_rows, link_rows, weight_rows = relayed_by_members(members, gpus, rows, columns) if looked_up.any() else rows
    nvlink, nic = np.maximum(out, columns[NVLINK_IN])[flat], np.maximum(leaves, into)[flat]
    return Footprint(
        own=tuple((0, kind, column) for kind, column in columns.items()),
        group=group_rows,
        link=link_rows,
        weight=weight_rows,
        share=np.full(groups, 1.0 / n),
        nodes=runs.count,
        nvlink_steps=np.where(runs.count > 1, 0.0, 1.0),
        network_steps=np.where(runs.count > 1, 1.0, 0.0),
        switches=switches,
        nvlink_weight=np.maximum.reduceat(nvlink, start),
        nic_weight=np.maximum.reduceat(nic, start),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=np.ones(groups, dtype=bool),
        flows=flows,
    )


def relayed_by_members(
    members: Ints, gpus: int, rows: tuple[Ints, Ints, Floats], columns: dict[int, Floats]
) -> tuple[Ints, Ints, Floats]:
    """Rows (group, link, weight) without those of GPUs that are members: they forward on links of their own.

    columns: (gpus,) of each kind of own link, to which their weights are added in place.
    """
    group, link, weight = rows
    owner = np.full(gpus, -1)
    owner[members] = np.arange(members.shape[0])[:, None]
    mine = (link < 4 * gpus) & (owner[link % gpus] == group)
    for kind, column in columns.items():
        here = mine & (link // gpus == kind)
        column += np.bincount(link[here] % gpus, weights=weight[here], minlength=gpus)
    return group[~mine], link[~mine], weight[~mine]


def _same_rails(cluster: Cluster, runs: Runs, flat: Ints, n: int) -> NDArray[np.bool_]:
    """(G,) whether all nodes of a group hold the same rails of it, one GPU each: neighbours on every rail are members."""
    first = runs.first[runs.group]
    even = runs.size == runs.size[first]
    at = np.arange(flat.size) - np.repeat(runs.start, runs.size)
    peer = np.minimum(np.repeat(runs.start[first], runs.size) + at, flat.size - 1)
    rail = cluster.gpu_rail[flat]
    trays = cluster.gpu_rail[flat] != cluster.gpu_local[flat]
    same = (rail == rail[peer]) & ~trays
    alike = even & np.logical_and.reduceat(same, runs.start)
    return np.asarray(np.logical_and.reduceat(alike, runs.first) | (runs.count == 1))


def _each_message(cluster: Cluster, edges: Edges, members: Ints, which: Ints) -> tuple[Floats, Floats, Floats]:
    """Books the routes of all messages of some groups, some groups at a time.

    Two (gpus,): messages that leave, and that enter, by the own NIC; (groups,) s in switches of the farthest one.
    """
    n = members.shape[1]
    sender, receiver = (index.ravel() for index in np.indices((n, n)))
    leaving, entering, longest = np.zeros(cluster.gpus), np.zeros(cluster.gpus), np.zeros(members.shape[0])
    together = max(1, PAIRS_AT_ONCE // (n * n) // (_LINKS_A_WAY if isinstance(cluster, GraphCluster) else 1))
    for begin in range(0, which.size, together):
        some = which[begin : begin + together]
        src, dst = members[some][:, sender].ravel(), members[some][:, receiver].ravel()
        group = np.repeat(some, n * n)
        outside = cluster.gpu_node[src] != cluster.gpu_node[dst]
        src, dst, group = src[outside], dst[outside], group[outside]
        routes = cluster.routes(src, dst)
        leaves, enters = edges.message(group, src, dst, routes)
        leaving += np.bincount(src[leaves], minlength=cluster.gpus)
        entering += np.bincount(dst[enters], minlength=cluster.gpus)
        np.maximum.at(longest, group, routes.latency)
    return leaving, entering, longest


#: Messages looked up at once, so that a large job needs no more memory for them than for its ranks.
PAIRS_AT_ONCE = 2_000_000
#: Links of a graph that a message is spread over, about.
_LINKS_A_WAY = 16
#: Messages of all-to-alls that are told apart one by one where routing pins them; more of them average out.
MOST_FLOWS = 8_000_000
#: (group, bundle, messages up, messages down) of each bundle that a group touches
_Messages = tuple[Ints, Ints, Floats, Floats]


def _direct_messages(cluster: Cluster, level: int, flat: Ints, group: Ints, n: int, q: Ints) -> _Messages:
    """Messages over bundles when everyone sends by its own NIC: each member to all that are not below the same bundle.

    q: (members,) members of the group in each one's node.
    """
    place = (cluster.leaf, cluster.block, cluster.zone)[level - 1](flat)
    places = int(place.max(initial=0)) + 1
    key, where, count = np.unique(group * places + place, return_inverse=True, return_counts=True)
    messages = (count * (n - count)).astype(np.float64)
    if level == 1 and cluster.rails > 1:
        # What goes to other rails of the node takes NVLink, not the leaf.
        node = group * cluster.nodes + cluster.gpu_node[flat]
        _, same, together = np.unique(node * places + place, return_inverse=True, return_counts=True)
        messages -= np.bincount(where, weights=q - together[same], minlength=key.size)
    return key // places, key % places, messages, messages


def _rail_messages(cluster: Cluster, flat: Ints, group: Ints, n: int) -> _Messages:
    """Messages over the leaf bundles when every message leaves on its destination's rail.

    Up leaf (pod P, rail r): members in P x members on r outside P. Down: members on (P, r) x members outside P.
    """
    leaf = cluster.leaf(flat)
    rails, leaves = cluster.rails, int(leaf.max(initial=0)) + 1
    key, on_leaf = np.unique(group * leaves + leaf, return_counts=True)
    whose, which = key // leaves, key % leaves
    _, pod_of = np.unique(whose * leaves + which // rails, return_inverse=True)
    in_pod = np.bincount(pod_of, weights=on_leaf)[pod_of]
    rail_key = whose * rails + which % rails
    on_rail = np.bincount(rail_key, weights=on_leaf)[rail_key]
    up, down = in_pod * (on_rail - on_leaf), on_leaf * (n - in_pod)
    return whose, which, up.astype(np.float64), down.astype(np.float64)
