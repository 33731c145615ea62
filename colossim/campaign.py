"""Weeks of training on top of a step: what fails, how checkpoints are written, what a step of a damaged cluster takes."""

from __future__ import annotations

import math

import numpy as np

from colossim.catalog.faults import FaultClass
from colossim.cluster import Cluster
from colossim.damage import Damage, StepTime, fewer_of, places_of
from colossim.engine.setting import Era, Peers, Setting, Source
from colossim.errors import Problem, ScenarioError, SimulationError
from colossim.reliability import best_interval
from colossim.scenario.campaign import Checkpoint, Storage
from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.scenario.rules_campaign import LEAFY, check_times
from colossim.scenario.schema import Scenario
from colossim.units import format_time
from colossim.workload.transformer import parameters

#: Checkpoints and faults of a campaign: about 6 us each checkpoint and 34 each fault, so that it ends within minutes.
MOST_EVENTS = 5_000_000


def is_campaign(scenario: Scenario) -> bool:
    """Whether more than steps is asked for."""
    return scenario.run.duration is not None or scenario.faults is not None or bool(scenario.events)


def sources_of(scenario: Scenario, plan: Plan, cluster: Cluster) -> tuple[Source, ...]:
    """The classes of faults and how many components of each the job stands on."""
    if scenario.faults is None:
        return ()
    nodes = nodes_of(plan, cluster)
    fabric = cluster.fabric
    counts = {"gpu": plan.world, "node": nodes, "job": 1}
    if fabric.type in LEAFY:
        rails = max(t.rails for t in cluster.node_types) if fabric.type == "rail-optimized" else 1
        pods = np.unique(cluster.gpu_node[: plan.world] // fabric.nodes_per_pod)
        counts["leaf"] = pods.size * rails
    gpus = places_of(plan, cluster)
    firsts = np.unique(cluster.gpu_node[: plan.world], return_index=True)[1]
    places = {"gpu": gpus, "node": gpus[firsts]}
    classes = {name: _noticed(kind, scenario.checkpoint) for name, kind in scenario.faults.classes.items()}
    owners = {name: owner for name in classes if (owner := scenario.faults.owner(name)) is not None}
    return tuple(
        Source(
            name,
            classes[name],
            owner,
            _count(classes[name], counts, owner),
            None if classes[name].stops else places.get(owner),
        )
        for name, owner in owners.items()
    )


def _noticed(kind: FaultClass, checkpoint: Checkpoint | None) -> FaultClass:
    """A class with what it takes until a hang is noticed: the time-out of collectives, or less if something else finds it."""
    if not kind.hang or checkpoint is None:
        return kind
    return kind.model_copy(update={"detect": min(kind.detect or math.inf, checkpoint.watchdog)})


def _count(kind: FaultClass, counts: dict[str, int], owner: str) -> int:
    """Components of a class. counts: those of each owner but racks, whose size the class says."""
    return math.ceil(counts["node"] / kind.radius.nodes) if kind.radius is not None else counts[owner]


def nodes_of(plan: Plan, cluster: Cluster) -> int:
    """Nodes that the job stands on."""
    return int(np.unique(cluster.gpu_node[: plan.world]).size)


def mtbf_of(sources: tuple[Source, ...]) -> float:
    """s between faults that stop the job, in the mean; inf if none does."""
    rate = sum(source.count / source.kind.mtbf for source in sources if source.kind.stops)
    return 1.0 / rate if rate else float("inf")


def spares_of(scenario: Scenario, plan: Plan) -> int:
    """Nodes that stand by at once: those that the job leaves free, or so many of them as the scenario says.

    Raises ScenarioError (located) if warm ones aren't free beside them.
    """
    free = sum(count for _, count in plan.spares)
    warm = 0 if scenario.warm is None else scenario.warm.nodes
    left = free - (scenario.spares or 0)
    if warm > left:
        beside = f" beside {scenario.spares:,} spares" if scenario.spares else ""
        message = f"{warm:,} nodes: the job leaves {left:,} free{beside}: {left:,} would do, or fewer replicas"
        raise scenario.located(ScenarioError([Problem("warm.nodes", message)]))
    return free - warm if scenario.spares is None else scenario.spares


def setting_of(scenario: Scenario, plan: Plan, cluster: Cluster, step_s: float, step_time: StepTime) -> Setting:
    """What a campaign of the scenario is played with. Raises ScenarioError (located), SimulationError if it has no end."""
    run = scenario.run
    era = era_of(scenario, plan, cluster, step_s, step_time)
    duration = float("inf") if run.duration is None else run.duration
    work = float("inf")
    if run.duration is None and (scenario.job.tokens is None or scenario.written("run.steps")):
        work = run.steps * era.tokens
    if scenario.job.tokens is not None:
        work = min(work, float(np.ceil(scenario.job.tokens / era.tokens)) * era.tokens)
    _check_events(min(duration, work * step_s / era.tokens), era)
    return Setting(duration, work, run.seed, (era,))


def era_of(scenario: Scenario, plan: Plan, cluster: Cluster, step_s: float, step_time: StepTime) -> Era:
    """The job as it stands on a cluster, from the start on. step_s: of the whole cluster. Raises ScenarioError (located)."""
    sources = sources_of(scenario, plan, cluster)
    checkpoint, nodes = scenario.checkpoint, nodes_of(plan, cluster)
    interval, write, durable, restart = float("inf"), 0.0, 0.0, 0.0
    if checkpoint is not None:
        interval, write, durable = times_of(scenario, checkpoint, nodes, mtbf_of(sources))
        restart = checkpoint.restart
    return Era(
        begins=0.0,
        step_s=step_s,
        tokens=float(scenario.job.global_batch * scenario.job.sequence_length),
        sources=sources,
        nodes=nodes,
        spares=spares_of(scenario, plan),
        interval=interval,
        write=write,
        durable=durable,
        restart=restart,
        step_of=Damage(scenario, plan, cluster, step_s, step_time).step_of,
        fewer=fewer_of(scenario, plan),
        regrow=scenario.regrow == "at once",
        peers=_peers(checkpoint),
        crews=None if scenario.repairs is None else scenario.repairs.crews,
        warm=0 if scenario.warm is None else scenario.warm.nodes,
        join=0.0 if scenario.warm is None else scenario.warm.join,
    )


def _peers(checkpoint: Checkpoint | None) -> Peers | None:
    if checkpoint is None or checkpoint.peer is None:
        return None
    peer = checkpoint.peer
    return Peers(peer.interval, peer.write, peer.restart, peer.copies)


def checkpoint_bytes(job: JobSpec) -> float:
    """What a checkpoint holds: of each parameter its 16-bit weight and its optimizer state, once for all replicas."""
    return (2.0 + job.software.optimizer_bytes) * parameters(job.model)


def storage_time(storage: Storage, size: float, nodes: int) -> float:
    """s that so many bytes take to the storage or back, each node its share."""
    ways = ((storage.node, nodes), (storage.total, 1))
    return size / min(rate * many for rate, many in ways if rate is not None)


def times_of(scenario: Scenario, checkpoint: Checkpoint, nodes: int, mtbf: float) -> tuple[float, float, float]:
    """s between two checkpoints, for which a write blocks, and from its start until it can be restarted from.

    nodes: of the job, each of which writes as much.  mtbf: s. Raises ScenarioError (located) if these can't be together.
    """
    stored = None
    if checkpoint.storage is not None:
        stored = storage_time(checkpoint.storage, checkpoint_bytes(scenario.job), nodes)
    write = checkpoint.write if checkpoint.write is not None else stored
    assert write is not None, "a rule says so"
    interval = checkpoint.interval
    if checkpoint.best:
        interval = best_interval(mtbf, write) if np.isfinite(mtbf) and write else float("inf")
    durable = write
    if checkpoint.asynchronous:
        durable = next((s for s in (checkpoint.durable, stored) if s is not None), interval)
    problems: list[Problem] = []
    check_times(interval, write, durable, lambda field, message: problems.append(Problem(field, message)))
    if problems:
        raise scenario.located(ScenarioError(problems))
    return interval, write, durable


def _check_events(seconds: float, era: Era) -> None:
    """Raises SimulationError if checkpoints and faults are too many to be played."""
    events = seconds / era.interval + (0.0 if era.peers is None else seconds / era.peers.interval)
    for source in era.sources:
        infant = source.kind.infant
        more = 0.0 if infant is None else (infant.factor - 1.0) * min(infant.lasts, seconds)
        events += (seconds + more) * source.count / source.kind.mtbf
    if events > MOST_EVENTS:
        raise SimulationError(
            f"{events:,.3g} checkpoints and faults in {format_time(seconds)} are more than can be played: at most"
            f" {MOST_EVENTS:,}. Play less time, or look at what fails and is written so often"
        )
