"""Max-min fair rates of flows on weighted links: progressive filling that freezes many levels a round.

Progressive filling raises all flows together until a link is full, freezes the flows on it and goes on with the rest: one
level a round, hundreds of rounds where hashed flows collide. A link need not wait for its turn, though. Its *fair level* is
what is left of it over the weights of its running flows. Freezing a flow at no more than that can only raise it, so a link
whose fair level is the lowest of all links of each of its flows stays their bottleneck whatever happens elsewhere: those
flows are frozen at once, in all such links side by side. The lowest link of all is always one of them, so the filling ends.
The rates are those of one level a round: the max-min fair point is unique (Bertsekas and Gallager, Data Networks, 2nd ed.,
section 6.5.2). The rounds are as many as the longest chain of links that wait for one another, not as there are levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[Any]

#: Levels this close (relative) are one: rounding must not make two rounds of a tie.
TIE = 1e-12


def max_min(who: Ints, where: Ints, weight: Floats, capacity: Floats, cap: Floats) -> Floats:
    """Max-min fair rates (flows,), bytes/s.

    Row r: flow who[r] crosses link where[r], which carries weight[r] times the flow's rate.
    who, where, weight: (rows,), in any order; rows in the order of their flows save a sort.
    capacity: (links,) bytes/s.  cap: (flows,) bytes/s, own limit of each flow.  Both may be infinite.
    A row of weight 0 does not hold its flow back; a flow on no link has its own limit; one on a link of capacity 0 has 0.
    Rounding: about 1e-16 times the weights on a link over those of its flows that freeze last.
    """
    return fill(who, where, weight, capacity, cap)[0]


def fill(who: Ints, where: Ints, weight: Floats, capacity: Floats, cap: Floats) -> tuple[Floats, int]:
    """The rates of `max_min`, and in how many rounds they were found."""
    rate = np.array(cap, dtype=np.float64)
    left = np.maximum(np.asarray(capacity, dtype=np.float64), 0.0)
    who, where, weight = _by_flow(who, where, np.asarray(weight, dtype=np.float64), left)
    start = np.flatnonzero(np.diff(who, prepend=-1))
    flow = who[start]
    count = np.diff(start, append=who.size)
    limit = rate[flow]
    rounds = 0
    # Flows that run still: flow (n,) their numbers, limit (n,) their own limits, count (n,) their rows, where and weight the
    # rows of them all, left (links,) what frozen flows leave.
    while flow.size:
        rounds += 1
        demand = np.bincount(where, weights=weight, minlength=left.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            fair = (left / demand)[where]  # links without demand are in no row
        level = np.minimum(np.minimum.reduceat(fair, start), limit)
        bound = level * (1 + TIE)
        lowest = fair <= np.repeat(bound, count)
        waits = np.zeros(left.size, dtype=bool)
        waits[where[~lowest]] = True
        lowest &= ~waits[where]
        frozen = np.logical_or.reduceat(lowest, start) | (limit <= bound)
        rate[flow[frozen]] = level[frozen]

        running = ~frozen
        flow, limit = flow[running], limit[running]
        rows = np.repeat(running, count)
        gone = ~rows
        spent = weight[gone] * np.repeat(level[frozen], count[frozen])
        left -= np.bincount(where[gone], weights=spent, minlength=left.size)
        np.maximum(left, 0.0, out=left)  # what rounding takes too much
        count = count[running]
        start = np.cumsum(count) - count
        where, weight = where[rows], weight[rows]
        if where.size < left.size // 2:
            where, left = _live(where, left)
    return rate, rounds


def _by_flow(who: Ints, where: Ints, weight: Floats, capacity: Floats) -> tuple[Ints, Ints, Floats]:
    """The rows that can hold a flow back, those of a flow side by side."""
    who, where = np.asarray(who).astype(np.intp, copy=False), np.asarray(where).astype(np.intp, copy=False)
    binds = weight > 0
    if not np.isfinite(capacity).all():
        binds &= np.isfinite(capacity)[where]
    if not binds.all():
        who, where, weight = who[binds], where[binds], weight[binds]
    if np.any(who[1:] < who[:-1]):
        order = np.argsort(who, kind="stable")
        who, where, weight = who[order], where[order], weight[order]
    return who, where, weight


def _live(where: Ints, left: Floats) -> tuple[Ints, Floats]:
    """Rows and links, the links that no row names left out."""
    named = np.zeros(left.size, dtype=bool)
    named[where] = True
    number = np.cumsum(named) - 1
    return number[where], left[named]
