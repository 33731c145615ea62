"""What the catalogue holds: GPUs, nodes, fabrics, models and software stacks, each declared once.

Quantities are written as text with a unit and are SI floats in Python. A field's `description` gives its unit
and meaning; validation, JSON Schema, `colossim catalog` and the docs are derived from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from colossim.catalog.curves import NetworkCurve, NvlsCurve, RingCurve
from colossim.catalog.facts import Entry, Facts
from colossim.catalog.gpu import Gpu
from colossim.catalog.overlap import TensorOverlap
from colossim.catalog.quantities import (
    Count,
    Factor,
    Named,
    Natural,
    Positive,
    Quantity,
    Rate,
    Ratio,
    Seconds,
    Share,
    Short,
    Size,
    SomeCount,
    SomeShare,
    SomeSize,
    SomeWatts,
    Watts,
)
from colossim.units import SHARE


def _without_required(*fields: str) -> Callable[[dict[str, Any]], None]:
    """Tells JSON Schema that these fields follow from others when absent."""

    def relax(schema: dict[str, Any]) -> None:
        schema["required"] = [name for name in schema["required"] if name not in fields]

    return relax


def _required_unless_graph(schema: dict[str, Any]) -> None:
    """Tells JSON Schema which fields of a fabric a graph says by itself."""
    of_switches = [name for name in ("link", "switch_ports") if name in schema["required"]]
    schema["required"] = [name for name in schema["required"] if name not in of_switches]
    graph = {"properties": {"type": {"const": "graph", "description": "how nodes meet"}}, "required": ["type"]}
    schema.update({"if": graph, "then": {"required": ["graph"]}, "else": {"required": of_switches}})


class HostMemory(Facts):
    """The memory of a node's CPUs, and how its GPUs reach it."""

    memory: SomeSize = Field(description="bytes of a node, all its CPUs together")
    rate: Rate = Field(description="bytes/s that it sustains, read and written, for all GPUs of the node together")
    from_gpu: Rate = Field(description="bytes/s of a copy from each GPU while all GPUs of the node copy")
    to_gpu: Rate = Field(description="bytes/s of a copy to each GPU while all GPUs of the node copy")


class NodeType(Entry):
    """One server, or one NVLink domain."""

    gpu: Annotated[Gpu, Named("gpus")] = Field(description="catalogue name, or the GPU's fields")
    gpus: Positive = Field(description="GPUs that share NVLink")
    rails: Positive = Field(description="rails that the node presents; GPU i is on rail i % rails")
    nic: Rate = Field(description="bytes/s of the NIC of each GPU, one direction")
    gpus_per_switch: Positive | None = Field(
        default=None,
        description="GPUs behind a PCIe switch with their NICs, where NCCL's LL128 needs two of a ring there (before Hopper)",
    )
    gpus_per_nic: Positive = Field(default=1, description="GPUs that share a NIC; `nic` is then a GPU's part of it")
    nvlink_ring: RingCurve = Field(description="what rings over NVLink sustain")
    network: NetworkCurve = Field(description="what collectives over the network sustain")
    nvls: NvlsCurve | None = Field(default=None, description="what its NVSwitch reduces; null where it can't")
    host: HostMemory | None = Field(
        default=None, description="the CPUs' memory, which `job.offload` needs; null where it isn't known"
    )
    overhead_power: Watts = Field(description="W of CPUs, NICs, fans, conversion: all that isn't a GPU")
    rated_power: SomeWatts | None = Field(
        default=None,
        description="W that it is rated at, for which a site is built; its overhead and its GPUs' TDP when absent",
    )
    measured_power: SomeWatts | None = Field(
        default=None,
        description="W that such a node drew in the mean of a measured training run; null where none is published",
    )
    topology: str | None = Field(
        default=None,
        description="file of NCCL's topology dump, relative to the scenario, which then says `gpus` and `nic`",
    )

    @property
    def rated(self) -> float:
        """W for which a site is built."""
        return self.overhead_power + self.gpus * self.gpu.tdp if self.rated_power is None else self.rated_power


#: A rate that limits nothing.
UNLIMITED = 1e30


