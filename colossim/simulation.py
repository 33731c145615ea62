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

import numpy as np

from colossim.cluster import Cluster, build_cluster
from colossim.engine.record import StepRecord
from colossim.engine.step import play
from colossim.errors import DoesNotFit, ScenarioError
from colossim.fold import Quotient, fold
from colossim.result.result import Result, build_result
from colossim.scenario.derive import Plan, derive, no_effects
from colossim.scenario.schema import Scenario
from colossim.segments import Compiler, Leg
from colossim.traffic import Traffic, build_traffic
from colossim.workload.kernels import kernel_time
from colossim.workload.build import build_programs
from colossim.workload.program import Collective, Compute, Post, Receive, Send, StageProgram

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Setup:
    """Everything before the first event."""

    scenario: Scenario
    plan: Plan
    cluster: Cluster
    programs: tuple[StageProgram, ...]
    traffic: Traffic
    quotient: Quotient
    legs: list[tuple[Leg, ...]]


def used_channels(programs: tuple[StageProgram, ...]) -> frozenset[str]:
    """Names of the channels that the programs communicate over."""
    names: set[str] = set()
    seen: set[int] = set()
    for program in programs:
        for body in (program.epilogue, *(p.body for p in program.passes)):
            if id(body) in seen:
                continue
            seen.add(id(body))
            for op in body:
                if isinstance(op, Collective):
                    names.add(op.channel)
                elif isinstance(op, Post):
                    names.add(op.collective.channel)
                elif isinstance(op, Send | Receive):
                    names.add(op.direction)
    return frozenset(names)


def prepare(scenario: Scenario, progress: Progress | None = None) -> Setup:
    """Reads the job onto the cluster, folds and compiles. Raises ScenarioError, DoesNotFit, TooManyClasses."""

    def tell(what: str, share: float) -> None:
        if progress is not None:
            progress(what, share)

    try:
        plan = derive(scenario)
        tell("wiring the cluster", 0.0)
        cluster = build_cluster(scenario.cluster)
    except ScenarioError as error:
        raise scenario.located(error) from None
    job = scenario.job
    programs = build_programs(plan, job)
    tell("laying the job onto it", 0.1)
    traffic = build_traffic(cluster, plan, algorithm=job.collectives_algorithm, names=used_channels(programs))
    tell("folding", 0.3)
    quotient = fold(traffic, scenario.run.fold)
    seconds: dict[tuple[int, int], float] = {}

    def kernel_seconds(op: Compute, node: int) -> float:
        key = (id(op), node)
        if key not in seconds:
            gpu = cluster.node_types[node].gpu
            seconds[key] = sum(kernel_time(kernel, gpu, job.precision) for kernel in op.kernels)
        return seconds[key]

    overlap = job.software.overlap
    compiler = Compiler(quotient, cluster.node_types, kernel_seconds, overlap.compute or overlap.transfer)
    legs = [compiler.compile(programs[kind.stage], kind) for kind in quotient.ranks]
    return Setup(scenario, plan, cluster, programs, traffic, quotient, legs)
