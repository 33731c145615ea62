"""Weeks of training as events: faults, repairs, checkpoints, restarts. Steps between events are counted, not played.

A job is always in one of a few phases, each with an account of its own, so that the accounts add up to the wall time:

    train --- checkpoint --- train --- fault ... detection --- (waiting) --- restart --- train
      |____________________________________|
        work since the last checkpoint that can be restarted from is lost

Progress is counted in seconds of the step time of the whole cluster; slower states take longer for as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import simpy

from colossim.catalog.faults import Component, FaultClass
from colossim.engine.faults import Failures, generator
from colossim.errors import SimulationError

Phase = Literal["checkpoint", "detection", "waiting", "restart"]
#: Accounts of the ledger: s of wall time each, in the order in which they are told.
ACCOUNTS = ("productive", "lost_work", "checkpoint", "detection", "restart", "waiting", "degraded")
#: Restarts in a row without a checkpoint in between, after which a campaign is given up.
MOST_TRIES = 10_000
Part = Literal["gpu", "nic", "nvlink"]
#: What is wrong with the cluster while the job trains: the worst of each kind of part, and what is left of its rate.
State = tuple[tuple[Part, float], ...]


@dataclass(frozen=True)
class Source:
    """A class of faults and the components that have them. owner: what they are of; away: whether a fault takes a node away."""

    name: str
    kind: FaultClass
    owner: Component
    count: int

    @property
    def away(self) -> bool:
        return self.owner in ("gpu", "node")

    def node_of(self, component: int, nodes: int) -> int | None:
        """The job's node that a component is in or is, of so many; None if a fault takes no node away."""
        return component * nodes // self.count if self.away else None

    @property
    def part(self) -> Part:
        """What runs slower, where it doesn't stop the job."""
        return "gpu" if self.kind.effect == "slow" else "nvlink" if self.name == "nvlink" else "nic"


@dataclass(frozen=True)
class Setting:
    """A campaign. step_s: of the whole cluster.  duration: s of wall time; work: s of training after which it is done.

    interval, write, durable, restart: s; durable: from a write's start until it can be restarted from.  spares: nodes
    that stand by; nodes: of the job.  step_of: s a step in a state.
    """

    step_s: float
    duration: float
    work: float
    sources: tuple[Source, ...]
    interval: float
    write: float
    durable: float
    restart: float
    spares: int
    nodes: int
    seed: int
    step_of: Callable[[State], float]


@dataclass(frozen=True)
class Interruption:
    """A fault that stopped the job. time, lost, restart: s; restart: until it trained again, detection and waiting included."""

    time: float
    cause: str
    component: str
    lost: float
    restart: float


@dataclass
class Log:
    """What a campaign leaves behind. spent: s by account.  done: s of training that count.  faults: of each class.

    trace: (s, done) wherever the pace of progress changed.
    """

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACCOUNTS, 0.0))
    wall: float = 0.0
    done: float = 0.0
    checkpoints: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    interruptions: list[Interruption] = field(default_factory=list)
    trace: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Fault:
    source: Source
    component: int
    time: float


@dataclass(frozen=True)
class _Saved:
    """A checkpoint. done: of progress; began, durable: s, when its write began and when it can be restarted from.

    degraded: s that slower running had cost until then.
    """

    done: float = 0.0
    began: float = 0.0
    durable: float = 0.0
    degraded: float = 0.0


class _Over(Exception):
    """The time is up."""


def _unless_over(interrupt: simpy.Interrupt) -> None:
    """Raises _Over if the time is up."""
    if isinstance(interrupt.cause, _Over):
        raise interrupt.cause from None


def play_campaign(setting: Setting) -> Log:
    """Plays a campaign. Raises SimulationError if restarts follow each other without progress."""
    return _Campaign(setting).play()


