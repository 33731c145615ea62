"""From a scenario to its result: the floors, once through.

`simulate` reads as the design does: a job lays ranks onto the GPUs of a cluster; ranks and links fold into classes; SimPy
plays the classes through a step; the result says how long and why.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from colossim.bookmark import Shelf
from colossim.campaign import is_campaign, mtbf_of, setting_of
from colossim.capacity import fullest_host, memory_of_kinds
from colossim.engine.chunked_step import (
    Chunking,
    plays_whole,
)
from colossim.engine.record import StepRecord
from colossim.engine.step import no_collections, play
from colossim.engine.trace import Trace
from colossim.errors import Problem, ScenarioError, SimulationError
from colossim.flows import pinned_assumptions
from colossim.growth import Known, Played, grown, growth_of
from colossim.jitter import Late, late_steps
from colossim.layout import Progress, Setup, compile_setup, folded, prepare, tell, with_batch
from colossim.legs import Leg
from colossim.mix import mix, silent_shares, told_shares
from colossim.replicas import play_replicas
from colossim.result.campaign import build_campaign
from colossim.result.power import power_of
from colossim.result.ramp import Sizes
from colossim.result.result import Result, build_result
from colossim.scenario.derive import advice, no_effects
from colossim.scenario.power import uncapped
from colossim.scenario.ramp import stretches
from colossim.scenario.schema import Scenario
from colossim.scenario.stretch import stretches_of
from colossim.site import writes_of
from colossim.supply import loads_of, told_cap
from colossim.workload.build import recomputed_layers
from colossim.workload.transformer import (
    model_flops_per_token,
    recomputed_flops_per_token,
)


@no_collections()
def simulate(
    scenario: Scenario,
    progress: Progress | None = None,
    *,
    must_fit: bool = True,
    replicas: int = 1,
    workers: int = 1,
    shelf: Shelf | None = None,
    known: Known | None = None,
) -> Result:
    """Plays one training step of the scenario and says how long it takes, and why; and weeks of them, if it asks for these.

    progress: called with what is being done and the share of it that is done.  must_fit: whether a job that its GPUs can't
    hold is refused; a run that was published did fit, whatever the model says.  replicas: seeds of a campaign, from the
    scenario's on, in so many processes (`workers`; a script that asks for several needs `if __name__ == "__main__":`).
    shelf: of a `Bookmark`, where a campaign is kept as it goes, and goes on from.
    known: steps that other cases have played after their clusters changed; this one's join them.
    Raises ScenarioError (located), DoesNotFit, TooManyClasses, SimulationError where numbers leave what a float holds.
    A scenario with `traffic` is no step: `colossim.offered.offer` plays it.
    """
    if scenario.jobs:
        raise ScenarioError([Problem("jobs", "are several: simulate_jobs plays them")])
    if scenario.traffic is not None:
        message = "plays the fabric alone, in place of a step: `colossim run`, or colossim.offer(scenario)"
        raise scenario.located(ScenarioError([Problem("traffic", message)]))
    began = time.perf_counter()
    stretches = stretches_of(scenario) if scenario.events else []
    first = stretches[0].scenario if stretches else scenario
    known = known or Known()
    before = known.start(first) if stretches else None
    with _within_floats():
        setup = prepare(first, progress, must_fit=must_fit) if before is None else before[0].of(first)
        ready = time.perf_counter()
        record, late = play_steps(setup, progress) if before is None else before[1]
        done = time.perf_counter()
        ramp = play_ramp(setup, progress)
    if stretches and before is None:
        known.starts.append((first, setup, (record, late)))
    result = result_of(setup, record, ready - began, done - ready, ramp, late)
    if first.cluster.power_cap is not None:
        tell(progress, "playing a step without the power cap", 0.9)
        free = prepare(uncapped(first), must_fit=must_fit)
        alike, differing = play_steps(free)
        result = result.with_cap(told_cap(first, result, result_of(free, alike, 0.0, 0.0, [], differing)))
    if not is_campaign(scenario):
        return result

    def step_time(other: Scenario) -> float:
        tell(progress, "playing a step of a damaged cluster", 0.9)
        return step_seconds(prepare(other, must_fit=must_fit))

    def played(other: Scenario) -> Played:
        tell(progress, "playing a step of a cluster that has changed", 0.9)
        setup = prepare(other, must_fit=must_fit)
        record, late = play_steps(setup)
        there, job = setup.laid, other.job
        loads = loads_of(record, there.cluster, there.shares, job.precision)
        power = power_of(record, loads, there.scenario.cluster, float(job.global_batch * job.sequence_length))
        return Played(there.plan, there.cluster, _median(record, late), power)

    tell(progress, "playing the campaign", 0.9)
    laid = setup.laid
    with _within_floats():
        setting = setting_of(first, laid.plan, laid.cluster, result.step_time_s, step_time)
        growth = None
        if stretches:
            known.add(first, Played(laid.plan, laid.cluster, result.step_time_s, result.power))
            eras = grown(setting, stretches, known, played, step_time)
            setting = eras.setting
        logs = play_replicas(setting, replicas, workers, shelf)
        if stretches:
            growth = growth_of(eras, logs[0], known)
        return result.with_campaign(build_campaign(setting, logs, mtbf_of(setting.first.sources), growth))


@contextmanager
def _within_floats() -> Iterator[None]:
    """Raises SimulationError where numbers leave what a float holds."""
    try:
        with np.errstate(over="raise"):
            yield
    except (FloatingPointError, OverflowError):
        raise SimulationError("a quantity of the scenario is too large or too small to reckon with") from None


def play_ramp(setup: Setup, progress: Progress | None = None) -> list[tuple[int, int, float]]:
    """(sequences a step, steps, s a step) of each batch size of the ramp: one step of each is played."""
    job = setup.laid.scenario.job
    sizes = stretches(job.batch_ramp, job.global_batch) if job.batch_ramp else []
    found = []
    for number, (batch, steps) in enumerate(sizes):
        tell(progress, f"playing a step of {batch:,} sequences", number / len(sizes))
        laid = with_batch(setup.laid, batch)
        alike = np.array_equal(laid.traffic.kind, setup.laid.traffic.kind)
        quotient, pace = (setup.quotient, setup.pace) if alike else folded(laid)
        found.append((batch, steps, step_seconds(compile_setup(laid, quotient, pace))))
    return found


def step_seconds(setup: Setup) -> float:
    """s a step; of steps with jitter the median."""
    return _median(*play_steps(setup))


def _median(record: StepRecord, late: Late | None) -> float:
    """s a step: of steps with jitter the median."""
    return record.step_time if late is None else late.median


def play_steps(setup: Setup, progress: Progress | None = None) -> tuple[StepRecord, Late | None]:
    """A step of GPUs that are alike, and with the scenario's jitter."""
    laid = setup.laid
    if laid.scenario.jitter is None:
        return play_step(setup, progress), None

    def play_once(legs: list[tuple[Leg, ...]], trace: Trace | None) -> StepRecord:
        return play_step(replace(setup, legs=legs), progress, trace)

    return late_steps(laid.scenario, laid.cluster, laid.traffic, setup.quotient, setup.legs, play_once)


