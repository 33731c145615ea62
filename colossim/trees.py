"""Trees, in-switch reduction and PAT: what they put on links. Rings and messages are `patterns.py`'s.

A tree's edge carries its part of the buffer up once and down once; its unit of progress is half of that part, so that an
all-reduce is two passes over it. Groups that an algorithm can't serve (one node, or unequal members a node) aren't `usable`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster
from colossim.footprint import LEVELS, Edges, Floats, Footprint, Ints, Runs

#: GPUs of a group in a node from which NCCL lets the NVSwitch reduce (before 2.28: 3).
FEWEST_ON_SWITCH = 2


def binary_tree(nodes: int) -> Ints:
    """(nodes,) parent of each node in NCCL's binary tree over 0 .. nodes-1, -1 for the root 0.

    0-------------------8          The lowest set bit b of a node is its height: its parent is
              ______/ | \\          (i ^ b) | 2b, or i ^ b where that lies beyond the end.
          4           |  12        Odd nodes are leaves, so that the tree shifted by one has other leaves:
       2     6       10    14      each node forwards in one tree of the two only
      1 3   5 7     9 11  13 15    (Sanders, Speck & Traeff 2009); of odd counts only the root 0 does in both.
    """
    i = np.arange(nodes)
    low = i & -i
    up = (i ^ low) | (low << 1)
    parent = np.where(up < nodes, up, i ^ low)
    parent[0] = -1
    return parent


def double_tree(nodes: int) -> tuple[Ints, Ints]:
    """Parents in both trees: the second is the first mirrored (even counts) or shifted by one (odd counts)."""
    first = binary_tree(nodes)
    i = np.arange(nodes)
    if nodes % 2 == 0:
        mirrored = first[nodes - 1 - i]
        return first, np.where(mirrored < 0, -1, nodes - 1 - mirrored)
    shifted = first[(i - 1) % nodes]
    return first, np.where(shifted < 0, -1, (shifted + 1) % nodes)


@dataclass(frozen=True)
class _Lanes:
    """Groups with as many members on each of several nodes: lane k joins member k of every node.

    at: (E,) index into the flat members of the child of every tree edge.  above: of its parent.  group, tree: (E,).
    """

    at: Ints
    above: Ints
    group: Ints
    tree: Ints


def _even(cluster: Cluster, members: Ints) -> tuple[Runs, NDArray[np.bool_]]:
    """The runs, and which groups span several nodes with as many members on each."""
    runs = Runs.of(cluster, members)
    smallest = np.minimum.reduceat(runs.size, runs.first)
    return runs, (runs.count > 1) & (smallest == runs.lanes)


def _edges(runs: Runs, even: NDArray[np.bool_]) -> _Lanes:
    parts = []
    for nodes in np.unique(runs.count[even]):
        some = np.flatnonzero(even & (runs.count == nodes))
        for tree, parents in enumerate(double_tree(int(nodes))):
            child = np.flatnonzero(parents >= 0)
            for q in np.unique(runs.lanes[some]):
                these = some[runs.lanes[some] == q]
                run = runs.first[these][:, None, None] + child[None, :, None]
                over = runs.first[these][:, None, None] + parents[child][None, :, None]
                lane = np.arange(q)[None, None, :]
                at = (runs.start[run] + lane).ravel()
                above = (runs.start[over] + lane).ravel()
                group = np.broadcast_to(these[:, None, None], (these.size, child.size, int(q))).ravel()
                parts.append((at, above, group, np.full(at.size, tree)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0, np.int64)] * 4
    return _Lanes(*columns)


def _depths(lanes: _Lanes, latency: Floats, members: int, groups: int) -> tuple[Floats, Floats]:
    """(G,) steps from the deepest leaf to the root, and the largest sum of s in switches on such a way."""
    steps, seconds = np.zeros(2 * members), np.zeros(2 * members)
    child, parent = lanes.at + lanes.tree * members, lanes.above + lanes.tree * members
    below = np.arange(child.size)
    # From the root down, a level a round: a child's depth follows from its parent's.
    known = np.ones(2 * members, dtype=bool)
    known[child] = False
    while below.size:
        ready = known[parent[below]]
        now = below[ready]
        steps[child[now]] = steps[parent[now]] + 1
        seconds[child[now]] = seconds[parent[now]] + latency[now]
        known[child[now]] = True
        below = below[~ready]
    deepest, longest = np.zeros(groups), np.zeros(groups)
    np.maximum.at(deepest, lanes.group, steps[child])
    np.maximum.at(longest, lanes.group, seconds[child])
    return deepest, longest


def tree(cluster: Cluster, members: Ints) -> Footprint:
    """NCCL's double binary tree between nodes, a chain inside: an all-reduce puts 2(q-1)/q S on an NVLink, at most 2 S/q
    on a NIC (mean 2(N-1)/N S/q). members: (G, n) GPUs, ascending in each row."""
    runs, even = _even(cluster, members)
    q = runs.lanes.astype(np.float64)
    return _over_trees(cluster, members, runs, even, 4.0 * (q - 1), q - 1)


def nvls(cluster: Cluster, members: Ints) -> Footprint:
    """Reduction in the NVSwitch, (1 + 1/q) S on an NVLink each way; between nodes a double binary tree (NVLSTree).

    Of a group in one node the unit is that of an NVLink: two passes of (1 + 1/n) S/2. NCCL uses the switch for two
    GPUs of a group a node or more (`ncclNvlsInit`), so that a data-parallel rail, one GPU a node, runs plain trees.
    """
    groups, n = members.shape
    runs, even = _even(cluster, members)
    alone = runs.count == 1
    between = _over_trees(cluster, members, runs, even, 2.0 * (runs.lanes + 1.0), np.zeros(groups))
    flat = members.ravel()
    inside = flat[np.repeat(alone, n)]
    for _, kind, column in between.own:
        if kind in (NVLINK_OUT, NVLINK_IN):
            column[inside] = 1.0
    between.share[alone] = (1 + 1 / n) / 2
    between.nvlink_weight[alone] = 1.0
    between.usable[alone] = n >= FEWEST_ON_SWITCH
    between.usable[~alone] &= runs.lanes[~alone] >= FEWEST_ON_SWITCH
    return between


def collnet(cluster: Cluster, members: Ints) -> Footprint:
    """SHARP: the NVSwitch reduces a node, the fabric's switches the rest: every NIC sends S/q up and takes S/q back.

    The tree of switches is drawn along the members' leaves: a leaf sends one flow up and takes one back. Groups with a
    member whose NIC is gone can't use it.
    """
    groups, n = members.shape
    runs, even = _even(cluster, members)
    even &= ~(cluster.nic[members] == 0).any(axis=1)
    flat, gpus = members.ravel(), cluster.gpus
    group = np.repeat(np.arange(groups), n)
    edges = Edges(cluster, groups)
    # One flow a leaf, block and zone: from its first member to the group's first, as far as their routes go.
    first = flat[group * n + (np.arange(flat.size) - np.repeat(runs.start, runs.size))]
    used = np.repeat(even, n) & (cluster.gpu_node[flat] != cluster.gpu_node[first])
    for level, place in ((1, cluster.leaf), (2, cluster.block), (3, cluster.zone)):
        where = place(flat)
        key = group.astype(np.int64) * (int(where.max(initial=0)) + 1) + where
        _, once = np.unique(key, return_index=True)
        several = np.bincount(group[once], minlength=groups)[group] > 1
        crossing = once[(several & np.repeat(even, n))[once]]
        edges.crossings[level - 1] += np.bincount(group[crossing], minlength=groups)
        edges.feeds[:, level - 1, flat[crossing]] = True
        if crossing.size and cluster.can_bind(level):
            for down in (False, True):
                edges.add(group[crossing], cluster.bundle_offset(level, down) + where[crossing], np.ones(crossing.size))
    latency = cluster.routes(flat, first).latency
    longest = np.zeros(groups)
    np.maximum.at(longest, group[used], latency[used])
    q = runs.lanes.astype(np.float64)
    rows = edges.rows()

    def spread(weights: Floats) -> Floats:
        column = np.zeros(gpus)
        column[flat] = np.repeat(np.where(even, weights, 0.0), n)
        return column

    nvlink, one = spread(q + 1.0), spread(np.ones(groups))
    return Footprint(
        own=((0, NVLINK_OUT, nvlink), (0, NVLINK_IN, nvlink.copy()), (0, NIC_OUT, one), (0, NIC_IN, one.copy())),
        group=rows[0],
        link=rows[1],
        weight=rows[2],
        share=1.0 / (2.0 * q),
        nodes=runs.count,
        nvlink_steps=np.zeros(groups),
        network_steps=np.ones(groups),
        switches=longest / 2,
        nvlink_weight=q + 1.0,
        nic_weight=np.ones(groups),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=even,
        flows=edges.flows(),
    )


def _over_trees(
    cluster: Cluster, members: Ints, runs: Runs, even: NDArray[np.bool_], nvlink: Floats, chain: Floats
) -> Footprint:
    """Double binary trees between nodes. nvlink: (G,) units on each NVLink.  chain: (G,) NVLink steps a pass."""
    groups, n = members.shape
    flat, gpus = members.ravel(), cluster.gpus
    lanes = _edges(runs, even)
    edges = Edges(cluster, groups)
    out, into = np.zeros(flat.size), np.zeros(flat.size)
    latency = np.zeros(lanes.at.size)
    for src, dst in ((lanes.at, lanes.above), (lanes.above, lanes.at)):
        routes = cluster.routes(flat[src], flat[dst])
        leaves, enters = edges.message(lanes.group, flat[src], flat[dst], routes)
        out += np.bincount(src[leaves], minlength=flat.size)
        into += np.bincount(dst[enters], minlength=flat.size)
        latency = np.maximum(latency, routes.latency)
    deepest, longest = _depths(lanes, latency, flat.size, groups)
    start = np.arange(groups) * n

    def spread(weights: Floats) -> Floats:
        column = np.zeros(gpus)
        column[flat] = weights
        return column

    on_nvlink = np.repeat(np.where(even, nvlink, 0.0), n)
    rows = edges.rows()
    return Footprint(
        own=(
            (0, NVLINK_OUT, spread(on_nvlink)),
            (0, NVLINK_IN, spread(on_nvlink)),
            (0, NIC_OUT, spread(out)),
            (0, NIC_IN, spread(into)),
        ),
        group=rows[0],
        link=rows[1],
        weight=rows[2],
        share=1.0 / (4.0 * runs.lanes),
        nodes=runs.count,
        nvlink_steps=np.where(even, chain, 0.0),
        network_steps=deepest,
        switches=longest,
        nvlink_weight=np.where(even, nvlink, 0.0),
        nic_weight=np.maximum.reduceat(np.maximum(out, into), start),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=even.copy(),
        flows=edges.flows(),
        spacing=runs.spacing(cluster, members),
    )


def pat(cluster: Cluster, members: Ints) -> Footprint:
    """NCCL's parallel aggregated trees, for groups with one rank a node: n-1 chunks of S/n leave each NIC in log2 n steps.

    The step over a distance of 2^k carries as many chunks as numbers below n have k trailing zeros, so that most bytes go
    to near neighbours. The unit is all that a NIC sends. members: (G, n) GPUs, ascending in each row.
    """
    groups, n = members.shape
    runs = Runs.of(cluster, members)
    usable = runs.count == n
    flat, gpus = members.ravel(), cluster.gpus
    some = np.flatnonzero(usable)
    ring = members[some]
    edges = Edges(cluster, groups)
    out, into = np.zeros(gpus), np.zeros(gpus)
    longest = np.zeros(groups)
    distances = [2**k for k in range((n - 1).bit_length())] if some.size else []
    steps = [(distance, (n - 1 + distance) // (2 * distance) / (n - 1)) for distance in distances]
    if cluster.own_ways(ring) and not edges.pinned:
        longest[some] = _compared(cluster, edges, some, ring, steps)
        out[ring] = into[ring] = sum(share for _, share in steps)
    else:
        src, group = ring.ravel(), np.repeat(some, n)
        for distance, share in steps:
            dst = np.roll(ring, -distance, axis=1).ravel()
            routes = cluster.routes(src, dst)
            leaves, enters = edges.message(group, src, dst, routes, share)
            out[src[leaves]] += share
            into[dst[enters]] += share
            longest[some] += routes.latency.reshape(ring.shape).max(axis=1)
    rows = edges.rows()
    start = np.arange(groups) * n
    return Footprint(
        own=((0, NIC_OUT, out), (0, NIC_IN, into)),
        group=rows[0],
        link=rows[1],
        weight=rows[2],
        share=np.full(groups, (n - 1) / n),
        nodes=runs.count,
        nvlink_steps=np.zeros(groups),
        network_steps=np.full(groups, float(np.ceil(np.log2(n)))),
        switches=longest,
        nvlink_weight=np.zeros(groups),
        nic_weight=np.maximum.reduceat(np.maximum(out, into)[flat], start),
        crossings=edges.crossings,
        feeds=edges.feeds,
        usable=usable,
        flows=edges.flows(),
    )


def _compared(cluster: Cluster, edges: Edges, some: Ints, ring: Ints, steps: list[tuple[int, float]]) -> Floats:
    """Books PAT's edges by comparing where members stand, once looked up: no route of a million is worked out log n times.

    As `Edges.message` does, for ends that are in different nodes and use their own NICs. some: (g,) groups.  ring: (g, n)
    their GPUs.  steps: (distance, part of an edge).  Returns (g,) s in switches, the farthest edges of all steps.
    """
    longest = np.zeros(some.size)
    places = [place(ring) for place in (cluster.leaf, cluster.block, cluster.zone)]
    feeds = np.zeros((2, 3, *ring.shape), dtype=bool)
    for distance, share in steps:
        level_of = np.ones(some.size, np.int64)
        for level, place in zip(LEVELS, places, strict=True):
            crossing = place != np.roll(place, -distance, axis=1)
            count = np.count_nonzero(crossing, axis=1)
            if not count.any():
                break
            level_of += count > 0
            edges.crossings[level - 1, some] += count * share
            feeds[0, level - 1] |= crossing
            feeds[1, level - 1] |= np.roll(crossing, distance, axis=1)
            if cluster.can_bind(level):
                who, one = np.repeat(some, count), np.full(int(count.sum()), share)
                edges.add(who, cluster.bundle_offset(level, False) + place[crossing], one)
                edges.add(who, cluster.bundle_offset(level, True) + np.roll(place, -distance, axis=1)[crossing], one)
        longest += cluster.latency[level_of]
    for way, level in np.ndindex(2, 3):
        edges.feeds[way, level, ring[feeds[way, level]]] = True
    return longest
