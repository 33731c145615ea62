"""Numbers of catalogue entries that a calibration may move: which ones ship, and scenarios with other values of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from colossim import catalog, yaml12
from colossim.scenario.schema import Scenario
from colossim.units import parse_share, parse_time

CONSTANTS = Path(__file__).parent / "catalog" / "constants.yaml"


@dataclass(frozen=True)
class Constant:
    """A number of a catalogue entry. paths: its fields, which share the value.  low, high: bounds, SI.

    spread: how far from the entry's value it is believed to lie, relative.
    """

    kind: str
    entry: str
    paths: tuple[str, ...]
    low: float
    high: float
    spread: float

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.entry}.{','.join(self.paths)}"


def shipped_constants() -> tuple[Constant, ...]:
    """Those of catalog/constants.yaml."""
    found = []
    for kind, entries in yaml12.read_file(CONSTANTS).value.items():
        for entry, numbers in entries.items():
            for paths, facts in numbers.items():
                low, high = (_number(facts[end]) for end in ("low", "high"))
                found.append(Constant(kind, entry, tuple(paths.split(",")), low, high, _number(facts["spread"])))
    return tuple(found)


def _number(value: Any) -> float:
    """A number, or a share or time as text."""
    if not isinstance(value, str):
        return float(value)
    return parse_share(value) if value.endswith("%") else parse_time(value)


def touches(constant: Constant, scenario: Scenario) -> bool:
    """Whether the scenario has an entry that is the constant's, or is based on it."""
    return any(constant.entry in catalog.lineage(constant.kind, name) for name in _names(scenario, constant.kind))


def _names(scenario: Scenario, kind: str) -> set[str]:
    if kind == "software":
        return {scenario.job.software.name}
    return {group.type.name if kind == "nodes" else group.type.gpu.name for group in scenario.cluster.nodes}


def value_of(constant: Constant, *, calibrated: bool = True) -> float:
    """What its entry has. calibrated: what ships after a fit, or what it was before any."""
    owner: Any = catalog.load(constant.kind, constant.entry, calibrated=calibrated)
    for part in constant.paths[0].split("."):
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    return float(owner)


def with_values(scenario: Scenario, values: dict[Constant, float]) -> Scenario:
    """The scenario with other values of constants that it touches."""
    for constant, value in values.items():
        if not touches(constant, scenario):
            continue
        for path in constant.paths:
            scenario = _changed(scenario, constant, path.split("."), value)
    return scenario


def _changed(scenario: Scenario, constant: Constant, path: Sequence[str], value: float) -> Scenario:
    if constant.kind == "software":
        job = scenario.job.model_copy(update={"software": _with(scenario.job.software, path, value)})
        return scenario.model_copy(update={"job": job})
    groups = []
    for group in scenario.cluster.nodes:
        node = group.type
        name = node.name if constant.kind == "nodes" else node.gpu.name
        if constant.entry in catalog.lineage(constant.kind, name):
            node = _with(node, path if constant.kind == "nodes" else ("gpu", *path), value)
        groups.append(group.model_copy(update={"type": node}))
    cluster = scenario.cluster.model_copy(update={"nodes": tuple(groups)})
    return scenario.model_copy(update={"cluster": cluster})


def _with(owner: Any, path: Sequence[str], value: float) -> Any:
    """A copy of an entry, or of a part of it, with one number changed."""
    name, *rest = path
    if isinstance(owner, dict):
        return {**owner, name: _with(owner[name], rest, value) if rest else value}
    assert isinstance(owner, BaseModel)
    return owner.model_copy(update={name: _with(getattr(owner, name), rest, value) if rest else value})
