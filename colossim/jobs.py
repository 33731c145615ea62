"""Several jobs on one fabric: what each loses to its neighbours.

Every job is played alone where it stands, then all of them together through one network, step after step with a barrier
between, until the slowest has been through its steps. A job's slowdown is the mean length of its steps while all the others
were running, over its step alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from colossim.cluster import Cluster, build_cluster
from colossim.cluster.placement import Wish, place
from colossim.engine.step import play
from colossim.errors import Problem, ScenarioError
from colossim.flows import pinned_assumptions
from colossim.fold import fold
from colossim.layout import LaidOut, Progress, compile_setup, lay_onto, pricer_of
from colossim.legs import Gate, Leg
from colossim.quotient import Quotient
from colossim.result.jobs import JobResult, JobsResult
from colossim.scenario.derive import derive
from colossim.scenario.plan import Plan
from colossim.scenario.power import capped
from colossim.scenario.schema import Scenario
from colossim.segments import Compiler
from colossim.simulation import play_ramp, play_step, result_of
from colossim.site import storage_tiers, writes_of
from colossim.traffic import Share, join_traffic
from colossim.workload.program import used_operations

#: Steps of the slowest job that are played together.
STEPS = 2
#: No job is played for more steps than this, however short they are.
MOST_STEPS = 12


@dataclass(frozen=True)
class Standing:
    """One job among others. laid: alone where it stands.  share: of the cluster that holds all of them."""

    name: str
    laid: LaidOut
    share: Share
    cluster: Cluster


def stand(scenario: Scenario, *, fits: bool = True) -> list[Standing]:
    """Wires the cluster and puts all jobs on it. fits: whether jobs that GPUs can't hold are refused.

    Raises ScenarioError (located) and DoesNotFit.
    """
    scenario = capped(scenario)
    views = [scenario.alone(i) for i in range(len(scenario.jobs))]
    try:
        bare = build_cluster(scenario.cluster)
    except ScenarioError as error:
        raise scenario.located(error) from None
    plans = [derive(view) for view in views]
    cluster, nodes = _placed(scenario, bare, plans)
    sizes = np.array([t.gpus for t in cluster.node_types])[cluster.node_type]
    standings = []
    first = 0
    for job, view, plan, own in zip(scenario.jobs, views, plans, nodes, strict=True):
        # Alone it stands on the same nodes, which are then the first.
        alone = cluster.placed(_first(own, cluster.nodes))
        try:
            laid = lay_onto(view, plan, alone, must_fit=fits)
        except ScenarioError as error:
            raise view.located(error) from None
        share = Share(plan, first, used_operations(laid.shares.programs), laid.library.able, laid.shares.kind_of_rank)
        standings.append(Standing(job.name, laid, share, cluster))
        first += int(sizes[own].sum())
    return standings


def _placed(scenario: Scenario, cluster: Cluster, plans: Sequence[Plan]) -> tuple[Cluster, list[np.ndarray]]:
    """The cluster with the jobs' nodes first, job by job, and the nodes of each."""
    sizes = np.array([t.gpus for t in cluster.node_types])[cluster.node_type]
    wishes = [
        Wish(job.name, plan.world, job.placement, f"jobs.{i}.placement")
        for i, (job, plan) in enumerate(zip(scenario.jobs, plans, strict=True))
    ]
    wanted = sum(plan.world for plan in plans)
    try:
        if wanted > cluster.gpus:
            message = f"the jobs ask for {wanted:,} GPUs, the cluster has {cluster.gpus:,}: `nodes` says how many a job may use"
            raise ScenarioError([Problem("jobs", message)])
        nodes = place(wishes, sizes, scenario.run.seed)
    except ScenarioError as error:
        raise scenario.located(error) from None
    return cluster.placed(_first(np.concatenate(nodes), cluster.nodes)), nodes


def _first(own: np.ndarray, nodes: int) -> np.ndarray:
    """All nodes, some of them first."""
    rest = np.ones(nodes, dtype=bool)
    rest[own] = False
    return np.concatenate([own, np.flatnonzero(rest)])


def simulate_jobs(scenario: Scenario, progress: Progress | None = None) -> JobsResult:
    """Plays the jobs of a scenario alone and together.

    Raises ScenarioError (located), DoesNotFit, TooManyClasses, SimulationError.
    """
    began = time.perf_counter()
    standings = stand(scenario)
    run = scenario.run
    alone = []
    for i, standing in enumerate(standings):
        if progress is not None:
            progress(f"{standing.name} alone", i / (len(standings) + 1))
        ready = time.perf_counter()
        quotient, pace = fold(standing.laid.traffic, run.fold, run.seed)
        setup = compile_setup(standing.laid, quotient, pace)
        prepared = time.perf_counter()
        record = play_step(setup)
        played = time.perf_counter()
        alone.append(result_of(setup, record, prepared - ready, played - prepared, play_ramp(setup)))
    if progress is not None:
        progress("all together", len(standings) / (len(standings) + 1))
    together, classes, notes = _together(scenario, standings, [result.step_time_s for result in alone])
    jobs = tuple(
        JobResult(
            name=standing.name,
            placement=_placement(scenario, i),
            gpus=standing.laid.plan.world,
            alone=result,
            together_s=together[i],
        )
        for i, (standing, result) in enumerate(zip(standings, alone, strict=True))
    )
    return JobsResult(
        scenario=scenario.name,
        description=scenario.description,
        gpus=scenario.cluster.gpus,
        seed=run.seed,
        fold=run.fold,
        jobs=jobs,
        classes=classes,
        assumptions=(*scenario.assumptions, *notes),
        command_s=time.perf_counter() - began,
    )


