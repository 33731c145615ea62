"""What of a cluster is away, dead or below its rate, from a fault to its repair; the job hears of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any

from colossim.draws import generator
from colossim.engine.calendar import Calendar
from colossim.engine.faults import Failures
from colossim.engine.log import Log
from colossim.engine.setting import Era, Fewer, Part, Source, Wrong


@dataclass(frozen=True)
class Fault:
    """What stops the job. time: s at which it struck; nodes: of the job, that it takes away."""

    source: Source
    component: int
    time: float
    nodes: tuple[int, ...]


#: (class, component if it is there again then, s of repair, what is due then, what that is about)
Repair = tuple[str, int | None, float, str, Sequence[Any]]


class Outages:
    """Faults of all classes as they strike, and what they leave behind until it is repaired.

    calendar: where the next of each class and all repairs stand.  tell: called with a fault that stops the job, or with None
    where its pace changes; mended: called when a node or a switch is back.
    """

    def __init__(
        self,
        calendar: Calendar,
        era: Era,
        seed: int,
        log: Log,
        tell: Callable[[Fault | None], None],
        mended: Callable[[], None],
    ) -> None:
        self.calendar, self.era, self.seed, self.log = calendar, era, seed, log
        self._tell, self._mended = tell, mended
        self.sources: dict[str, Source] = {}
        self.failures: dict[str, Failures] = {}
        #: Numbers of the timers of the next fault of each class that has one.
        self._next: dict[str, int] = {}
        #: Spares that stand by, those that have to join first, and those that do.
        self.spares, self.warm, self.joining = era.spares, era.warm, 0
        #: Crews at work, and what waits for one, in the order in which it was found: s of repair, and what is due then.
        self.busy = 0
        self.queue: deque[Repair] = deque()
        #: The job's nodes in whose place none stands, in the order in which they went; switches that are dead.
        self.empty: deque[int] = deque()
        self.switches = 0
        #: How many parts are below their rates, by kind, what is left, place, and the node if a job may do without it.
        self.wrong: dict[tuple[Part, float, int, int | None], int] = {}
        #: The size of a job that goes on with fewer replicas, and nodes that it leaves idle.
        self.size: Fewer | None = None
        self.idle: set[int] = set()
        #: Nodes of the job whose memory went since it last wrote to it or restarted.
        self.forgot: set[int] = set()
        #: When those corruptions struck that nobody has found.
        self.unfound: list[float] = []
        calendar.due |= {
            "fault": self._strike,
            "repaired": self._repaired,
            "found": self._found,
            "nodes": self._nodes_back,
            "joined": self._joined,
            "reported": self._reported,
            "mended": self._mended_by_crew,
            "switch": self._switch_back,
        }

    def fit(self) -> bool:
        """Lays the job onto what is there; False if it has to wait."""
        size = self._largest()
        if self.switches or (self.empty and size is None):
            return False
        self.size = size
        there = (node for node in range(self.era.nodes) if node not in self.empty)
        self.idle = set() if size is None else set(islice(there, size.nodes, None))
        return True

    @property
    def larger(self) -> bool:
        """Whether the job stops to take up what is back."""
        if not self.era.regrow or self.size is None or self.switches:
            return False
        size = self._largest()
        return not self.empty or (size is not None and size.replicas > self.size.replicas)

    def held(self, fault: Fault) -> bool:
        """Whether what nodes hold for each other is there after a fault: of each group of neighbours one node."""
        peers, nodes = self.era.peers, self.era.nodes
        if peers is None or fault.source.owner == "job" or nodes < peers.copies:
            return False
        groups = nodes // peers.copies
        gone = Counter(min(node // peers.copies, groups - 1) for node in self.forgot)
        # The last group has what is left over as well.
        sizes = {groups - 1: nodes - (groups - 1) * peers.copies}
        return all(count < sizes.get(group, peers.copies) for group, count in gone.items())

    def _largest(self) -> Fewer | None:
        """The most replicas for which there are nodes; None if all nodes are there, or too few."""
        there = self.era.nodes - len(self.empty)
        return next((size for size in self.era.fewer if size.nodes <= there), None) if self.empty else None

    @property
    def slow(self) -> list[list[Wrong]]:
        """Of each kind of part that is below its rate, of nodes that aren't idle, the worst in each place."""
        worst: dict[tuple[Part, int], float] = {}
        for part, left, place, node in self.wrong:
            if node not in self.idle:
                worst[part, place] = min(left, worst.get((part, place), 1.0))
        found: dict[Part, list[Wrong]] = {}
        for (part, place), left in sorted(worst.items()):
            found.setdefault(part, []).append(Wrong(part, left, place))
        return list(found.values())

    # -- eras --------------------------------------------------------------------------------------------------------
    def go_over(self, era: Era) -> None:
        """Another era: what is away stays away, and lacks where spares are too few; what fails next is drawn anew."""
        stood, stand = self.era.spares + self.era.warm, era.spares + era.warm
        out = stood - self.spares - self.warm + len(self.empty)
        lacking = min(max(0, out - stand), era.nodes)
        held = [node for node in self.empty if node < era.nodes][:lacking]
        others = (node for node in reversed(range(era.nodes)) if node not in held)
        self.empty = deque([*held, *islice(others, lacking - len(held))])
        self.spares = min(era.spares, max(0, stand - out))
        self.warm = max(0, stand - out) - self.spares
        self.era, self.size, self.idle, self.forgot = era, None, set(), set()
        self.begin()

    def begin(self) -> None:
        """Draws what fails next of each class of the era."""
        now = self.calendar.now
        for number in self._next.values():
            self.calendar.cancel(number)
        self._next.clear()
        for source in self.era.sources:
            name = source.name
            self.sources[name] = source
            self.log.faults.setdefault(name, 0)
            if name in self.failures:
                self.failures[name].resize(source.count, now)
            else:
                self.failures[name] = Failures(source.kind, source.count, generator(self.seed, name), now)
            self._ask(name)

    def _ask(self, name: str) -> None:
        when, component = self.failures[name].next()
        self._next[name] = self.calendar.at(when, "fault", name, component)

    # -- faults ------------------------------------------------------------------------------------------------------
    def _strike(self, name: str, component: int) -> None:
        source, failures, now = self.sources[name], self.failures[name], self.calendar.now
        kind, of = source.kind, source.nodes_of(component, self.era.nodes)
        nodes = tuple(node for node in of if node not in self.empty)
        there = bool(nodes) or not of
        repair = failures.repair() if there else 0.0
        # Another takes the place of what goes away, and what concerns the job as a whole is gone with the restart.
        stays = source.owner == "leaf" or kind.effect in ("degrade", "slow")
        crews = self.era.crews is not None and stays and there
        failures.renew(component, inf if crews else now + (kind.detect + repair if stays else 0.0))
        if there:
            self.log.faults[name] += 1
            if kind.effect in ("degrade", "slow"):
                what = (source.part, kind.to, source.place_of(component), nodes[0] if nodes else None)
                self._change(1, *what)
                self._repair(name, component, repair, "repaired", what, kind.detect)
            elif kind.effect == "corrupt" and not self._idle(nodes):
                self.unfound.append(now)
                self.calendar.at(now + kind.detect, "found", name, component, now, nodes, repair)
            else:
                self._stop(Fault(source, component, now, nodes), repair, kind.detect)
        self._ask(name)

    def _change(self, count: int, part: Part, left: float, place: int, node: int | None) -> None:
        what = (part, left, place, node)
        self.wrong[what] = self.wrong.get(what, 0) + count
        if not self.wrong[what]:
            del self.wrong[what]
        self._tell(None)

    def _repaired(self, part: Part, left: float, place: int, node: int | None) -> None:
        self._change(-1, part, left, place, node)

    def _found(self, name: str, component: int, time: float, nodes: Sequence[int], repair: float) -> None:
        self.unfound.remove(time)
        self._stop(Fault(self.sources[name], component, time, tuple(nodes)), repair, 0.0)

    def _idle(self, nodes: Sequence[int]) -> bool:
        """Whether the job stands on none of these."""
        return bool(nodes) and self.idle.issuperset(nodes)

    def _stop(self, fault: Fault, repair: float, detect: float) -> None:
        """repair: s; detect: s until it can begin."""
        name = fault.source.name
        if fault.nodes:
            idle = self._idle(fault.nodes)
            self.forgot.update(fault.nodes)
            for node in fault.nodes:
                self._lose(node, detect)
            self._repair(name, None, repair, "nodes", (len(fault.nodes),), detect)
            if idle:
                return
        elif fault.source.owner == "leaf":
            # Nothing stands in for a switch.
            self.switches += 1
            self._repair(name, fault.component, repair, "switch", (), detect)
        self._tell(fault)

    def _lose(self, node: int, detect: float) -> None:
        """A spare takes its place, or the job is short of one until some node is back."""
        if self.spares:
            self.spares -= 1
            return
        self.empty.append(node)
        self.idle.discard(node)
        if self.warm:
            self.warm -= 1
            self.joining += 1
            self.calendar.at(self.calendar.now + detect + self.era.join, "joined")

    # -- repairs -----------------------------------------------------------------------------------------------------
    def _repair(
        self, name: str, component: int | None, repair: float, due: str, what: tuple[Any, ...], detect: float
    ) -> None:
        """What is due when it is repaired. component: that is itself there again then, and not another in its place."""
        if self.era.crews is None:
            self.calendar.at(self.calendar.now + (detect + repair), due, *what)
        else:
            self.calendar.at(self.calendar.now + detect, "reported", name, component, repair, due, what)

    def _reported(self, name: str, component: int | None, repair: float, due: str, what: Sequence[Any]) -> None:
        self.queue.append((name, component, repair, due, what))
        self._send_crews()

    def _send_crews(self) -> None:
        """First come, first served."""
        while self.queue and (self.era.crews is None or self.busy < self.era.crews):
            name, component, repair, due, what = self.queue.popleft()
            self.busy += 1
            self.calendar.at(self.calendar.now + repair, "mended", name, component, due, what)

    def _mended_by_crew(self, name: str, component: int | None, due: str, what: Sequence[Any]) -> None:
        self.busy -= 1
        self._send_crews()
        if component is not None and component < self.failures[name].count:
            # When it would be there again nobody knew: what fails next is drawn anew.
            failures, now = self.failures[name], self.calendar.now
            failures.resize(failures.count, now)
            failures.renew(component, now)
            self.calendar.cancel(self._next.pop(name, 0))
            self._ask(name)
        self.calendar.due[due](*what)

    def _joined(self) -> None:
        self.joining -= 1
        self._node_back()

    def _nodes_back(self, count: int) -> None:
        for _ in range(count):
            self._node_back()

    def _node_back(self) -> None:
        if self.empty:
            place = self.empty.popleft()
            if self.size is not None:
                self.idle.add(place)
                self._tell(None)
            self._mended()
        elif self.spares < self.era.spares:
            self.spares += 1
        else:
            self.warm += 1

    def _switch_back(self) -> None:
        self.switches -= 1
        self._mended()

    # -- to and from plain values ------------------------------------------------------------------------------------
    def to_plain(self) -> dict[str, Any]:
        """All but the timers, as plain values."""
        return {
            "failures": {name: one.state() for name, one in self.failures.items()},
            "spares": [self.spares, self.warm, self.joining],
            "busy": self.busy,
            "queue": list(self.queue),
            "empty": list(self.empty),
            "switches": self.switches,
            "wrong": [[*what, count] for what, count in self.wrong.items()],
            "size": None if self.size is None else self.size.replicas,
            "idle": sorted(self.idle),
            "unfound": self.unfound,
            "forgot": sorted(self.forgot),
        }

    def from_plain(self, state: dict[str, Any], eras: Sequence[Era]) -> None:
        """Goes on from what `to_plain` gave; the timers are set already. eras: those until now."""
        self.sources = {source.name: source for era in eras for source in era.sources}
        self.failures = {
            name: Failures.restore(self.sources[name].kind, one) for name, one in state["failures"].items()
        }
        self._next = {what[0]: number for number, (_, kind, what) in self.calendar.timers().items() if kind == "fault"}
        self.spares, self.warm, self.joining = state["spares"]
        self.switches, self.busy, self.queue = state["switches"], state["busy"], deque(state["queue"])
        self.empty = deque(state["empty"])
        self.wrong = {(part, left, place, node): count for part, left, place, node, count in state["wrong"]}
        self.size = next((size for size in self.era.fewer if size.replicas == state["size"]), None)
        self.idle = set(state["idle"])
        self.unfound, self.forgot = list(state["unfound"]), set(state["forgot"])
