"""The job: model, stack, and how it is cut. Each field is declared once, with unit, default and meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from colossim.catalog.facts import Facts
from colossim.catalog.quantities import (
    Named,
    Natural,
    Positive,
    Precision,
    Ratio,
    Share,
    SomeCount,
    SomeSize,
)
from colossim.catalog.types import Model, Software

Axis = Literal["tensor", "context", "expert", "data", "pipeline"]
Recompute = Literal["none", "selective", "selective-op", "full"]
ORDER: tuple[Axis, ...] = ("tensor", "context", "expert", "data", "pipeline")


class Parallelism(Facts):
    """How the job is cut."""

    tensor: Positive = Field(default=1, description="ranks that share each layer")
    sequence: bool = Field(default=False, description="sequence parallelism in the tensor group")
    context: Positive = Field(default=1, description="ranks that share each sequence")
    context_style: Literal["ring", "all-gather", "ulysses"] = Field(
        default="ring",
        description="how they do: keys and values go round beside attention, are gathered before it, or all-to-alls give each"
        " rank some heads of the whole sequence",
    )
    pipeline: Positive = Field(default=1, description="stages")
    virtual_pipeline: Positive = Field(default=1, description="model chunks a stage (interleaved)")
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero-bubble"] = Field(
        default="1f1b", description="order of the passes"
    )
    stage_layers: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="layers of each stage (of each chunk, in the order in which a micro-batch meets them); equal when absent",
    )
    account_for_embedding: bool = Field(default=False, description="the embedding counts as a layer of the first stage")
    account_for_loss: bool = Field(default=False, description="head and loss count as a layer of the last stage")
    defer_head: Natural = Field(
        default=0,
        description="micro-batches, the first ones, whose weight gradients of the head wait for the end of the last stage's"
        " passes, where it would idle (Megatron's --defer-embedding-wgrad-compute and its limit)",
    )
    expert: Positive = Field(default=1, description="ranks that share the experts of a layer")
    expert_tensor: Positive | None = Field(
        default=None, description="ranks that share each expert, of a tensor group's; all of them when absent"
    )
    data: Positive | Literal["auto"] = Field(
        default="auto", description="replicas; auto takes the most that fit and divide the batch"
    )
    sharding: Literal["none", "optimizer", "gradients", "parameters"] = Field(
        default="none", description="ZeRO 0, 1, 2, 3"
    )
    sharding_group: Positive | Literal["all"] = Field(
        default="all", description="neighbouring ranks that share the shards; fewer than all: hybrid sharding (HSDP)"
    )
    reshard: bool = Field(
        default=True,
        description="sharding: parameters: freed after the forward pass, and gathered again for the backward",
    )
    order: tuple[Axis, ...] = Field(default=ORDER, description="how ranks land on GPUs, fastest-varying first")

    @field_validator("order")
    @classmethod
    def _all_axes(cls, order: tuple[Axis, ...]) -> tuple[Axis, ...]:
        if sorted(order) != sorted(ORDER):
            raise ValueError(f"names each of {', '.join(ORDER)} once")
        return order


class Experts(Facts):
    """How tokens come to experts."""

    capacity_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="tokens that an expert takes of each rank, at most, over their mean; drops the rest; no limit when absent",
    )
    pad: bool = Field(default=False, description="whether each expert's input is padded to its capacity")
    imbalance: Share = Field(
        default="0 %",
        validate_default=True,
        description="standard deviation of the experts' tokens over their mean, drawn for each layer",
    )
    fullest: Ratio | None = Field(
        default=None, description="in place of a draw: tokens of the fullest rank's experts over the mean"
    )
    limit_nodes: Positive | None = Field(
        default=None,
        description="nodes that a token's copies go to, at most; each gets it once and hands it on over NVLink",
    )


class Overlap(Facts):
    """What runs beside kernels."""

    data: bool = Field(default=True, description="gradient buckets beside the backward pass")
    parameters: bool = Field(
        default=True, description="gather of what a sharded optimizer has updated beside the next forward pass"
    )
    tensor: bool = Field(default=False, description="tensor collectives beside their products")
    pipeline: bool = Field(default=True, description="stage boundaries: a send starts when its data are ready")
    expert: bool = Field(default=False, description="expert all-to-all beside the shared MLP")
    offload: bool = Field(
        default=True,
        description="copies to and from the host beside kernels, and beside the optimizer's step there; else one by one",
    )


class Offload(Facts):
    """What the memory of the node's CPUs holds in place of the GPU's."""

    activations: Share = Field(
        default="0 %",
        validate_default=True,
        description="share of what each layer keeps for its backward pass that waits for it on the host",
    )
    optimizer: bool = Field(
        default=False, description="optimizer state, and its step: gradients go there, 16-bit parameters come back"
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that put anything on the host."""
        return tuple(name for name in type(self).model_fields if getattr(self, name))


