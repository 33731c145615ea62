"""Whole weights by the rank that updates them, where a stack's optimizer shards are these and not equal parts of a buffer."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.workload.transformer import chunk_layers, layer, local_ends, local_tensors


@dataclass(frozen=True)
class Share:
    """What one rank updates, and then sends to the others.

    experts: whether it is of experts that have a group of their own.  parameters: how many.  first: (chunk, layer of the
    chunk) whose forward pass is the first to need them; layer -1: the chunk's beginning.
    """

    experts: bool
    parameters: float
    first: tuple[int, int]


def applies(job: JobSpec) -> bool:
    """Whether a job's optimizer shards are whole weights."""
    return job.parallelism.sharding in ("optimizer", "gradients") and job.software.parameter_gather == "broadcasts"


def shares(plan: Plan, job: JobSpec, stage: int) -> tuple[Share, ...]:
    """Those of a stage, of ranks that have some; in the order of the model if they travel beside the forward pass."""
    split = in_order if job.overlap.parameters else balanced
    groups = {False: plan.sharding_group, True: plan.expert_group}
    found = []
    for experts, weights in _weights(plan, job, stage).items():
        for places in split([size for size, _ in weights], groups[experts]):
            parameters = sum(weights[place][0] for place in places)
            found.append(Share(experts, parameters, weights[min(places)][1]))
    return tuple(found)


def fullest(plan: Plan, job: JobSpec, stage: int) -> float:
    """Parameters of the rank that updates most."""
    found = shares(plan, job, stage)
    return sum(max((s.parameters for s in found if s.experts == experts), default=0.0) for experts in (False, True))


def _weights(plan: Plan, job: JobSpec, stage: int) -> dict[bool, list[tuple[float, tuple[int, int]]]]:
    """Parameters of each weight of a stage and where it is first needed, in the order of the model; by `Share.experts`."""
    model, last = job.model, stage == plan.pipeline - 1
    found: dict[bool, list[tuple[float, tuple[int, int]]]] = {False: [], True: []}
    if stage == 0:
        embedding = local_ends(model, plan.tensor, first=True, last=False, pipeline=plan.pipeline)
        found[False].append((embedding, (0, -1)))
    for chunk in range(plan.chunks):
        layers = chunk_layers(plan.pipeline, plan.layers, stage, chunk)
        for i, index in enumerate(layers):
            dense, experts = local_tensors(
                model, index, plan.tensor, plan.expert, plan.expert_tensor, job.software.fusions
            )
            found[False] += [(size, (chunk, i)) for size in dense]
            found[plan.experts_apart] += [(size, (chunk, i)) for size in experts]
        if last and chunk == plan.chunks - 1:
            norm = layer(model, 0).norms / model.norms
            head = local_ends(model, plan.tensor, first=False, last=True, pipeline=plan.pipeline) - norm
            found[False] += [(size, (chunk, len(layers) - 1)) for size in (norm, head) if size]
    return found


def in_order(sizes: Sequence[float], ranks: int) -> list[list[int]]:
    """Places of the weights that each rank gets, the next rank's turn when one has its share; of ranks that get some.

    InternEvo, internlm/solver/optimizer/utils.py, ParamBcastSyncHandler: a weight with which the sum exceeds 1.01 times the
    average goes to the next rank, whose sum then begins without it.
    """
    average, total = sum(sizes) / ranks, 0.0
    found: list[list[int]] = [[]]
    for place, size in enumerate(sizes):
        total += size
        if total > 1.01 * average and len(found) < ranks:
            total = 0.0
            found.append([])
        found[-1].append(place)
    return [places for places in found if places]


def balanced(sizes: Sequence[float], ranks: int) -> list[list[int]]:
    """The same with the largest weight first, each to the rank that has least.

    InternEvo, internlm/solver/optimizer/hybrid_zero_optim.py, _partition_param_list.
    """
    heap = [(0.0, rank) for rank in range(ranks)]
    found: list[list[int]] = [[] for _ in range(ranks)]
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        total, rank = heap[0]
        heapq.heapreplace(heap, (total + sizes[place], rank))
        found[rank].append(place)
    return [places for places in found if places]
