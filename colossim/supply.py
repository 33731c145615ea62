"""Power for a job on its cluster: what its timelines' GPUs are and what bounds their kernels; what a cap costs."""

from __future__ import annotations

from typing import Any

from colossim.cluster import Cluster
from colossim.engine.record import StepRecord
from colossim.legs import DIRECTION, OUTSIDE
from colossim.result.power import Load
from colossim.result.result import Result
from colossim.scenario.power import limits
from colossim.scenario.schema import Scenario
from colossim.shares import Shares
from colossim.workload.bound import Where, arithmetic_shares

_PLACE: dict[Where, int] = {"F": DIRECTION["F"], "B": DIRECTION["B"], "W": DIRECTION["W"], "outside": OUTSIDE}


def loads_of(record: StepRecord, cluster: Cluster, shares: Shares, precision: str) -> tuple[Load, ...]:
    """What each timeline's ranks run on. precision: of the matrix products."""
    known: dict[tuple[int, int, int], Load] = {}

    def load(stage: int, rank: int) -> Load:
        kind, hardware = int(shares.kind_of_rank[rank]), int(cluster.gpu_type[rank])
        key = (kind, stage, hardware)
        if key not in known:
            node = cluster.node_types[hardware]
            found = [0.0] * 4
            for where, share in arithmetic_shares(shares.kinds[kind].programs[stage], node.gpu, precision).items():
                found[_PLACE[where]] = share
            known[key] = Load(node, (found[0], found[1], found[2], found[3]))
        return known[key]

    return tuple(load(line.stage, line.rank) for line in record.timelines)


def told_cap(scenario: Scenario, result: Result, free: Result) -> dict[str, Any]:
    """What a cap costs and saves. scenario: with its cap.  result: under it.  free: without it.

    gpu_limit_W, clock: by GPU type, of the limit and of what is left of the clock under load.  tokens_per_s, site_W: without
    the cap.  slower: share of the tokens a second that it costs.  saved_W: of the site, mean; saved_peak_W.
    """
    limit: dict[str, float] = {}
    clock: dict[str, float] = {}
    for group, most in zip(scenario.cluster.nodes, limits(scenario.cluster), strict=True):
        gpu = group.type.gpu
        limit[gpu.name] = most
        clock[gpu.name] = gpu.model_copy(update={"power_limit": most}).clock / gpu.clock
    return {
        "gpu_limit_W": limit,
        "clock": clock,
        "tokens_per_s": free.tokens_per_s,
        "site_W": free.power.site_W,
        "slower": 1.0 - result.tokens_per_s / free.tokens_per_s,
        "saved_W": free.power.site_W - result.power.site_W,
        "saved_peak_W": free.power.peak_W - result.power.peak_W,
    }
