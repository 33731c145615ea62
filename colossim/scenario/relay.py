"""How a job is laid anew when its cluster has changed: its replicas, and the batch that they share."""

from __future__ import annotations

import math

from colossim.scenario.derive import expert_ranks, usable_gpus
from colossim.scenario.job import JobSpec
from colossim.scenario.schema import Scenario


def relaid(scenario: Scenario) -> JobSpec:
    """The job of a scenario with the most replicas that its nodes hold, the spares that it asks for left free.

    The global batch stays if it divides among them; else it is the largest below it that does. Raises ValueError where not
    even one replica fits.
    """
    job, gpus = scenario.job, _available(scenario)
    par = job.parallelism
    replica = par.tensor * par.context * par.pipeline
    across = expert_ranks(job)[2]
    step = across // math.gcd(across, par.context)
    if par.sharding_group != "all":
        step = math.lcm(step, par.sharding_group // math.gcd(par.sharding_group, par.context))
    least, unit = _rounds(job)
    # Replicas with shares of their own have equal ones only among those that share experts.
    for data in range(min(gpus // replica, job.global_batch // least) // step * step, 0, -step):
        whole = unit * (math.gcd(data, across) if job.balance == "speed" else data)
        batch = job.global_batch // whole * whole
        if batch >= least * data:
            cut = par.model_copy(update={"data": data})
            return job.model_copy(update={"parallelism": cut, "global_batch": batch})
    if gpus < step * replica:
        groups = f"{step:,} replicas, which share experts or shards, take" if step > 1 else "one replica takes"
        aside = f", {scenario.spares:,} nodes standing by" if scenario.spares else ""
        raise ValueError(f"{groups} {step * replica:,} GPUs; the job has {max(0, gpus):,}{aside}")
    raise ValueError(
        f"a global batch of {job.global_batch:,} sequences leaves less than a round of micro-batches for {step:,} replicas:"
        f" {least * step:,} would do"
    )


def said_batch(scenario: Scenario, batch: int) -> str:
    """What became of a global batch when the job was laid anew, and what stands idle for want of a larger one."""
    job = scenario.job
    data, par = job.parallelism.data, job.parallelism
    assert isinstance(data, int), "laid anew"
    if job.global_batch < batch:
        what = f"{batch:,} sequences don't divide among {data:,} replicas"
        return f"the global batch is {job.global_batch:,}: {what}"
    replica = par.tensor * par.context * par.pipeline
    fits = _available(scenario) // replica
    if (fits - data) * 10 <= fits:
        return ""
    least, _ = _rounds(job)
    return (
        f"{data:,} replicas share the global batch of {batch:,}: {fits:,} would fit, and {fits * least:,} sequences give each"
        " a round of micro-batches; say so under the event's `job`"
    )


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
