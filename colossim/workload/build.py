"""Programs of a job: passes in the schedule's order, gradients released as they get ready, and the step's end.

Not modelled here: the gather of parameters beside the next step's forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colossim.catalog.types import Host
from colossim.scenario.derive import Plan
from colossim.scenario.schema import JobSpec
from colossim.workload.kernels import Stream
from colossim.workload.layers import WIDTH, LayerOps
from colossim.workload.program import (
    ChannelName,
    Collective,
    Compute,
    Op,
    Pass,
    Post,
    Receive,
    Send,
    StageProgram,
    Wait,
    launches,
    merged,
    split_backward,
)
from colossim.workload.schedule import Kind, order, splits_backward
from colossim.workload.transformer import Stage, chunk_layers, head, is_moe, local_ends, local_layer, stage_parameters

#: (whether each layer has experts, embedding here, head here)
_Shape = tuple[tuple[bool, ...], bool, bool]


def build_programs(plan: Plan, job: JobSpec) -> tuple[StageProgram, ...]:
    """The program of every pipeline stage."""
    builder = _Builder(plan, job)
    return tuple(builder.stage(i) for i in range(plan.pipeline))


def recomputed_layers(plan: Plan, job: JobSpec) -> list[int]:
    """Layers of the model that full recompute computes again."""
    return [
        layer
        for stage in range(plan.pipeline)
        for chunk in range(plan.chunks)
        for number, layer in enumerate(chunk_layers(plan.pipeline, plan.layers, stage, chunk))
        if job.recomputed(number) == "full"
    ]


@dataclass(frozen=True)
class _Bucket:
    """Gradients that travel together. after: (chunk, layer of the chunk) whose backward pass completes it; -1: the ends.

    tag: of the post; empty if the pass waits for it.
    """

    channel: ChannelName
    parameters: float
    after: tuple[int, int]
    tag: str


@dataclass
class _Builder:
    plan: Plan
    job: JobSpec
    _bodies: dict[tuple[object, ...], tuple[Op, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ops = LayerOps(self.plan, self.job)
        sharding = self.job.parallelism.sharding
        self.shards_optimizer = sharding != "none"
        self.shards_gradients = sharding in ("gradients", "parameters")
        self.gathers = sharding == "parameters"
        self.splits = splits_backward(self.job.parallelism.schedule)
        self.groups: dict[ChannelName, int] = {"data": self.plan.replica_group, "expert_data": self.plan.expert_group}
        if self.plan.expert == 1:
            # Experts that aren't split are replicated like everything else.
            self.groups["expert_data"] = 1

    # -- a stage -----------------------------------------------------------------------------------------------------
    def stage(self, stage: int) -> StageProgram:
        plan, job = self.plan, self.job
        buckets = self._buckets(stage)
        slots = order(job.parallelism.schedule, stage, plan.pipeline, plan.micro_batches, plan.chunks)
        host = job.software.host
        last = plan.micro_batches - 1
        # A micro-batch changes what a pass does through the release only: 512 of them are put together once.
        known: dict[tuple[Kind, int, bool], tuple[tuple[Op, ...], float]] = {}
        passes = []
        for kind, micro_batch, chunk in slots:
            completes = kind == ("W" if self.splits else "B")
            released = completes and (self.shards_gradients or micro_batch == last)
            key = (kind, chunk, released)
            if key not in known:
                body = self._body(stage, chunk, kind, tuple(buckets) if released else ())
                known[key] = body, self._host(host, stage, chunk, kind)
            passes.append(Pass(kind, micro_batch, chunk, *known[key]))
        return StageProgram(stage, tuple(passes), self._epilogue(stage, buckets), host.exponent if host else 1.0)

    def _shape(self, stage: int, chunk: int) -> _Shape:
        plan, model = self.plan, self.job.model
        layers = chunk_layers(plan.pipeline, plan.layers, stage, chunk)
        last = stage == plan.pipeline - 1 and chunk == plan.chunks - 1
        return tuple(is_moe(model, i) for i in layers), stage == 0 and chunk == 0, last

    def _host(self, host: Host | None, stage: int, chunk: int, kind: Kind) -> float:
        """s that launching a pass takes: so much a layer, and once a micro-batch on the chunk that begins it.

        Where B and W are passes of their own, each takes the backward pass's by the number of its kernels.
        """
        if host is None:
            return 0.0
        layers = range(len(self._shape(stage, chunk)[0]))
        factor = {"none": host.backward, "selective": host.backward, "full": host.backward_full}
        whole = host.forward * sum(1.0 if kind == "F" else factor[self.job.recomputed(i)] for i in layers)
        begins = chunk == (0 if kind == "F" else self.plan.chunks - 1)
        whole += host.micro_batch if begins else 0.0
        if kind == "F" or not self.splits:
            return whole
        kernels = {part: launches(self._body(stage, chunk, part, ())) for part in ("B", "W")}
        return whole * kernels[kind] / sum(kernels.values())

    def _body(self, stage: int, chunk: int, kind: Kind, buckets: tuple[_Bucket, ...]) -> tuple[Op, ...]:
        shape = self._shape(stage, chunk)
        mine = tuple(b for b in buckets if b.after[0] == chunk)
        key = (shape, kind, tuple((b.channel, b.parameters, b.after[1], b.tag) for b in mine))
        if key not in self._bodies:
            if kind == "F":
                ops = self._forward(shape)
            else:
                ops = self._weights(shape, mine) if kind == "W" else self._backward(shape, mine)
            self._bodies[key] = merged(ops)
        return self._bodies[key]

    # -- passes ------------------------------------------------------------------------------------------------------
    @property
    def _boundary(self) -> float:
        """Bytes a rank of a stage boundary: 2 T h, of which each tensor rank moves 1/t if the stack scatters them."""
        scattered = self.job.software.boundary == "scattered" or self.ops.sequence
        return WIDTH * self.plan.tokens * self.job.model.hidden / (self.plan.tensor if scattered else 1)

    @property
    def _regathered(self) -> list[Op]:
        """Without sequence parallelism the tensor group gathers what was scattered for the boundary."""
        if self.plan.tensor == 1 or self.ops.sequence or self.job.software.boundary == "full":
            return []
        return [Collective("tensor", "all_gather", WIDTH * self.plan.tokens * self.job.model.hidden)]

    def _forward(self, shape: _Shape) -> list[Op]:
        layers, first, last = shape
        blocking = not self.job.overlap.pipeline
        ops: list[Op] = [*self._gather_ends(first=first)] if first else []
        ops += self.ops.embedding_forward() if first else [Receive("forward"), *self._regathered]
        for i, routed in enumerate(layers):
            ops += self._parameters(layers, i, +1)
            if last and i == len(layers) - 1:
                ops += self._gather_ends(last=last, tag="head")
            ops += self.ops.forward(routed)
        if last:
            ops += self._wait_for_ends(last=last, tag="head") if layers else self._gather_ends(last=last)
            ops += self.ops.head_forward()
        else:
            ops.append(Send("forward", self._boundary, blocking))
        return ops

    def _now(self, ops: list[Op]) -> list[Op]:
        """What a backward pass does of these operations: all, or what leads to the input's gradients."""
        return split_backward(ops)[0] if self.splits else ops

    def _backward(self, shape: _Shape, buckets: tuple[_Bucket, ...]) -> list[Op]:
        layers, first, last = shape
        blocking = not self.job.overlap.pipeline
        ops: list[Op] = [*self._gather_ends(last=last)] if last else []
        ops += self._now(self.ops.head_backward()) if last else [Receive("backward"), *self._regathered]
        for i in reversed(range(len(layers))):
            ops += self._parameters(layers, i, -1)
            ops += self._now(self.ops.backward(layers[i], again=self.job.recomputed(i) == "full"))
            ops += self._release(buckets, i)
        ops += self.ops.embedding_backward() if first else [Send("backward", self._boundary, blocking)]
        return ops + self._release(buckets, -1)

    def _weights(self, shape: _Shape, buckets: tuple[_Bucket, ...]) -> list[Op]:
        """The weights' gradients of a chunk, which zero-bubble puts off, from the last layer to the first."""
        layers, _, last = shape
        ops = split_backward(self.ops.head_backward())[1] if last else []
        for i in reversed(range(len(layers))):
            ops += split_backward(self.ops.backward(layers[i]))[1]
            ops += self._release(buckets, i)
        return ops + self._release(buckets, -1)

    # -- ZeRO-3: parameters a layer ahead ----------------------------------------------------------------------------
    def _parameters(self, layers: tuple[bool, ...], index: int, step: int) -> list[Op]:
        """Waits for this layer's parameters, after asking for the next layer's."""
        if not self.gathers:
            return []
        ops: list[Op] = []
        at_start = index == (0 if step > 0 else len(layers) - 1)
        for ahead in (0, step) if at_start else (step,):
            if 0 <= index + ahead < len(layers):
                ops += self._gather_layer(layers[index + ahead], (index + ahead) % 2)
        return ops + [Wait(tag) for tag in self._layer_tags(layers[index], index % 2)]

    def _gather_ends(self, *, first: bool = False, last: bool = False, tag: str = "") -> list[Op]:
        """ZeRO-3's gather of the embedding or the head; beside the layer before it if it has a tag."""
        if not self.gathers or self.groups["data"] == 1:
            return []
        parameters = local_ends(self.job.model, self.plan.tensor, first=first, last=last, pipeline=self.plan.pipeline)
        gather = Collective("data", "all_gather", WIDTH * parameters)
        return [Post(gather, tag) if tag else gather]

    def _wait_for_ends(self, *, last: bool, tag: str) -> list[Op]:
        return [Wait(tag)] if self._gather_ends(last=last, tag=tag) else []

    def _layer_sizes(self, routed: bool) -> list[tuple[ChannelName, float]]:
        model = self.job.model
        local = local_layer(model, model.layers - 1 if routed else 0, self.plan.tensor, self.plan.expert)
        sizes: list[tuple[ChannelName, float]] = []
        for channel, parameters in self._by_channel(local):
            if parameters and self.groups[channel] > 1:
                sizes.append((channel, parameters))
        return sizes

    def _gather_layer(self, routed: bool, slot: int) -> list[Op]:
        return [
            Post(Collective(channel, "all_gather", WIDTH * parameters), f"{channel} parameters {slot}")
            for channel, parameters in self._layer_sizes(routed)
        ]

    def _layer_tags(self, routed: bool, slot: int) -> list[str]:
        return [f"{channel} parameters {slot}" for channel, _ in self._layer_sizes(routed)]

    def _by_channel(self, local: Stage) -> tuple[tuple[ChannelName, float], ...]:
        if self.plan.expert == 1:
            return (("data", local.dense + local.experts),)
        return (("data", local.dense), ("expert_data", local.experts))

    # -- gradients ---------------------------------------------------------------------------------------------------
    def _buckets(self, stage: int) -> list[_Bucket]:
        """Buckets in the order in which the last micro-batch's backward passes complete them.

        Without overlap there is one for each chunk if every micro-batch must scatter its gradients, none otherwise.
        """
        if not self.job.overlap.data:
            return self._blocking_buckets(stage) if self.shards_gradients else []
        plan, model, stack = self.plan, self.job.model, self.job.software
        ready: dict[ChannelName, float] = {"data": 0.0, "expert_data": 0.0}
        buckets: list[_Bucket] = []

        def flush(channel: ChannelName, after: tuple[int, int], at_least: float) -> None:
            if ready[channel] > at_least and self.groups[channel] > 1:
                buckets.append(_Bucket(channel, ready[channel], after, f"{channel} gradients {len(buckets)}"))
                ready[channel] = 0.0

        def limit(channel: ChannelName) -> float:
            if self.job.bucket is not None:
                return self.job.bucket / stack.reduce_bytes
            return max(stack.bucket_parameters, stack.bucket_parameters_per_rank * self.groups[channel])

        last_stage = stage == plan.pipeline - 1
        ready["data"] += local_ends(model, plan.tensor, first=False, last=last_stage, pipeline=plan.pipeline)
        for chunk in reversed(range(plan.chunks)):
            layers = chunk_layers(plan.pipeline, plan.layers, stage, chunk)
            for i in reversed(range(len(layers))):
                local = local_layer(model, layers[i], plan.tensor, plan.expert)
                for channel, parameters in self._by_channel(local):
                    ready[channel] += parameters
                    flush(channel, (chunk, i), limit(channel) * (1 - 1e-12))
        ready["data"] += local_ends(model, plan.tensor, first=stage == 0, last=False, pipeline=plan.pipeline)
        for channel in ("data", "expert_data"):
            flush(channel, (0, -1), 0.0)
        return buckets

    def _blocking_buckets(self, stage: int) -> list[_Bucket]:
        plan, model = self.plan, self.job.model
        buckets = []
        for chunk in range(plan.chunks):
            _, first, last = self._shape(stage, chunk)
            ends = local_ends(model, plan.tensor, first=first, last=last, pipeline=plan.pipeline)
            layers = chunk_layers(plan.pipeline, plan.layers, stage, chunk)
            local = [local_layer(model, i, plan.tensor, plan.expert) for i in layers]
            total = Stage(ends + sum(x.dense for x in local), sum(x.experts for x in local))
            for channel, parameters in self._by_channel(total):
                if parameters and self.groups[channel] > 1:
                    buckets.append(_Bucket(channel, parameters, (chunk, -1), ""))
        return buckets

    def _reduction(self, channel: ChannelName, parameters: float) -> Collective:
        operation = "reduce_scatter" if self.shards_optimizer else "all_reduce"
        return Collective(channel, "reduce_scatter" if operation == "reduce_scatter" else "all_reduce",
                          parameters * self.job.software.reduce_bytes)  # fmt: skip

    def _release(self, buckets: tuple[_Bucket, ...], layer: int) -> list[Op]:
        ops: list[Op] = []
        for b in buckets:
            if b.after[1] == layer:
                reduction = self._reduction(b.channel, b.parameters)
                ops.append(Post(reduction, b.tag) if b.tag else reduction)
        return ops

    def _tied_embedding(self, stage: int) -> list[Op]:
        """First and last stage add the gradients of their copies of a tied embedding, as Megatron's embedding group does.

        What is added is the accumulated gradient after the reduction over replicas: a shard of it with ZeRO-2 and -3.
        """
        plan, job = self.plan, self.job
        if not job.model.tied or plan.pipeline == 1 or 0 < stage < plan.pipeline - 1:
            return []
        shards = plan.replica_group if self.shards_gradients else 1
        return [
            Collective("embedding", "all_reduce", job.software.gradient_bytes * head(job.model) / plan.tensor / shards)
        ]

    # -- the step's end ----------------------------------------------------------------------------------------------
    def _epilogue(self, stage: int, buckets: list[_Bucket]) -> tuple[Op, ...]:
        plan, job = self.plan, self.job
        local = stage_parameters(job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert)
        parts = [(channel, n) for channel, n in self._by_channel(local) if n]
        ops: list[Op] = [Wait(bucket.tag) for bucket in buckets if bucket.tag]
        if not job.overlap.data and not self.shards_gradients:
            ops += [self._reduction(channel, n) for channel, n in parts if self.groups[channel] > 1]
        ops += self._tied_embedding(stage)
        if job.optimizer:
            traffic = sum(
                n * (26 + 2 * job.software.gradient_bytes) / (self.groups[channel] if self.shards_optimizer else 1)
                for channel, n in parts
            )
            ops.append(Compute((Stream(traffic),), "optimizer"))
        if self.shards_optimizer and not self.gathers:
            ops += [Collective(channel, "all_gather", WIDTH * n) for channel, n in parts if self.groups[channel] > 1]
        return merged(ops)
