"""Max-min fair rates of flows on weighted links: progressive filling that freezes many levels a round.

Progressive filling raises all flows together until a link is full, freezes the flows on it and goes on with the rest: one
level a round, hundreds of rounds where hashed flows collide. A link need not wait for its turn, though. Its *fair level* is
what is left of it over the weights of its running flows. Freezing a flow at no more than that can only raise it, so a link
whose fair level is the lowest of all links of each of its flows stays their bottleneck whatever happens elsewhere: those
flows are frozen at once, in all such links side by side. The lowest link of all is always one of them, so the filling ends.
The rates are those of one level a round: the max-min fair point is unique (Bertsekas and Gallager, Data Networks, 2nd ed.,
section 6.5.2). The rounds are as many as the longest chain of links that wait for one another, not as there are levels.

Rows lie in *columns*: column k holds the k-th row of every flow that has one, flows with most rows first, so that each column
names the first flows of the one before and all work is done on whole columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[Any]

#: Levels this close (relative) are one: rounding must not make two rounds of a tie.
TIE = 1e-12


@dataclass(frozen=True)
class Rows:
    """Links that flows cross: row r says that flow who[r] crosses link where[r], which carries weight[r] times its rate.

    who, where, weight: (rows,), those of a flow side by side, weights positive.  cap: (flows,) bytes/s, own limits.
    """

    who: Ints
    where: Ints
    weight: Floats
    cap: Floats

    @staticmethod
    def of(who: Ints, where: Ints, weight: Floats, cap: Floats) -> Rows:
        """Rows in any order, some of them perhaps without weight: those do not hold their flow back."""
        who, where = np.asarray(who).astype(np.intp, copy=False), np.asarray(where).astype(np.intp, copy=False)
        weight, cap = np.asarray(weight, dtype=np.float64), np.asarray(cap, dtype=np.float64)
        weighs = weight > 0
        if not weighs.all():
            who, where, weight = who[weighs], where[weighs], weight[weighs]
        if np.any(who[1:] < who[:-1]):
            order = np.argsort(who, kind="stable")
            who, where, weight = who[order], where[order], weight[order]
        return Rows(who, where, weight, cap)

    @cached_property
    def most(self) -> tuple[Ints, Floats]:
        """Links, once each, and what they carry if every flow moves at its own limit."""
        load = np.bincount(self.where, weights=self.weight * self.cap.take(self.who))
        links = np.flatnonzero(load)
        return links, np.asarray(load.take(links), np.float64)


def max_min(who: Ints, where: Ints, weight: Floats, capacity: Floats, cap: Floats) -> Floats:
    """Max-min fair rates (flows,), bytes/s.

    Row r: flow who[r] crosses link where[r], which carries weight[r] times the flow's rate.
    who, where, weight: (rows,), in any order; rows in the order of their flows save a sort.
    capacity: (links,) bytes/s.  cap: (flows,) bytes/s, own limit of each flow.  Both may be infinite.
    A row of weight 0 does not hold its flow back; a flow on no link has its own limit; one on a link of capacity 0 has 0.
    Rounding: about 1e-16 times the weights on a link over those of its flows that freeze last.
    """
    return fill([Rows.of(who, where, weight, cap)], capacity)[0]


def fill(parts: Sequence[Rows], capacity: Floats) -> tuple[Floats, int]:
    """The rates of `max_min` of several parts' flows, in their order, and in how many rounds they were found."""
    rate = np.concatenate([part.cap for part in parts])
    left = np.asarray(capacity, dtype=np.float64)
    # A link that isn't full even with all its flows at their own limits never holds one back.
    most = np.zeros(left.size)
    for part in parts:
        links, load = part.most
        most[links] += load
    full = most > left
    left = np.maximum(left.compress(full), 0.0)
    number = np.cumsum(full, dtype=np.intp) - 1
    rows = [np.flatnonzero(full.take(part.where)) for part in parts]
    kept = [
        (part.who.take(r), number.take(part.where.take(r)), part.weight.take(r))
        for part, r in zip(parts, rows, strict=True)
    ]
    first = accumulate([part.cap.size for part in parts], initial=0)
    who = np.concatenate([own + before for (own, _, _), before in zip(kept, first, strict=False)])
    where, weight = (np.concatenate([arrays[which] for arrays in kept]) for which in (1, 2))

    start = np.flatnonzero(np.diff(who, prepend=-1))
    count = np.diff(start, append=who.size)
    fewer = count.max(initial=0) - count
    order = np.argsort(fewer.astype(np.uint16) if fewer.max(initial=0) < 2**16 else fewer, kind="stable")
    start = start.take(order)
    sizes = count.size - np.cumsum(np.bincount(count))[:-1]
    order = _joined([start[:size] + column for column, size in enumerate(sizes)])
    flow = who.take(start)
    rate[flow], rounds = fill_columns(where.take(order), weight.take(order), sizes.tolist(), left, rate.take(flow))
    return rate, rounds


