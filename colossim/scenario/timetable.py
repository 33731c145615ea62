"""When nodes come, join and go: the cluster as its events leave it, from moment to moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from colossim.catalog.types import NodeType
from colossim.scenario.events import Event
from colossim.scenario.fields import nearest
from colossim.scenario.gate import running, site_power
from colossim.scenario.schema import ClusterSpec, Scenario
from colossim.units import format_power, format_time

Report = Callable[[str, str], None]
Nodes = tuple[tuple[NodeType, int], ...]


@dataclass(frozen=True)
class Change:
    """A part of an event. at: s; event: its index; last: whether it is its last part.

    come: nodes that join; go: (name of a type, nodes) that leave.  power: (W, W a node or where that comes from).
    """

    at: float
    event: int
    come: Nodes = ()
    go: tuple[tuple[str, int], ...] = ()
    power: tuple[float, str | float] | None = None
    last: bool = False

    def __str__(self) -> str:
        words = [f"{count:,} {node.name} join" for node, count in self.come]
        words += [f"{count:,} {name} leave" for name, count in self.go]
        if self.power is not None:
            words.append(f"power is {said_power(self.power[0])}")
        return ", ".join(words) or "the job changes"


@dataclass(frozen=True)
class Moment:
    """The cluster from a moment on. at: s.  nodes: that have joined; runs: how many of each group have power.

    changes: those of this moment.  power: W; per_node: W a node, or where it comes from.
    """

    at: float
    changes: tuple[Change, ...]
    nodes: Nodes
    runs: tuple[int, ...]
    power: float
    per_node: str | float

    @property
    def running(self) -> Nodes:
        """Nodes that have power."""
        return tuple((node, runs) for (node, _), runs in zip(self.nodes, self.runs, strict=True) if runs)

    def gate(self, cluster: ClusterSpec) -> str:
        """What the power runs, in words; nothing if it is enough."""
        if sum(self.runs) == sum(count for _, count in self.nodes):
            return ""
        ways = [site_power(node, self.per_node, cluster.fabric.power, cluster.pue) for node, _ in self.nodes]
        each = " or ".join(dict.fromkeys(map(format_power, ways)))
        return f"{said_power(self.power)} run {sum(self.runs):,} of {said_nodes(self.nodes)}, at {each} each"


def said_power(watts: float) -> str:
    return "unlimited" if watts == float("inf") else format_power(watts)


def said_nodes(nodes: Nodes) -> str:
    """`12,500 hgx-h100 and 6,250 hgx-h200`."""
    return " and ".join(f"{count:,} {node.name}" for node, count in nodes) or "no nodes"


def changes_of(index: int, event: Event) -> Iterator[Change]:
    """The parts of an event, wave after wave."""
    if event.add is None and event.drain is None and event.upgrade is None:
        power = None if event.power is None else (event.power, event.per_node)
        yield Change(event.at, index, power=power, last=True)
    for wave in range(event.waves):
        at, last = event.at + wave * (event.every or 0.0), wave == event.waves - 1
        for added in event.add or ():
            come = ((added.type, _share(added.count, wave, event.waves)),)
            yield Change(at + event.burn_in, index, come=come, last=last)
        for drained in event.drain or ():
            yield Change(at, index, go=((drained.type, _share(drained.count, wave, event.waves)),), last=last)
        if event.upgrade is not None:
            count = _share(event.upgrade.count, wave, event.waves)
            back = at + event.upgrade.takes + event.burn_in
            yield Change(at, index, go=((event.upgrade.type, count),), last=last and back == at)
            yield Change(back, index, come=((event.upgrade.to, count),), last=last)


def _share(count: int, wave: int, waves: int) -> int:
    """Of so many nodes those of a wave."""
    return count * (wave + 1) // waves - count * wave // waves


def timetable(scenario: Scenario, report: Report) -> list[Moment]:
    """The cluster from the start on, a moment where it changes. Tells `report` of nodes that aren't there, and of no power."""
    parts = [part for index, event in enumerate(scenario.events) for part in changes_of(index, event)]
    parts.sort(key=lambda part: part.at)
    nodes: list[tuple[NodeType, int]] = [(group.type, group.count) for group in scenario.cluster.nodes]
    power: tuple[float, str | float] = (float("inf"), "provisioned")
    told: set[str] = set()

    def tell(field: str, message: str) -> None:
        if field not in told:
            told.add(field)
            report(field, message)

    moments: list[Moment] = []
    for at in sorted({0.0, *(part.at for part in parts)}):
        now = tuple(part for part in parts if part.at == at)
        for part in now:
            for name, count in part.go:
                nodes = _without(nodes, name, count, part, scenario.events[part.event], tell)
            for kind, count in part.come:
                nodes = _with(nodes, kind, count)
            if part.power is not None:
                power = part.power
        runs = running(nodes, *power, scenario.cluster.fabric.power, scenario.cluster.pue)
        moments.append(Moment(at, now, tuple(nodes), tuple(runs), *power))
    return moments


def _with(nodes: list[tuple[NodeType, int]], kind: NodeType, count: int) -> list[tuple[NodeType, int]]:
    """Behind those that are there."""
    if nodes and nodes[-1][0] == kind:
        return [*nodes[:-1], (kind, nodes[-1][1] + count)]
    return [*nodes, (kind, count)] if count else nodes


def _without(
    nodes: list[tuple[NodeType, int]], name: str, count: int, part: Change, event: Event, tell: Report
) -> list[tuple[NodeType, int]]:
    """Less the last ones of a type."""
    field = f"events.{part.event}.{'drain' if event.drain is not None else 'upgrade'}"
    if event.drain is not None:
        field += f".{[one.type for one in event.drain].index(name)}"
    there = sum(many for node, many in nodes if node.name == name)
    if not there:
        tell(f"{field}.type", f"`{name}`: {_none_of(nodes, name)}")
        return nodes
    if there < count:
        what = f"{count:,} of {there:,} {name} that have joined by {format_time(part.at)}"
        tell(f"{field}.count", f"{what}: {there:,} at the most")
        return nodes
    left: list[tuple[NodeType, int]] = []
    for node, many in reversed(nodes):
        gone = min(many, count) if node.name == name else 0
        count -= gone
        left.insert(0, (node, many - gone))
    return [(node, many) for node, many in left if many]


def _none_of(nodes: list[tuple[NodeType, int]], name: str) -> str:
    return f"no such nodes have joined by then: {nearest(name, {node.name for node, _ in nodes})}"