def _placement(scenario: Scenario, index: int) -> str:
    placement = scenario.jobs[index].placement
    return placement if isinstance(placement, str) else "nodes named"


def _together(
    scenario: Scenario, standings: Sequence[Standing], alone: Sequence[float]
) -> tuple[list[float], int, list[str]]:
    """Mean seconds of each job's steps while all ran, rank classes played, and what the answer leaves out."""
    cluster = standings[0].cluster
    traffic = join_traffic(cluster, [standing.share for standing in standings], storage_tiers(scenario))
    quotient, pace = fold(traffic, scenario.run.fold, scenario.run.seed)
    slowest = max(alone)
    steps = [min(MOST_STEPS, 1 + int(np.ceil(STEPS * slowest / seconds))) for seconds in alone]
    meeting = _meeting(quotient)
    legs: list[tuple[Leg, ...]] = [()] * len(quotient.ranks)
    gates: list[list[Gate]] = []
    before = 0
    for job, (standing, count) in enumerate(zip(standings, steps, strict=True)):
        laid = standing.laid
        stages = (before, before + laid.plan.pipeline - 1)
        mine = [i for i, kind in enumerate(quotient.ranks) if stages[0] <= kind.stage <= stages[1]]
        overlap = laid.scenario.job.software.overlap
        compiler = Compiler(
            quotient, laid.library, pricer_of(laid), (overlap.compute, overlap.transfer), job=job, stages=stages
        )
        # Nothing is in flight at a gate: whom nobody disturbs plays the same step again.
        gates.append([Gate(len(mine)) for _ in range(count if job in meeting else 1)])
        for i in mine:
            kind = quotient.ranks[i]
            own = laid.shares.kinds[kind.kind]
            one = compiler.compile(own.programs[kind.stage - before], kind)
            legs[i] = _repeated(one, own.plan.micro_batches, gates[-1])
        before += laid.plan.pipeline
    overlap = standings[0].laid.scenario.job.software.overlap
    play(
        quotient,
        legs,
        tuple(node.name for node in cluster.node_types),
        (overlap.compute, overlap.transfer),
        pace=pace,
        writes=writes_of(scenario),
        until=[job[:STEPS][-1] for job in gates],
    )
    ends = [[0.0, *(gate.time for gate in job if gate.time is not None)] for job in gates]
    stopped = max(times[-1] for times in ends)
    for job in set(range(len(ends))) - meeting:
        ends[job] = [i * ends[job][1] for i in range(steps[job] + 1)]
    # Until here all jobs were running: the play ends in the middle of what others do, if they haven't run out of steps.
    all_run = min(times[-1] if len(times) > count else stopped for times, count in zip(ends, steps, strict=True))
    means = []
    for times in ends:
        whole = max(1, sum(end <= all_run * (1 + 1e-12) for end in times[1:]))
        means.append(times[whole] / whole)
    notes = []
    if pace is not None:
        notes += pinned_assumptions(pace, cluster.fabric.routing)
    elif quotient.approximate:
        notes.append(
            "run.fold: bundles is an estimate: each transfer rides the worst bundle it touches (within about 2 %)"
        )
    return means, len(quotient.ranks), notes


def _meeting(quotient: Quotient) -> set[int]:
    """Jobs that share with another a link that can bind, or have flows that routing pins to paths of others."""
    on: list[set[int]] = [set() for _ in quotient.links]
    for kind in (kind for classes in quotient.groups for kind in classes):
        for link, _ in kind.links:
            on[link].add(quotient.job_of(kind.channel))
    return {quotient.job_of(channel) for channel in quotient.pinned}.union(*(jobs for jobs in on if len(jobs) > 1))


def _repeated(step: tuple[Leg, ...], micro_batches: int, gates: Sequence[Gate]) -> tuple[Leg, ...]:
    """A step's legs as often as there are gates, each time with micro-batches of its own, and a gate at its end."""
    found: list[Leg] = []
    for i, gate in enumerate(gates):
        found += [replace(leg, micro_batch=leg.micro_batch + i * micro_batches) for leg in step]
        found.append(Leg(2, -1, -1, (gate,)))
    return tuple(found)
