"""What follows from a scenario before anything is built: the layout of the job, and what cannot be.

`derive` gives the `Plan`; every rule that joins several fields is checked here, all at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from colossim.errors import Problem, ScenarioError
from colossim.scenario.schema import Scenario


@dataclass(frozen=True)
class Plan:
    """The layout of the job.

    gpus: of the cluster.  world: ranks.  spares: (node type, nodes) that no rank uses.  tensor, context, pipeline, expert,
    data: sizes of the parallelisms.  chunks: model chunks a stage.  micro_batches: a replica and step.  micro_batch:
    sequences.  sequence: tokens of a sequence.  tokens: of a rank's micro-batch.  order: axes, fastest-varying first.
    axes: their sizes; `expert` and `data` split the replicas.  expert_context: contexts that an expert group spans.
    """

    gpus: int
    world: int
    spares: tuple[tuple[str, int], ...]
    tensor: int
    context: int
    pipeline: int
    chunks: int
    expert: int
    data: int
    micro_batches: int
    micro_batch: int
    sequence: int
    tokens: int
    order: tuple[str, ...]
    axes: dict[str, int]
    expert_context: int

    @property
    def replica_group(self) -> int:
        """Ranks that hold the same dense parameters: data x context."""
        return self.data * self.context

    @property
    def expert_group(self) -> int:
        """Ranks that hold the same experts."""
        return self.data * self.context // self.expert


def _divisors(n: int, near: int) -> str:
    """The divisors of n around `near`, as text."""
    all_ = [d for d in range(1, n + 1) if n % d == 0]
    close = sorted(sorted(all_, key=lambda d: (abs(d - near), d))[:3])
    return ", ".join(str(d) for d in close)


def derive(scenario: Scenario) -> Plan:
    """The layout of the job on the cluster. Raises ScenarioError with every rule that is broken."""
    job, par, gpus = scenario.job, scenario.job.parallelism, scenario.cluster.gpus
    problems: list[Problem] = []

    def problem(field: str, message: str) -> None:
        problems.append(Problem(field, message))

    replica = par.tensor * par.context * par.pipeline
    _check_model(scenario, problem)
    data = _data_size(scenario, gpus, replica, problem)
    micro_batches = 1
    if data:
        if job.global_batch % (data * job.micro_batch):
            per = data * job.micro_batch
            below = max(1, job.global_batch // per) * per
            problem(
                "job.global_batch",
                f"{job.global_batch:,} sequences do not divide among {data:,} replicas x {job.micro_batch} a micro-batch: "
                f"{below:,} or {below + per:,} would",
            )
        else:
            micro_batches = job.global_batch // (data * job.micro_batch)
    if par.schedule == "interleaved":
        if par.virtual_pipeline == 1:
            problem("job.parallelism.virtual_pipeline", "interleaved needs at least 2 chunks a stage: set it, or schedule: 1f1b")
        if par.pipeline == 1:
            problem("job.parallelism.schedule", "interleaved needs a pipeline of at least 2 stages: use 1f1b")
        elif data and not problems and micro_batches % par.pipeline:
            step = data * job.micro_batch * par.pipeline
            below = max(1, job.global_batch // step) * step
            problem(
                "job.global_batch",
                f"interleaved needs micro-batches ({micro_batches}) in multiples of the stages ({par.pipeline}): "
                f"a batch of {below:,} or {below + step:,} would do",
            )
    elif par.virtual_pipeline > 1:
        problem("job.parallelism.virtual_pipeline", f"{par.schedule} has one chunk a stage: set 1, or schedule: interleaved")
    if problems:
        raise ScenarioError(problems)
    expert_data = math.gcd(data, par.expert)
    axes = {
        "tensor": par.tensor,
        "context": par.context,
        "expert": expert_data,
        "data": data // expert_data,
        "pipeline": par.pipeline,
    }
    world = replica * data
    return Plan(
        gpus=gpus,
        world=world,
        spares=_spares(scenario, world),
        tensor=par.tensor,
        context=par.context,
        pipeline=par.pipeline,
        chunks=par.virtual_pipeline,
        expert=par.expert,
        data=data,
        micro_batches=micro_batches,
        micro_batch=job.micro_batch,
        sequence=job.sequence_length,
        tokens=job.micro_batch * job.sequence_length // par.context,
        order=tuple(par.order),
        axes=axes,
        expert_context=par.expert // expert_data,
    )


def _check_model(scenario: Scenario, problem: object) -> None:
    assert callable(problem)
    job, par, model = scenario.job, scenario.job.parallelism, scenario.job.model
    if model.heads % par.tensor:
        problem("job.parallelism.tensor", f"{par.tensor} does not divide {model.heads} heads: {_divisors(model.heads, par.tensor)} would")
    if model.kv_heads % par.tensor and par.tensor % model.kv_heads:
        problem("job.parallelism.tensor", f"{par.tensor} and {model.kv_heads} key/value heads do not divide each other")
    if model.heads % model.kv_heads:
        problem("job.model.kv_heads", f"{model.kv_heads} does not divide {model.heads} heads: {_divisors(model.heads, model.kv_heads)} would")
    for name, width in (("ffn", model.ffn), ("expert_ffn", model.expert_ffn), ("shared_ffn", model.shared_ffn)):
        if width % par.tensor:
            problem("job.parallelism.tensor", f"{par.tensor} does not divide the model's {name} of {width:,}")
    slots = par.pipeline * par.virtual_pipeline
    if model.layers % slots:
        problem(
            "job.parallelism.pipeline",
            f"{par.pipeline} stages x {par.virtual_pipeline} chunks do not divide {model.layers} layers: "
            f"stages x chunks of {_divisors(model.layers, slots)} would",
        )
    if par.expert > 1 and not model.experts:
        problem("job.parallelism.expert", f"{par.expert}: the model `{model.name}` has no experts; set 1")
    if model.experts:
        if model.experts % par.expert:
            problem("job.parallelism.expert", f"{par.expert} does not divide {model.experts} experts: {_divisors(model.experts, par.expert)} would")
        if not 1 <= model.experts_per_token <= model.experts:
            problem("job.model.experts_per_token", f"a token visits between 1 and {model.experts} experts")
        if not model.expert_ffn:
            problem("job.model.expert_ffn", "a model with experts says how wide one is")
    elif not model.ffn:
        problem("job.model.ffn", "a model without experts has an MLP: say how wide")
    if par.context > 1 and job.sequence_length % (2 * par.context):
        step = 2 * par.context
        problem(
            "job.sequence_length",
            f"{job.sequence_length:,} tokens do not divide into 2 x {par.context} balanced causal pieces: "
            f"{job.sequence_length // step * step or step:,} would",
        )
    if par.sequence and job.sequence_length * job.micro_batch // par.context % par.tensor:
        problem("job.sequence_length", f"does not divide among {par.tensor} ranks of sequence parallelism")
    for group, entry in enumerate(scenario.cluster.nodes):
        gpu = entry.type.gpu
        if job.precision not in gpu.peak or job.precision not in gpu.gemm:
            known = ", ".join(sorted(set(gpu.peak) & set(gpu.gemm)))
            problem("job.precision", f"{job.precision}: the {gpu.name} of cluster.nodes.{group} has {known}")


def _data_size(scenario: Scenario, gpus: int, replica: int, problem: object) -> int:
    """Replicas, or 0 if there is no such number (and the problem is noted)."""
    assert callable(problem)
    job, par = scenario.job, scenario.job.parallelism
    most = gpus // replica
    if not most:
        problem(
            "job.parallelism",
            f"one replica takes tensor {par.tensor} x context {par.context} x pipeline {par.pipeline} = {replica:,} GPUs; "
            f"the cluster has {gpus:,}",
        )
        return 0
    if isinstance(par.data, int):
        if par.data > most:
            problem(
                "job.parallelism.data",
                f"{par.data:,} replicas x {replica:,} GPUs = {par.data * replica:,}; the cluster has {gpus:,}: {most:,} would fit",
            )
            return 0
        if par.data * par.context % par.expert:
            problem("job.parallelism.data", f"{par.data} x context {par.context} is no multiple of expert {par.expert}")
            return 0
        return par.data
    for data in range(min(most, job.global_batch // job.micro_batch), 0, -1):
        if job.global_batch % (data * job.micro_batch) == 0 and data * par.context % par.expert == 0:
            return data
    problem(
        "job.global_batch",
        f"no number of replicas up to {most:,} divides {job.global_batch:,} sequences in micro-batches of {job.micro_batch} "
        f"and is a multiple of expert {par.expert}: {max(1, most // par.expert) * par.expert * job.micro_batch:,} sequences would do",
    )
    return 0


def _spares(scenario: Scenario, world: int) -> tuple[tuple[str, int], ...]:
    """Whole nodes behind the last rank, a node type at a time."""
    spares: dict[str, int] = {}
    left = world
    for group in scenario.cluster.nodes:
        used = min(group.count, math.ceil(left / group.type.gpus))
        left = max(0, left - used * group.type.gpus)
        if used < group.count:
            spares[group.type.name] = spares.get(group.type.name, 0) + group.count - used
    return tuple(spares.items())


def no_effects(scenario: Scenario, plan: Plan) -> list[str]:
    """Notes on keys that the user wrote and that changed nothing, with the reason."""
    job, par = scenario.job, scenario.job.parallelism
    dense = not job.model.experts
    silent = [
        ("job.overlap.expert", dense, "the model has no experts"),
        ("job.overlap.expert", not dense and plan.expert == 1, "the experts of a layer sit on one rank"),
        ("job.overlap.expert", job.overlap.expert and not dense and not job.model.shared_ffn, "no shared MLP could hide the all-to-all"),
        ("job.overlap.tensor", par.tensor == 1, "tensor parallelism is 1"),
        ("job.overlap.pipeline", par.pipeline == 1, "there is one stage"),
        ("job.overlap.data", plan.replica_group == 1, "there is one replica"),
        ("job.bucket", plan.replica_group == 1, "there is one replica"),
        ("job.bucket", not job.overlap.data, "gradients are reduced after the backward pass, in one piece"),
        ("job.parallelism.sequence", par.sequence and par.tensor == 1, "tensor parallelism is 1"),
        ("job.parallelism.sharding", par.sharding != "none" and plan.replica_group == 1, "there is one replica"),
        ("job.recompute", job.recompute == "selective" and job.software.attention == "flash", "flash attention keeps no scores to compute again"),
        ("job.collectives_algorithm", plan.world <= min(g.type.gpus for g in scenario.cluster.nodes), "the job sits in one node"),
        ("cluster.fabric.paths_per_flow", scenario.cluster.fabric.routing == "adaptive", "adaptive routing uses all paths"),
        ("run.seed", True, "nothing is drawn at random in this run"),
    ]  # fmt: skip
    return [f"`{path}` had no effect: {why}" for path, quiet, why in silent if quiet and scenario.written(path)]