class Fabric(Entry):
    """What joins the nodes."""

    model_config = ConfigDict(json_schema_extra=_required_unless_graph)

    type: Literal["rail-optimized", "fat-tree", "single-switch", "graph"] = Field(
        description="how nodes meet; graph: as the vertices and edges of `graph` say"
    )
    tiers: Annotated[int, Field(ge=1, le=4)] = Field(default=2, description="leaf, spine, core, top")
    link: Rate = Field(description="bytes/s of one NIC port, one direction; on a graph the NIC's own rate when absent")
    switch_ports: Positive = Field(description="ports of `link` speed on one switch; not on a graph")
    nodes_per_pod: Positive = Field(default=1, description="nodes that share their leaf switches")
    pods_per_block: Positive = Field(default=1, description="pods that share their spines")
    blocks_per_zone: Positive = Field(default=64, description="blocks that share their cores (4 tiers)")
    oversubscription: tuple[Ratio, ...] = Field(
        default=(),
        validate_default=True,
        description="down over up, per tier boundary, against a full pod's ports; 1 where absent",
    )
    rails: Literal["forward", "spine"] = Field(
        default="forward", description="how rails meet: over NVLink first, or over the spine"
    )
    routing: Literal["adaptive", "ecmp", "static"] = Field(
        default="adaptive", description="how flows choose among equal paths"
    )
    paths_per_flow: Positive = Field(default=1, description="queue pairs a flow is hashed over (ecmp)")
    hop_latency: Seconds = Field(
        default="600 ns", validate_default=True, description="s of one switch; of a graph's edge that says none"
    )
    efficiency: SomeShare = Field(
        default="100 %",
        validate_default=True,
        description="share of the line rate that congestion control sustains",
    )
    sharp: bool = Field(default=False, description="whether its switches reduce (SHARP), for `collnet`")
    power: Watts = Field(
        default="116.3 W",
        validate_default=True,
        description="W of switches and optics for each GPU; when absent 59.57 kW for 64 nodes of 8 (Supermicro, MLPerf v4.0)",
    )
    planes: Positive = Field(default=1, description="independent copies of the switches, each with 1/planes of a NIC")
    graph: str | None = Field(
        default=None,
        description="file of a networkx graph (.graphml, .gexf, .json), relative to the scenario (type: graph)",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_a_graph(cls, data: Any) -> Any:
        """A graph's edges say what switches and ports would."""
        if isinstance(data, dict) and data.get("type") == "graph":
            return {"link": f"{UNLIMITED:g} B/s", "switch_ports": 1, **data}
        return data

    @field_validator("oversubscription")
    @classmethod
    def _one_a_boundary(cls, given: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        """One number a tier boundary: 1 where none is given; those beyond the top tier have no effect."""
        boundaries: int = info.data.get("tiers", 4) - 1
        return (given + (1.0,) * boundaries)[:boundaries]

    def ratio(self, boundary: int) -> float:
        """Oversubscription at boundary 0 (leaf to spine), 1 (spine to core), 2 (core to top); 1 beyond."""
        return self.oversubscription[boundary] if boundary < len(self.oversubscription) else 1.0


class Model(Entry):
    """A transformer."""

    model_config = ConfigDict(json_schema_extra=_without_required("kv_heads", "head_size", "ffn"))

    layers: Positive = Field(description="transformer layers")
    hidden: Positive = Field(description="width of the residual stream")
    heads: Positive = Field(description="query heads")
    kv_heads: Positive = Field(description="key/value heads; heads when absent")
    head_size: Positive = Field(description="size of a head; hidden/heads when absent")
    ffn: Natural = Field(description="width of the dense MLP; 4 x hidden when absent")
    activation: Literal["gelu", "swiglu", "geglu", "squared-relu"] = Field(
        default="gelu", description="of the MLP; gated ones have 3 matrices"
    )
    vocabulary: Positive = Field(description="tokens of the vocabulary")
    tied: bool = Field(default=False, description="whether the head is the embedding")
    positions: Natural = Field(default=0, description="learned positions; 0 for rotary")
    biases: bool = Field(default=False, description="whether linear layers have biases")
    norm: Literal["layernorm", "rmsnorm"] = Field(default="layernorm", description="kind of the norms")
    norms: Positive = Field(default=2, description="norms a layer")
    dropout: bool = Field(default=False, description="whether it trains with dropout")
    experts: Natural = Field(default=0, description="routed experts a layer")
    experts_per_token: Natural = Field(default=0, description="experts that a token visits")
    expert_ffn: Natural = Field(default=0, description="width of one expert")
    shared_ffn: Natural = Field(default=0, description="width of a dense MLP beside the experts")
    dense_layers: Natural = Field(default=0, description="first layers without experts")
    training_tokens: SomeCount | None = Field(default=None, description="tokens that it was trained on")
    status: Literal["published", "reported", "assumed"] = Field(
        default="published", description="how well the shape is known"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = dict(data)
            heads, hidden = data.get("heads"), data.get("hidden")
            sound = isinstance(heads, int) and isinstance(hidden, int) and heads > 0 and hidden > 0
            # what follows from a wrong field is filled in, so that only the wrong field is complained about
            data.setdefault("kv_heads", heads if sound else 1)
            data.setdefault("ffn", 4 * hidden if sound else 1)
            if not sound or hidden % heads == 0:
                data.setdefault("head_size", hidden // heads if sound else 1)
        return data

    @property
    def mlp_matrices(self) -> int:
        return 3 if self.activation in ("swiglu", "geglu") else 2


class Host(Facts):
    """The launch floor of a pass: what the host needs to launch its kernels (colossim/workload/launching.py)."""

    forward: Seconds = Field(description="s a layer, forward, without collectives")
    backward: Factor = Field(description="backward over forward")
    backward_full: Factor = Field(description="backward over forward with full recompute")
    micro_batch: Seconds = Field(description="s, once a micro-batch and direction")
    exponent: Factor = Field(description="q of (gpu^q + host^q)^(1/q)")


class Slowdown(Facts):
    """While a kernel and a transfer run together they run at 1/(1+compute) and 1/(1+transfer)."""

    compute: Factor = Field(description="x")
    transfer: Factor = Field(description="y")


#: What a stack may run as one kernel (or product) where eager PyTorch runs several.
Fusion = Literal[
    "norm", "norm_gradient", "norm_cast", "residual", "dropout_add", "gated", "squared_relu", "rope", "softmax", "gqa", "qkv",
    "gate_up", "permute", "accumulation", "bias", "bias_gradient", "late_bias_gradient", "adam",
]  # fmt: skip
#: What Megatron's stacks run as one kernel since 2021: what a profile that doesn't say has.
_FUSIONS: tuple[Fusion, ...] = (
    "norm", "norm_gradient", "dropout_add", "gated", "rope", "softmax", "gqa", "qkv", "gate_up", "permute", "accumulation",
    "bias", "bias_gradient", "late_bias_gradient", "adam",
)  # fmt: skip


class Software(Entry):
    """What a training stack does: a dated list of facts."""

    attention: Literal["unfused", "flash-1", "flash-2", "flash-3", "cudnn"] = Field(
        description="kernels of the attention core; `flash` is flash-2"
    )
    causal_skip: bool = Field(description="whether they skip masked tiles")
    fusions: tuple[Fusion, ...] = Field(
        default=_FUSIONS,
        description="what runs as one kernel. norm: each norm; norm_gradient: its backward pass, weights included; norm_cast:"
        " and its cast to fp8, which the tensor group then gathers; residual: the residual's sum with the norm behind it;"
        " dropout_add: dropout with the residual's sum; gated: a gated activation with its product; squared_relu: the ReLU with"
        " its square; rope: rotary embedding; softmax: scale, mask and softmax; gqa: attention reads shared keys and values"
        " without copies; qkv, gate_up: one product of the same input; permute: routing's permutation with its weights;"
        " accumulation: a weight's gradient with its sum over micro-batches; bias: a product with the sum with its bias;"
        " bias_gradient: the sum of a gradient's columns with a product or a cast; late_bias_gradient: the same of biases that"
        " the activation or the residual's sum adds; adam: the optimizer",
    )
    norm_precision: Literal["16", "fp32"] = Field(
        default="16", description="of the tensors that kernels of norms read and write"
    )
    elementwise: Factor = Field(
        default=1.0, description="times the bytes of element-wise kernels, for a stack whose passes aren't listed"
    )
    host: Host | None = Field(default=None, description="launch floor; null under CUDA graphs")
    loss_bytes_per_logit: Factor = Field(description="bytes that the cross entropy moves a logit")
    gradient_bytes: Positive = Field(description="bytes of an accumulated gradient")
    reduce_bytes: Positive = Field(description="bytes of a gradient on the wire")
    optimizer_bytes: Factor = Field(description="bytes of optimizer state a parameter")
    update_bytes: Factor = Field(
        default=0.0,
        description="bytes a parameter that the optimizer's step takes beyond gradients and state: copies of its shard's"
        " gradients, temporaries of a step in several kernels",
    )
    shard_bytes: Factor = Field(
        default=2.0,
        description="bytes of a ZeRO-3 shard's parameter beside its optimizer's state; 0 if only gathered ones have 16 bit",
    )
    logit_bytes: Factor = Field(
        default=6.0,
        description="bytes of a logit that are held at the loss: 16-bit and fp32 ones, what its kernels make of them",
    )
    gradient_passes: tuple[Literal["zero", "norm", "scale"], ...] = Field(
        default=(),
        description="what else a step does to the gradients that a rank has accumulated. zero: clears them before its first"
        " pass; norm: looks for a NaN, scale: divides them by the ranks, where they are reduced",
    )
    split_logit_bytes: Factor | None = Field(
        default=None, description="the same where the tensor group shares the vocabulary; `logit_bytes` when absent"
    )
    keeps_gathered: bool = Field(
        default=False,
        description="whether what sequence parallelism gathers for a product is held for its weight's gradient, not gathered"
        " again",
    )
    bucket_parameters: SomeCount = Field(description="parameters of a gradient bucket, at least")
    bucket_parameters_per_rank: Count = Field(description="the same for each rank of the group")
    overlap: Slowdown = Field(description="what overlap costs")
    tensor_overlap: Annotated[TensorOverlap, Short("share", Quantity(SHARE))] = Field(
        description="what overlap.tensor does: a method a product, or the share of each tensor collective that it hides"
    )
    boundary_overlap: Share = Field(
        default=1.0,
        validate_default=True,
        description="part of a stage boundary's transfer, which overlap.pipeline puts beside kernels, that costs them nothing",
    )
    prefetch: Natural = Field(default=1, description="layers that a ZeRO-3 gathers ahead of the one at work")
    gradient_reduction: Literal["reduce-scatter", "all-reduce"] = Field(
        default="reduce-scatter",
        description="how gradients get to ranks that share the optimizer alone (ZeRO-1): each its shard, or all to all",
    )
    scatters_last: bool = Field(
        default=False,
        description="sharded gradients (ZeRO-2) of a chunk add up whole and are scattered behind its last micro-batch, in"
        " place of each micro-batch's by itself",
    )
    gradients_aligned: bool = Field(
        default=False,
        description="whether all stages start to reduce a chunk's gradients at once: a stage as many passes later as it is"
        " stages from the first",
    )
    parameters_ahead: Literal["all", "next", "aligned"] = Field(
        default="all",
        description="when buckets of a sharded optimizer's parameters are gathered beside forward passes. all: one after the"
        " other from the step's beginning; next: each when a pass comes to the one before; aligned: those of two chunks at the"
        " beginning, then the next chunk's, on all stages at once",
    )
    parameter_gather: Literal["all-gather", "broadcasts"] = Field(
        default="all-gather",
        description="how a sharded optimizer's parameters get round: at once, or shards are whole weights, a broadcast each",
    )
    amax_reduction: Literal["tensor", "replicas"] = Field(
        default="tensor",
        description="ranks that agree on the maxima of fp8's delayed scaling, each pass: a tensor group, or all that hold the"
        " stage, of all replicas",
    )
    boundary: Literal["scattered", "full"] = Field(description="whether a stage boundary moves 1/t a rank")
    workspace: Size = Field(description="CUDA context, NCCL buffers, workspace")
    algorithms: tuple[Literal["ring", "tree", "nvls", "collnet", "pat"], ...] = Field(
        default=("ring", "tree", "nvls", "collnet", "pat"), description="those of its NCCL, which takes the cheapest"
    )

    @field_validator("attention", mode="before")
    @classmethod
    def _alias(cls, value: Any) -> Any:
        return "flash-2" if value == "flash" else value

    @property
    def reduction_traffic(self) -> float:
        """Bytes a parameter that a rank moves before gradients are reduced: n read for the norm, 2n scaled."""
        return self.gradient_bytes * (("norm" in self.gradient_passes) + 2 * ("scale" in self.gradient_passes))

    @property
    def optimizer_traffic(self) -> float:
        """Bytes a parameter that an Adam step moves, gradients' norm included; n an accumulated gradient's bytes.

        Fused: weight, momentum and variance in fp32 read and written (24), the 16-bit weight written (2), the gradient read
        twice (2n). PyTorch's `foreach` AdamW instead runs decay 8, lerp 8 + n, scale 8, addcmul 8 + n, sqrt 8, two scalings of
        the denominator 16, addcdiv 16 (torch/optim/adamw.py, _multi_tensor_adamw); the gradient's norm and its clipping 3n.
        """
        n = self.gradient_bytes
        return 26.0 + 2 * n if "adam" in self.fusions else 72.0 + 2 + 5 * n
