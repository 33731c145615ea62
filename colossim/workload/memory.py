"""Memory a GPU, stage by stage, and the settings that would fit (models.md 6)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from colossim.errors import ScenarioError
from colossim.scenario.derive import Plan, derive
from colossim.scenario.job import JobSpec
from colossim.scenario.schema import Scenario
from colossim.workload import whole_weights
from colossim.workload.loads import layer_loads
from colossim.workload.schedule import adding_up, holdings
from colossim.workload.transformer import chunk_layers, is_moe, local_ends, local_layer, products, stage_parameters

#: Bytes of a weight, and of a gathered activation.
_WEIGHT = 2.0
#: Bytes of a gradient on the host: fp32, cast on the GPU (DeepSpeed, runtime/zero/stage_1_and_2.py,
#: async_inplace_copy_grad_to_fp32_buffer_from_gpu; Megatron-Core, optimizer/cpu_offloading/hybrid_optimizer.py).
HOST_GRADIENT = 4.0


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU of a stage at the peak of the step, which is in its passes or in its optimizer's step.

    update: what that step takes beyond gradients and state, 0 if the peak is in the passes; else activations are 0.
    host: bytes that the node's CPUs hold for the GPU, at their own peak.
    """

    stage: int
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    update: float
    workspace: float
    host: float = 0.0

    @property
    def peak(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.update + self.workspace


def layer_activations(plan: Plan, job: JobSpec, routed: float) -> float:
    """Bytes that one layer keeps of one micro-batch for its backward pass. routed: as in `Load.fullest`; 0 without experts.

    A token keeps, of 16-bit values: 4h of two norms, 2h the input of QKV, 2(a+2g)d, 2ad, the MLP's 2h + 4f (6f gated), 2h of
    dropout masks, 5as unfused scores unless they are recomputed. The tensor group shares all of it with sequence
    parallelism; without it 10h stay whole (Korthikanti et al. 2022, eqs. 1, 2, 4: 34 s b h + 5 a s^2 b a layer).
    In fp8 products keep their inputs in 8 bit, that of attention's output beside attention's own (TransformerEngine,
    pytorch/module/linear.py, saved_inputmat): 29 h of a GPT's 34. A stack that `keeps_gathered` has the
    inputs of QKV and of the MLP whole.
    """
    model, t = job.model, plan.tensor
    h, q = model.hidden, model.heads * model.head_size
    # More ranks that share heads than key/value heads there are keep whole ones, repeated.
    ranks = t * (plan.context if job.parallelism.context_style == "ulysses" else 1)
    kv = max(ranks, model.kv_heads) * model.head_size
    whole = t if job.parallelism.sequence else 1
    if job.recompute == "full":
        return plan.tokens * 2.0 * h / whole
    if job.recompute == "selective-op":
        # The layer's input, what every other product and fused attention give, and what the tensor group has summed.
        kept = sum(n for _, n in products(model, model.layers - 1 if routed else 0, job.software.fusions)[::2])
        core = q if job.software.attention != "unfused" else 0
        summed = 2.0 * h / whole if t > 1 else 0.0
        return plan.tokens * 2.0 * (h / whole + (kept + core) / t + summed)
    dropout = 2.0 * h if model.dropout else 0.0
    norms = (4.0 * h + dropout) / whole
    eight = job.precision == "fp8"
    given = 1.0 if eight else 2.0
    gathered = 1 if job.software.keeps_gathered else whole
    attention = given * h / gathered + (2.0 * (q + 2 * kv) + (2.0 + eight) * q) / t
    if job.software.attention == "unfused" and job.recompute == "none":
        attention += 5.0 * model.heads * plan.sequence / t
    wide = (4.0 if model.mlp_matrices == 3 else 2.0) + given
    if not routed:
        return plan.tokens * (norms + attention + given * h / gathered + wide * model.ffn / t)
    k = model.experts_per_token * routed
    mlp = 2.0 * h / whole + k * (given * h / whole + wide * model.expert_ffn / t + 2.0 * h / whole)
    return plan.tokens * (norms + attention + mlp + wide * model.shared_ffn / t)


def weight_gradient_inputs(plan: Plan, job: JobSpec, routed: float) -> float:
    """Bytes that one layer keeps of one micro-batch between B and W: what its weights' gradients are made of.

    Of 16-bit values a token keeps the inputs of the products, as in `layer_activations`, and the gradients of their
    outputs: 2(a+2g)d, 2h, 2f (4f gated), 2h. Those of the two products that end in a reduction are whole on each tensor
    rank: they were gathered for B. Qi et al. 2023, table 1: 32 s b h a layer.
    """
    model, t = job.model, plan.tensor
    h, q = model.hidden, model.heads * model.head_size
    kv = max(t, model.kv_heads) * model.head_size
    whole = t if job.parallelism.sequence else 1
    attention = 2.0 * h / whole + 2.0 * q / t + 2.0 * (q + 2 * kv) / t + 2.0 * h
    # inputs of the second product, gradients of the first one's output
    wide = 2.0 + 2.0 * (model.mlp_matrices - 1)
    if not routed:
        return plan.tokens * (attention + 2.0 * h / whole + wide * model.ffn / t + 2.0 * h)
    mlp = 2.0 * h / whole + model.experts_per_token * routed * (2.0 * h / whole + wide * model.expert_ffn / t + 2.0 * h)
    shared = wide * model.shared_ffn / t + 2.0 * h if model.shared_ffn else 0.0
    return plan.tokens * (attention + mlp + shared)


def _recomputed(plan: Plan, job: JobSpec, routed: float) -> float:
    """Bytes that a layer takes beyond what it keeps while its backward pass computes it again."""
    if job.recompute == "none":
        return 0.0
    once = layer_activations(plan, job.model_copy(update={"recompute": "none"}), routed)
    return once if job.recompute == "full" else once - layer_activations(plan, job, routed)


def _gathered(plan: Plan, job: JobSpec, *, backward: bool) -> float:
    """Bytes of keys and values that the layer at work holds of the whole sequence; backward of their gradients, too."""
    if job.parallelism.context_style != "all-gather" or plan.context == 1:
        return 0.0
    kv = max(1.0, job.model.kv_heads / plan.tensor) * job.model.head_size
    return (2 if backward else 1) * 2 * _WEIGHT * plan.context * plan.tokens * kv


def _logit_bytes(plan: Plan, job: JobSpec) -> float:
    """Bytes of a logit that are held at the loss, of those of this rank."""
    stack = job.software
    split = stack.split_logit_bytes if plan.tensor > 1 else None
    return stack.logit_bytes if split is None else split


def _activations(plan: Plan, job: JobSpec, stage: int) -> tuple[float, float]:
    """Bytes of activations at the fullest moment of a stage's passes: on the GPU, and on the host at its own.

    F adds its chunk's and B frees them, with one layer computed again, or its keys and values gathered, at a time; what
    zero-bubble's W needs stays from B to W. Logits live from the last chunk's F to its B, with what the stack's cross
    entropy makes of them and the head's input where the stack `keeps_gathered`, and are gone when B reaches a layer; their
    gradient stays until W.

    Of what is offloaded the GPU has two layers: one at work, one on its way. Between the passes of a pipeline's micro-batches
    a third waits for the next backward pass. Deferred weight gradients of the head wait for the passes' end with what they are
    made of: 2 of an input, which the tensor group shares with sequence parallelism, and 2 of a logit's gradient.
    """
    model = job.model
    loads = [load.fullest if is_moe(model, i) else 0.0 for i, load in enumerate(layer_loads(plan, job))]
    ways = {how: job.model_copy(update={"recompute": how}) for how in (job.recompute, "none")}
    kept, pending, again, sent = [], [], [], []  # a chunk each
    share, largest = job.offload.activations, 0.0
    for chunk in range(plan.chunks):
        layers = chunk_layers(plan.pipeline, plan.layers, stage, chunk)
        kinds = Counter((loads[layer], job.recomputed(i)) for i, layer in enumerate(layers))
        sizes = {kind: layer_activations(plan, ways[kind[1]], kind[0]) for kind in kinds}
        own = sum(n * sizes[kind] for kind, n in kinds.items())
        sent.append(share * own)
        largest = max(largest, share * max(sizes.values(), default=0.0))
        late = sum(n * weight_gradient_inputs(plan, job, routed) for (routed, _), n in kinds.items())
        loss = 0.0
        if stage == plan.pipeline - 1 and chunk == plan.chunks - 1:
            logits = plan.tokens * model.vocabulary / plan.tensor
            loss = _logit_bytes(plan, job) * logits
            if plan.tensor > 1 and job.parallelism.sequence and job.software.keeps_gathered:
                # The head's input, whole.
                loss += 2.0 * plan.tokens * model.hidden
            late += 2.0 * logits
        kept.append((1.0 - share) * own + loss)
        pending.append(late)
        most = max((_recomputed(plan, ways[how], routed) for routed, how in kinds), default=0.0)
        again.append(max(0.0, most - loss))
    gathered = {kind: _gathered(plan, job, backward=kind == "B") for kind in ("F", "B")}
    buffer = (2 if plan.pipeline == 1 else 3) * largest
    moments = holdings(job.parallelism.schedule, stage, plan.pipeline, plan.micro_batches, plan.chunks)
    away = [sum(n * size for n, size in zip(held.activations, sent, strict=True)) for held in moments]
    here = max(
        sum(n * size for n, size in zip(held.activations, kept, strict=True))
        + min(offloaded, buffer)
        + sum(n * size for n, size in zip(held.pending, pending, strict=True))
        + (again[held.chunk] if held.kind == "B" else 0.0)
        + gathered.get(held.kind, 0.0)
        for held, offloaded in zip(moments, away, strict=True)
    )
    waiting = 0.0
    if 0 < stage == plan.pipeline - 1:
        whole = plan.tensor if job.parallelism.sequence else 1
        waiting = 2.0 * plan.tokens * (model.hidden / whole + model.vocabulary / plan.tensor)
    return here + min(job.parallelism.defer_head, plan.micro_batches) * waiting, max(away)


def _adding_up(plan: Plan, job: JobSpec, stage: int, *, dense: bool, experts: bool) -> float:
    """Local parameters whose whole gradients are there at the fullest moment, where chunks scatter them when they end.

    dense, experts: whether gradients of these are scattered at all.
    """
    model, sizes = job.model, [0.0] * plan.chunks
    for chunk in range(plan.chunks):
        for layer in chunk_layers(plan.pipeline, plan.layers, stage, chunk):
            local = local_layer(model, layer, plan.tensor, plan.expert, plan.expert_tensor)
            sizes[chunk] += dense * local.dense + experts * local.experts
    sizes[0] += dense * local_ends(model, plan.tensor, first=stage == 0, last=False, pipeline=plan.pipeline)
    last = stage == plan.pipeline - 1
    sizes[-1] += dense * local_ends(model, plan.tensor, first=False, last=last, pipeline=plan.pipeline)
    moments = adding_up(job.parallelism.schedule, stage, plan.pipeline, plan.micro_batches, plan.chunks)
    return max(sum(sizes[chunk] for chunk in chunks) for chunks in moments)


def stage_memory(plan: Plan, job: JobSpec, stage: int) -> Memory:
    """Memory of a GPU of one stage.

    States a local parameter: 2 of weight, the stack's accumulated gradient, its optimizer state; ZeRO-1 shards the
    optimizer, ZeRO-2 the gradients too, ZeRO-3 all, over the group that holds the same parameters. The passes add
    activations at the fullest moment of the schedule, and of ZeRO-3 two layers, and embedding or head, gathered at a time;
    the optimizer's step adds copies of its shard's gradients and temporaries. An optimizer on the host has its state there,
    and the gradients in fp32.
    """
    model, stack = job.model, job.software
    local = stage_parameters(model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert, plan.expert_tensor)
    level = ("none", "optimizer", "gradients", "parameters").index(job.parallelism.sharding)
    parameters = gradients = optimizer = update = gathered = shard = 0.0
    of_experts = plan.expert_group if plan.experts_apart else plan.sharding_group
    for count, group in ((local.dense, plan.sharding_group), (local.experts, of_experts)):
        parameters += stack.shard_bytes * count / group if level >= 3 else _WEIGHT * count
        gradients += stack.gradient_bytes * count / (group if level >= 2 else 1)
        shard += count / (group if level >= 1 else 1)
    if level == 2 and job.software.scatters_last:
        gradients += stack.gradient_bytes * _adding_up(
            plan, job, stage, dense=plan.sharding_group > 1, experts=of_experts > 1
        )
    if whole_weights.applies(job):
        shard = whole_weights.fullest(plan, job, stage)
    if level >= 3:
        ends = local_ends(model, plan.tensor, first=stage == 0, last=stage == plan.pipeline - 1, pipeline=plan.pipeline)
        layers = sum(len(chunk_layers(plan.pipeline, plan.layers, stage, c)) for c in range(plan.chunks))
        share = min(2, layers) / max(1, layers) if job.parallelism.reshard else 1.0
        gathered = _WEIGHT * (share * (local.dense - ends + local.experts) + ends)
    activations, host = _activations(plan, job, stage)
    if job.offload.optimizer:
        host += (stack.optimizer_bytes + HOST_GRADIENT) * shard
    else:
        optimizer, update = stack.optimizer_bytes * shard, stack.update_bytes * shard
    passes = Memory(stage, parameters + gathered, gradients, optimizer, activations, 0.0, stack.workspace, host)
    step = Memory(stage, parameters, gradients, optimizer, 0.0, update, stack.workspace, host)
    return max(passes, step, key=lambda moment: moment.peak)


def memory_by_stage(plan: Plan, job: JobSpec) -> list[Memory]:
    """Memory of a GPU of each stage."""
    return [stage_memory(plan, job, stage) for stage in range(plan.pipeline)]


def fits(plan: Plan, job: JobSpec, capacity: list[float], host: float = math.inf) -> bool:
    """Whether every stage fits; capacity: bytes of the smallest GPU of each stage.  host: a GPU's share of its CPUs' memory."""
    stages = memory_by_stage(plan, job)
    return all(m.peak <= limit and m.host <= host for m, limit in zip(stages, capacity, strict=True))


def suggestions(scenario: Scenario, capacity: float) -> list[str]:
    """Changes of one to three settings, each of which makes the job fit into GPUs of `capacity` bytes; the nearest first."""
    hosts = min((g.type.host.memory / g.type.gpus if g.type.host else 0.0) for g in scenario.cluster.nodes)
    found: list[str] = []
    enough: list[set[tuple[str, object]]] = []
    for changes in _changes(scenario):
        if any(fewer <= set(changes.items()) for fewer in enough):
            continue
        update: dict[str, object] = {k.split(".")[1]: v for k, v in changes.items() if k.count(".") == 1}
        for part in ("parallelism", "offload"):
            own = {k.split(".")[2]: v for k, v in changes.items() if k.startswith(f"job.{part}.")}
            update[part] = getattr(scenario.job, part).model_copy(update=own)
        job = scenario.job.model_copy(update=update)
        changed = scenario.model_copy(update={"job": job})
        try:
            plan = derive(changed)
        except ScenarioError:
            continue
        if fits(plan, job, [capacity] * plan.pipeline, hosts):
            enough.append(set(changes.items()))
            found.append(
                " ".join(f"--set {path}={str(v).lower() if isinstance(v, bool) else v}" for path, v in changes.items())
            )
        if len(found) == 3:
            break
    return found


def _changes(scenario: Scenario) -> Iterator[dict[str, object]]:
    """Candidate changes, mildest first."""
    job, par = scenario.job, scenario.job.parallelism
    singles: list[dict[str, object]] = []
    if par.tensor > 1 and not par.sequence:
        singles.append({"job.parallelism.sequence": True})
    if par.sharding == "none":
        singles.append({"job.parallelism.sharding": "optimizer"})
    if par.sharding == "optimizer":
        singles.append({"job.parallelism.sharding": "gradients"})
    if job.recompute == "none" and job.software.attention == "unfused":
        singles.append({"job.recompute": "selective"})
    if job.micro_batch > 1:
        singles.append({"job.micro_batch": 1})
    singles += [{"job.parallelism.context": par.context * f, "job.parallelism.data": "auto"} for f in (2, 4)]
    if job.recompute != "full":
        singles.append({"job.recompute": "full"})
    singles += [
        {"job.parallelism.tensor": par.tensor * f, "job.parallelism.data": "auto"}
        for f in (2, 4, 8)
        if par.tensor * f <= 8
    ]
    singles += [{"job.parallelism.expert": par.expert * f} for f in (2, 4, 8) if job.model.experts >= par.expert * f]
    singles += [{"job.parallelism.pipeline": par.pipeline * f, "job.parallelism.data": "auto"} for f in (2, 4, 8)]
    if par.sharding != "parameters":
        singles.append({"job.parallelism.sharding": "parameters"})
    if all(group.type.host is not None for group in scenario.cluster.nodes):
        singles += [{"job.offload.optimizer": True}] if job.optimizer and not job.offload.optimizer else []
        singles += [{"job.offload.activations": 0.5}] if job.offload.activations < 0.5 else []
    for size in (1, 2, 3):
        for chosen in combinations(singles, size):
            fields = [field for change in chosen for field in change if field != "job.parallelism.data"]
            if len(set(fields)) == len(fields):
                yield {field: value for change in chosen for field, value in change.items()}
