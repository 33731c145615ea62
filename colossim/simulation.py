"""From a scenario to its result: the floors, once through.

`simulate` reads as the design does: a job lays ranks onto the GPUs of a cluster; ranks and links fold into classes; SimPy
plays the classes through a step; the result says how long and why.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from colossim.capacity import check_memory, fullest_host, stage_capacity
from colossim.cluster import Cluster, build_cluster
from colossim.cluster.placement import Wish, place
from colossim.collective import Library
from colossim.engine.chunked_step import (
    Chunking,
    plays_whole,
    refuse_many_gpus,
    refuse_many_messages,
    refuse_pinned_paths,
)
from colossim.engine.record import CATEGORIES, StepRecord
from colossim.engine.step import play
from colossim.errors import Problem, ScenarioError, SimulationError
from colossim.flows import SAMPLED, Pace
from colossim.fold import fold
from colossim.legs import Leg
from colossim.quotient import Quotient
from colossim.result.result import Result, build_result
from colossim.scenario.derive import Plan, derive, no_effects
from colossim.scenario.schema import JobSpec, NamedJob, Scenario
from colossim.segments import Compiler
from colossim.traffic import STORAGE_TIERS, Traffic, build_traffic
from colossim.workload.build import build_programs, recomputed_layers
from colossim.workload.kernels import kernel_time
from colossim.workload.memory import memory_by_stage
from colossim.workload.program import Collective, Compute, Post, Receive, Send, StageProgram
from colossim.workload.transformer import (
    model_flops_per_token,
    recomputed_flops_per_token,
)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class LaidOut:
    """The job on the cluster, before folding."""

    scenario: Scenario
    plan: Plan
    cluster: Cluster
    programs: tuple[StageProgram, ...]
    traffic: Traffic
    library: Library


@dataclass(frozen=True)
class Setup:
    """Everything before the first event. legs: a compiled program a rank class.

    chosen: (channel, operation, bytes, nodes, algorithm, protocol) of the collectives.  pace: of flows that routing pins.
    """

    laid: LaidOut
    quotient: Quotient
    legs: list[tuple[Leg, ...]]
    chosen: tuple[tuple[str, str, float, int, str, str], ...]
    pace: Pace | None = None


def used_operations(programs: tuple[StageProgram, ...]) -> dict[str, frozenset[str]]:
    """Channel name -> operations that the programs do over it."""
    found: dict[str, set[str]] = {}

    def note(channel: str, operation: str) -> None:
        found.setdefault(channel, set()).add(operation)

    seen: set[int] = set()
    for program in programs:
        for body in program.bodies:
            if id(body) in seen:
                continue
            seen.add(id(body))
            for op in body:
                if isinstance(op, Collective):
                    note(op.channel, op.operation)
                elif isinstance(op, Post):
                    note(op.collective.channel, op.collective.operation)
                elif isinstance(op, Send | Receive):
                    note(op.direction, "send")
    return {channel: frozenset(operations) for channel, operations in found.items()}


def lay_out(scenario: Scenario, progress: Progress | None = None, *, must_fit: bool = True) -> LaidOut:
    """Wires the cluster and lays the job onto it. Raises ScenarioError (located) and, if it must fit, DoesNotFit."""
    try:
        plan = derive(scenario)
        if scenario.run.collectives == "chunked":
            refuse_pinned_paths(scenario.cluster.fabric)
            refuse_many_gpus(plan.world)
        _tell(progress, "wiring the cluster", 0.0)
        cluster = place_job(build_cluster(scenario.cluster), plan, scenario)
    except ScenarioError as error:
        raise scenario.located(error) from None
    job = scenario.job
    if must_fit:
        check_memory(scenario, plan, cluster)
    programs = build_programs(plan, job)
    _tell(progress, "laying the job onto it", 0.05)
    library = library_of(cluster, job)
    try:
        traffic = build_traffic(
            cluster,
            plan,
            operations=used_operations(programs),
            algorithms=library.able,
            storage_tiers=storage_tiers(scenario),
        )
    except ScenarioError as error:
        raise scenario.located(error) from None
    return LaidOut(scenario, plan, cluster, programs, traffic, library)


def storage_tiers(scenario: Scenario) -> int:
    """Tiers of switches that writes to storage pass; 0 if there are none."""
    storage = scenario.cluster.storage
    return 0 if storage is None else STORAGE_TIERS[storage.tier]


def writes_of(scenario: Scenario) -> float:
    """Bytes/s that every rank writes to storage; 0 if there is none."""
    storage = scenario.cluster.storage
    return 0.0 if storage is None else storage.write


def place_job(cluster: Cluster, plan: Plan, scenario: Scenario) -> Cluster:
    """The cluster with the job's nodes first, in the order in which its ranks take them. Raises ScenarioError."""
    if scenario.job.placement == "packed":
        return cluster
    sizes = np.array([t.gpus for t in cluster.node_types])[cluster.node_type]
    name = scenario.job.name if isinstance(scenario.job, NamedJob) else ""
    (own,) = place([Wish(name, plan.world, scenario.job.placement, "job.placement")], sizes, scenario.run.seed)
    rest = np.ones(cluster.nodes, dtype=bool)
    rest[own] = False
    return cluster.placed(np.concatenate([own, np.flatnonzero(rest)]))


