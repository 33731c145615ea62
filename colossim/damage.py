"""What a step takes of a cluster that is damaged, or of a job that has shrunk: the scenario changed, and played once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from colossim.cluster import Cluster
from colossim.engine.setting import Fewer, State
from colossim.errors import Problem, ScenarioError
from colossim.scenario.degraded import Degraded
from colossim.scenario.derive import derive
from colossim.scenario.plan import Plan
from colossim.scenario.schema import NodeGroup, Scenario
from colossim.traffic import stage_of_ranks

#: Seconds a step of a scenario that differs in its cluster or its size alone.
StepTime = Callable[[Scenario], float]


class Damage:
    """s a step of a job in each state, each played once. step_s: of the whole one."""

    def __init__(self, scenario: Scenario, plan: Plan, cluster: Cluster, step_s: float, step_time: StepTime) -> None:
        self._scenario, self._plan, self._cluster, self._step_time = scenario, plan, cluster, step_time
        self._known: dict[State, float] = {State(): step_s}

    def step_of(self, state: State) -> float:
        """s a step; what is slower slows it, if anything."""
        if state not in self._known:
            scenario, plan = self._scenario, self._plan
            if state.replicas:
                scenario = in_size(scenario, plan, state.replicas)
                plan = derive(scenario)
            if state.wrong:
                places = firsts_of(plan, self._cluster, [wrong.place for wrong in state.wrong])
                whole = self.step_of(State(replicas=state.replicas))
                self._known[state] = max(whole, self._step_time(in_state(scenario, state, places)))
            else:
                self._known[state] = self._step_time(scenario)
        return self._known[state]


def places_of(plan: Plan, cluster: Cluster) -> NDArray[np.int64]:
    """(ranks,) the place of each: its pipeline stage and its node's type, as one number."""
    stages = stage_of_ranks(plan).astype(np.int64)
    return stages * len(cluster.node_types) + cluster.gpu_type[: plan.world]


def firsts_of(plan: Plan, cluster: Cluster, places: list[int]) -> dict[int, tuple[int, int]]:
    """(node, GPU in it) of the first rank in each place; of its stage, if none is of that node type."""
    of_ranks, kinds = places_of(plan, cluster), len(cluster.node_types)
    found = {}
    for place in places:
        there = of_ranks == place
        rank = int(np.argmax(there if there.any() else of_ranks // kinds == place // kinds))
        found[place] = (int(cluster.gpu_node[rank]), int(cluster.gpu_local[rank]))
    return found


def in_state(scenario: Scenario, state: State, places: Mapping[int, tuple[int, int]]) -> Scenario:
    """The scenario with parts below their rates, one in each place: a step waits for one as for several.

    places: (node, GPU in it) of each.
    """
    cluster = scenario.cluster
    degraded, nodes = list(cluster.degraded), cluster.nodes
    for wrong in state.wrong:
        node, gpu = places[wrong.place]
        if wrong.part == "gpu":
            nodes = _with_slow(nodes, node, wrong.left)
            continue
        link: Literal["nic", "nvlink"] = wrong.part
        # A link that is below its rate anyhow has the lower of both.
        same = [one for one in degraded if (one.node, one.gpu, one.link) == (node, gpu, link)]
        rate = min([wrong.left, *(one.rate for one in same if one.rate is not None)])
        degraded = [one for one in degraded if one not in same]
        degraded.append(Degraded(node=node, gpu=gpu, link=link, rate=rate))
    cluster = cluster.model_copy(update={"degraded": tuple(degraded), "nodes": nodes})
    return scenario.model_copy(update={"cluster": cluster})


def _with_slow(groups: tuple[NodeGroup, ...], node: int, pace: float) -> tuple[NodeGroup, ...]:
    """Groups of nodes with slower GPUs in one of them: a synchronous step waits for one as for all of a node."""
    found: list[NodeGroup] = []
    first = 0
    for group in groups:
        place = node - first
        first += group.count
        if not 0 <= place < group.count:
            found.append(group)
            continue
        gpu = group.type.gpu.model_copy(update={"pace": group.type.gpu.pace * pace})
        slow = group.type.model_copy(update={"gpu": gpu, "name": f"{group.type.name}, slow"})
        parts = ((group.type, place), (slow, 1), (group.type, group.count - place - 1))
        found += [NodeGroup.model_construct(type=kind, count=count) for kind, count in parts if count]
    return tuple(found)


def in_size(scenario: Scenario, plan: Plan, replicas: int) -> Scenario:
    """The scenario with fewer replicas, which load the job's checkpoint onto the nodes that are there."""
    job = scenario.job
    batch = job.global_batch if scenario.short_batch == "same" else job.global_batch // plan.data * replicas
    parallelism = job.parallelism.model_copy(update={"data": replicas})
    job = job.model_copy(update={"parallelism": parallelism, "global_batch": batch})
    return scenario.model_copy(update={"job": job, "when_short": "wait"})


def fewer_of(scenario: Scenario, plan: Plan) -> tuple[Fewer, ...]:
    """Sizes that the job can shrink to, down to half its replicas; none if it waits. Raises ScenarioError (located)."""
    if scenario.when_short == "wait":
        return ()
    gpus = scenario.cluster.nodes[0].type.gpus
    found: list[Fewer] = []
    why: ScenarioError | None = None
    for replicas in range(plan.data - 1, math.ceil(plan.data / 2) - 1, -1):
        smaller = in_size(scenario, plan, replicas)
        try:
            nodes = math.ceil(derive(smaller).world / gpus)
        except ScenarioError as error:
            why = why or error
            continue
        found.append(Fewer(replicas, nodes, float(smaller.job.global_batch * smaller.job.sequence_length)))
    if not found:
        reason = f" ({why.problems[0].message})" if why is not None else ""
        message = f"shrink: the {plan.data:,} replicas can't be fewer, down to half as many{reason}: wait would do"
        raise scenario.located(ScenarioError([Problem("when_short", message)]))
    return tuple(found)