class _Campaign:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.env = simpy.Environment()
        self.log = Log(faults={source.name: 0 for source in setting.sources})
        self.done = 0.0
        self.saved = [_Saved()]
        self.spares = setting.spares
        #: The job's nodes in whose place none stands, in the order in which they went; switches that are dead.
        self.empty: deque[int] = deque()
        self.switches = 0
        self.mended = self.env.event()
        self.wrong: dict[tuple[Part, float], int] = {}
        self.tries = 0

    def play(self) -> Log:
        self.job = self.env.process(self._job())
        for source in self.setting.sources:
            failures = Failures(source.kind, source.count, generator(self.setting.seed, source.name))
            self.env.process(self._fail(source, failures))
        self.env.process(self._end())
        self.env.run(self.job)
        self.log.wall, self.log.done = self.env.now, self.done
        return self.log

    # -- faults ------------------------------------------------------------------------------------------------------
    def _fail(self, source: Source, failures: Failures) -> Generator[simpy.Event, Any, None]:
        while True:
            when, component = failures.next()
            yield self.env.timeout(max(0.0, when - self.env.now))
            there = source.node_of(component, self.setting.nodes) not in self.empty
            repair = failures.repair() if there else 0.0
            # Another takes the place of what goes away, and what concerns the job as a whole is gone with the restart.
            stays = source.owner == "leaf" or source.kind.effect in ("degrade", "slow")
            failures.renew(component, self.env.now + (source.kind.detect + repair if stays else 0.0))
            if there:
                self.log.faults[source.name] += 1
                self._strike(_Fault(source, component, self.env.now), repair)

    def _strike(self, fault: _Fault, repair: float) -> None:
        kind = fault.source.kind
        if kind.effect in ("degrade", "slow"):
            self.env.process(self._hampered((fault.source.part, kind.to), kind.detect + repair))
        elif kind.effect == "corrupt":
            self.env.process(self._corrupted(fault, repair))
        else:
            self._stop(fault, kind.detect + repair)

    def _stop(self, fault: _Fault, seconds: float) -> None:
        """seconds: until what failed is back."""
        node = fault.source.node_of(fault.component, self.setting.nodes)
        if node is not None:
            self.env.process(self._away(node, seconds))
        elif fault.source.owner == "leaf":
            self.env.process(self._switch(seconds))
        self._tell(fault)

    def _hampered(self, what: tuple[Part, float], seconds: float) -> Generator[simpy.Event, Any, None]:
        self.wrong[what] = self.wrong.get(what, 0) + 1
        self._tell(None)
        yield self.env.timeout(seconds)
        self.wrong[what] -= 1
        self._tell(None)

    def _corrupted(self, fault: _Fault, repair: float) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(fault.source.kind.detect)
        self._stop(fault, repair)

    def _away(self, node: int, seconds: float) -> Generator[simpy.Event, Any, None]:
        """A node is out; a spare takes its place, or the job is short of one until some node is back."""
        if self.spares:
            self.spares -= 1
        else:
            self.empty.append(node)
        yield self.env.timeout(seconds)
        if self.empty:
            self.empty.popleft()
            self._mend()
        else:
            self.spares += 1

    def _switch(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Nothing stands in for a switch: the job waits for it."""
        self.switches += 1
        yield self.env.timeout(seconds)
        self.switches -= 1
        self._mend()

    def _mend(self) -> None:
        self.mended.succeed()
        self.mended = self.env.event()

    def _end(self) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(self.setting.duration)
        if self.job.is_alive:
            self.job.interrupt(_Over())

    def _tell(self, what: _Fault | None) -> None:
        """Interrupts the job: by a fault, or because its pace has changed."""
        if self.job.is_alive:
            self.job.interrupt(what)

    # -- the job -----------------------------------------------------------------------------------------------------
    def _job(self) -> Generator[simpy.Event, Any, None]:
        self._mark()
        try:
            while self.done < self.setting.work:
                try:
                    yield from self._train()
                    yield from self._checkpoint()
                except simpy.Interrupt as interrupt:
                    if isinstance(interrupt.cause, _Fault):
                        yield from self._recover(interrupt.cause)
        except _Over:
            pass
        self._mark()

    def _mark(self) -> None:
        self.log.trace.append((self.env.now, self.done))

    def _train(self) -> Generator[simpy.Event, Any, None]:
        """Until the next checkpoint is due, or the work is done."""
        target = min(self.saved[-1].done + self.setting.interval, self.setting.work)
        while self.done < target:
            pace = self.setting.step_s / self.setting.step_of(self.state)
            began, before = self.env.now, self.done
            try:
                yield self.env.timeout((target - before) / pace)
                self.done = target
            except simpy.Interrupt as interrupt:
                self.done = before + (self.env.now - began) * pace
                _unless_over(interrupt)
                if interrupt.cause is not None:
                    raise
            finally:
                spent = self.env.now - began
                gained = spent if pace == 1.0 else self.done - before
                self.log.spent["productive"] += gained
                self.log.spent["degraded"] += spent - gained
                self._mark()

    @property
    def state(self) -> State:
        """The worst of each kind of part."""
        worst: dict[Part, float] = {}
        for (part, left), count in self.wrong.items():
            if count:
                worst[part] = min(left, worst.get(part, 1.0))
        return tuple(sorted(worst.items()))

    def _checkpoint(self) -> Generator[simpy.Event, Any, None]:
        if self.done >= self.setting.work:
            return
        began = self.env.now
        yield from self._for("checkpoint", self.setting.write)
        durable = max(self.env.now, began + self.setting.durable)
        self.saved.append(_Saved(self.done, began, durable, self.log.spent["degraded"]))
        self.log.checkpoints += 1
        self.tries = 0

    def _for(self, phase: Phase, seconds: float) -> Generator[simpy.Event, Any, None]:
        """So long in a phase; what only changes the pace doesn't end it. Raises the Interrupt of a fault."""
        end = self.env.now + seconds
        while True:
            began = self.env.now
            try:
                yield self.env.timeout(max(0.0, end - began))
                return
            except simpy.Interrupt as interrupt:
                _unless_over(interrupt)
                if interrupt.cause is not None:
                    raise
            finally:
                self.log.spent[phase] += self.env.now - began

    def _recover(self, fault: _Fault) -> Generator[simpy.Event, Any, None]:
        """Rolls back, then detects, waits and restarts; a fault meanwhile begins that anew."""
        began, lost = self.env.now, self._roll_back(fault)
        while True:
            self.tries += 1
            if self.tries > MOST_TRIES:
                raise SimulationError(self._hopeless())
            try:
                # What was corrupt is known already.
                known = fault.source.kind.effect == "corrupt"
                yield from self._for("detection", 0.0 if known else fault.source.kind.detect)
                while self.empty or self.switches:
                    yield from self._wait()
                yield from self._for("restart", self.setting.restart)
            except simpy.Interrupt as interrupt:
                self._note(fault, began, lost)
                fault = cast(_Fault, interrupt.cause)
                began, lost = self.env.now, self._roll_back(fault)
            except _Over:
                self._note(fault, began, lost)
                raise
            else:
                break
        self._note(fault, began, lost)
        self._mark()

    def _note(self, fault: _Fault, began: float, lost: float) -> None:
        where = "job" if fault.source.owner == "job" else f"{fault.source.owner} {fault.component}"
        self.log.interruptions.append(Interruption(began, fault.source.name, where, lost, self.env.now - began))

    def _wait(self) -> Generator[simpy.Event, Any, None]:
        """Until a node or switch is back."""
        began = self.env.now
        try:
            yield self.mended
        except simpy.Interrupt as interrupt:
            _unless_over(interrupt)
            if interrupt.cause is not None:
                raise
        finally:
            self.log.spent["waiting"] += self.env.now - began

    def _roll_back(self, fault: _Fault) -> float:
        """s that are lost: all since the last checkpoint that is durable, and of a corruption one from before it."""
        now = self.env.now
        sound = fault.time if fault.source.kind.effect == "corrupt" else now
        while len(self.saved) > 1 and (self.saved[-1].durable > now or self.saved[-1].began > sound):
            self.saved.pop()
        last, spent = self.saved[-1], self.log.spent
        lost, slower = self.done - last.done, spent["degraded"] - last.degraded
        self.done = last.done
        spent["productive"] -= lost
        spent["degraded"] -= slower
        spent["lost_work"] += lost + slower
        self._mark()
        return lost + slower

    def _hopeless(self) -> str:
        rate = sum(source.count / source.kind.mtbf for source in self.setting.sources if source.kind.stops)
        return (
            f"no checkpoint in {MOST_TRIES:,} restarts: faults stop the job every {1 / rate:.3g} s in the mean, a restart "
            f"takes {self.setting.restart:g} s and a checkpoint is due after {self.setting.interval:g} s of training"
        )
