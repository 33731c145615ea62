"""Rules that join several fields of a job: what cannot be cut, and what would be right.

Each rule tells `report(field, message)`; nothing is raised, so that all of them speak at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from colossim.scenario.fields import nearest
from colossim.scenario.job import JobSpec
from colossim.scenario.rules_campaign import check_campaign
from colossim.scenario.rules_power import check_power
from colossim.scenario.schema import Scenario

Report = Callable[[str, str], None]

#: Arrays of a cluster cost about 1.5 kB a GPU; beyond this they leave the memory of a workstation.
MOST_GPUS = 10_000_000
#: A step is a row of the result, about 0.5 kB.
MOST_STEPS = 1_000_000
#: A layer is a dozen kernels of a program.
MOST_LAYERS = 10_000
#: Passes of all stages: each takes tens of events, and some kB.
MOST_PASSES = 1_000_000
#: Batch sizes of a ramp: each is a step to play.
MOST_SIZES = 256
#: A queue pair takes about 0.5 kB, and some microseconds.
MOST_FLOWS = 20_000_000


def check(scenario: Scenario, report: Report) -> None:
    """All rules that don't need the number of replicas."""
    job = scenario.job
    _check_size(scenario, report)
    _check_fabric(scenario, report)
    _check_traffic(scenario, report)
    _check_model(job, report)
    _check_tensor(job, report)
    _check_stages(job, report)
    _check_experts(job, report)
    _check_sequence(job, report)
    _check_context_heads(job, report)
    _check_recompute_layers(job, "job", report)
    _check_groups(scenario, report)
    _check_offload(scenario, report)
    check_campaign(scenario, report)
    check_power(scenario, report)


def _check_size(scenario: Scenario, report: Report) -> None:
    gpus, precision = scenario.cluster.gpus, scenario.job.precision
    if gpus > MOST_GPUS:
        report("cluster.nodes", f"{gpus:,} GPUs are more than can be laid out: at most {MOST_GPUS:,}")
    if scenario.run.steps > MOST_STEPS:
        report("run.steps", f"{scenario.run.steps:,} are more than can be listed: at most {MOST_STEPS:,}")
    if scenario.job.model.layers > MOST_LAYERS:
        report(
            "job.model.layers", f"{scenario.job.model.layers:,} are more than can be laid out: at most {MOST_LAYERS:,}"
        )
    for index, group in enumerate(scenario.cluster.nodes):
        gpu = group.type.gpu
        known = sorted(set(gpu.peak) & set(gpu.gemm))
        if precision not in known:
            report(
                "job.precision",
                f"{precision}: the {gpu.name} of cluster.nodes.{index} has {', '.join(known)}",
            )
        kind = scenario.job.software.attention
        if kind != "unfused" and kind not in gpu.attention:
            kinds = ", ".join(sorted(gpu.attention))
            message = f"{kind}: the {gpu.name} of cluster.nodes.{index} has {kinds}; or unfused"
            report("job.software.attention", message)


def _check_fabric(scenario: Scenario, report: Report) -> None:
    fabric = scenario.cluster.fabric
    if fabric.type != "graph":
        return
    if scenario.cluster.graph is None:
        report("cluster.fabric.graph", "is missing: the file of a networkx graph (.graphml, .gexf, .json)")
    if fabric.routing != "adaptive":
        report("cluster.fabric.routing", f"`{fabric.routing}` isn't available on a graph yet: use adaptive")


def _check_traffic(scenario: Scenario, report: Report) -> None:
    traffic, fabric = scenario.traffic, scenario.cluster.fabric
    if traffic is None:
        return
    nodes, gpus = sum(group.count for group in scenario.cluster.nodes), scenario.cluster.gpus
    if len({group.type.gpus for group in scenario.cluster.nodes}) > 1 and traffic.pattern != "permutation":
        report("traffic.pattern", f"{traffic.pattern} needs nodes of one size: permutation takes any")
    pairs = fabric.paths_per_flow if fabric.routing == "ecmp" else 1
    flows = gpus * traffic.flows_per_nic * pairs
    if flows > MOST_FLOWS:
        message = f"{flows:,} flows (queue pairs counted) are more than can be told apart: at most {MOST_FLOWS:,}"
        report("traffic.flows_per_nic", message)
    if traffic.pattern == "all_to_all" and traffic.flows_per_nic >= nodes:
        report("traffic.flows_per_nic", f"{traffic.flows_per_nic} peers: {nodes:,} nodes have at most {nodes - 1:,}")
    if traffic.pattern == "shift":
        distance = traffic.distance or fabric.nodes_per_pod
        if distance % nodes == 0:
            message = f"a shift by {distance:,} of {nodes:,} nodes ends where it began: write another distance"
            report("traffic.distance", message)
    elif traffic.distance is not None:
        report("traffic.distance", f"is a shift's: leave it out with pattern: {traffic.pattern}")


