"""What follows from a scenario before anything is built: how the job lies on the cluster, or why not."""

from __future__ import annotations

import math

from colossim.errors import Problem, ScenarioError
from colossim.scenario.effects import advice, no_effects
from colossim.scenario.job import JobSpec
from colossim.scenario.plan import NodeLimit, Plan
from colossim.scenario.ramp import stretches
from colossim.scenario.rules import MOST_PASSES, MOST_SIZES, Report, check, counted_layers, divisors, near_divisors
from colossim.scenario.schema import Scenario

__all__ = ["Plan", "advice", "derive", "expert_ranks", "no_effects", "usable_gpus"]


def derive(scenario: Scenario) -> Plan:
    """The layout of the job on the cluster. Raises ScenarioError with every rule that is broken."""
    job, par, gpus = scenario.job, scenario.job.parallelism, usable_gpus(scenario)
    problems: list[Problem] = []

    def report(field: str, message: str) -> None:
        problems.append(Problem(field, message))

    check(scenario, report)
    data = _replicas(job, gpus, report)
    micro_batches = _micro_batches(job, data, report) if data else 0
    if micro_batches:
        _check_group_shares(job, micro_batches * job.micro_batch, report)
        _check_ramp(job, data, report)
    _check_sharding_group(job, data, report)
    if data:
        _check_spares(scenario, data, report)
    if problems:
        raise ScenarioError(problems)
    expert_tensor, within, across = expert_ranks(job)
    expert_axis = math.gcd(data, across)
    axes = {
        "tensor": par.tensor,
        "context": par.context,
        "expert": expert_axis,
        "data": data // expert_axis,
        "pipeline": par.pipeline,
    }
    world = math.prod(axes.values())
    return Plan(
        gpus=scenario.cluster.gpus,
        world=world,
        spares=_spares(scenario, world),
        tensor=par.tensor,
        context=par.context,
        pipeline=par.pipeline,
        chunks=par.virtual_pipeline,
        layers=_layers(job),
        expert=par.expert,
        data=data,
        micro_batches=micro_batches,
        micro_batch=job.micro_batch,
        sequence=job.sequence_length,
        tokens=job.micro_batch * job.sequence_length // par.context,
        order=tuple(par.order),
        axes=axes,
        expert_context=across // expert_axis,
        expert_tensor=expert_tensor,
        expert_within=within,
        sharding_group=data * par.context if par.sharding_group == "all" else par.sharding_group,
        seed=scenario.run.seed,
        node_limit=_node_limit(job),
    )