def play_step(setup: Setup, progress: Progress | None = None, trace: Trace | None = None) -> StepRecord:
    """The event loop alone. trace: filled with what happens, in order."""
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
        trace=trace,
    )


def result_of(
    setup: Setup, record: StepRecord, setup_s: float, wall_s: float, ramp: Sizes, late: Late | None = None
) -> Result:
    """Numbers of a played step. setup_s, wall_s: seconds before the event loop, and in it.

    ramp, late: of `play_ramp`, `play_steps`.
    """
    laid = setup.laid
    scenario, plan, cluster, job = laid.scenario, laid.plan, laid.cluster, laid.scenario.job
    tokens = float(job.global_batch * job.sequence_length)
    needed = model_flops_per_token(job.model, job.sequence_length)
    again = sum(
        kind.replicas
        * kind.sequences
        * job.sequence_length
        * recomputed_flops_per_token(
            job.model,
            job.sequence_length,
            kind.job.recompute,
            job.software.attention,
            recomputed_layers(kind.plan, kind.job),
            job.software.fusions,
        )
        for kind in laid.shares.kinds
    )
    peaks = np.array([t.gpu.peak[job.precision] for t in cluster.node_types])
    held = memory_of_kinds(plan, cluster, laid.shares)
    memory = max((item[1:] for item in held), key=lambda item: item[0].peak / item[1])
    host = fullest_host(plan, cluster, laid.shares, [item[1] for item in held])
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
    if late is not None and late.approximate:
        assumptions.append(
            "lateness_approximate: transfers that meet on a link share it as they would without jitter (within about 1 %)"
        )
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return build_result(
        scenario,
        plan,
        record,
        loads_of(record, cluster, laid.shares, job.precision),
        late=None if late is None else (late.seconds.tolist(), late.to_dict()),
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
        hardware_flops_per_step=needed * tokens + again,
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
        notes=[*no_effects(scenario, plan), *advice(scenario, plan), *silent_shares(job, cluster, laid.shares)],
        shares=told_shares(cluster, laid.shares),
        ramp=ramp,
        mix=mix(cluster, laid.shares, job.precision, record),
        chosen=setup.chosen,
        pinned=None if setup.pace is None else setup.pace.pinned,
    )
