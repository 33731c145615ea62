"""Who holds weights, gradients and optimizer states, and how they travel: buckets, reductions, gathers, the optimizer.

ZeRO shards the optimizer states, then the gradients, then the parameters over the ranks that hold the same ones
(Rajbhandari et al. 2020), or over some neighbours among them, with an all-reduce across those groups (hybrid sharding,
Zhao et al. 2023). Gathers of ZeRO-1 and -2 run beside the next step's forward pass: a step is one of many, so that they
stand at its beginning (Megatron-Core's `overlap_param_gather`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.workload import whole_weights
from colossim.workload.kernels import Stream
from colossim.workload.layers import WIDTH
from colossim.workload.offload import Offloading
from colossim.workload.program import ChannelName, Collective, Compute, Op, Operation, Post, Wait, merged
from colossim.workload.schedule import Slot
from colossim.workload.transformer import Stage, chunk_layers, head, local_ends, local_layer, stage_parameters


@dataclass(frozen=True)
class Bucket:
    """Parameters whose gradients travel together.

    after: (chunk, layer of the chunk) whose backward pass completes their gradients, and whose forward pass is the first to
    need them; layer -1: the stage's end and beginning; the number of layers: the head.  tag: what its collectives are called.
    """

    channel: ChannelName
    parameters: float
    after: tuple[int, int]
    tag: str


@dataclass(frozen=True)
class Sharding:
    """Builds what a job's programs do with weights, gradients and optimizer states."""

    plan: Plan
    job: JobSpec

    # -- who holds what ----------------------------------------------------------------------------------------------
    @property
    def shards_optimizer(self) -> bool:
        return self.job.parallelism.sharding != "none"

    @property
    def shards_gradients(self) -> bool:
        return self.job.parallelism.sharding in ("gradients", "parameters")

    @property
    def scatters_each(self) -> bool:
        """Whether each micro-batch scatters its gradients.

        DeepSpeed's ZeRO-2 does; torch's pipelines over FSDP let those of a chunk add up and scatter them behind its last
        backward pass (torch/distributed/pipelining/stage.py, `backward_maybe_with_nosync`).
        """
        return self.gathers or (self.shards_gradients and not self.job.software.scatters_last)

    @property
    def gathers(self) -> bool:
        """Whether parameters are gathered where they are used (ZeRO-3)."""
        return self.job.parallelism.sharding == "parameters"

    @cached_property
    def groups(self) -> dict[ChannelName, int]:
        """Ranks of each channel that holds the same parameters."""
        # Experts that aren't split are replicated like everything else.
        experts = self.plan.expert_group if self.plan.experts_apart else 1
        return {"data": self.plan.replica_group, "expert_data": experts}

    @property
    def _hybrid(self) -> bool:
        """Whether some neighbours of those that hold the same parameters share the shards."""
        return self.shards_optimizer and self.plan.sharding_group < self.plan.replica_group

    def shards(self, channel: ChannelName) -> int:
        """Ranks that share the shards of a channel's parameters."""
        return self.plan.sharding_group if self._hybrid else self.groups[channel]

    def _within(self, channel: ChannelName) -> ChannelName:
        """The channel of those ranks."""
        return "data_shards" if self._hybrid else channel

    def by_channel(self, local: Stage) -> tuple[tuple[ChannelName, float], ...]:
        """Local parameters by the channel that holds the same ones."""
        if not self.plan.experts_apart:
            return (("data", local.dense + local.experts),)
        return (("data", local.dense), ("expert_data", local.experts))

    # -- buckets -----------------------------------------------------------------------------------------------------
    def buckets(self, stage: int) -> list[Bucket]:
        """A stage's buckets, in the order in which backward passes complete them; none spans chunks (Megatron-Core)."""
        plan, model = self.plan, self.job.model
        ready: dict[ChannelName, float] = {"data": 0.0, "expert_data": 0.0}
        found: list[Bucket] = []

        def flush(channel: ChannelName, after: tuple[int, int], at_least: float) -> None:
            if ready[channel] > at_least and self.groups[channel] > 1:
                found.append(Bucket(channel, ready[channel], after, f"{channel} {len(found)}"))
                ready[channel] = 0.0

        last_stage = stage == plan.pipeline - 1
        ready["data"] += local_ends(model, plan.tensor, first=False, last=last_stage, pipeline=plan.pipeline)
        if not self.gathers:
            # A bucket is full when a parameter fills it (Megatron-Core, distributed/param_and_grad_buffer.py); a head may.
            head_of = (plan.chunks - 1, len(chunk_layers(plan.pipeline, plan.layers, stage, plan.chunks - 1)))
            flush("data", head_of, self._limit("data") * (1 - 1e-12))
        for chunk in reversed(range(plan.chunks)):
            layers = chunk_layers(plan.pipeline, plan.layers, stage, chunk)
            for i in reversed(range(len(layers))):
                local = local_layer(model, layers[i], plan.tensor, plan.expert, plan.expert_tensor)
                for channel, parameters in self.by_channel(local):
                    ready[channel] += parameters
                    flush(channel, (chunk, i), self._limit(channel) * (1 - 1e-12))
            if chunk == 0:
                ready["data"] += local_ends(model, plan.tensor, first=stage == 0, last=False, pipeline=plan.pipeline)
            for channel in ready:
                flush(channel, (chunk, -1), 0.0)
        return found

    def _limit(self, channel: ChannelName) -> float:
        """Parameters of a bucket. Without overlap a chunk's gradients travel in one."""
        stack = self.job.software
        if not self.job.overlap.data:
            return float("inf")
        if self.job.bucket is not None:
            return self.job.bucket / stack.reduce_bytes
        return max(stack.bucket_parameters, stack.bucket_parameters_per_rank * self.groups[channel])

    # -- gradients ---------------------------------------------------------------------------------------------------
    def _reduction(self, channel: ChannelName, parameters: float) -> tuple[Collective, ...]:
        """One after the other."""
        size = parameters * self.job.software.reduce_bytes
        whole = not self.shards_gradients and self.job.software.gradient_reduction == "all-reduce"
        if whole or not self.shards_optimizer:
            return (Collective(channel, "all_reduce", size),)
        scatter = Collective(self._within(channel), "reduce_scatter", size)
        if not self._hybrid:
            return (scatter,)
        across = Collective("data_replicas", "all_reduce", size / self.plan.sharding_group)
        return (scatter, across) if self.plan.sharding_group > 1 else (across,)

    @property
    def released(self) -> bool:
        """Whether backward passes release gradients: beside them, or because each micro-batch scatters its own."""
        return self.job.overlap.data or self.scatters_each

    @property
    def aligned(self) -> bool:
        """Whether stages put the release of a chunk's gradients off so that all do it at once."""
        scheduled = self.job.parallelism.schedule in ("1f1b", "interleaved") and self.plan.pipeline > 1
        return scheduled and self.job.software.gradients_aligned and self.job.overlap.data and not self.shards_gradients

    def aligned_releases(self, stage: int, slots: Sequence[Slot]) -> dict[Slot, tuple[int, ...]]:
        """Backward pass of a stage -> chunks whose gradients it sends off at its end.

        Transfers slow kernels beside them; stages that are slowed one after the other wait for each other. Megatron-Core
        therefore lets stage r launch a chunk's reductions r passes after the chunk's last one, what is left behind the last
        pass (pipeline_parallel/schedules.py, `grad_sync_microbatch_id`; `--no-delay-grad-reduce` is the way out). The first
        stage of a pipeline without chunks releases as it goes.
        """
        if not self.aligned or (stage == 0 and self.plan.chunks == 1):
            return {}
        backward = [slot for slot in slots if slot[0] == "B"]
        found: dict[Slot, tuple[int, ...]] = {}
        for k, (_, micro_batch, chunk) in enumerate(backward):
            if micro_batch == self.plan.micro_batches - 1:
                slot = backward[min(k + stage, len(backward) - 1)]
                found[slot] = (*found.get(slot, ()), chunk)
        return found

    def release(self, buckets: tuple[Bucket, ...], chunk: int, layer: int | None = None) -> list[Op]:
        """Sends gradients off that the backward pass of this layer completes, or of the whole chunk."""
        ops: list[Op] = []
        for bucket in buckets:
            if bucket.after[0] == chunk and layer in (None, bucket.after[1]):
                reduction = self._reduction(bucket.channel, bucket.parameters)
                ops += self._before_reduction(bucket.parameters)
                if self.job.overlap.data:
                    tags = self._gradient_tags(bucket)
                    ops += [Post(c, tag, after) for c, tag, after in zip(reduction, tags, ("", *tags), strict=False)]
                else:
                    ops += reduction
        return ops

    def _before_reduction(self, parameters: float) -> list[Op]:
        """Kernels over accumulated gradients that precede their reduction.

        Megatron-Core reads a bucket for its norm, to find a NaN, and multiplies it by one over the ranks
        (distributed/param_and_grad_buffer.py, `start_grad_sync`); where the collective averages, nothing is scaled. Of stacks
        that shard gradients none is known to do so.
        """
        traffic = 0.0 if self.shards_gradients else parameters * self.job.software.reduction_traffic
        return [Compute((Stream(traffic),))] if traffic else []

    def _cleared(self, parameters: float) -> list[Op]:
        """The kernel that clears a rank's accumulated gradients: w n (Megatron-Core, `zero_grad_buffer` before each step)."""
        if "zero" not in self.job.software.gradient_passes or self.shards_gradients:
            return []
        return [Compute((Stream(parameters * self.job.software.gradient_bytes),))]

    def _gradient_tags(self, bucket: Bucket) -> list[str]:
        return [f"{bucket.tag} gradients {i}" for i, _ in enumerate(self._reduction(bucket.channel, bucket.parameters))]

    # -- parameters of ZeRO-1 and -2 ---------------------------------------------------------------------------------
    @property
    def prefetches(self) -> bool:
        """Whether a step begins with the gather of what the last one's optimizer has updated."""
        return self.shards_optimizer and not self.gathers and self.job.overlap.parameters

    def updated(self, stage: int, buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
        """A stage's parameters that get round together, in the order in which forward passes need them.

        buckets: the stage's, of gradients. Where each rank sends its shard to all, it is one of these.
        """
        if not whole_weights.applies(self.job):
            return tuple(reversed(buckets))
        found = []
        for i, share in enumerate(whole_weights.shares(self.plan, self.job, stage)):
            channel: ChannelName = "expert_data" if share.experts else "data"
            found.append(Bucket(channel, share.parameters, share.first, f"{channel} shard {i}"))
        return tuple(found)

    def _gather(self, channel: ChannelName, parameters: float) -> list[Collective]:
        """Gathers updated parameters: each rank's part to all, or one rank's to all."""
        if self.shards(channel) == 1:
            return []
        operation: Operation = "broadcast" if whole_weights.applies(self.job) else "all_gather"
        return [Collective(self._within(channel), operation, WIDTH * parameters)]

    def prologue(self, stage: int, updated: Sequence[Bucket]) -> tuple[Op, ...]:
        """Clears gradients, then starts to gather parameters, in the order in which forward passes need them.

        Those of all buckets, of each channel's first, or of the first two chunks. The gathers follow what clears the
        gradients: a communicator's stream waits for what the stream of kernels had before.
        """
        plan = self.plan
        local = stage_parameters(
            self.job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert, plan.expert_tensor
        )
        ops = self._cleared(local.dense + local.experts)
        begun: set[ChannelName] = set()
        for bucket in updated:
            now = {"all": True, "next": bucket.channel not in begun, "aligned": bucket.after[0] < 2}
            if now[self.job.software.parameters_ahead]:
                ops += [Post(c, tag) for c, tag in self._parameter_posts(bucket)]
            begun.add(bucket.channel)
        return tuple(ops)

    def aligned_gathers(self, stage: int, slots: Sequence[Slot]) -> dict[Slot, int]:
        """Forward pass of a stage -> chunk whose parameters it starts to gather, with `parameters_ahead: aligned`.

        As for gradients: stage r asks for chunk c + 1 r passes before its first one of chunk c (Megatron-Core,
        pipeline_parallel/schedules.py, `param_sync_microbatch_id`).
        """
        if self.job.software.parameters_ahead != "aligned" or not self.prefetches:
            return {}
        forward = [slot for slot in slots if slot[0] == "F"]
        first = {chunk: k for k, (_, micro_batch, chunk) in enumerate(forward) if micro_batch == 0}
        return {forward[first[chunk] - stage]: chunk + 1 for chunk in range(1, self.plan.chunks - 1)}

    def gather_chunk(self, updated: Sequence[Bucket], chunk: int) -> list[Op]:
        """Starts to gather a chunk's parameters."""
        ours = [bucket for bucket in updated if bucket.after[0] == chunk]
        return [Post(c, tag) for bucket in ours for c, tag in self._parameter_posts(bucket)]

    def await_parameters(self, updated: Sequence[Bucket], chunk: int, layer: int) -> list[Op]:
        """Waits for parameters that the forward pass of this layer (-1: of the chunk's beginning) is the first to need.

        With `parameters_ahead: next` it then starts to gather the channel's next bucket. Megatron-Core to 0.8 does so, lest
        gathers hold kernels up behind them in the one queue to the GPU that CUDA_DEVICE_MAX_CONNECTIONS=1 leaves
        (optimizer/distrib_optimizer.py, `_finish_param_sync_helper`).
        """
        ops: list[Op] = []
        for i, bucket in enumerate(updated):
            if bucket.after == (chunk, layer):
                ops += [Wait(tag) for _, tag in self._parameter_posts(bucket)]
                if self.job.software.parameters_ahead == "next":
                    following = next((b for b in updated[i + 1 :] if b.channel == bucket.channel), None)
                    ops += [Post(c, tag) for c, tag in self._parameter_posts(following)] if following else []
        return ops

    def _parameter_posts(self, bucket: Bucket) -> list[tuple[Collective, str]]:
        if not self.prefetches:
            return []
        return [(gather, f"{bucket.tag} parameters") for gather in self._gather(bucket.channel, bucket.parameters)]

    # -- parameters of ZeRO-3 ----------------------------------------------------------------------------------------
    def gather_layers(self, layers: tuple[bool, ...], index: int, step: int) -> list[Op]:
        """Waits for this layer's parameters, after asking for those of the layers ahead. step: 1 forward, -1 backward."""
        if not self.gathers or (step < 0 and not self.job.parallelism.reshard):
            return []
        ahead = self.job.software.prefetch
        at_start = index == (0 if step > 0 else len(layers) - 1)
        ops: list[Op] = []
        for further in range(ahead + 1) if at_start else (ahead,):
            other = index + further * step
            if 0 <= other < len(layers):
                ops += [Post(gather, tag) for gather, tag in self._layer_gathers(layers[other], other)]
        return ops + [Wait(tag) for _, tag in self._layer_gathers(layers[index], index)]

    def _layer_gathers(self, routed: bool, index: int) -> list[tuple[Collective, str]]:
        model = self.job.model
        plan, index_of_kind = self.plan, model.layers - 1 if routed else 0
        local = local_layer(model, index_of_kind, plan.tensor, plan.expert, plan.expert_tensor)
        slot = index % (self.job.software.prefetch + 1)
        return [
            (Collective(self._within(channel), "all_gather", WIDTH * parameters), f"{channel} parameters {slot}")
            for channel, parameters in self.by_channel(local)
            if parameters and self.shards(channel) > 1
        ]

    def gather_ends(self, *, first: bool = False, last: bool = False, tag: str = "") -> list[Op]:
        """ZeRO-3's gather of the embedding or the head; beside the layer before it if it has a tag."""
        if not self.gathers or self.shards("data") == 1:
            return []
        parameters = local_ends(self.job.model, self.plan.tensor, first=first, last=last, pipeline=self.plan.pipeline)
        gather = Collective(self._within("data"), "all_gather", WIDTH * parameters)
        return [Post(gather, tag) if tag else gather]

    def await_ends(self, *, last: bool, tag: str) -> list[Op]:
        """Waits for what `gather_ends` asked for."""
        return [Wait(tag)] if self.gather_ends(last=last, tag=tag) else []

    def _tied_embedding(self, stage: int) -> list[Op]:
        """First and last stage add the gradients of their copies of a tied embedding, as Megatron's embedding group does.

        What is added is the accumulated gradient after the reduction over replicas: a shard of it with ZeRO-2 and -3.
        """
        plan, job = self.plan, self.job
        if not job.model.tied or plan.pipeline == 1 or 0 < stage < plan.pipeline - 1:
            return []
        shards = self.shards("data") if self.shards_gradients else 1
        return [
            Collective("embedding", "all_reduce", job.software.gradient_bytes * head(job.model) / plan.tensor / shards)
        ]

    # -- the step's end ----------------------------------------------------------------------------------------------
    def epilogue(self, stage: int, buckets: list[Bucket]) -> tuple[Op, ...]:
        """What is left of the gradients, the optimizer, and the parameters if nothing can hide their gather."""
        plan, job = self.plan, self.job
        local = stage_parameters(
            job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert, plan.expert_tensor
        )
        parts = [(channel, n) for channel, n in self.by_channel(local) if n]
        ops: list[Op] = []
        if job.overlap.data:
            ops += [Wait(tag) for bucket in buckets for tag in self._gradient_tags(bucket)]
        elif not self.released:
            ops += self._before_reduction(sum(n for channel, n in parts if self.groups[channel] > 1))
            ops += [c for channel, n in parts if self.groups[channel] > 1 for c in self._reduction(channel, n)]
        ops += self._tied_embedding(stage)
        if job.optimizer:
            own = sum(n / (self.shards(channel) if self.shards_optimizer else 1) for channel, n in parts)
            if whole_weights.applies(job):
                own = whole_weights.fullest(plan, job, stage)
            if job.offload.optimizer:
                # The gradients' norm stays on the GPU.
                traffic = own * job.software.gradient_bytes
                update: list[Op] = [Offloading(plan, job).step(own)]
            else:
                traffic, update = own * job.software.optimizer_traffic, []
            if job.precision == "fp8":
                # The products' weights are cast once a step, as their inputs are; embedding and head stay in 16 bit.
                ends = local_ends(
                    job.model, plan.tensor, first=stage == 0, last=stage == plan.pipeline - 1, pipeline=plan.pipeline
                )
                traffic += 4 * (local.dense + local.experts - ends)
            ops += [Compute((Stream(traffic),), "optimizer"), *update]
        if self.shards_optimizer and not self.gathers and not self.prefetches:
            if whole_weights.applies(job):
                parts = [(share.channel, share.parameters) for share in self.updated(stage, buckets)]
            ops += [c for channel, n in parts if self.groups[channel] > 1 for c in self._gather(channel, n)]
        return merged(ops)