def library_of(cluster: Cluster, job: JobSpec) -> Library:
    """The job's communication library on the cluster's machines."""
    able: set[str] = set(job.software.algorithms)
    if not cluster.fabric.sharp:
        able.discard("collnet")
    if any(node.nvls is None for node in cluster.node_types):
        able -= {"nvls", "collnet"}
    if job.collectives_algorithm not in ("auto", "nvls", "collnet"):
        able.add(job.collectives_algorithm)
    return Library(
        nodes=cluster.node_types,
        link=cluster.fabric.link,
        able=frozenset(able),
        algorithm=job.collectives_algorithm,
        protocol=job.collectives_protocol,
    )


def _tell(progress: Progress | None, what: str, share: float) -> None:
    if progress is not None:
        progress(what, share)


def kernel_pricer(laid: LaidOut) -> Callable[[Compute, int], float]:
    """Seconds of an operation's kernels on a node type, remembered."""
    job, nodes = laid.scenario.job, laid.cluster.node_types
    seconds: dict[tuple[int, int], float] = {}

    def kernel_seconds(op: Compute, node: int) -> float:
        # Programs share their operations, and live as long as this: an operation's id is a key.
        key = (id(op), node)
        if key not in seconds:
            seconds[key] = sum(kernel_time(kernel, nodes[node].gpu, job.precision) for kernel in op.kernels)
        return seconds[key]

    return kernel_seconds


def compile_setup(laid: LaidOut, quotient: Quotient, pace: Pace | None = None) -> Setup:
    """Compiles the programs of all rank classes of a folded job."""
    overlap = laid.scenario.job.software.overlap
    fluid = laid.scenario.run.collectives == "fluid"
    slowdowns = (overlap.compute, overlap.transfer)
    compiler = Compiler(quotient, laid.library, kernel_pricer(laid), slowdowns, absorb=fluid)
    legs = [compiler.compile(laid.programs[kind.stage], kind) for kind in quotient.ranks]
    return Setup(laid, quotient, legs, tuple(sorted(compiler.chosen)), pace)


