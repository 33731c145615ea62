"""Weeks of training as events: faults, repairs, checkpoints, restarts. Steps between events are counted, not played.

A job is always in one of a few phases, each with an account of its own, so that the accounts add up to the wall time:

    train --- checkpoint --- train --- fault ... detection --- (waiting) --- restart --- train
      |____________________________________|
        work since the last checkpoint that can be restarted from is lost

Progress is counted in tokens, and in seconds of the step time of the whole cluster; slower states take longer for as much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import astuple
from math import inf
from typing import Any, Literal, cast

import simpy

from colossim.engine.calendar import Calendar
from colossim.engine.log import Checkpoints, Interruption, Log
from colossim.engine.outages import Fault, Outages
from colossim.engine.setting import Era, Setting, State, Wrong
from colossim.errors import SimulationError

Phase = Literal["checkpoint", "detection", "waiting", "restart", "growth"]
#: Restarts in a row without a checkpoint in between, after which a campaign is given up.
MOST_TRIES = 10_000


class _Over(Exception):
    """The time is up."""


def _unless_over(interrupt: simpy.Interrupt) -> None:
    """Raises _Over if the time is up."""
    if isinstance(interrupt.cause, _Over):
        raise interrupt.cause from None


def play_campaign(setting: Setting) -> Log:
    """Plays a campaign. Raises SimulationError if restarts follow each other without progress."""
    campaign = Campaign(setting)
    campaign.play()
    return campaign.log


class Campaign:
    """A campaign as it goes. text: where another stopped (`play`), from where this one goes on to the same log."""

    def __init__(self, setting: Setting, text: str | None = None) -> None:
        state = None if text is None else json.loads(text)
        self.setting = setting
        self.calendar = Calendar(0.0 if state is None else state["now"])
        #: Of the era that the job is in, and of the last whose parts are there.
        self.index: int = 0 if state is None else state["index"]
        self.begun: int = 0 if state is None else state["begun"]
        count = len(setting.eras)
        self.log = Log(by_era=[0.0] * count) if state is None else Log.from_plain(state["log"])
        self.checkpoints = Checkpoints(count, () if state is None else state["checkpoints"])
        self.tries = 0 if state is None else state["tries"]
        #: s that going over to the era still takes.
        self.move = 0.0 if state is None else state["move"]
        self.mended = self.calendar.event()
        self.outages = Outages(self.calendar, self.era, setting.seed, self.log, self._tell, self._mend)
        self.calendar.due |= {"era": self._era_begins, "end": self._end}
        if state is None:
            self._mark()
            self.outages.begin()
            for index, era in enumerate(setting.eras[1:], 1):
                self.calendar.at(era.begins, "era", index)
            self.calendar.at(setting.duration, "end")
        else:
            self.calendar.set_again(state["timers"])
            self.outages.from_plain(state["outages"], setting.eras[: self.index + 1])

    @property
    def era(self) -> Era:
        """The one that the job is in."""
        return self.setting.eras[self.index]

    def play(self, pause: Callable[[], bool] | None = None) -> str | None:
        """Plays until it is over, and returns None; or until `pause`, asked now and then, says so, and returns where it is."""
        self._pause = pause
        self.job = self.calendar.process(self._job())
        found: str | None = self.calendar.run(self.job)
        self.log.wall = self.calendar.now
        return found

    # -- what the job is told ----------------------------------------------------------------------------------------
    def _era_begins(self, index: int) -> None:
        self.begun = index
        self._tell(None)
        self._mend()

    def _end(self) -> None:
        self._tell(_Over())

    def _tell(self, what: Fault | _Over | None) -> None:
        """Interrupts the job: by a fault, at the end, or because its pace has changed or an era begun."""
        if self.job.is_alive:
            self.job.interrupt(what)

    def _mend(self) -> None:
        self.mended.succeed()
        self.mended = self.calendar.event()

    # -- the job -----------------------------------------------------------------------------------------------------
    def _job(self) -> Generator[simpy.Event, Any, str | None]:
        """Where the loop begins nothing but timers is under way: there it can be written down, which is what it returns."""
        try:
            while self.log.done < self.setting.work:
                if self._pause is not None and self._pause():
                    return self._written()
                try:
                    if self._stops():
                        yield from self._go_over()
                    else:
                        yield from self._train()
                        yield from self._checkpoint()
                except simpy.Interrupt as interrupt:
                    if isinstance(interrupt.cause, Fault):
                        yield from self._recover(interrupt.cause)
        except _Over:
            pass
        self._mark()
        return None

    def _mark(self) -> None:
        self.log.mark(self.calendar.now)

    def _train(self) -> Generator[simpy.Event, Any, None]:
        """Until the next checkpoint is due, the work is done, or the job stops for what is new."""
        log, era = self.log, self.era
        target = min(self._due_in_storage(), self._due_in_memory(), self.setting.work)
        while log.done < target and not self._stops():
            size = self.outages.size
            step = era.step_of(self._state())
            pace = (era.tokens if size is None else size.tokens) / step
            began, before, done = self.calendar.now, log.done, log.done
            try:
                yield self.calendar.timeout((target - before) / pace)
                done = target
            except simpy.Interrupt as interrupt:
                done = before + (self.calendar.now - began) * pace
                _unless_over(interrupt)
                if interrupt.cause is not None:
                    raise
            finally:
                spent = self.calendar.now - began
                whole = size is None and step == era.step_s
                counted = spent if whole else (done - before) * (era.step_s / era.tokens)
                log.advance(done, spent, counted, self.index)
                log.shrunk += spent if size is not None else 0.0
                self._mark()

    def _due_in_storage(self) -> float:
        """Tokens after which a checkpoint is written there."""
        return self.checkpoints.stored.done + self.era.interval * (self.era.tokens / self.era.step_s)

    def _due_in_memory(self) -> float:
        peers = self.era.peers
        if peers is None:
            return inf
        return self.checkpoints.last.done + peers.interval * (self.era.tokens / self.era.step_s)

    def _state(self) -> State:
        """Of several slow parts of a kind, the one whose step takes longest by itself sets the pace."""
        size = self.outages.size
        replicas = 0 if size is None else size.replicas

        def alone(wrong: Wrong) -> float:
            return self.era.step_of(State((wrong,), replicas))

        worst = (each[0] if len(each) == 1 else max(each, key=alone) for each in self.outages.slow)
        return State(tuple(worst), replicas)

    def _checkpoint(self) -> Generator[simpy.Event, Any, None]:
        if self.log.done < self.setting.work and not self._stops():
            if self.log.done >= self._due_in_storage():
                yield from self._write("checkpoint")
            else:
                yield from self._write_to_peers()

    def _write(self, phase: Phase) -> Generator[simpy.Event, Any, None]:
        began = self.calendar.now
        yield from self._for(phase, self.era.write)
        now = self.calendar.now
        self.checkpoints.forget(now, min(self.outages.unfound, default=now))
        self.checkpoints.add(self.log, began, max(now, began + self.era.durable))
        self.tries = 0

    def _write_to_peers(self) -> Generator[simpy.Event, Any, None]:
        peers = self.era.peers
        assert peers is not None, "nothing else is due before the storage"
        began = self.calendar.now
        yield from self._for("checkpoint", peers.write)
        self.checkpoints.add(self.log, began, self.calendar.now, memory=True)
        self.outages.forgot.clear()
        self.tries = 0

    def _for(self, phase: Phase, seconds: float) -> Generator[simpy.Event, Any, None]:
        """So long in a phase; what only changes the pace doesn't end it. Raises the Interrupt of a fault."""
        end = self.calendar.now + seconds
        while True:
            began = self.calendar.now
            try:
                yield self.calendar.timeout(max(0.0, end - began))
                return
            except simpy.Interrupt as interrupt:
                _unless_over(interrupt)
                if interrupt.cause is not None:
                    raise
            finally:
                self.log.spent[phase] += self.calendar.now - began

    # -- eras --------------------------------------------------------------------------------------------------------
    def _stops(self) -> bool:
        """Whether the job stops for an era that has begun, or for nodes that are back."""
        return self._stops_for_era() or self.outages.larger

    def _stops_for_era(self) -> bool:
        if self.begun == self.index:  # nearly always, and asked at every checkpoint
            return False
        return any(era.planned for era in self.setting.eras[self.index + 1 : self.begun + 1])

    def _go_over(self) -> Generator[simpy.Event, Any, None]:
        """Writes what isn't written, stops, and starts again in the new era, or on more nodes."""
        era = self._stops_for_era()
        writing: Phase = "growth" if era else "checkpoint"
        if self.log.done > self.checkpoints.stored.done:
            yield from self._write(writing)
        yield from self._for(writing, self.checkpoints.stored.durable - self.calendar.now)
        yield from self._until_it_fits()
        yield from self._moved()
        yield from self._for("growth" if era else "restart", self.era.restart)
        self._mark()

    def _until_it_fits(self) -> Generator[simpy.Event, Any, None]:
        """Takes up what has begun, and waits until nothing that it needs is away."""
        self._take_up()
        while not self.outages.fit():
            yield from self._wait()
            self._take_up()

    def _take_up(self) -> None:
        if self.begun > self.index:
            self.index = self.begun
            self.log.eras.append((self.calendar.now, self.index))
            self.move = self.era.move
            self.outages.go_over(self.era)

    def _moved(self) -> Generator[simpy.Event, Any, None]:
        """What a fault cuts short is begun anew."""
        if self.move:
            yield from self._for("growth", self.move)
            self.move = 0.0

    # -- recovery ----------------------------------------------------------------------------------------------------
    def _recover(self, fault: Fault) -> Generator[simpy.Event, Any, None]:
        """Rolls back, then detects, waits and restarts; a fault meanwhile begins that anew."""
        began, lost = self.calendar.now, self._roll_back(fault)
        while True:
            self.tries += 1
            if self.tries > MOST_TRIES:
                raise SimulationError(self._hopeless())
            try:
                # What was corrupt is known already.
                known = fault.source.kind.effect == "corrupt"
                yield from self._for("detection", 0.0 if known else fault.source.kind.detect)
                yield from self._until_it_fits()
                yield from self._moved()
                peers = self.era.peers if self.checkpoints.last.memory else None
                yield from self._for("restart", self.era.restart if peers is None else peers.restart)
            except simpy.Interrupt as interrupt:
                self._note(fault, began, lost)
                fault = cast(Fault, interrupt.cause)
                began, lost = self.calendar.now, self._roll_back(fault)
            except _Over:
                self._note(fault, began, lost)
                raise
            else:
                break
        self._note(fault, began, lost)
        self.outages.forgot.clear()
        self._mark()

    def _note(self, fault: Fault, began: float, lost: float) -> None:
        where = "job" if fault.source.owner == "job" else f"{fault.source.owner} {fault.component}"
        took = self.calendar.now - began
        self.log.interruptions.append(Interruption(began, fault.source.name, where, lost, took))

    def _wait(self) -> Generator[simpy.Event, Any, None]:
        """Until a node or switch is back."""
        began = self.calendar.now
        try:
            yield self.mended
        except simpy.Interrupt as interrupt:
            _unless_over(interrupt)
            if interrupt.cause is not None:
                raise
        finally:
            self.log.spent["waiting"] += self.calendar.now - began

    def _roll_back(self, fault: Fault) -> float:
        """s that are lost: all since the last checkpoint that is durable, and of a corruption one from before it."""
        now = self.calendar.now
        sound = fault.time if fault.source.kind.effect == "corrupt" else now
        lost = self.checkpoints.roll_back(self.log, now, sound, held=self.outages.held(fault))
        self._mark()
        return lost

    def _hopeless(self) -> str:
        era = self.era
        rate = sum(source.count / source.kind.mtbf for source in era.sources if source.kind.stops)
        return (
            f"no checkpoint in {MOST_TRIES:,} restarts: faults stop the job every {1 / rate:.3g} s in the mean, a restart "
            f"takes {era.restart:g} s and a checkpoint is due after {era.interval:g} s of training"
        )

    def _written(self) -> str:
        """All that it takes to go on, as JSON, which holds floats exactly. The job stands where its loop begins."""
        state = {
            "now": self.calendar.now,
            "index": self.index,
            "begun": self.begun,
            "move": self.move,
            "tries": self.tries,
            "timers": list(self.calendar.timers().values()),
            "checkpoints": [astuple(saved) for saved in self.checkpoints.saved],
            "log": self.log.to_plain(),
            "outages": self.outages.to_plain(),
        }
        return json.dumps(state)