def _check_model(job: JobSpec, report: Report) -> None:
    model = job.model
    if model.heads % model.kv_heads:
        would = near_divisors(model.heads, model.kv_heads)
        report("job.model.kv_heads", f"{model.kv_heads} does not divide {model.heads} heads: {would} would")
    if model.experts:
        if not 1 <= model.experts_per_token <= model.experts:
            message = f"a token visits between 1 and {model.experts} experts, not {model.experts_per_token}"
            report("job.model.experts_per_token", message)
        if not model.expert_ffn:
            report("job.model.expert_ffn", "a model with experts says how wide one is")
        if model.dense_layers >= model.layers:
            message = f"{model.dense_layers} of {model.layers} layers leave none with experts: set experts: 0"
            report("job.model.dense_layers", message)
    if not model.ffn and (model.dense_layers or not model.experts):
        report("job.model.ffn", "layers without experts have an MLP: say how wide")
    if model.positions and job.sequence_length > model.positions:
        message = f"{job.sequence_length:,} tokens: `{model.name}` has {model.positions:,} learned positions"
        report("job.sequence_length", message)


def _check_tensor(job: JobSpec, report: Report) -> None:
    model, tensor = job.model, job.parallelism.tensor
    field = "job.parallelism.tensor"
    if model.heads % tensor:
        would = near_divisors(model.heads, tensor)
        report(field, f"{tensor} does not divide {model.heads} heads: {would} would")
    if model.kv_heads % tensor and tensor % model.kv_heads:
        report(field, f"{tensor} and {model.kv_heads} key/value heads: one must divide the other")
    expert_tensor = job.parallelism.expert_tensor if model.experts else None
    if expert_tensor is not None:
        _check_expert_tensor(job, expert_tensor, report)
    for name in ("ffn", "shared_ffn") if expert_tensor is not None else ("ffn", "expert_ffn", "shared_ffn"):
        width = getattr(model, name)
        if width % tensor:
            report(
                field,
                f"{tensor} does not divide the {name} of {width:,}: {near_divisors(width, tensor)} would",
            )


def _check_expert_tensor(job: JobSpec, expert_tensor: int, report: Report) -> None:
    par, width, field = job.parallelism, job.model.expert_ffn, "job.parallelism.expert_tensor"
    if par.tensor % expert_tensor:
        report(
            field,
            f"{expert_tensor} does not divide tensor {par.tensor}: {near_divisors(par.tensor, expert_tensor)} would",
        )
    elif expert_tensor < par.tensor and not par.sequence:
        report(
            field, f"{expert_tensor} of {par.tensor} tensor ranks: each routes tokens of its own; set sequence: true"
        )
    elif width % expert_tensor:
        would = near_divisors(width, expert_tensor)
        report(field, f"{expert_tensor} does not divide the expert_ffn of {width:,}: {would} would")