def fill_columns(
    where: Ints, weight: Floats, sizes: Sequence[int], capacity: Floats, cap: Floats
) -> tuple[Floats, int]:
    """Max-min fair rates (flows,) of flows whose rows lie in columns, and in how many rounds they were found.

    where, weight: (rows,) links and positive weights, column by column.  sizes: rows of each column, none more than the one
    before: those of the first flows.  capacity: (links,) bytes/s, not negative.  cap: (flows,).
    """
    rate = np.array(cap, dtype=np.float64)
    flow, limit = np.arange(rate.size), rate
    left = np.array(capacity, dtype=np.float64)
    rounds = 0
    # What runs still: flow (n,) numbers, limit (n,) their own limits, rows in columns; left (links,) what frozen ones leave.
    while flow.size:
        rounds += 1
        if where.size < left.size // 2:
            where, left = _live(where, left)
        demand = np.bincount(where, weights=weight, minlength=left.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            fair = _split((left / demand).take(where), sizes)  # links without demand are in no row
        level = limit.copy()
        for own in fair:
            np.minimum(level[: own.size], own, out=level[: own.size])
        bound = level * (1 + TIE)
        # Rows in which a link is the lowest of its flow, and then those of links that are it for all of theirs.
        held = np.concatenate([own <= bound[: own.size] for own in fair])
        waits = np.zeros(left.size, dtype=bool)
        waits[where.compress(~held)] = True
        held &= ~waits.take(where)
        frozen = limit <= bound
        for own in _split(held, sizes):
            frozen[: own.size] |= own
        gone, stays = np.flatnonzero(frozen), np.flatnonzero(~frozen)
        rate[flow.take(gone)] = level.take(gone)
        if not stays.size:
            break

        those = [gone[: np.searchsorted(gone, size)] for size in sizes]
        rows = _rows(those, sizes)
        spent = weight.take(rows) * level.take(_joined(those))
        left -= np.bincount(where.take(rows), weights=spent, minlength=left.size)
        np.maximum(left, 0.0, out=left)  # what rounding takes too much
        flow, limit = flow.take(stays), limit.take(stays)
        those = [stays[: np.searchsorted(stays, size)] for size in sizes]
        rows, sizes = _rows(those, sizes), [own.size for own in those]
        where, weight = where.take(rows), weight.take(rows)
    return rate, rounds


def _split(rows: NDArray[Any], sizes: Sequence[int]) -> list[NDArray[Any]]:
    """The columns of the rows."""
    ends = list(accumulate(sizes))
    return [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _rows(chosen: Sequence[Ints], sizes: Sequence[int]) -> Ints:
    """Numbers of the rows of the flows chosen in each column."""
    return _joined([own + first for own, first in zip(chosen, accumulate(sizes, initial=0), strict=False)])


def _joined(columns: Sequence[Ints]) -> Ints:
    return np.concatenate([*columns, np.zeros(0, np.intp)])


def _live(where: Ints, left: Floats) -> tuple[Ints, Floats]:
    """Rows and links, the links that no row names left out."""
    named = np.zeros(left.size, dtype=bool)
    named[where] = True
    links = np.flatnonzero(named)
    number = np.empty(left.size, np.intp)
    number[links] = np.arange(links.size)
    return number.take(where), left.take(links)
