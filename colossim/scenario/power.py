"""What a user says about power: a cap, prices; and what a cap leaves each GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from colossim import units
from colossim.catalog.facts import Facts
from colossim.catalog.quantities import Quantity, SomeWatts

if TYPE_CHECKING:
    from colossim.scenario.schema import ClusterSpec, Scenario


class PowerCap(Facts):
    """What the site or each GPU may draw. Both: the tighter one holds."""

    site: SomeWatts | None = Field(
        default=None,
        description="W of the site, PUE included: GPUs are limited so that it can't draw more, whatever they do",
    )
    gpu: SomeWatts | None = Field(default=None, description="W that each GPU is limited to")


class Price(Facts):
    """What energy and machines cost."""

    energy: Annotated[float, Quantity(units.ENERGY_PRICE)] | None = Field(
        default=None, description="of the site's energy, such as 60 $/MWh"
    )
    gpu_hour: Annotated[float, Quantity(units.MONEY)] | None = Field(
        default=None, description="of an hour of each of the cluster's GPUs, such as 2 $"
    )


def fixed_power(cluster: ClusterSpec) -> float:
    """W of the IT that isn't GPUs: nodes' overhead, switches and optics."""
    return sum(g.count * (g.type.overhead_power + g.type.gpus * cluster.fabric.power) for g in cluster.nodes)


def least_power(cluster: ClusterSpec) -> float:
    """W of the site while all its GPUs idle."""
    return cluster.pue * (fixed_power(cluster) + sum(g.count * g.type.gpus * g.type.gpu.idle for g in cluster.nodes))


def limits(cluster: ClusterSpec) -> list[float]:
    """W that the GPUs of each group of nodes are limited to under the cap; their own limits without one.

    gpu: at most so many.  site: what PUE, nodes and switches leave of it, all GPUs the same share of the way from idle to
    their own limits: idle + s (limit - idle), s = (site/PUE - fixed - sum idle) / sum (limit - idle).
    """
    cap, own = cluster.power_cap, [group.type.gpu.limit for group in cluster.nodes]
    if cap is None:
        return own
    if cap.gpu is not None:
        own = [min(limit, cap.gpu) for limit in own]
    if cap.site is None:
        return own
    counts = [group.count * group.type.gpus for group in cluster.nodes]
    idle = [group.type.gpu.idle for group in cluster.nodes]
    above = sum(n * (limit - low) for n, limit, low in zip(counts, own, idle, strict=True))
    left = (cap.site - least_power(cluster)) / cluster.pue
    share = min(1.0, left / above) if above > 0 else 1.0
    return [low + share * (limit - low) for limit, low in zip(own, idle, strict=True)]


def capped(scenario: Scenario) -> Scenario:
    """The scenario with its GPUs limited as the cap says; twice is as once."""
    cluster = scenario.cluster
    if cluster.power_cap is None:
        return scenario
    nodes = tuple(
        group
        if limit >= group.type.gpu.limit
        else group.model_copy(
            update={
                "type": group.type.model_copy(
                    update={"gpu": group.type.gpu.model_copy(update={"power_limit": limit})},
                )
            }
        )
        for group, limit in zip(cluster.nodes, limits(cluster), strict=True)
    )
    return scenario.model_copy(update={"cluster": cluster.model_copy(update={"nodes": nodes})})


def uncapped(scenario: Scenario) -> Scenario:
    """The scenario without its cap."""
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"power_cap": None})})