def _check_stages(job: JobSpec, report: Report) -> None:
    par, layers = job.parallelism, job.model.layers
    stages, chunks = par.pipeline, par.virtual_pipeline
    if par.schedule == "interleaved":
        if stages == 1:
            report("job.parallelism.schedule", "interleaved needs a pipeline of at least 2 stages: use 1f1b")
        if chunks == 1:
            message = "interleaved needs at least 2 chunks a stage: set it, or schedule: 1f1b"
            report("job.parallelism.virtual_pipeline", message)
    elif chunks > 1:
        message = f"{par.schedule} has one chunk a stage: set 1, or schedule: interleaved"
        report("job.parallelism.virtual_pipeline", message)
    if par.defer_head and par.schedule == "zero-bubble":
        report("job.parallelism.defer_head", "zero-bubble defers the weights' gradients of all layers: leave it out")
    if par.defer_head and par.sharding in ("gradients", "parameters"):
        message = f"sharding: {par.sharding} scatters gradients each micro-batch: use sharding: optimizer, or 0"
        report("job.parallelism.defer_head", message)
    what = f"{stages} stages" + (f" x {chunks} chunks" if chunks > 1 else "")
    if par.stage_layers is not None:
        _check_stage_layers(job, par.stage_layers, what, report)
        return
    counted = counted_layers(job)
    if counted % (stages * chunks):
        ends = [end for end, yes in (("embedding", par.account_for_embedding), ("loss", par.account_for_loss)) if yes]
        whole = f"{layers} layers" + (f" with {' and '.join(ends)} as a layer = {counted}" if ends else "")
        would = near_divisors(counted, stages * chunks)
        unit = "stages x chunks" if chunks > 1 else "stages"
        other = "; stage_layers says how many each has"
        if not ends and (layers + 2) % (stages * chunks) == 0:
            other = "; with account_for_embedding and account_for_loss these do, too"
        report("job.parallelism.pipeline", f"{what} do not divide {whole}: {would} {unit} would{other}")


def counted_layers(job: JobSpec) -> int:
    """Layers that stages share equally: the model's, and one each for embedding and loss if they count."""
    return job.model.layers + job.parallelism.account_for_embedding + job.parallelism.account_for_loss


def _check_stage_layers(job: JobSpec, given: tuple[int, ...], what: str, report: Report) -> None:
    par, field = job.parallelism, "job.parallelism.stage_layers"
    chunks = par.pipeline * par.virtual_pipeline
    if par.account_for_embedding or par.account_for_loss:
        key = "account_for_embedding" if par.account_for_embedding else "account_for_loss"
        report(f"job.parallelism.{key}", "is for equal stages: leave it out, or stage_layers")
    if len(given) != chunks:
        report(field, f"has {len(given)} numbers: {what} take {chunks}")
    elif sum(given) != job.model.layers:
        report(field, f"adds up to {sum(given)} layers: the model has {job.model.layers}")
    elif 0 in given[1:-1]:
        at = given.index(0, 1)
        report(
            f"{field}.{at}", "only the first, with the embedding, and the last, with the head, can do without layers"
        )


def _check_experts(job: JobSpec, report: Report) -> None:
    model, expert = job.model, job.parallelism.expert
    if expert > 1 and not model.experts:
        report("job.parallelism.expert", f"{expert}: the model `{model.name}` has no experts; set 1")
    elif model.experts % expert:
        would = near_divisors(model.experts, expert)
        report("job.parallelism.expert", f"{expert} does not divide {model.experts} experts: {would} would")
    _check_loads(job, report)


def _check_loads(job: JobSpec, report: Report) -> None:
    given, model, expert = job.experts, job.model, job.parallelism.expert
    if given.pad and given.capacity_factor is None:
        report("job.experts.pad", "pads to the experts' capacity: say capacity_factor, too")
    if given.fullest is not None and given.imbalance:
        report("job.experts.fullest", "stands in place of a draw: leave it out, or imbalance")
    if not model.experts or not model.experts_per_token:
        return
    if given.fullest is not None and given.fullest > expert > 1:
        message = f"{given.fullest:g} times the mean is more than all tokens on one of {expert} ranks: at most {expert}"
        report("job.experts.fullest", message)
    largest = math.sqrt(max(0.0, model.experts / model.experts_per_token - 1))
    if given.imbalance and given.imbalance >= largest:
        which = f"{model.experts_per_token} of {model.experts}"
        message = (
            f"{given.imbalance:.4g} of the mean: with all tokens on {which} experts it is {largest:.4g}: less would do"
        )
        report("job.experts.imbalance", message)


