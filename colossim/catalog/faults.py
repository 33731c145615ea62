"""What fails in a cluster, how often, and what that does to a job: classes of faults, and profiles of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from colossim.catalog.facts import Entry, Facts
from colossim.catalog.quantities import Factor, Positive, Seconds, SomeSeconds, SomeShare

Component = Literal["gpu", "node", "rack", "leaf", "job"]
Effect = Literal["stop", "degrade", "slow", "corrupt"]

#: Of what there is one for each fault of a class, by the class's name; a `link` is a NIC's, of which each GPU has one.
OWNERS: dict[str, Component] = {
    **dict.fromkeys(("gpu", "hbm", "nvlink", "nic", "link"), "gpu"),
    **dict.fromkeys(("node", "host", "nvswitch"), "node"),
    **dict.fromkeys(("rack", "power"), "rack"),
    **dict.fromkeys(("leaf", "switch"), "leaf"),
    **dict.fromkeys(("job", "software", "storage"), "job"),
}


class Radius(Facts):
    """What a fault takes at once."""

    nodes: Positive = Field(description="neighbours that hang together: a rack's, or those of a power domain")


class Infant(Facts):
    """How much more often what is new fails: 1 + (factor - 1) exp(-age/lasts) times, age since it joined the cluster."""

    factor: Annotated[Factor, Field(ge=1, le=1000)] = Field(description="times as often on the first day")
    lasts: SomeSeconds = Field(description="s in which what is more falls to 37 %")


class FaultClass(Facts):
    """Faults of one kind.

    A component lives for a time whose mean is `mtbf`: exponential, or Weibull with `shape`. stop: the job stops, and what it
    did since its last checkpoint is lost; a GPU's or a node's fault takes the node away until it is repaired.  degrade: the
    component's link keeps `to` of its rate until it is repaired.  slow: a GPU runs at `to` of its pace until then.  corrupt:
    what the job does is worthless from here on, which is found after `detect`.
    """

    mtbf: SomeSeconds = Field(description="s, mean time between failures of one component")
    per: Component | None = Field(
        default=None,
        description="what there is one component for: gpu, node, rack, leaf switch or job; by the class's name",
    )
    radius: Radius | None = Field(default=None, description="what a rack's fault takes at once: all its nodes")
    effect: Effect = Field(default="stop", description="what it does to the job")
    to: SomeShare = Field(
        default="50 %", validate_default=True, description="what a degraded link or a slow GPU keeps of its rate"
    )
    detect: Seconds = Field(default="0 s", validate_default=True, description="s until it is noticed")
    repair: Seconds = Field(
        default="0 s", validate_default=True, description="s until the component is back, in the mean"
    )
    repair_spread: Annotated[Factor, Field(le=5)] = Field(
        default=0.0, description="sigma of lognormal repair times; 0: all alike"
    )
    shape: Annotated[Factor, Field(ge=0.1, le=100)] = Field(
        default=1.0, description="of Weibull lifetimes: below 1 what is new fails more often (infant mortality)"
    )

    hang: bool = Field(
        default=False,
        description="nothing crashes: noticed when collectives time out (`checkpoint.watchdog`), or after `detect` if that is"
        " sooner",
    )
    infant: Infant | None = Field(
        default=None, description="how much more often components fail that are new; what takes a place is as old as it"
    )

    @property
    def stops(self) -> bool:
        """Whether the job stops sooner or later."""
        return self.effect in ("stop", "corrupt")


class FaultProfile(Entry):
    """Classes of faults by name, beside what every entry has."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, FaultClass]

    @property
    def classes(self) -> dict[str, FaultClass]:
        """By name, in the order in which they were written."""
        return dict(self.__pydantic_extra__ or {})

    def owner(self, name: str) -> Component | None:
        """What the components of a class are of; None if neither its name nor its `per` says so."""
        return self.classes[name].per or OWNERS.get(name)
