"""Rules of a cluster that changes: each event by itself, their order, and what the job finds when they have come."""

from __future__ import annotations

from collections.abc import Callable

from colossim.errors import ScenarioError
from colossim.scenario.events import Event
from colossim.scenario.schema import Scenario
from colossim.scenario.stretch import stretches_of
from colossim.scenario.timetable import timetable
from colossim.units import format_time

Report = Callable[[str, str], None]

#: Moments at which a cluster changes: the job's step is played after each.
MOST_CHANGES = 64
_KINDS = ("add", "drain", "upgrade", "power")


def check_events(scenario: Scenario, report: Report, *, sound: bool, laid: bool) -> None:
    """All of them. sound: whether all events could be read; laid: whether the job fits the cluster as it is written.

    Where not, what follows from them is not looked at.
    """
    if not scenario.events:
        return
    wrong: list[str] = []

    def tell(field: str, message: str) -> None:
        wrong.append(field)
        report(field, message)

    _check_run(scenario, tell)
    for i, event in enumerate(scenario.events):
        _check_event(scenario, event, f"events.{i}", tell)
        before = scenario.events[i - 1].at if i else 0.0
        if event.at < before:
            message = (
                f"{format_time(event.at)} is before the event above it, at {format_time(before)}: write them in order"
            )
            tell(f"events.{i}.at", message)
    moments = sum(event.waves * (2 if event.upgrade is not None else 1) for event in scenario.events)
    if moments > MOST_CHANGES:
        tell("events", f"change the cluster {moments:,} times, and a step is played after each: at most {MOST_CHANGES}")
        return
    if sound:
        timetable(scenario, tell)
    if sound and laid and not wrong:
        try:
            stretches_of(scenario)
        except ScenarioError as error:
            for problem in error.problems:
                report(problem.field, problem.message)


def _check_run(scenario: Scenario, report: Report) -> None:
    """What a campaign needs that changes on its way."""
    run, job = scenario.run, scenario.job
    if run.duration is None and job.tokens is None:
        report("events", "need to know how long to play: say `run: {duration: 90 d}`, or `job.tokens`")
    if scenario.checkpoint is None:
        message = "need to know what it costs to lay the job anew: say `checkpoint: {interval, write, restart}`, too"
        report("events", message)
    if job.batch_ramp is not None:
        report("job.batch_ramp", "can't be played on a cluster that changes yet: leave it out, or the events")
    if scenario.cluster.fabric.type == "graph":
        report("events", "can't change a fabric of type graph yet: its nodes are those of the graph")


def _check_event(scenario: Scenario, event: Event, here: str, report: Report) -> None:
    kinds = [kind for kind in _KINDS if getattr(event, kind) is not None]
    if len(kinds) > 1:
        report(here, f"has {' and '.join(kinds)}: one event has one of them, several may have the same `at`")
    elif not kinds and not event.job:
        report(here, f"says nothing that changes: {', '.join(_KINDS)} or job")
    moves = event.add is not None or event.drain is not None or event.upgrade is not None
    if event.waves > 1:
        _check_waves(event, f"{here}.waves", moves, report)
    elif event.every is not None:
        report(f"{here}.every", "is the time between waves: say how many `waves`, or leave it out")
    if event.burn_in and event.add is None and event.upgrade is None:
        report(f"{here}.burn_in", "is of nodes that come: leave it out")
    if event.power is None and scenario.written(f"{here}.per_node"):
        report(f"{here}.per_node", "is how `power` is counted: leave it out, or say how much there is")
    if event.upgrade is not None and event.upgrade.type == event.upgrade.to.name:
        report(
            f"{here}.upgrade.to",
            f"{event.upgrade.to.name} is what the nodes are already: another type would change them",
        )
    names = [drained.type for drained in event.drain or ()]
    for i, name in enumerate(names):
        if name in names[:i]:
            report(f"{here}.drain.{i}.type", f"{name} goes twice: write it once, with the sum")
    stops = scenario.faults is not None and any(kind.stops for kind in scenario.faults.classes.values())
    if event.relay == "next restart" and not stops:
        report(f"{here}.relay", "nothing stops the job, so that it would never be laid anew: at once would")


def _check_waves(event: Event, field: str, moves: bool, report: Report) -> None:
    counts = [one.count for one in event.add or ()] + [one.count for one in event.drain or ()]
    if event.upgrade is not None:
        counts.append(event.upgrade.count)
    if not moves:
        report(field, f"{event.waves}: only nodes come in waves: leave it out")
    elif event.every is None:
        report(field, f"{event.waves} need the time between them: say `every: 3 d`")
    elif event.waves > min(counts):
        report(field, f"{event.waves:,} waves of {min(counts):,} nodes: at most {min(counts):,}")
