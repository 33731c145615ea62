"""Weeks of a cluster that changes: its stretches as eras of a campaign, and when what each change cost is paid back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from colossim.campaign import checkpoint_bytes, setting_of, spares_of, storage_time
from colossim.cluster import Cluster
from colossim.damage import StepTime
from colossim.engine.campaign import play_campaign
from colossim.engine.log import Log
from colossim.engine.setting import Era, Setting
from colossim.errors import SimulationError
from colossim.layout import Setup
from colossim.result.growth import Growth, Row, build_growth, caught_up, standstill
from colossim.result.power import Power
from colossim.scenario.plan import Plan
from colossim.scenario.power import least_power
from colossim.scenario.schema import Scenario
from colossim.scenario.stretch import Stretch
from colossim.units import format_time
from colossim.workload.transformer import model_flops_per_token

#: Times that a change should take to be paid back for which the campaign without it is played at first.
_FIRST_LOOK = 4.0


class Played(NamedTuple):
    """A step of a scenario. plan, cluster: of its job; step_s: s; power: of the step."""

    plan: Plan
    cluster: Cluster
    step_s: float
    power: Power


@dataclass(frozen=True)
class Grown:
    """A campaign of several eras. stretches, powers: one an era."""

    setting: Setting
    stretches: tuple[Stretch, ...]
    powers: tuple[Power, ...]


class Known:
    """What was played already: several stretches, and several cases, may stand on the same nodes."""

    def __init__(self) -> None:
        #: First stretches of cases, what was set up for them, and what was played.
        self.starts: list[tuple[Scenario, Setup, Any]] = []
        self._played: list[tuple[Scenario, Played]] = []
        self._alone: list[tuple[Scenario, float, Log]] = []

    def start(self, scenario: Scenario) -> tuple[Setup, Any] | None:
        """What another case began with, if it is this one's beginning."""
        return next(((setup, steps) for other, setup, steps in self.starts if _same_step(other, scenario)), None)

    def add(self, scenario: Scenario, played: Played) -> None:
        """Remembers a step."""
        self._played.append((scenario, played))

    def of(self, scenario: Scenario, play: Callable[[Scenario], Played]) -> Played:
        """The step of a scenario, played if it isn't known."""
        for other, played in self._played:
            if _same_step(other, scenario):
                return played
        self.add(scenario, play(scenario))
        return self._played[-1][1]

    def without_events(self, grown: Grown, log: Log) -> Log:
        """The campaign of the first stretch alone, as long as this one."""
        scenario, eras = grown.stretches[0].scenario, grown.setting.eras
        if len(eras) == 1:
            return log
        for other, wall, alone in self._alone:
            fails = (other.faults, other.checkpoint, other.spares) == (
                scenario.faults,
                scenario.checkpoint,
                scenario.spares,
            )
            if wall == log.wall and fails and _same_step(other, scenario):
                return alone
        alone = play_campaign(replace(grown.setting, duration=log.wall, work=float("inf"), eras=eras[:1]))
        self._alone.append((scenario, log.wall, alone))
        return alone


def _same_step(one: Scenario, other: Scenario) -> bool:
    """What fails and how long it goes on changes no step."""
    runs = [(run.fold, run.collectives, run.seed, run.steps) for run in (one.run, other.run)]
    return (one.cluster, one.job, one.jitter, runs[0]) == (other.cluster, other.job, other.jitter, runs[1])


def grown(
    setting: Setting,
    stretches: Sequence[Stretch],
    known: Known,
    play: Callable[[Scenario], Played],
    step_time: StepTime,
) -> Grown:
    """The campaign with an era for each stretch that begins before its end; that of the first is there.

    play: of the scenario of a stretch, where it isn't known. Raises SimulationError if one can't be played.
    """
    there = [stretch for stretch in stretches if stretch.begins < setting.duration]
    eras, powers = [setting.first], [known.of(there[0].scenario, play).power]
    for before, stretch in itertools.pairwise(there):
        if stretch.same:
            # A change before it that still waits for a restart is taken up with this one, without its moving.
            more = least_power(stretch.scenario.cluster) - least_power(before.scenario.cluster)
            powers.append(_with_idle(powers[-1], more))
            spares = spares_of(stretch.scenario, stretch.plan)
            eras.append(replace(eras[-1], begins=stretch.begins, spares=spares, move=0.0, planned=False))
            continue
        try:
            plan, cluster, step_s, power = known.of(stretch.scenario, play)
            era = setting_of(stretch.scenario, plan, cluster, step_s, step_time).first
        except SimulationError as error:
            raise type(error)(f"from {format_time(stretch.begins)} on ({stretch.what}): {error}") from None
        eras.append(replace(era, begins=stretch.begins, move=_move(stretch, era), planned=stretch.planned))
        powers.append(power)
    return Grown(replace(setting, eras=tuple(eras)), tuple(there), tuple(powers))


def _with_idle(power: Power, watts: float) -> Power:
    """With so many W of nodes that stand by, beside those that are counted."""
    more = {name: getattr(power, name) + watts for name in ("site_W", "waiting_W", "idle_W")}
    return replace(power, **more)


def _move(stretch: Stretch, era: Era) -> float:
    """s for which the checkpoint is cut anew: as said, or its bytes at the rates of the storage, or nothing."""
    if stretch.move is not None:
        return stretch.move
    checkpoint = stretch.scenario.checkpoint
    if checkpoint is None or checkpoint.storage is None:
        return 0.0
    return storage_time(checkpoint.storage, checkpoint_bytes(stretch.scenario.job), era.nodes)


def growth_of(grown: Grown, log: Log, known: Known) -> Growth:
    """What the changes did, in a campaign and beside one without them."""
    jobs = [stretch.scenario.job for stretch in grown.stretches]
    flops = [model_flops_per_token(job.model, job.sequence_length) for job in jobs]
    return build_growth(rows_of(grown, log), log, known.without_events(grown, log), flops)


def rows_of(grown: Grown, log: Log) -> list[Row]:
    """What became of each stretch in a campaign."""
    laid = {index: at for at, index in reversed(log.eras)}
    rows = []
    for index, (stretch, era) in enumerate(zip(grown.stretches, grown.setting.eras, strict=True)):
        at = laid.get(index)
        down, paid = 0.0, None
        if at is not None and index and not stretch.same:
            down = standstill(log.trace, at, log.wall) if era.planned else era.move
            paid = _payback(grown.setting, index, log, at, at + down)
        rows.append(Row(stretch, era, grown.powers[index], log.by_era[index], at, down, paid))
    return rows


def _payback(setting: Setting, index: int, log: Log, laid: float, resumed: float) -> float | None:
    """s at which the campaign has as many tokens as one without this change and those after it; None if it never has.

    laid, resumed: s at which the job was laid anew, and trained again. Where steps bring no more tokens a second there is
    nothing to pay with.
    """
    era, before = setting.eras[index], setting.eras[index - 1]
    gain = (era.tokens / era.step_s) / (before.tokens / before.step_s)
    if gain <= 1.0 + 1e-12:
        return None
    look = _FIRST_LOOK * max(resumed - era.begins, era.restart, 1.0) * gain / (gain - 1.0)
    while True:
        end = min(resumed + look, log.wall)
        without = play_campaign(replace(setting, duration=end, eras=setting.eras[:index]))
        found = caught_up(log.trace, without.trace, era.begins if era.planned else laid, end)
        if found is not None or end >= log.wall:
            return found
        look *= 2.0
