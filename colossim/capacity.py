"""What GPUs and hosts can hold, and jobs that ask for more."""

from __future__ import annotations

import math

import numpy as np

from colossim.cluster import Cluster
from colossim.errors import DoesNotFit
from colossim.scenario.plan import Plan
from colossim.scenario.schema import JobSpec, Scenario
from colossim.traffic import stage_of_ranks
from colossim.units import format_size
from colossim.workload.memory import Memory, memory_by_stage, suggestions


def stage_capacity(plan: Plan, cluster: Cluster) -> list[float]:
    """(stages,) bytes of the smallest GPU of each pipeline stage."""
    memory = np.array([t.gpu.memory for t in cluster.node_types])[cluster.gpu_type[: plan.world]]
    stage = stage_of_ranks(plan)
    smallest = np.full(plan.pipeline, np.inf)
    np.minimum.at(smallest, stage, memory)
    return [float(limit) for limit in smallest]


def fullest_host(plan: Plan, cluster: Cluster, memory: list[Memory]) -> tuple[int, float, float] | None:
    """The node whose CPUs' memory is fullest: its number, the bytes that its ranks put there, and its bytes.

    memory: of each stage.  None if no rank puts anything there.
    """
    if not any(stage.host for stage in memory):
        return None
    each = np.array([stage.host for stage in memory])[stage_of_ranks(plan)]
    nodes = cluster.gpu_node[: plan.world]
    held = np.zeros(int(nodes.max()) + 1)
    np.add.at(held, nodes, each)
    sizes = np.array([t.host.memory if t.host else 0.0 for t in cluster.node_types])
    capacity = sizes[cluster.node_type[: held.size]]
    node = int(np.argmax(held / capacity))
    return node, float(held[node]), float(capacity[node])


def check_memory(scenario: Scenario, plan: Plan, cluster: Cluster) -> None:
    """Raises DoesNotFit for a job that a GPU or a host cannot hold: where, by how much, and what would fit."""
    capacity = stage_capacity(plan, cluster)
    stages = memory_by_stage(plan, scenario.job)
    over = [(m.peak - limit, m, limit) for m, limit in zip(stages, capacity, strict=True)]
    worst, memory, limit = max(over, key=lambda item: item[0])
    if worst > 0:
        fixes = suggestions(scenario, min(capacity))
        advice = (
            "; ".join(fixes)
            if fixes
            else "no change of up to three settings would: more GPUs a replica, or larger ones"
        )
        raise DoesNotFit(
            f"the model doesn't fit: stage {memory.stage} of {plan.pipeline} needs {format_size(memory.peak)} a GPU, "
            f"{format_size(worst)} more than its {format_size(limit)} (parameters {format_size(memory.parameters)}, gradients "
            f"{format_size(memory.gradients)}, optimizer {format_size(memory.optimizer)}, activations "
            f"{format_size(memory.activations)}, optimizer's step {format_size(memory.update)}, workspace "
            f"{format_size(memory.workspace)}). What would fit: {advice}"
        )
    fullest = fullest_host(plan, cluster, stages)
    if fullest is not None and fullest[1] > fullest[2]:
        node, held, size = fullest
        raise DoesNotFit(
            f"what is offloaded doesn't fit: the CPUs of node {node} have {format_size(size)}, its ranks put "
            f"{format_size(held)} there, {format_size(held - size)} more. What would fit: "
            f"{_less(scenario.job, plan, cluster, size)}"
        )


def _less(job: JobSpec, plan: Plan, cluster: Cluster, size: float) -> str:
    """How much less would fit into nodes of `size` bytes, as settings; bytes grow in proportion to the activations' share."""

    def held(activations: float) -> float:
        less = job.model_copy(update={"offload": job.offload.model_copy(update={"activations": activations})})
        fullest = fullest_host(plan, cluster, memory_by_stage(plan, less))
        return fullest[1] if fullest else 0.0

    share, rest = job.offload.activations, held(0.0)
    if rest <= size and share:
        percent = math.floor(100 * share * (size - rest) / (held(share) - rest))
        return f"--set job.offload.activations={percent}%"
    return "--set job.offload.optimizer=false" if held(share) - rest <= size else "--set job.offload={}"
