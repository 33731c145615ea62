"""What a run draws and costs: joules, GPU hours, dollars where the scenario has prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colossim.result.power import Power, energy_by_account
from colossim.scenario.power import Price

_HOUR = 3600.0


def cost_of(power: Power, price: Price | None, gpus: int, seconds: float | None) -> dict[str, Any]:
    """Of the whole run, in so many seconds of training without faults; of an hour of it if None. gpus: of the cluster.

    of: what for (tokens, hour).  time_s, energy_J, mean_W: of the site.  gpu_hours.  prices: what was asked for.  With prices
    energy_USD, gpu_USD, USD: together. A batch that grows is counted at the full batch's power.
    """
    whole = _HOUR if seconds is None else seconds
    return _priced("hour" if seconds is None else "tokens", whole, power.site_W * whole, gpus, _told(price))


def cost_of_campaign(cost: Mapping[str, Any], power: Power, gpus: int, spent: Mapping[str, float]) -> dict[str, Any]:
    """The same of weeks of training. cost: of the step.  spent: s by account.  by_account_J: energy of each."""
    energy = energy_by_account(spent, power)
    found = _priced("campaign", sum(spent.values()), sum(energy.values()), gpus, cost["prices"])
    return {**found, "by_account_J": energy}


def cost_of_growth(cost: Mapping[str, Any], energy: float, gpu_seconds: float, seconds: float) -> dict[str, Any]:
    """The same of weeks of a cluster that changes. cost: of the first step.  energy: J; gpu_seconds: of what has power."""
    return _priced("campaign", seconds, energy, gpu_seconds / (seconds or 1.0), cost["prices"])


def _told(price: Price | None) -> dict[str, float]:
    found = {} if price is None else {"energy_USD_per_J": price.energy, "gpu_hour_USD": price.gpu_hour}
    return {name: value for name, value in found.items() if value is not None}


def _priced(of: str, seconds: float, energy: float, gpus: float, prices: dict[str, float]) -> dict[str, Any]:
    hours = gpus * seconds / _HOUR
    found: dict[str, Any] = {
        "of": of,
        "time_s": seconds,
        "energy_J": energy,
        "mean_W": energy / seconds if seconds else 0.0,
        "gpu_hours": hours,
        "prices": prices,
    }
    parts = {}
    if "energy_USD_per_J" in prices:
        parts["energy_USD"] = energy * prices["energy_USD_per_J"]
    if "gpu_hour_USD" in prices:
        parts["gpu_USD"] = hours * prices["gpu_hour_USD"]
    return {**found, **parts, **({"USD": sum(parts.values())} if parts else {})}
