"""Closed forms of checkpoints and restarts: what an interval costs, and which is best.

Failures of the whole job are exponential with a mean time M between them; every tau seconds of work a checkpoint blocks for C;
a failure costs a restart R and the work since the last checkpoint.
"""

from __future__ import annotations

import math

#: Golden section.
_GOLD = (math.sqrt(5) - 1) / 2


def wall_over_work(interval: float, mtbf: float, write: float, restart: float) -> float:
    """Wall time over work: (M/tau) e^(R/M) (e^((tau + C)/M) - 1) (Daly 2006, eq. 20); exact, failures during restarts included.

    All in s, interval and mtbf above 0. inf where no float holds it.
    """
    try:
        return mtbf / interval * math.exp(restart / mtbf) * math.expm1((interval + write) / mtbf)
    except OverflowError:
        return math.inf


def young(mtbf: float, write: float) -> float:
    """Best interval to first order, s: sqrt(2 C M) (Young 1974)."""
    return math.sqrt(2.0 * write * mtbf)


def daly(mtbf: float, write: float) -> float:
    """Best interval to higher order, s: sqrt(2 C M) (1 + sqrt(C/2M)/3 + C/18M) - C for C < 2M, else M (Daly 2006, eq. 37)."""
    if write >= 2.0 * mtbf:
        return mtbf
    x = write / (2.0 * mtbf)
    return young(mtbf, write) * (1.0 + math.sqrt(x) / 3.0 + x / 9.0) - write


def best_interval(mtbf: float, write: float, restart: float = 0.0) -> float:
    """The interval with the least `wall_over_work`, s, by golden section on its logarithm (the restart doesn't move it)."""
    low, high = math.log(write) - 10.0, math.log(write + 10.0 * mtbf)
    while high - low > 1e-9:
        left, right = high - _GOLD * (high - low), low + _GOLD * (high - low)
        costs = [wall_over_work(math.exp(at), mtbf, write, restart) for at in (left, right)]
        low, high = (low, right) if costs[0] < costs[1] else (left, high)
    return math.exp((low + high) / 2.0)


def ettr(nodes: float, rate: float, interval: float, write: float, restart: float) -> float:
    """Effective training time ratio to first order: (1 - N r (u0 + dt/2))/(1 + w/dt) (Kokolis et al. 2024), 0 at least.

    rate: failures a node and s.  Wrong where failures come as often as checkpoints or restarts last.
    """
    return max(0.0, 1.0 - nodes * rate * (restart + interval / 2.0)) / (1.0 + write / interval)
