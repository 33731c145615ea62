"""Rules of power: a cap that leaves the GPUs something to work with."""

from __future__ import annotations

from collections.abc import Callable

from colossim.scenario.power import least_power
from colossim.scenario.schema import Scenario
from colossim.units import format_power


def check_power(scenario: Scenario, report: Callable[[str, str], None]) -> None:
    """Caps and prices."""
    cluster = scenario.cluster
    cap, price = cluster.power_cap, cluster.price
    for i, group in enumerate(cluster.nodes):
        gpu = group.type.gpu
        if gpu.power_limit is not None and gpu.power_limit <= gpu.idle:
            message = f"{format_power(gpu.power_limit)} is no more than the {format_power(gpu.idle)} that it draws idle"
            report(f"cluster.nodes.{i}.type.gpu.power_limit", f"{message}: say more, up to {format_power(gpu.tdp)}")
    if price is not None and price.energy is None and price.gpu_hour is None:
        report("cluster.price", "says no price: {energy: 60 $/MWh}, {gpu_hour: 2 $}, or both")
    if cap is None:
        return
    if cap.site is None and cap.gpu is None:
        report("cluster.power_cap", "says no power: 100 MW of the site, or {gpu: 500 W}")
    idle = max(group.type.gpu.idle for group in cluster.nodes)
    if cap.gpu is not None and cap.gpu <= idle:
        most = max(group.type.gpu.limit for group in cluster.nodes)
        message = f"{format_power(cap.gpu)} is no more than the {format_power(idle)} that a GPU draws idle"
        report("cluster.power_cap.gpu", f"{message}: say more, up to {format_power(most)}")
    least = least_power(cluster)
    if cap.site is not None and cap.site <= least:
        nodes = sum(group.count for group in cluster.nodes)
        message = (
            f"{format_power(cap.site)}: {nodes:,} nodes and their switches with idle GPUs draw {format_power(least)} at a"
            f" PUE of {cluster.pue:g}: say more, or use fewer nodes"
        )
        report("cluster.power_cap.site" if scenario.written("cluster.power_cap.site") else "cluster.power_cap", message)
