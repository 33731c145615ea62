"""How a job is laid anew when its cluster has changed: its replicas, and the batch that they share."""

from __future__ import annotations

import math

from colossim.scenario.derive import expert_ranks, usable_gpus
from colossim.scenario.job import JobSpec
from colossim.scenario.schema import Scenario


def relaid(scenario: Scenario) -> JobSpec:
    """The job of a scenario cut anew for its nodes, the spares that it asks for left free.

    With the global batch as it is or the largest below it that divides, as many replicas as make replicas x sequences the most:
    to lose a share of the batch is as bad as to leave that share of the replicas out. If the batch divides among all that fit,
    these are it. Raises ValueError where not even one fits.
    """
    job, most = scenario.job, _available(scenario) // _replica(scenario.job)
    across = expert_ranks(job)[2]
    step, (least, unit) = _together(job), _rounds(job)
    best = (0, 0, 0)
    for data in range(min(most, job.global_batch // least) // step * step, 0, -step):
        if data * job.global_batch <= best[0]:
            break
        # Replicas with shares of their own have equal ones only among those that share experts.
        whole = unit * (math.gcd(data, across) if job.balance == "speed" else data)
        batch = job.global_batch // whole * whole
        if batch >= least * data:
            best = max(best, (data * batch, data, batch))
    _, data, batch = best
    if data:
        cut = job.parallelism.model_copy(update={"data": data})
        return job.model_copy(update={"parallelism": cut, "global_batch": batch})
    if most < step:
        groups = f"{step:,} replicas, which share experts or shards, take" if step > 1 else "one replica takes"
        aside = f", {scenario.spares:,} nodes standing by" if scenario.spares else ""
        raise ValueError(f"{groups} {step * _replica(job):,} GPUs; the job has {max(0, _available(scenario)):,}{aside}")
    raise ValueError(
        f"a global batch of {job.global_batch:,} sequences leaves less than a round of micro-batches for {step:,} replicas:"
        f" {least * step:,} would do"
    )


def said_batch(scenario: Scenario, batch: int) -> str:
    """What became of a global batch when the job was laid anew, and who stands idle for want of another."""
    job, data = scenario.job, scenario.job.parallelism.data
    assert isinstance(data, int), "laid anew"
    words = []
    if job.global_batch < batch:
        words.append(
            f"the global batch is {job.global_batch:,}: {batch:,} sequences don't divide among {data:,} replicas"
        )
    fits = _available(scenario) // _replica(job) // _together(job) * _together(job)
    if (fits - data) * 10 > fits:
        whole = fits * _rounds(job)[1]
        near = [size for size in (batch // whole * whole, -(-batch // whole) * whole) if size]
        would = " or ".join(f"{size:,}" for size in dict.fromkeys(near))
        words.append(
            f"{data:,} replicas share the batch where {fits:,} would fit: a global_batch of {would} is for them"
        )
    return "; ".join(words)


def _replica(job: JobSpec) -> int:
    """GPUs of one."""
    return job.parallelism.tensor * job.parallelism.context * job.parallelism.pipeline


def _together(job: JobSpec) -> int:
    """Replicas that come and go together: those that share experts, or shards."""
    par, across = job.parallelism, expert_ranks(job)[2]
    step = across // math.gcd(across, par.context)
    if par.sharding_group == "all":
        return step
    return math.lcm(step, par.sharding_group // math.gcd(par.sharding_group, par.context))


def _rounds(job: JobSpec) -> tuple[int, int]:
    """Sequences that a replica takes at least, and what its share is a multiple of."""
    together = job.parallelism.pipeline if job.parallelism.schedule == "interleaved" else 1
    own = {job.on(name).micro_batch for name in job.groups} | {job.micro_batch}
    if job.balance == "speed":
        return min(own) * together, (job.micro_batch if len(own) == 1 else 1) * together
    return math.lcm(*own) * together, math.lcm(*own) * together


def _available(scenario: Scenario) -> int:
    """GPUs that the job may have: less those of the last nodes, as many as are to stand by."""
    left = scenario.spares or 0
    free = 0
    for group in reversed(scenario.cluster.nodes):
        away = min(left, group.count)
        left -= away
        free += away * group.type.gpus
    return min(usable_gpus(scenario), scenario.cluster.gpus - free)
