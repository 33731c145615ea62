"""A job on its cluster: laid out, and set up to be played."""

from __future__ import annotations

from dataclasses import dataclass, replace

from colossim.cluster import Cluster
from colossim.collective import Library
from colossim.flows import Pace
from colossim.legs import Leg
from colossim.quotient import Quotient
from colossim.scenario.plan import Plan
from colossim.scenario.schema import Scenario
from colossim.shares import Shares
from colossim.traffic import Traffic


@dataclass(frozen=True)
class LaidOut:
    """The job on the cluster, before folding. plan: of the whole job; each kind of replica in `shares` has its own."""

    scenario: Scenario
    plan: Plan
    cluster: Cluster
    shares: Shares
    traffic: Traffic
    library: Library


@dataclass(frozen=True)
class Setup:
    """Everything before the first event. legs: a compiled program a rank class.

    chosen: (channel, operation, bytes, nodes, algorithm, protocol) of the collectives.  pace: of flows that routing pins.
    """

    laid: LaidOut
    quotient: Quotient
    legs: list[tuple[Leg, ...]]
    chosen: tuple[tuple[str, str, float, int, str, str], ...]
    pace: Pace | None = None

    def of(self, scenario: Scenario) -> Setup:
        """The same for a scenario that differs in what changes no step."""
        return replace(self, laid=replace(self.laid, scenario=scenario))
