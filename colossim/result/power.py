"""Power while a step runs: each GPU by what it does, its node's overhead, and the site.

A GPU that computes draws its limit (700 W H100s run at it), one that only communicates or moves memory less, one that waits
little more than idle. Shares are assumptions; the check is a measured node: 8 x H100 with GPT-3 draws 6.85 kW
(Supermicro, MLPerf v4.0), and 0.97 kW of IT a GPU with its share of switches: 107 to 122 MW for 100,000 at PUE 1.1 to 1.25.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colossim.engine.record import CATEGORIES, StepRecord
from colossim.scenario.gate import SWITCHES
from colossim.scenario.plan import Plan
from colossim.scenario.schema import Scenario

#: Share of the range from idle to the limit that each activity draws (assumed).
_SHARE = {"compute": 1.0, "optimizer": 0.6, "pipeline_bubble": 0.1, "straggler": 0.1, "other": 0.2}
_COMMUNICATING = 0.4


@dataclass(frozen=True)
class Power:
    """power: W of the site, mean over the step.  energy: J a step.  Both include spares, which idle."""

    power: float
    energy: float


def power_of(scenario: Scenario, plan: Plan, record: StepRecord) -> Power:
    """Mean power of the cluster through the step, and its energy."""
    share = np.array([_SHARE.get(name, _COMMUNICATING) for name in CATEGORIES])
    types = {group.type.name: group.type for group in scenario.cluster.nodes}
    by_type: dict[str, list[tuple[float, float]]] = {}
    for timeline in record.timelines:
        activity = float(timeline.seconds() @ share) / record.step_time
        by_type.setdefault(timeline.hardware, []).append((activity, timeline.count))
    total = 0.0
    spare = dict(plan.spares)
    for group in scenario.cluster.nodes:
        node = types[group.type.name]
        idle_nodes = min(group.count, spare.get(node.name, 0))
        spare[node.name] = spare.get(node.name, 0) - idle_nodes
        rows = by_type.get(node.name, [(0.0, 1.0)])
        activity = sum(a * n for a, n in rows) / sum(n for _, n in rows)
        busy = node.gpu.idle + activity * (node.gpu.limit - node.gpu.idle)
        total += (group.count - idle_nodes) * node.gpus * busy + idle_nodes * node.gpus * node.gpu.idle
        total += group.count * (node.overhead_power + node.gpus * SWITCHES)
    power = total * scenario.cluster.pue
    return Power(power, power * record.step_time)
