"""Messages over the shortest paths of a network: sprayed over all of them, or one path for each queue pair.

    +--- b ---+        from a, half the flow goes to b and half to c if their links have the same capacity;
s - a         d - t    if a-b has twice the capacity of a-c, two thirds go to b.
    +--- c ---+
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colossim.cluster.network import Floats, Ints, Network, Ways, spans
from colossim.errors import SimulationError

#: Messages routed at once: each has some hundred rows on the way in a large fabric.
_AT_ONCE = 4_096


@dataclass(frozen=True)
class Spread:
    """M messages over all their shortest paths, ordered by message and link.

    message, link: (R,).  share: (R,) part of the message on that link, 0..1.  latency: (M,) s, of the slowest path.
    """

    message: Ints
    link: Ints
    share: Floats
    latency: Floats


@dataclass(frozen=True)
class Paths:
    """M messages of Q queue pairs, each of which takes one path: rows by message, queue pair, and hop.

    message, queue_pair, link: (R,).  latency: (M, Q) s.
    """

    message: Ints
    queue_pair: Ints
    link: Ints
    latency: Floats


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's step and finalizer: 64 bits that depend on all of x's (Steele et al. 2014; constants mix13)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def spread(network: Network, src: Ints, dst: Ints) -> Spread:
    """Every shortest path of messages from vertices src to vertices dst (M,), each vertex splitting what comes.

    At each vertex a flow splits over the next links of shortest paths in proportion to their capacities (what adaptive
    routing does when all else is idle). Messages of one vertex to itself use no link and have no latency.
    Raises SimulationError if there is no path.
    """
    size = len(network.vertices)
    pairs, pair_of = np.unique(src.astype(np.int64) * size + dst, return_inverse=True)
    from_, to = np.divmod(pairs, size)
    latency = np.zeros(pairs.size)
    none = np.zeros(0, np.int64)
    rows: list[tuple[Ints, Ints, Floats]] = [(none, none, np.zeros(0))]
    for some, kind, ways in _batches(network, from_, to):
        owner, link, part, latency[some] = _flow(network, from_[some], to[some], kind, ways)
        rows.append((some[owner], link, part))
    pair, link, part = _joined(rows)
    # With weights, a flow may come back to a vertex's links after a longer way of equal weight: one row for both.
    key, same = np.unique(pair * max(1, network.tail.size) + link, return_inverse=True)
    pair, link = np.divmod(key, max(1, network.tail.size))
    share = np.asarray(np.bincount(same, weights=part, minlength=key.size), np.float64)
    start = np.searchsorted(pair, np.arange(pairs.size + 1))
    message, row = spans(start[pair_of], start[pair_of + 1])
    return Spread(message, link[row], share[row], latency[pair_of])


def single_paths(network: Network, src: Ints, dst: Ints, key: Ints, seed: int, paths_per_flow: int) -> Paths:
    """One shortest path for each of `paths_per_flow` queue pairs of messages src to dst (M,), hashed at each vertex.

    key: (M,) what tells a flow from others.  A vertex takes one of the next links, each as likely whatever its
    capacity (ECMP), by a hash of (seed, key, queue pair, vertex). Raises SimulationError if there is no path.
    """
    messages, each = src.size, paths_per_flow
    from_, to = np.repeat(src.astype(np.int64), each), np.repeat(dst.astype(np.int64), each)
    queue_pair = np.tile(np.arange(each), messages)
    salt = mixed(np.array([seed % 2**64], np.uint64))
    flow = mixed(mixed(np.repeat(key.astype(np.uint64), each) ^ salt) ^ queue_pair.astype(np.uint64))
    latency = np.zeros(from_.size)
    rows = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for some, kind, ways in _batches(network, from_, to):
        at, left = from_[some], np.arange(some.size)
        while left.size:
            row, link = ways.next_links(kind[left], at, to[some[left]])
            count = np.bincount(row, minlength=left.size)
            draw = mixed(flow[some[left]] ^ mixed(at.astype(np.uint64))) % count.astype(np.uint64)
            link = link[np.cumsum(count) - count + draw.astype(np.int64)]
            rows.append((some[left], link))
            latency[some[left]] += network.latency[link]
            at = network.head[link]
            onward = at != to[some[left]]
            left, at = left[onward], at[onward]
    walker, link = np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])
    order = np.argsort(walker, kind="stable")
    walker = walker[order]
    return Paths(walker // each, queue_pair[walker], link[order], latency.reshape(messages, each))


def _flow(network: Network, src: Ints, dst: Ints, kind: Ints, ways: Ways) -> tuple[Ints, Ints, Floats, Floats]:
    """(message, link, share) rows of messages at different vertices, and the latency of each."""
    owner, at, late = np.arange(src.size), src, np.zeros(src.size)
    share: Floats = np.ones(src.size)
    latency = np.zeros(src.size)
    rows: list[tuple[Ints, Ints, Floats]] = []
    while owner.size:
        row, link = ways.next_links(kind[owner], at, dst[owner])
        total = np.bincount(row, weights=network.capacity[link], minlength=owner.size)
        part = share[row] * network.capacity[link] / total[row]
        when = late[row] + network.latency[link]
        message, head = owner[row], network.head[link]
        rows.append((message, link, part))
        there = head == dst[message]
        np.maximum.at(latency, message[there], when[there])
        # What meets at a vertex goes on as one flow.
        met, place = np.unique((message * len(network.vertices) + head)[~there], return_inverse=True)
        owner, at = np.divmod(met, len(network.vertices))
        share = np.asarray(np.bincount(place, weights=part[~there], minlength=met.size), np.float64)
        late = np.zeros(met.size)
        np.maximum.at(late, place, when[~there])
    return *_joined(rows), latency


def _joined(rows: list[tuple[Ints, Ints, Floats]]) -> tuple[Ints, Ints, Floats]:
    message, link, share = zip(*rows, strict=True)
    return np.concatenate(message), np.concatenate(link), np.concatenate(share)


def _batches(network: Network, src: Ints, dst: Ints) -> Iterator[tuple[Ints, Ints, Ways]]:
    """(messages, the kind of each's destination, their ways) until all messages between different vertices had a turn."""
    moving = np.flatnonzero(src != dst)
    ends, end_of = np.unique(dst[moving], return_inverse=True)
    kinds, kind_of_end = network.kinds(ends)
    kind = kind_of_end[end_of]
    order = np.argsort(kind, kind="stable")
    moving, kind = moving[order], kind[order]
    for some, distance in network.distances(kinds):
        ways = Ways(network, distance)
        first, last = np.searchsorted(kind, [some.start, some.stop])
        for start in range(first, last, _AT_ONCE):
            stop = min(start + _AT_ONCE, last)
            batch, row = moving[start:stop], kind[start:stop] - some.start
            lost = batch[np.isinf(distance[row, src[batch]])]
            if lost.size:
                ends_ = network.vertices[src[lost[0]]], network.vertices[dst[lost[0]]]
                raise SimulationError(f"the fabric is partitioned: {ends_[0]} cannot reach {ends_[1]}")
            yield batch, row, ways
