"""Programs of a job: passes in the schedule's order, and what each does before and after its layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from colossim.scenario.derive import Plan
from colossim.scenario.job import JobSpec
from colossim.workload.launching import launch_seconds
from colossim.workload.layers import WIDTH, LayerOps
from colossim.workload.loads import Load, layer_loads
from colossim.workload.offload import APART, Neighbours, Offloading
from colossim.workload.program import (
    Collective,
    Direction,
    Launched,
    Op,
    Pass,
    Receive,
    Send,
    StageProgram,
    launches,
    merged,
    split_backward,
)
from colossim.workload.schedule import Kind, order, splits_backward
from colossim.workload.sharding import Bucket, Sharding
from colossim.workload.transformer import chunk_layers, is_moe

#: (whether each layer has experts, what comes to them, embedding here, head here)
_Shape = tuple[tuple[bool, ...], tuple[Load, ...], bool, bool]


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


@dataclass
class _Builder:
    plan: Plan
    job: JobSpec
    _bodies: dict[tuple[object, ...], tuple[Op, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ops = LayerOps(self.plan, self.job)
        self.loads = layer_loads(self.plan, self.job)
        self._loaded = {load: LayerOps(self.plan, self.job, load) for load in set(self.loads)}
        self.states = Sharding(self.plan, self.job)
        self.host = Offloading(self.plan, self.job)
        self.splits = splits_backward(self.job.parallelism.schedule)
        self.launched: list[Op] = [Launched()] if self.job.software.host else []

    # -- a stage -----------------------------------------------------------------------------------------------------
    def stage(self, stage: int) -> StageProgram:
        plan, job = self.plan, self.job
        states = self.states
        buckets = states.buckets(stage)
        updated = states.updated(stage, buckets)
        slots = order(job.parallelism.schedule, stage, plan.pipeline, plan.micro_batches, plan.chunks)
        host = job.software.host
        last = plan.micro_batches - 1
        # A micro-batch changes what a pass does through its parameters' arrival and its gradients' release only: 512 of
        # them are put together once.
        known: dict[
            tuple[Kind, int, bool, Neighbours, tuple[int, ...], int, bool], tuple[tuple[Op, ...], tuple[float, ...]]
        ] = {}
        passes = []
        deferred = self._deferred(stage)
        # The head's gradients travel once they are all there, behind the passes.
        behind = tuple(b for b in buckets if b.channel == "data")[:1] if deferred else ()
        others = tuple(b for b in buckets if b not in behind)
        outermost = [(self._copies(self._shape(stage, chunk)) or (0.0,))[-1] for chunk in range(plan.chunks)]
        beside = self.host.neighbours(slots, outermost)
        later, sooner = states.aligned_releases(stage, slots), states.aligned_gathers(stage, slots)
        for (kind, micro_batch, chunk), near in zip(slots, beside, strict=True):
            if kind == "F":
                special = states.prefetches and micro_batch == 0
            else:
                completes = kind == ("W" if self.splits else "B")
                special = completes and states.released and (states.scatters_each or micro_batch == last)
                special = special and not later
            released = later.get((kind, micro_batch, chunk), ())
            asked = sooner.get((kind, micro_batch, chunk), 0)
            defers = kind == "B" and chunk == plan.chunks - 1 and micro_batch < deferred
            key = (kind, chunk, special, near, released, asked, defers)
            if key not in known:
                own = updated if kind == "F" else others
                body = self._body(stage, chunk, kind, own if special else (), near, defers=defers)
                if asked or released:
                    body = self._between(body, updated, asked, others, released)
                known[key] = body, self._launching(stage, chunk, kind)
            passes.append(Pass(kind, micro_batch, chunk, *known[key]))
        for micro_batch in range(deferred):
            ends = behind if states.released and micro_batch == deferred - 1 else ()
            passes.append(Pass("W", micro_batch, plan.chunks - 1, self._head(ends), (0.0,)))
        return StageProgram(
            stage,
            tuple(passes),
            epilogue=states.epilogue(stage, buckets),
            host_exponent=host.exponent if host else 1.0,
            prologue=states.prologue(stage, updated),
        )

    def _deferred(self, stage: int) -> int:
        """Micro-batches whose weight gradients of the head the stage computes behind its passes."""
        limit = self.job.parallelism.defer_head if 0 < stage == self.plan.pipeline - 1 else 0
        return min(limit, self.plan.micro_batches)

    def _head(self, buckets: tuple[Bucket, ...]) -> tuple[Op, ...]:
        """The deferred weight gradient of one micro-batch. buckets: that the last one adds to."""
        key = ("head", buckets)
        if key not in self._bodies:
            ends = [op for bucket in buckets for op in self.states.release(buckets, *bucket.after)]
            self._bodies[key] = merged([*self.ops.head_deferred(), *ends])
        return self._bodies[key]

    def _shape(self, stage: int, chunk: int) -> _Shape:
        plan, model = self.plan, self.job.model
        layers = chunk_layers(plan.pipeline, plan.layers, stage, chunk)
        last = stage == plan.pipeline - 1 and chunk == plan.chunks - 1
        loads = tuple(self.loads[i] for i in layers)
        return tuple(is_moe(model, i) for i in layers), loads, stage == 0 and chunk == 0, last

    def _copies(self, shape: _Shape) -> tuple[float, ...]:
        """(layers,) bytes that each layer of a chunk sends to the host."""
        layers, loads, _, _ = shape
        kinds = zip(layers, loads, strict=True)
        return tuple(self.host.layer(i, load.fullest if routed else 0.0) for i, (routed, load) in enumerate(kinds))

    def _launching(self, stage: int, chunk: int, kind: Kind) -> tuple[float, ...]:
        """s that launching the parts of a pass takes: of B and W each its part of the backward pass, by its kernels."""
        host = self.job.software.host
        if host is None:
            return (0.0,)
        layers, _, first, last = self._shape(stage, chunk)
        share = 1.0
        if kind != "F" and self.splits:
            kernels = {part: launches(self._body(stage, chunk, part, ())) for part in ("B", "W")}
            share = kernels[kind] / sum(kernels.values())
        begins = chunk == (0 if kind == "F" else self.plan.chunks - 1)
        body = self._body(stage, chunk, kind, ())
        return launch_seconds(host, self.job, kind, range(len(layers)), (first, last), body, begins=begins, share=share)

    def _body(
        self,
        stage: int,
        chunk: int,
        kind: Kind,
        buckets: tuple[Bucket, ...],
        near: Neighbours = APART,
        *,
        defers: bool = False,
    ) -> tuple[Op, ...]:
        """buckets: those that the pass is the first to need, or the last to add to.  near: what stands beside it.

        defers: whether the head's weight gradient waits.
        """
        shape = self._shape(stage, chunk)
        key = (shape, kind, chunk if buckets else -1, buckets, near, defers)
        if key not in self._bodies:
            if kind == "F":
                ops = self._forward(shape, chunk, buckets, near)
            elif kind == "B":
                ops = self._backward(shape, chunk, buckets, near, defers=defers)
            else:
                ops = self._weights(shape, chunk, buckets)
            self._bodies[key] = merged(ops)
        return self._bodies[key]

    def _between(
        self,
        body: tuple[Op, ...],
        updated: tuple[Bucket, ...],
        asked: int,
        buckets: tuple[Bucket, ...],
        released: tuple[int, ...],
    ) -> tuple[Op, ...]:
        """A pass that starts to gather a chunk's parameters before it, or sends chunks' gradients off before its own Send."""
        states = self.states
        # Bodies are kept in this dict, so that their ids stay theirs.
        key = (id(body), buckets, asked, released)
        if key not in self._bodies:
            end = len(body) - isinstance(body[-1], Send)
            gathers = states.gather_chunk(updated, asked) if asked else []
            gradients = [op for chunk in released for op in states.release(buckets, chunk)]
            self._bodies[key] = merged([*gathers, *body[:end], *gradients, *body[end:]])
        return self._bodies[key]

    # -- passes ------------------------------------------------------------------------------------------------------
    @property
    def _boundary(self) -> float:
        """Bytes a rank of a stage boundary: 2 T h, of which each tensor rank moves 1/t if the stack scatters them."""
        scattered = self.job.software.boundary == "scattered" or self.ops.sequence
        return WIDTH * self.plan.tokens * self.job.model.hidden / (self.plan.tensor if scattered else 1)

    def _send(self, direction: Direction) -> Send:
        """What leaves a stage: beside kernels of the next pass, which it holds back, or before it."""
        blocking = not self.job.overlap.pipeline
        return Send(direction, self._boundary, blocking, 0.0 if blocking else 1.0 - self.job.software.boundary_overlap)

    @property
    def _regathered(self) -> list[Op]:
        """Without sequence parallelism the tensor group gathers what was scattered for the boundary."""
        if self.plan.tensor == 1 or self.ops.sequence or self.job.software.boundary == "full":
            return []
        return [Collective("tensor", "all_gather", WIDTH * self.plan.tokens * self.job.model.hidden)]

    def _forward(self, shape: _Shape, chunk: int, buckets: tuple[Bucket, ...], near: Neighbours) -> list[Op]:
        layers, loads, first, last = shape
        states, copies = self.states, self._copies(shape)
        ops: list[Op] = (
            [*states.await_parameters(buckets, chunk, -1), *states.gather_ends(first=first)] if first else []
        )
        ops += [*self.ops.embedding_forward(), *self.launched] if first else [Receive("forward"), *self._regathered]
        ops += states.await_parameters(buckets, chunk, -1) if not first else []
        for i, (routed, load) in enumerate(zip(layers, loads, strict=True)):
            ops += states.await_parameters(buckets, chunk, i)
            ops += states.gather_layers(layers, i, +1)
            if last and i == len(layers) - 1:
                ops += states.gather_ends(last=last, tag="head")
            ops += self._loaded[load].forward(routed)
            ops += self.host.after_forward(copies, i, near)
        ops += self.ops.scaling(len(layers))
        if last:
            ops += states.await_parameters(buckets, chunk, len(layers))
            ops += states.await_ends(last=last, tag="head") if layers else states.gather_ends(last=last)
            ops += [*self.launched, *self.ops.head_forward()]
        else:
            ops.append(self._send("forward"))
        return ops

    def _now(self, ops: list[Op], *, defers: bool = False) -> list[Op]:
        """What a backward pass does of these operations: all, or what leads to the input's gradients."""
        return split_backward(ops)[0] if self.splits or defers else ops

    def _backward(
        self, shape: _Shape, chunk: int, buckets: tuple[Bucket, ...], near: Neighbours, *, defers: bool
    ) -> list[Op]:
        layers, loads, first, last = shape
        states, copies = self.states, self._copies(shape)
        ops = self.host.before_backward(copies, near)
        ops += states.gather_ends(last=last) if last and self.job.parallelism.reshard else []
        gradients = self._now(self.ops.head_backward(), defers=defers) if last else []
        ops += [*gradients, *self.launched] if last else [Receive("backward"), *self._regathered]
        ops += states.release(buckets, chunk, len(layers))
        for i in reversed(range(len(layers))):
            ops += self.host.before_layer(copies, i, near)
            ops += states.gather_layers(layers, i, -1)
            ops += self._now(self._loaded[loads[i]].backward(layers[i], self.job.recomputed(i)))
            ops += states.release(buckets, chunk, i)
        ops += self.ops.scaling(len(layers))
        ops += [*self.launched, *self.ops.embedding_backward()] if first else []
        ops += states.release(buckets, chunk, -1)
        return ops if first else [*ops, self._send("backward")]

    def _weights(self, shape: _Shape, chunk: int, buckets: tuple[Bucket, ...]) -> list[Op]:
        """The weights' gradients of a chunk, which zero-bubble puts off, from the last layer to the first."""
        layers, loads, first, last = shape
        ops = [*split_backward(self.ops.head_backward())[1], *self.launched] if last else []
        ops += self.states.release(buckets, chunk, len(layers))
        for i in reversed(range(len(layers))):
            ops += split_backward(self._loaded[loads[i]].backward(layers[i]))[1]
            ops += self.states.release(buckets, chunk, i)
        ops += self.launched if first else []
        return ops + self.states.release(buckets, chunk, -1)
