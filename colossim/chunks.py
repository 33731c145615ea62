"""Every message of a collective: who sends which bytes to whom, and what each message waits for.

The chunked reference of the fluid model: the same algorithms as `patterns.py`, spelled out message by message instead of
counted. `engine/chunked.py` plays them. Meant for groups of up to some hundred GPUs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from colossim.cluster import Cluster
from colossim.collective import PASSES
from colossim.footprint import Ints, Runs
from colossim.messages import SWITCH, Book, Messages
from colossim.trees import double_tree

#: Algorithms of each operation. `direct` follows `Cluster.routes`, PXN's relays included.
ALGORITHMS = {
    "all_reduce": ("ring", "hierarchical", "tree", "nvls"),
    "reduce_scatter": ("ring", "hierarchical", "pat"),
    "all_gather": ("ring", "hierarchical", "pat"),
    "broadcast": ("ring",),
    "all_to_all": ("direct",),
    "shift": ("shift",),
    "send": ("send",),
}
#: Slices at most, if nobody says how many, where phases or hops follow each other for each slice of the buffer.
MOST_SLICES = {"tree": 16, "nvls": 16, "hierarchical": 4, "direct": 4}
#: Bytes of a message that is cut no further.
SLICE = 128 * 1024


def collective_messages(
    cluster: Cluster, members: Ints, operation: str, size: float, *, algorithm: str, slices: int = 1, window: int = 0
) -> Messages:
    """The messages of one collective of `size` bytes (S of network.md; what each member sends for a shift or a send).

    members: (n,) GPUs, ascending; of a send the sender and the receiver.  algorithm: one of ALGORITHMS.
    slices: pieces of each lane's share of the buffer.
    window: messages that a sender of an all-to-all has in flight, 0 for all.  Broadcasts start at the first member.
    Raises ValueError for an operation without this algorithm, fewer than two members, or a number out of range.
    """
    members = np.asarray(members)
    if algorithm not in ALGORITHMS.get(operation, ()):
        known = "; ".join(f"{name} by {' or '.join(ways)}" for name, ways in ALGORITHMS.items())
        raise ValueError(f"{operation} by {algorithm} is not described; there are {known}")
    if members.ndim != 1 or members.size < 2 or (np.any(np.diff(members) <= 0) and operation != "send"):
        raise ValueError(f"members {members.tolist()}: two GPUs or more, ascending")
    if slices < 1 or size < 0 or window < 0:
        raise ValueError(f"slices {slices} must be 1 or more, size {size} and window {window} not negative")
    if operation in ("shift", "send"):
        return _neighbours(members, size, slices, 1 if operation == "send" else members.size)
    if operation == "all_to_all":
        return _all_to_all(cluster, members, size, slices, window)
    nodes = by_node(cluster, members)
    if algorithm == "nvls":
        if len(nodes) > 1:
            raise ValueError(f"members {members.tolist()}: an NVSwitch reduces one node, these are {len(nodes)}")
        return _in_switch(members, size, slices)
    if algorithm == "pat":
        return _pat(members, operation, size, slices)
    even = len(nodes) > 1 and len({len(node) for node in nodes}) == 1
    if algorithm == "tree":
        return _tree(nodes, size, slices)
    if algorithm == "hierarchical" and even:
        return _hierarchical(np.stack(nodes), operation, size, slices)
    return _rings(ring_orders(cluster, members), operation, size, slices)


def default_slices(algorithm: str, size: float, n: int, nodes: int) -> int:
    """Slices of a collective of `size` bytes among n ranks on so many nodes."""
    most = MOST_SLICES.get(algorithm, 1)
    if most == 1 or (algorithm != "tree" and algorithm != "nvls" and nodes in (1, n)):
        return 1  # nothing follows anything
    part = size * nodes / (2 * n) if algorithm == "tree" else size / n
    return int(min(most, max(1.0, part // SLICE)))


def message_count(algorithm: str, operation: str, n: int, nodes: int, slices: int = 1) -> int:
    """Messages of a collective of n ranks on so many nodes, at most (relays of an all-to-all and ragged nodes counted so)."""
    q = -(-n // nodes)
    passes = PASSES.get(operation, 1)
    if algorithm == "direct":
        return slices * n * (n - 1) * (1 if nodes in (1, n) else 2)
    if algorithm in ("shift", "send"):
        return n if algorithm == "shift" else 1
    if algorithm == "pat":
        return slices * n * (n - 1).bit_length()
    if algorithm == "nvls":
        return slices * 2 * n
    if algorithm == "tree":
        return slices * 4 * q * (n - 1)
    if algorithm == "hierarchical" and nodes > 1:
        return slices * passes * (n * (q - 1) + n * (nodes - 1))
    return slices * passes * (n - 1) * n * (q if nodes > 1 else 1)


def by_node(cluster: Cluster, members: Ints) -> list[Ints]:
    """The members of each node, node by node."""
    return np.split(members, Runs.of(cluster, members[None, :]).start[1:])


def ring_orders(cluster: Cluster, members: Ints) -> Ints:
    """(C, n) GPUs in the order of each of the C flat rings of `patterns.ring`.

        node 0: > g0 - g2 - g3 - g1 >        lane 0 enters on rail 0, leaves on rail 1, where it enters the next node,
        node 1: > g5 - g6 - g7 - g4 >        and leaves that on rail 0 again. Lane 1: g1 g3 g0 g2, g6 g7 g4 g5.

    The fluid ring lets a lane leave a node by the member where it entered; a path through q > 1 members can't end where it
    began. So a lane turns to the next rail and back; an odd number of nodes ends with turns of +1, +1, -2. Where a turn
    comes to nothing (q = 2 and N odd; nodes with fewer members than lanes) the lane leaves by a neighbour, and that edge
    crosses rails: a relay over NVLink that the fluid doesn't count. All other links carry what it counts.
    """
    nodes = by_node(cluster, members)
    if len(nodes) == 1:
        return members[None, :]
    lanes = max(len(node) for node in nodes)
    turns = [1, -1] * (len(nodes) // 2)
    if len(nodes) % 2:
        turns = [*turns[:-2], 1, 1, -2]
    orders = []
    for lane in range(lanes):
        at, order = lane, []
        for node, turn in zip(nodes, turns, strict=True):
            q = len(node)
            enters = at * q // lanes
            at = (at + turn) % lanes
            leaves = at * q // lanes
            if leaves == enters:
                leaves = (leaves + 1) % q
            path = [enters, *((enters + i) % q for i in range(1, q) if (enters + i) % q != leaves)]
            order += node[path if q == 1 else [*path, leaves]].tolist()
        orders.append(order)
    return np.array(orders)


def _ring(
    book: Book, order: Ints, steps: int, size: float, slices: int, lane: int, *, slice_by_slice: bool = False
) -> Ints:
    """(steps, n, slices) ids of the messages round one ring: at step k edge e carries chunk (e - k) mod n.

    A message waits for the same chunk's previous step to arrive (Patarasuk & Yuan 2009). An edge sends a step's slices
    and then the next step, or all steps of a slice first.
    """
    n = order.size
    k, e, j = np.ogrid[:steps, :n, :slices]
    ids = book.add((steps, n, slices), size, order[e], np.roll(order, -1)[e], lane, (e - k) % n, j)
    if steps:
        book.need(ids[1:], np.roll(ids, 1, axis=1)[:-1])
        book.in_order(ids.transpose((1, 2, 0) if slice_by_slice else (1, 0, 2)).reshape(n, -1))
    return ids


def _rings(orders: Ints, operation: str, size: float, slices: int) -> Messages:
    """Flat rings, each with its share of the buffer; a broadcast goes once along each, from the first member."""
    lanes, n = orders.shape
    book = Book()
    root = orders.min()
    for lane, order in enumerate(orders):
        if operation == "broadcast":
            order = np.roll(order, -int(np.flatnonzero(order == root)[0]))
            e, j = np.ogrid[: n - 1, :slices]
            ids = book.add((n - 1, slices), size / lanes / slices, order[e], order[e + 1], lane, np.zeros_like(e), j)
            book.need(ids[1:], ids[:-1])
            book.in_order(ids)
        else:
            _ring(book, order, PASSES.get(operation, 1) * (n - 1), size / lanes / n / slices, slices, lane)
    return book.close()


def _hierarchical(nodes: Ints, operation: str, size: float, slices: int) -> Messages:
    """Reduce-scatter in each node, rings between nodes on each rail, all-gather in each node. nodes: (N, q) GPUs.

    Slice j of the buffer goes through the three phases; they overlap from two slices on. Lanes: 0 scatters in the node,
    1 gathers there, 2 + r is the ring between nodes of member r.
    """
    count, q = nodes.shape
    book = Book()
    inside = size / q / slices
    first = operation in ("all_reduce", "reduce_scatter")
    last = operation in ("all_reduce", "all_gather")
    scatter = [_ring(book, node, q - 1, inside, slices, 0, slice_by_slice=True) for node in nodes if first]
    steps = PASSES.get(operation, 1) * (count - 1)
    rails = [_ring(book, nodes[:, r], steps, inside / count, slices, 2 + r, slice_by_slice=True) for r in range(q)]
    gather = [_ring(book, node, q - 1, inside, slices, 1, slice_by_slice=True) for node in nodes if last]
    if q > 1:
        for i in range(count):
            for r in range(q):
                # Edge r - 1 of a ring arrives at member r; messages of an edge arrive in order, so the last one counts.
                if first:
                    book.need(rails[r][0, i], scatter[i][-1, r - 1])
                if last:
                    book.need(gather[i][0, r], rails[r][-1, i - 1])
    return book.close()


def _tree(nodes: list[Ints], size: float, slices: int) -> Messages:
    """A double binary tree over nodes on each of C = max q lanes, a chain inside: reduce to the root, then broadcast.

    Lane 2k + t is tree t of member floor(k q_i / C) of node i, the head of a chain through the node's other members.
    """
    book = Book()
    lanes = max(len(node) for node in nodes)
    piece = np.arange(slices)
    for lane in range(2 * lanes):
        parents = double_tree(len(nodes))[lane % 2].tolist()
        part = size / (2 * lanes * slices)

        def send(src: int, dst: int, *needed: Ints | None, lane: int = lane, part: float = part) -> Ints:
            ids = book.add((slices,), part, np.asarray(src), np.asarray(dst), lane, np.asarray(0), piece)
            book.in_order(ids[None, :])
            for what in needed:
                if what is not None:
                    book.need(ids, what)
            return ids

        chains = [np.roll(node, -((lane // 2) * len(node) // lanes)).tolist() for node in nodes]
        arrived: list[list[Ints]] = [[] for _ in nodes]
        for i, chain in enumerate(chains):
            came = None
            for src, dst in zip(chain[:0:-1], chain[-2::-1], strict=True):
                came = send(src, dst, came)
            arrived[i] += [] if came is None else [came]
        deepest_first = sorted(range(len(nodes)), key=lambda i, up=parents: -_depth(up, i))  # type: ignore[misc]
        for i in deepest_first[:-1]:
            arrived[parents[i]].append(send(chains[i][0], chains[parents[i]][0], *arrived[i]))
        # What the root has reduced goes down the same edges; each node then hands it along its chain.
        for i in reversed(deepest_first):
            if parents[i] >= 0:
                arrived[i] = [send(chains[parents[i]][0], chains[i][0], *arrived[parents[i]])]
            came_down = arrived[i]
            for src, dst in zip(chains[i][:-1], chains[i][1:], strict=True):
                came_down = [send(src, dst, *came_down)]
    return book.close()


def _depth(parents: list[int], i: int) -> int:
    return 0 if parents[i] < 0 else 1 + _depth(parents, parents[i])


def _pat(members: Ints, operation: str, size: float, slices: int) -> Messages:
    """Parallel aggregated trees: every rank sends once over each distance 2^k, all chunks that go this way as one message.

    A gathered chunk goes to the rank m after its origin over the set bits of m, the highest first: 2^k carries a chunk for
    each m < n whose lowest set bit is k. A scattered one meets the others on the reverse of that way, the lowest first.
    """
    n = members.size
    book = Book()
    distances = [1 << k for k in range((n - 1).bit_length())]
    if operation == "all_gather":
        distances.reverse()
    e, j = np.ogrid[:n, :slices]
    sent: list[tuple[int, Ints]] = []
    for lane, distance in enumerate(distances):
        part = size / n / slices * ((n - 1 + distance) // (2 * distance))
        ids = book.add((n, slices), part, members[e], np.roll(members, -distance)[e], lane, np.asarray(distance), j)
        book.in_order(ids)
        for before, earlier in sent:
            book.need(ids, np.roll(earlier, before, axis=0))
        sent.append((distance, ids))
    return book.close()


def _in_switch(members: Ints, size: float, slices: int) -> Messages:
    """The NVSwitch reduces what all members send and multicasts the result: (1 + 1/n) S each way on every NVLink.

    Each rank reads its n-th of everyone's and writes it to everyone, so that the n-th crosses its own NVLink once more.
    """
    n = members.size
    book = Book()
    e, j = np.ogrid[:n, :slices]
    part = (1 + 1 / n) * size / slices
    up = book.add((n, slices), part, members[e], np.asarray(SWITCH), 0, np.asarray(0), j)
    down = book.add((n, slices), part, np.asarray(SWITCH), members[e], 1, np.asarray(0), j)
    book.in_order(up)
    book.in_order(down)
    for i in range(n):
        book.need(down, np.broadcast_to(up[i], down.shape))
    return book.close()


def _neighbours(members: Ints, size: float, slices: int, senders: int) -> Messages:
    """The first `senders` members send to the next, the last of all to the first."""
    book = Book()
    e, j = np.ogrid[:senders, :slices]
    book.in_order(book.add((senders, slices), size / slices, members[e], np.roll(members, -1)[e], 0, e, j))
    return book.close()


def _all_to_all(cluster: Cluster, members: Ints, size: float, slices: int, window: int) -> Messages:
    """S/n bytes from each member to each other, the next member first.

    A message that leaves by a neighbour's NIC (PXN) is two: over NVLink to the neighbour, and on once that has arrived.
    """
    n = members.size
    book = Book()
    piece = np.arange(slices)
    for i, src in enumerate(members):
        to = (i + np.arange(1, n)) % n
        via = cluster.routes(np.full(n - 1, src), members[to]).exit_gpu
        ended: list[Ints] = []
        for at, (receiver, relay) in enumerate(zip(to, via, strict=True)):
            way = [src, members[receiver]] if relay == src else [src, relay, members[receiver]]
            legs = []
            for a, b in pairwise(way):
                legs.append(
                    book.add((slices,), size / n / slices, a, b, i * n + int(receiver), np.asarray(receiver), piece)
                )
                book.in_order(legs[-1][None, :])
            if len(legs) == 2:
                book.need(legs[1], legs[0])
            if window and at >= window:
                book.need(legs[0], ended[at - window][-1])
            ended.append(legs[-1])
    return book.close()
