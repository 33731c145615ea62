"""What GPUs and hosts can hold, and jobs that ask for more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from colossim.cluster import Cluster
from colossim.errors import DoesNotFit
from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.scenario.schema import Scenario
from colossim.shares import Shares
from colossim.traffic import stage_of_ranks
from colossim.units import format_size
from colossim.workload.memory import Memory, memory_by_stage, suggestions
from colossim.workload.replicas import ReplicaKind


def stage_capacity(plan: Plan, cluster: Cluster, shares: Shares) -> NDArray[np.float64]:
    """(kinds, stages) bytes of the smallest GPU of each pipeline stage of the replicas of each kind."""
    memory = np.array([t.gpu.memory for t in cluster.node_types])[cluster.gpu_type[: plan.world]]
    smallest = np.full((len(shares.kinds), plan.pipeline), np.inf)
    np.minimum.at(smallest, (shares.kind_of_rank, stage_of_ranks(plan)), memory)
    return smallest


def memory_of_kinds(plan: Plan, cluster: Cluster, shares: Shares) -> list[tuple[ReplicaKind, Memory, float]]:
    """Each kind of replicas and stage: what it holds, and bytes of its smallest GPU."""
    return [
        (kind, memory, float(limit))
        for kind, limits in zip(shares.kinds, stage_capacity(plan, cluster, shares), strict=True)
        for memory, limit in zip(memory_by_stage(kind.plan, kind.job), limits, strict=True)
    ]


def fullest_host(
    plan: Plan, cluster: Cluster, shares: Shares, memory: Sequence[Memory]
) -> tuple[int, float, float] | None:
    """The node whose CPUs' memory is fullest: its number, the bytes that its ranks put there, and its bytes.

    memory: of each kind of replicas and stage, as in `memory_of_kinds`.  None if no rank puts anything there.
    """
    if not any(stage.host for stage in memory):
        return None
    of_kinds = np.array([stage.host for stage in memory]).reshape(-1, plan.pipeline)
    each = of_kinds[shares.kind_of_rank, stage_of_ranks(plan)]
    nodes = cluster.gpu_node[: plan.world]
    held = np.zeros(int(nodes.max()) + 1)
    np.add.at(held, nodes, each)
    sizes = np.array([t.host.memory if t.host else 0.0 for t in cluster.node_types])
    capacity = sizes[cluster.node_type[: held.size]]
    node = int(np.argmax(held / capacity))
    return node, float(held[node]), float(capacity[node])


def check_memory(scenario: Scenario, plan: Plan, cluster: Cluster, shares: Shares) -> None:
    """Raises DoesNotFit for a job that a GPU or a host cannot hold: where, by how much, and what would fit."""
    held = memory_of_kinds(plan, cluster, shares)
    kind, memory, limit = max(held, key=lambda item: item[1].peak - item[2])
    worst = memory.peak - limit
    if worst > 0:
        fixes = fitting(scenario, kind, min(limit for other, _, limit in held if other is kind))
        advice = (
            "; ".join(fixes)
            if fixes
            else "no change of up to three settings would: more GPUs a replica, or larger ones"
        )
        where = f" with the settings of job.groups.{kind.settings}" if kind.settings else ""
        raise DoesNotFit(
            f"the model doesn't fit{where}: stage {memory.stage} of {plan.pipeline} needs {format_size(memory.peak)} a GPU, "
            f"{format_size(worst)} more than its {format_size(limit)} (parameters {format_size(memory.parameters)}, gradients "
            f"{format_size(memory.gradients)}, optimizer {format_size(memory.optimizer)}, activations "
            f"{format_size(memory.activations)}, optimizer's step {format_size(memory.update)}, workspace "
            f"{format_size(memory.workspace)}). What would fit: {advice}"
        )
    fullest = fullest_host(plan, cluster, shares, [memory for _, memory, _ in held])
    if fullest is not None and fullest[1] > fullest[2]:
        node, there, size = fullest
        raise DoesNotFit(
            f"what is offloaded doesn't fit: the CPUs of node {node} have {format_size(size)}, its ranks put "
            f"{format_size(there)} there, {format_size(there - size)} more. What would fit: "
            f"{_less(scenario.job, plan, cluster, shares, size)}"
        )


def fitting(scenario: Scenario, kind: ReplicaKind, capacity: float) -> list[str]:
    """Changes that make a kind of replicas fit into GPUs of `capacity` bytes: of a group's own settings where it has them."""
    found = suggestions(scenario.model_copy(update={"job": kind.job.model_copy(update={"groups": {}})}), capacity)
    for key, own in scenario.job.groups[kind.settings] if kind.settings else ():
        if own is not None:
            found = [text.replace(f"--set job.{key}=", f"--set job.groups.{kind.settings}.{key}=") for text in found]
    return found


def _less(job: JobSpec, plan: Plan, cluster: Cluster, shares: Shares, size: float) -> str:
    """How much less would fit into nodes of `size` bytes, as settings; bytes grow in proportion to the activations' share."""

    def held(activations: float) -> float:
        less = {"offload": job.offload.model_copy(update={"activations": activations})}
        memory = [m for kind in shares.kinds for m in memory_by_stage(kind.plan, kind.job.model_copy(update=less))]
        fullest = fullest_host(plan, cluster, shares, memory)
        return fullest[1] if fullest else 0.0

    share, rest = job.offload.activations, held(0.0)
    if rest <= size and share:
        percent = math.floor(100 * share * (size - rest) / (held(share) - rest))
        return f"--set job.offload.activations={percent}%"
    return "--set job.offload.optimizer=false" if held(share) - rest <= size else "--set job.offload={}"