def _check_context_heads(job: JobSpec, report: Report) -> None:
    """Ulysses: context and tensor share the heads; ranks may repeat key/value heads, but each has as many."""
    par, model = job.parallelism, job.model
    if par.context_style != "ulysses" or par.context == 1 or model.heads % par.tensor:
        return
    field, ranks = "job.parallelism.context", par.context * par.tensor
    what = f"ulysses gives context {par.context} x tensor {par.tensor} = {ranks} ranks heads of their own"
    if model.heads % ranks:
        would = near_divisors(model.heads // par.tensor, par.context)
        report(field, f"{what}; {ranks} does not divide {model.heads}: context {would} would")
    elif model.kv_heads % ranks and ranks % model.kv_heads:
        message = f"{what}; {ranks} and {model.kv_heads} key/value heads: one must divide the other"
        report(field, f"{message}, or context_style: all-gather")


def _check_offload(scenario: Scenario, report: Report) -> None:
    for key in scenario.job.offload.keys:
        for index, group in enumerate(scenario.cluster.nodes):
            if group.type.host is None:
                message = (
                    f"the {group.type.name} of cluster.nodes.{index} doesn't say what memory its CPUs have: give it"
                )
                report(f"job.offload.{key}", f"{message} `host: {{memory, rate, from_gpu, to_gpu}}`, or leave this out")


def _check_sequence(job: JobSpec, report: Report) -> None:
    par, length = job.parallelism, job.sequence_length
    pieces = 2 * par.context
    if par.context > 1 and length % pieces:
        would = length // pieces * pieces or pieces
        message = f"{length:,} tokens do not divide into 2 x {par.context} balanced causal pieces: {would:,} would"
        report("job.sequence_length", message)
    elif par.sequence and length * job.micro_batch // par.context % par.tensor:
        step = par.context * par.tensor
        would = length // step * step or step
        message = f"{length:,} tokens do not divide among {par.tensor} sequence-parallel ranks: {would:,} would"
        report("job.sequence_length", message)


def _check_recompute_layers(job: JobSpec, owner: str, report: Report) -> None:
    if job.recompute_layers is not None and job.recompute != "full":
        report(f"{owner}.recompute_layers", f"is of full recompute: leave it out with recompute: {job.recompute}")


def _check_groups(scenario: Scenario, report: Report) -> None:
    """Settings by node type, and shares by speed, as far as they need no number of replicas."""
    job, par = scenario.job, scenario.job.parallelism
    each = f"sharding: {par.sharding} reduces gradients over all replicas each micro-batch, so that all have as many"
    remedy = "sharding: optimizer"
    together = par.sharding == "parameters" or (par.sharding == "gradients" and not job.software.scatters_last)
    if not together and job.precision == "fp8" and job.software.amax_reduction == "replicas":
        each = "delayed scaling of fp8 reduces maxima over all replicas each pass, so that all have as many"
        remedy, together = "software.amax_reduction: tensor", True
    if job.balance == "speed" and together:
        report("job.balance", f"{each}: use equal, or {remedy}")
    types = {group.type.name for group in scenario.cluster.nodes}
    for name, settings in job.groups.items():
        field, own = f"job.groups.{name}", job.on(name)
        if name not in types:
            report(field, f"the cluster has no nodes of this type: {nearest(name, types)}")
        if settings.recompute_layers is not None:
            _check_recompute_layers(own, field, report)
        if own.micro_batch == job.micro_batch:
            continue
        if together:
            report(f"{field}.micro_batch", f"{each}: leave it out, or {remedy}")
        if par.sequence and job.sequence_length * own.micro_batch // par.context % par.tensor:
            message = (
                f"{own.micro_batch} x {job.sequence_length:,} tokens do not divide among {par.tensor} sequence-parallel"
            )
            report(f"{field}.micro_batch", f"{message} ranks: {job.micro_batch} does, as the job's own")


def near_divisors(number: int, near: int) -> str:
    """The three divisors of a number around `near`, as text."""
    every = divisors(number)
    return ", ".join(str(d) for d in sorted(sorted(every, key=lambda d: (abs(d - near), d))[:3]))


def divisors(number: int) -> set[int]:
    """All divisors of a positive number."""
    return {d for low in range(1, math.isqrt(number) + 1) if number % low == 0 for d in (low, number // low)}
