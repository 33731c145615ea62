"""Stretches of a campaign: what the job stands on from one change of the cluster to the next, and how it is cut there."""

from __future__ import annotations

from dataclasses import dataclass

from colossim.catalog.types import NodeType
from colossim.errors import Problem, ScenarioError
from colossim.scenario.derive import derive
from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.scenario.relay import relaid, said_batch
from colossim.scenario.schema import NodeGroup, Scenario
from colossim.scenario.timetable import Moment, said_nodes, timetable
from colossim.units import format_time


@dataclass(frozen=True)
class Stretch:
    """The job as it can be laid from a moment on. begins: s.  scenario: of the nodes that run then.

    events: indices; what: in words.  planned: the job stops for it; else it is laid so at the first restart after that.
    move: s beside the restart; None: by the checkpoint's bytes.  same: only what stands by changes, and the job goes on.
    joined: GPUs of nodes that have joined; gate: what the power runs, where that isn't all.  notes: on how the job was laid.
    """

    begins: float
    scenario: Scenario
    plan: Plan
    events: tuple[int, ...] = ()
    what: str = "the run starts"
    planned: bool = False
    move: float | None = None
    same: bool = False
    joined: int = 0
    gate: str = ""
    notes: tuple[str, ...] = ()


class _Unfit(ValueError):
    """The job doesn't fit. problems: of the scenario that it was laid in."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems


def stretches_of(scenario: Scenario) -> list[Stretch]:
    """What the job stands on, from 0 s on, as the events say; of a scenario without any, itself.

    Raises ScenarioError with all that doesn't fit: nodes that aren't there, jobs without room.
    """
    problems: list[Problem] = []
    moments = timetable(scenario, lambda field, message: problems.append(Problem(field, message)))
    if problems:
        raise ScenarioError(problems)
    found: list[Stretch] = []
    over = -1
    for moment in moments:
        ended = [change.event for change in moment.changes if change.last]
        over = max([over, *ended])
        try:
            found.append(_stretch(scenario, moment, ended, over, found[-1] if found else None))
        except _Unfit as unfit:
            problems += _told(scenario, moment, unfit.problems)
    if problems:
        raise ScenarioError(problems)
    return found


def at_first(scenario: Scenario) -> Scenario:
    """The scenario with the job as it starts: on the nodes that are there and have power at 0 s."""
    return stretches_of(scenario)[0].scenario if scenario.events else scenario


def _stretch(scenario: Scenario, moment: Moment, ended: list[int], over: int, before: Stretch | None) -> Stretch:
    """ended: events whose last part is of this moment; over: the last of the file that is over. Raises _Unfit."""
    job = scenario.job if over < 0 else scenario.job_after(over)
    said = any(scenario.written(f"events.{i}.job.parallelism.data") for i in ended)
    data = job.parallelism.data if said or before is None else "auto"
    job = job.model_copy(update={"parallelism": job.parallelism.model_copy(update={"data": data})})
    nodes = tuple(NodeGroup.model_construct(type=node, count=count) for node, count in moment.running)
    if not nodes:
        raise _Unfit((Problem("", "the job needs some"),))
    cluster = scenario.cluster.model_copy(update={"nodes": nodes})
    there = scenario.model_copy(update={"cluster": cluster, "job": job})
    notes: tuple[str, ...] = ()
    try:
        if data == "auto" and moment.changes:
            there = there.model_copy(update={"job": relaid(there)})
            note = said_batch(there, job.global_batch)
            notes = (f"at {format_time(moment.at)} {note}",) if note else ()
        plan = derive(there)
    except ScenarioError as error:
        raise _Unfit(error.problems) from None
    except ValueError as error:
        raise _Unfit((Problem("", str(error)),)) from None
    cut = there.job.parallelism.model_copy(update={"data": plan.data})
    there = there.model_copy(update={"job": there.job.model_copy(update={"parallelism": cut})})
    same = before is not None and _standing(before.scenario, before.plan) == _standing(there, plan)
    events = tuple(sorted({change.event for change in moment.changes}))
    moves = [move for i in events if (move := scenario.events[i].move) is not None]
    return Stretch(
        begins=moment.at,
        scenario=there,
        plan=plan,
        events=events,
        what="; ".join(dict.fromkeys(map(str, moment.changes))) or "the run starts",
        planned=before is not None and any(scenario.events[i].relay == "at once" for i in events),
        move=max(moves) if moves else None,
        same=same,
        joined=sum(node.gpus * count for node, count in moment.nodes),
        gate=moment.gate(scenario.cluster),
        notes=() if same else notes,
    )


def _standing(scenario: Scenario, plan: Plan) -> tuple[JobSpec, list[tuple[NodeType, int]]]:
    """The job as it is cut, and the nodes under its ranks."""
    left = plan.world
    under: list[tuple[NodeType, int]] = []
    for group in scenario.cluster.nodes:
        used = min(group.count, -(-left // group.type.gpus))
        left = max(0, left - used * group.type.gpus)
        if used:
            under.append((group.type, used))
    return scenario.job, under


def _told(scenario: Scenario, moment: Moment, problems: tuple[Problem, ...]) -> list[Problem]:
    """What is wrong with the job at a moment, at the event that brought it there."""
    where = moment.gate(scenario.cluster) or said_nodes(moment.running)
    last = max((change.event for change in moment.changes), default=-1)
    found = []
    for problem in problems:
        own = [f"events.{i}.{problem.field}" for i in range(last, -1, -1)]
        field = next((path for path in own if scenario.written(path)), f"events.{last}" if last >= 0 else problem.field)
        what = problem.message if not problem.field or field in own else f"{problem.field}: {problem.message}"
        found.append(Problem(field, f"at {format_time(moment.at)}, {where}: {what}"))
    return found
