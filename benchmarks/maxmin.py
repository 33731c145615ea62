"""Max-min rates of hashed permutations over a three-tier Clos: many levels a round against one.

Leaves of 64 NICs, blocks of 64 leaves, 64 single links up of every switch; a flow a NIC, hashed to one path. Every NIC and
single link is a link of its own: six links a NIC, up to six a flow. Prints a Markdown table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from colossim.maxmin import Rows, fill

Array = np.ndarray[Any, Any]
NETWORKS = (4_096, 16_384, 98_304)
WAYS = 64


def permutation(nics: int, rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], ...]:
    """Who, where, weight, capacity, cap of one flow a NIC to a random other one. All capacities are 1."""
    src, dst = np.arange(nics), rng.permutation(nics)
    spine, core = rng.integers(0, WAYS, nics), rng.integers(0, WAYS, nics)
    leaf, block = (src // WAYS, dst // WAYS), (src // WAYS**2, dst // WAYS**2)
    links = [src, nics + dst]
    links += [(2 + side) * nics + leaf[side] * WAYS + spine for side in (0, 1)]
    links += [(4 + side) * nics + (block[side] * WAYS + spine) * WAYS + core for side in (0, 1)]
    crosses = np.ones((nics, 6), dtype=bool)
    crosses[:, 2:4] = (leaf[0] != leaf[1])[:, None]
    crosses[:, 4:6] = (block[0] != block[1])[:, None]
    who, where = np.repeat(src, 6)[crosses.ravel()], np.stack(links, axis=1)[crosses]
    return who, where, np.ones(where.size), np.ones(6 * nics), np.full(nics, np.inf)


def one_level_a_round(who: Array, where: Array, weight: Array, capacity: Array, cap: Array) -> tuple[Array, int]:
    """Progressive filling as in the textbook: the rates, and the rounds."""
    rate, running, left, rounds = np.zeros(cap.size), np.ones(cap.size, dtype=bool), capacity.copy(), 0
    while running.any():
        rounds += 1
        live = running[who]
        demand = np.bincount(where[live], weights=weight[live], minlength=left.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            fair = np.where(demand > 0, np.maximum(left, 0.0) / demand, np.inf)
        level = min(float(fair.min()), float(cap[running].min()))
        stopped = running & (cap <= level)
        stopped[who[live & (fair[where] <= level * (1 + 1e-12))]] = True
        rate[stopped] = level
        rows = stopped[who] & live
        left -= np.bincount(where[rows], weights=weight[rows] * level, minlength=left.size)
        running &= ~stopped
    return rate, rounds


def many_levels_a_round(who: Array, where: Array, weight: Array, capacity: Array, cap: Array) -> tuple[Array, int]:
    return fill([Rows.of(who, where, weight, cap)], capacity)


def timed(solve: Callable[..., tuple[Any, int]], network: tuple[Any, ...], times: int) -> tuple[Any, int, float]:
    best = np.inf
    for _ in range(times):
        began = time.perf_counter()
        rate, rounds = solve(*network)
        best = min(best, time.perf_counter() - began)
    return rate, rounds, best


def main() -> None:
    print("| flows | links | mean rate | rounds | seconds | rounds, one level each | seconds | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for nics in NETWORKS:
        network = permutation(nics, np.random.default_rng(1))
        rate, rounds, seconds = timed(many_levels_a_round, network, 5)
        plain, levels, longer = timed(one_level_a_round, network, 1)
        assert np.allclose(rate, plain, rtol=1e-12, atol=0)
        print(
            f"| {nics:,} | {network[3].size:,} | {rate.mean():.3f} | {rounds} | {seconds:.3f} "
            f"| {levels} | {longer:.2f} | {longer / seconds:.0f} x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