def expert_ranks(job: JobSpec) -> tuple[int, int, int]:
    """Ranks that share an expert; groups of them that an expert group takes of a tensor group; of context and replicas.

    Neighbours first, as Megatron-Core's groups of experts are laid (core/parallel_state.py: order tp-ep-dp-pp).
    """
    par = job.parallelism
    shared = (par.expert_tensor if job.model.experts else None) or par.tensor
    within = math.gcd(par.expert, max(1, par.tensor // shared))
    return shared, within, par.expert // within


def _node_limit(job: JobSpec) -> NodeLimit | None:
    model, most = job.model, job.experts.limit_nodes
    return NodeLimit(most, model.experts, model.experts_per_token) if most is not None and model.experts else None


def _layers(job: JobSpec) -> tuple[int, ...]:
    """Layers of each chunk: as they are given, or all equal with embedding and loss in the place of a layer if they count.

    The latter as Megatron's --account-for-embedding-in-pipeline-split and --account-for-loss-in-pipeline-split.
    """
    par = job.parallelism
    if par.stage_layers is not None:
        return par.stage_layers
    chunks = par.pipeline * par.virtual_pipeline
    counts = [counted_layers(job) // chunks] * chunks
    counts[0] -= par.account_for_embedding
    counts[-1] -= par.account_for_loss
    return tuple(counts)


def usable_gpus(scenario: Scenario) -> int:
    """GPUs that the job may use: of `nodes`, or of those it is placed on; of mixed types as if all were the smallest."""
    job, groups = scenario.job, scenario.cluster.nodes
    named = len(job.placement) if isinstance(job.placement, tuple) else None
    limits = [count for count in (job.nodes, named) if count is not None]
    if not limits:
        return scenario.cluster.gpus
    return min(scenario.cluster.gpus, min(limits) * min(group.type.gpus for group in groups))


def _replicas(job: JobSpec, gpus: int, report: Report) -> int:
    """Replicas D, or 0 if there is no such number.

    auto: the largest D that fits the GPUs, divides the batch, and has D x context % expert == 0.
    """
    par = job.parallelism
    _, within, across = expert_ranks(job)
    replica = par.tensor * par.context * par.pipeline
    most = gpus // replica
    if not most:
        message = f"tensor {par.tensor} x context {par.context} x pipeline {par.pipeline} = {replica:,} GPUs"
        report("job.parallelism", f"one replica takes {message}; the cluster has {gpus:,}")
        return 0
    if isinstance(par.data, int):
        if par.data > most:
            message = f"{par.data:,} replicas x {replica:,} GPUs = {par.data * replica:,}; the cluster has {gpus:,}"
            report("job.parallelism.data", f"{message}: {most:,} would fit")
            return 0
        if par.data * par.context % across:
            message = f"{par.data} replicas x context {par.context} are no multiple of expert {par.expert}"
            message += f" / {within} within a tensor group" if within > 1 else ""
            report("job.parallelism.data", message)
            return 0
        return par.data
    found = _divides(job, min(most, job.global_batch // job.micro_batch), 1)
    if not found:
        unit = job.micro_batch * across // math.gcd(across, par.context)
        largest = most * par.context // across * across // par.context
        would = "" if not largest else f": {_near(job.global_batch, unit)} sequences would"
        report(
            "job.global_batch",
            f"{job.global_batch:,} sequences do not divide among any number of replicas up to {most:,} in "
            f"micro-batches of {job.micro_batch}, expert {par.expert}{would}",
        )
    return found


def _divides(job: JobSpec, most: int, rounds: int) -> int:
    """The largest D up to `most` that leaves a multiple of `rounds` micro-batches each; 0 if none does."""
    par = job.parallelism
    share, rest = divmod(job.global_batch, job.micro_batch * rounds)
    if rest or not share:
        return 0
    across = expert_ranks(job)[2]
    fitting = (data for data in divisors(share) if data <= most and data * par.context % across == 0)
    return max(fitting, default=0)


def _micro_batches(job: JobSpec, data: int, report: Report) -> int:
    """Micro-batches m of a replica and step; by speed about as many as equal shares would be."""
    par, batch = job.parallelism, job.global_batch
    unit = data * job.micro_batch
    if job.balance == "speed":
        return _micro_batches_by_speed(job, data, report)
    if batch % unit:
        report(
            "job.global_batch",
            f"{batch:,} sequences do not divide among {data:,} replicas x {job.micro_batch} a micro-batch: "
            f"{_near(batch, unit)} would",
        )
        return 0
    if par.schedule == "interleaved" and batch // unit % par.pipeline:
        fewer = _divides(job, data, par.pipeline)
        report(
            "job.global_batch",
            f"interleaved needs micro-batches ({batch // unit}) in multiples of the stages ({par.pipeline}): "
            f"{_near(batch, unit * par.pipeline)} sequences would" + (f", or data: {fewer}" if fewer else ""),
        )
    _check_passes(job, batch // unit, "job.global_batch", report)
    return batch // unit


def _micro_batches_by_speed(job: JobSpec, data: int, report: Report) -> int:
    """Replicas that share experts have as many micro-batches; interleaved schedules take as many as stages at once."""
    par, batch = job.parallelism, job.global_batch
    together = par.pipeline if par.schedule == "interleaved" else 1
    own = {job.on(name).micro_batch for name in job.groups} | {job.micro_batch}
    # Sequences that those who share experts take at once; with several sizes of micro-batches the shares will tell.
    unit = math.gcd(data, expert_ranks(job)[2]) * together * (job.micro_batch if len(own) == 1 else 1)
    least = data * together * min(own)
    if batch % unit or batch < least:
        what = f"{batch:,} sequences are no sum of shares in multiples of {unit:,}, for {data:,} replicas {least:,} at least"
        report("job.global_batch", f"{what}: {_near(max(batch, least), unit)} would")
        return 0
    found = max(1, batch // (data * job.micro_batch * together)) * together
    _check_passes(job, found, "job.global_batch", report)
    return found


def _check_passes(job: JobSpec, micro_batches: int, field: str, report: Report) -> None:
    par = job.parallelism
    passes = (3 if par.schedule == "zero-bubble" else 2) * micro_batches * par.virtual_pipeline * par.pipeline
    if passes > MOST_PASSES:
        message = (
            f"{micro_batches:,} micro-batches a replica make {passes:,} passes: at most {MOST_PASSES:,} can be played"
        )
        report(field, message)


def _check_group_shares(job: JobSpec, sequences: int, report: Report) -> None:
    """Equal shares, in micro-batches of each group's own size. sequences: of one replica."""
    par = job.parallelism
    for name in job.groups if job.balance == "equal" else ():
        size, field = job.on(name).micro_batch, f"job.groups.{name}.micro_batch"
        together = par.pipeline if par.schedule == "interleaved" else 1
        if sequences % (size * together):
            what = f"micro-batches of {size}" + (f", {together} at a time (interleaved)" if together > 1 else "")
            would = near_divisors(sequences // together, size) if sequences % together == 0 else str(job.micro_batch)
            report(field, f"{sequences} sequences a replica are no whole number of {what}: {would} would")
        elif size < job.micro_batch:
            _check_passes(job, sequences // size, field, report)


def _check_ramp(job: JobSpec, data: int, report: Report) -> None:
    """Every batch size that the ramp steps through is one that the replicas can share."""
    ramp, batch, field = job.batch_ramp, job.global_batch, "job.batch_ramp"
    if ramp is None:
        return
    if ramp.start >= batch:
        report(f"{field}.start", f"{ramp.start:,} is no less than the global batch of {batch:,}: less would do")
    elif (batch - ramp.start) % ramp.increment:
        would = near_divisors(batch - ramp.start, ramp.increment)
        message = (
            f"{ramp.increment:,} does not divide {batch:,} - {ramp.start:,} = {batch - ramp.start:,}: {would} would"
        )
        report(f"{field}.increment", message)
    elif ramp.samples % 1:
        report(f"{field}.samples", f"{ramp.samples:g} is no whole number of sequences")
    elif (many := (batch - ramp.start) // ramp.increment) > MOST_SIZES:
        fewer = min(size for size in divisors(batch - ramp.start) if (batch - ramp.start) // size <= MOST_SIZES)
        message = f"makes {many:,} batch sizes, each of which is played: at most {MOST_SIZES}: {fewer:,} would do"
        report(f"{field}.increment", message)
    else:
        wrong: list[str] = []
        for size, _ in stretches(ramp, batch):
            smaller = job.model_copy(update={"global_batch": size})
            each = _micro_batches(smaller, data, lambda _, message: wrong.append(message))
            if each:
                _check_group_shares(smaller, each * job.micro_batch, lambda _, message: wrong.append(message))
            if wrong:
                report(field, f"its step of {size:,} sequences: {wrong[0]}")
                return


def _check_sharding_group(job: JobSpec, data: int, report: Report) -> None:
    par = job.parallelism
    if par.sharding_group == "all":
        return
    holders = data * par.context
    if par.expert > 1 or expert_ranks(job)[0] < par.tensor:
        report("job.parallelism.sharding_group", "some ranks of a group can't share the states of experts yet: use all")
    elif data and holders % par.sharding_group:
        message = f"{par.sharding_group} does not divide the {holders:,} ranks that hold the same parameters"
        report("job.parallelism.sharding_group", f"{message}: {near_divisors(holders, par.sharding_group)} would")


def _check_spares(scenario: Scenario, data: int, report: Report) -> None:
    par, wanted = scenario.job.parallelism, scenario.spares
    free = sum(count for _, count in _spares(scenario, par.tensor * par.context * par.pipeline * data))
    if wanted is not None and wanted > free:
        nodes = sum(group.count for group in scenario.cluster.nodes)
        message = f"{wanted:,} nodes: the job leaves {free:,} of {nodes:,} free: {free:,} would do, or fewer replicas"
        report("spares", message)


def _near(number: int, unit: int) -> str:
    """The multiples of a unit around a number, as text."""
    below = number // unit * unit
    return f"{below:,} or {below + unit:,}" if below else f"{unit:,}"


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