class BatchRamp(Facts):
    """How the global batch grows at the beginning of a run (Megatron's --rampup-batch-size)."""

    start: Positive = Field(description="sequences of the first step")
    increment: Positive = Field(description="sequences by which it grows at a time")
    samples: SomeCount = Field(description="sequences after which it is full")


class GroupSettings(Facts):
    """Settings of the replicas that stand on nodes of one type alone; what is absent is the job's."""

    recompute: Recompute | None = Field(default=None, description="activations computed again in the backward pass")
    recompute_layers: Natural | None = Field(default=None, description="of recompute: full, layers of each chunk")
    micro_batch: Positive | None = Field(default=None, description="sequences a pipeline slot")


class JobSpec(Facts):
    """One training job."""

    model: Annotated[Model, Named("models")] = Field(description="catalogue name, fields, or `base: NAME` with changes")
    software: Annotated[Software, Named("software")] = Field(
        default="megatron-2024", validate_default=True, description="the training stack"
    )
    sequence_length: Positive = Field(description="tokens of a sequence")
    global_batch: Positive = Field(description="sequences a step")
    batch_ramp: BatchRamp | None = Field(default=None, description="smaller batches first; counts in the time to train")
    micro_batch: Positive = Field(default=1, description="sequences a pipeline slot")
    precision: Precision = Field(default="bf16", description="of the matrix products")
    parallelism: Parallelism = Field(default=Parallelism(), description="how the job is cut")
    experts: Experts = Field(default=Experts(), description="how tokens come to experts")
    recompute: Recompute = Field(
        default="selective",
        description="activations computed again in the backward pass. selective: scores of unfused attention; selective-op:"
        " all but fused attention, reductions of the tensor group and every other product (torchtitan's); full: layers",
    )
    recompute_layers: Natural | None = Field(
        default=None,
        description="of recompute: full, layers of each chunk that are computed again, the first ones; all when absent",
    )
    balance: Literal["equal", "speed"] = Field(
        default="equal",
        description="sequences of each replica: as many, or in proportion to how fast its slowest rank plays one",
    )
    groups: dict[str, GroupSettings] = Field(
        default_factory=dict,
        description="settings by node type, for replicas that stand on nodes of this type alone",
    )
    offload: Offload = Field(default=Offload(), description="what the host's memory holds in place of the GPU's")
    overlap: Overlap = Field(default=Overlap(), description="what runs beside kernels")
    bucket: SomeSize | None = Field(default=None, description="bytes of a gradient bucket; by the software when absent")
    tokens: SomeCount | None = Field(default=None, description="tokens of the whole run; gives the time to train")
    nodes: Positive | None = Field(default=None, description="nodes that the job may use; all when absent")
    placement: Literal["packed", "scattered"] | tuple[Natural, ...] = Field(
        default="packed", description="the cluster's first nodes, a random draw of them, or these ones in order"
    )
    collectives_algorithm: Literal["auto", "ring", "tree", "nvls", "collnet", "pat", "hierarchical"] = Field(
        default="auto", description="of gradient and tensor collectives; auto: NCCL's choice by size and shape"
    )
    collectives_protocol: Literal["auto", "ll", "ll128", "simple"] = Field(
        default="auto", description="of rings and trees; auto: NCCL's choice by size and shape"
    )
    optimizer: bool = Field(default=True, description="whether a step ends with the optimizer")

    def recomputed(self, index: int) -> Recompute:
        """What layer `index` of a chunk computes again: full recompute may be for the first layers of each chunk alone, the
        others then keep everything (Megatron's --recompute-method block --recompute-num-layers).
        """
        return "none" if self.recompute_layers is not None and index >= self.recompute_layers else self.recompute

    def on(self, group: str) -> JobSpec:
        """The job as replicas on nodes of this type play it. A recompute of their own comes with layers of its own."""
        settings = self.groups.get(group)
        if settings is None:
            return self
        own: dict[str, Any] = {}
        if settings.recompute is not None:
            own |= {"recompute": settings.recompute, "recompute_layers": None}
        for key in ("recompute_layers", "micro_batch"):
            if getattr(settings, key) is not None:
                own[key] = getattr(settings, key)
        return self.model_copy(update=own)


class NamedJob(JobSpec):
    """One of several jobs."""

    name: str = Field(description="what the job is called")