def prepare(scenario: Scenario, progress: Progress | None = None, *, must_fit: bool = True) -> Setup:
    """Lays the job out, folds it and compiles it. Raises ScenarioError (located), DoesNotFit, TooManyClasses."""
    laid = lay_out(scenario, progress, must_fit=must_fit)
    _tell(progress, "folding", 0.3)
    chunked = scenario.run.collectives == "chunked"
    quotient, pace = fold(laid.traffic, "off" if chunked else scenario.run.fold, scenario.run.seed)
    _tell(progress, "compiling", 0.9)
    setup = compile_setup(laid, quotient, pace)
    if chunked:
        plan = laid.plan
        together = plan.pipeline if plan.chunks > 1 else 1
        refuse_many_messages(quotient, setup.legs, scenario.job.global_batch // plan.micro_batches, together)
    return setup


def simulate(scenario: Scenario, progress: Progress | None = None, *, must_fit: bool = True) -> Result:
    """Plays one training step of the scenario and says how long it takes, and why.

    progress: called with what is being done and the share of it that is done.  must_fit: whether a job that its GPUs can't
    hold is refused; a run that was published did fit, whatever the model says.
    Raises ScenarioError (located), DoesNotFit, TooManyClasses, SimulationError where numbers leave what a float holds.
    A scenario with `traffic` is no step: `colossim.offered.offer` plays it.
    """
    if scenario.jobs:
        raise ScenarioError([Problem("jobs", "are several: simulate_jobs plays them")])
    if scenario.traffic is not None:
        message = "plays the fabric alone, in place of a step: `colossim run`, or colossim.offer(scenario)"
        raise scenario.located(ScenarioError([Problem("traffic", message)]))
    began = time.perf_counter()
    try:
        with np.errstate(over="raise"):
            setup = prepare(scenario, progress, must_fit=must_fit)
            ready = time.perf_counter()
            record = play_step(setup, progress)
    except (FloatingPointError, OverflowError):
        raise SimulationError("a quantity of the scenario is too large or too small to reckon with") from None
    done = time.perf_counter()
    return result_of(setup, record, ready - began, done - ready)


def play_step(setup: Setup, progress: Progress | None = None) -> StepRecord:
    """The event loop alone."""
    overlap = setup.laid.scenario.job.software.overlap
    return play(
        setup.quotient,
        setup.legs,
        tuple(node.name for node in setup.laid.cluster.node_types),
        (overlap.compute, overlap.transfer),
        None if progress is None else lambda share: progress("playing the step", share),
        setup.pace,
        Chunking(setup.laid.cluster, setup.laid.library) if setup.laid.scenario.run.collectives == "chunked" else None,
        writes_of(setup.laid.scenario),
    )


def result_of(setup: Setup, record: StepRecord, setup_s: float, wall_s: float) -> Result:
    """Numbers of a played step. setup_s, wall_s: seconds before the event loop, and in it."""
    laid = setup.laid
    scenario, plan, cluster, job = laid.scenario, laid.plan, laid.cluster, laid.scenario.job
    tokens = float(job.global_batch * job.sequence_length)
    needed = model_flops_per_token(job.model, job.sequence_length)
    again = recomputed_flops_per_token(
        job.model,
        job.sequence_length,
        job.recompute,
        job.software.attention,
        recomputed_layers(plan, job),
        job.software.fusions,
    )
    peaks = np.array([t.gpu.peak[job.precision] for t in cluster.node_types])
    capacity = stage_capacity(plan, cluster)
    stages = memory_by_stage(plan, job)
    memory = max(zip(stages, capacity, strict=True), key=lambda item: item[0].peak / item[1])
    host = fullest_host(plan, cluster, stages)
    quotient = setup.quotient
    assumptions = list(scenario.assumptions)
    if setup.pace is not None:
        assumptions += pinned_assumptions(setup.pace, cluster.fabric.routing)
    elif quotient.approximate:
        assumptions.append(
            "run.fold: bundles is an estimate: each transfer rides the worst bundle it touches (within about 2 %)"
        )
    whole = sorted({way[4] for way in setup.chosen if plays_whole(way[4])})
    if scenario.run.collectives == "chunked" and whole:
        assumptions.append(
            f"run.collectives: chunked plays {' and '.join(whole)} as one transfer: switches or nodes share it out"
        )
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return build_result(
        scenario,
        plan,
        record,
        memory={
            "parameters": memory[0].parameters,
            "gradients": memory[0].gradients,
            "optimizer": memory[0].optimizer,
            "activations": memory[0].activations,
            "update": memory[0].update,
            "workspace": memory[0].workspace,
            "peak": memory[0].peak,
            "capacity": memory[1],
            "stage": memory[0].stage,
            **({} if host is None else {"host": host[1], "host_capacity": host[2]}),
        },
        model_flops_per_step=needed * tokens,
        hardware_flops_per_step=(needed + again) * tokens,
        peak_flops_per_gpu=float(peaks[cluster.gpu_type[: plan.world]].mean()),
        tokens_per_step=tokens,
        classes={
            "ranks": len(quotient.ranks),
            "groups": sum(len(classes) for classes in quotient.groups),
            "links": len(quotient.links) + len(quotient.passive),
        },
        fold="off" if scenario.run.collectives == "chunked" else scenario.run.fold,
        fold_rounds=quotient.partition.rounds,
        aligned=laid.traffic.aligned,
        setup_s=setup_s,
        wall_s=wall_s,
        peak_memory_bytes=float(peak_memory),
        assumptions=assumptions,
        notes=no_effects(scenario, plan),
        mix=mix(setup, record),
        chosen=setup.chosen,
        pinned=None if setup.pace is None else setup.pace.pinned,
    )


def pinned_assumptions(pace: Pace, routing: str) -> list[str]:
    """What an answer under pinned routing leaves out."""
    pinned = pace.pinned
    found = []
    replicas = int(pinned.replicas.max()) + 1
    if any(typical.any() for typical in pace.typical):
        found.append(
            f"routing {routing}: the {SAMPLED} of {replicas:,} replicas with the slowest flows are played, the others move "
            "at their mean"
        )
    if pinned.sprayed:
        found.append(
            f"routing {routing}: the messages of {', '.join(pinned.sprayed)} are too many to be told apart and are sprayed"
        )
    return found


def mix(setup: Setup, record: StepRecord) -> dict[str, Any] | None:
    """What a job of several node types costs itself; None if there is one type.

    For each type: seconds of the same work (the kernels of a stage in the middle), and the mean seconds a step that its
    ranks wait for others: slower members of a collective, and neighbour stages. The slowest type at the same work sets
    the pace.
    """
    laid = setup.laid
    nodes, precision = laid.cluster.node_types, laid.scenario.job.precision
    present = sorted({kind.hardware for kind in setup.quotient.ranks})
    if len(present) < 2:
        return None
    program = laid.programs[laid.plan.pipeline // 2]
    work = [op for p in program.passes for op in p.body if isinstance(op, Compute)]
    waits = [CATEGORIES.index("straggler"), CATEGORIES.index("pipeline_bubble")]
    rows = {}
    for index in present:
        node = nodes[index]
        own = [timeline for timeline in record.timelines if timeline.hardware == node.name]
        count = sum(timeline.count for timeline in own)
        waited = sum(timeline.count * float(timeline.seconds()[waits].sum()) for timeline in own) / count
        kernels = sum(kernel_time(kernel, node.gpu, precision) for op in work for kernel in op.kernels)
        rows[node.name] = {"same_work_s": kernels, "waits_s": waited}
    return {"types": rows, "pace": max(rows, key=lambda name: rows[name]["same_work_s"])}
