"""The scenario: what a user says about a cluster, a job and a run.

Each field is declared once, with unit, default and meaning: the reader, JSON Schema and the docs follow.
Keys of capabilities that are not there yet are known, and say so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from colossim.catalog.facts import Facts
from colossim.catalog.quantities import (
    Named,
    Natural,
    Positive,
    Precision,
    Rate,
    Ratio,
    Share,
    SomeCount,
    SomeSeconds,
    SomeShare,
    SomeSize,
)
from colossim.catalog.types import Fabric, Model, NodeType, Software
from colossim.errors import Problem, ScenarioError
from colossim.scenario.degraded import Degraded

Axis = Literal["tensor", "context", "expert", "data", "pipeline"]
Recompute = Literal["none", "selective", "selective-op", "full"]
ORDER: tuple[Axis, ...] = ("tensor", "context", "expert", "data", "pipeline")

#: Keys of the contract whose capability comes later: path, and what it comes with.
LATER_KEYS: dict[tuple[str, ...], str] = {
    ("faults",): "campaigns",
    ("checkpoint",): "campaigns",
    ("spares",): "campaigns",
    ("jitter",): "campaigns",
    ("events",): "campaigns",
    ("run", "duration"): "campaigns",
}


class NodeGroup(Facts):
    """Nodes of one type, side by side."""

    type: Annotated[NodeType, Named("nodes")] = Field(description="catalogue name, or the node's fields")
    count: Positive = Field(description="how many nodes")


class StorageTraffic(Facts):
    """What ranks write beside their steps (a checkpoint), on the fabric that they train over."""

    write: Rate = Field(description="bytes/s that each rank's GPU writes, if its links let it")
    tier: Literal["leaf", "spine", "core"] = Field(
        default="core", description="the highest switches that it passes: where the storage hangs"
    )


class ClusterSpec(Facts):
    """Nodes and what joins them."""

    nodes: Annotated[tuple[NodeGroup, ...], Field(min_length=1)] = Field(description="one entry a homogeneous group")
    fabric: Annotated[Fabric, Named("fabrics")] = Field(
        description="catalogue name, fields, or `base: NAME` with changes"
    )
    degraded: tuple[Degraded, ...] = Field(default=(), description="links and switches below their rate, or dead")
    storage: StorageTraffic | None = Field(default=None, description="checkpoint writes on the training fabric")
    pue: Ratio = Field(default=1.2, description="power of the site over power of its IT")

    #: a networkx graph, or the path of its file; the fabric's own words where a scenario has no file
    _graph: Any = PrivateAttr(default=None)

    @property
    def graph(self) -> Any:
        """The graph of a fabric of that type: a networkx graph or the path of its file; None if there is none."""
        return self._graph if self._graph is not None else self.fabric.graph

    @property
    def gpus(self) -> int:
        return sum(group.count * group.type.gpus for group in self.nodes)


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


class TrafficSpec(Facts):
    """Messages of every NIC at once, over the fabric alone: played in place of a step."""

    pattern: Literal["permutation", "shift", "all_to_all"] = Field(
        description="each NIC to another at random, to one some nodes on, or to `flows_per_nic` peers all over the cluster"
    )
    flows_per_nic: Positive = Field(
        default=1, description="flows that a NIC sends at once, each a connection of its own"
    )
    distance: Positive | None = Field(default=None, description="nodes that a shift goes; a pod when absent")


class RunSpec(Facts):
    """How to play it."""

    steps: Positive = Field(default=20, description="steps to play")
    seed: Natural = Field(default=0, description="of all random draws")
    fold: Literal["exact", "bundles", "off"] = Field(
        default="exact", description="a process a class, an estimate of the fabric, or a process a GPU"
    )
    collectives: Literal["fluid", "chunked"] = Field(
        default="fluid", description="one transfer a collective, or every chunk"
    )


class Measured(Facts):
    """What the real world gave."""

    step_time: SomeSeconds | None = Field(default=None, description="s a step")
    mfu: SomeShare | None = Field(default=None, description="model FLOPs utilisation")
    memory: SomeSize | None = Field(default=None, description="bytes a GPU at the peak")
    printed: str = Field(default="", description="what the source prints, where the figures above follow from it")
    source: str = Field(default="", description="where it was published; the scenario's `sources` when absent")
    flag: str = Field(default="", description="why the row is to be distrusted, if it is")
    fits: bool | tuple[str, ...] = Field(
        default=True,
        description="whether a calibration may learn from it: false where part of what was run is assumed; or of which"
        " constants alone, by what their fields begin with, such as [host]",
    )


class Case(Facts):
    """A variant of the scenario."""

    name: str | None = Field(default=None, description="what the variant is called")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted path: value")
    measured: Measured | None = Field(default=None, description="what the real world gave")


class Scenario(Facts):
    """A cluster, a job, and how long to run."""

    name: str = Field(description="what the scenario is called")
    description: str = Field(default="", description="what it is, and what is argued")
    sources: tuple[str, ...] = Field(default=(), description="where its facts come from")
    assumptions: tuple[str, ...] = Field(default=(), description="what isn't published, and why it is as it is")
    catalog: str | None = Field(default=None, description="a file with catalogue entries of one's own")
    cluster: ClusterSpec = Field(description="nodes and fabric")
    job: JobSpec = Field(description="the training job; of several, the first")
    jobs: tuple[NamedJob, ...] = Field(default=(), description="several jobs on one fabric, in place of `job`")
    traffic: TrafficSpec | None = Field(default=None, description="the fabric alone, in place of a step of the job")
    run: RunSpec = Field(default=RunSpec(), description="how to play it")
    cases: tuple[Case, ...] = Field(default=(), description="variants, one by one")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="variants, as a product")

    #: (file, line, column) of each dotted path that the user wrote
    _marks: dict[str, tuple[str | None, int | None, int | None]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, data: Any) -> Any:
        """`jobs` stand in the place of `job`, which is then the first of them."""
        if isinstance(data, dict) and isinstance(data.get("jobs"), tuple) and data["jobs"]:
            if "job" in data:
                raise ValueError("has `job` and `jobs`: a scenario has one of them")
            first = data["jobs"][0]
            if isinstance(first, dict):
                return {**data, "job": {key: value for key, value in first.items() if key != "name"}}
        return data

    def alone(self, index: int) -> Scenario:
        """One of several jobs on the whole cluster, as a scenario of its own: its fields stand under `job`."""
        job = self.jobs[index]
        view = self.model_copy(update={"name": f"{self.name}: {job.name}", "job": job, "jobs": ()})
        here = f"jobs.{index}"
        view._marks = {path: place for path, place in self._marks.items() if not path.startswith("jobs")}
        view._marks |= {
            "job" + p[len(here) :]: place for p, place in self._marks.items() if f"{p}.".startswith(f"{here}.")
        }
        return view

    def written(self, path: str) -> bool:
        """Whether the user wrote this dotted path."""
        return path in self._marks

    def place(self, path: str) -> tuple[str | None, int | None, int | None] | None:
        """File, line and column of the value at a dotted path; None if the user didn't write it."""
        return self._marks.get(path)

    def located(self, error: ScenarioError) -> ScenarioError:
        """The same problems with file, line and column of the nearest enclosing path that the user wrote."""
        located: list[Problem] = []
        for problem in error.problems:
            path = problem.field
            while path and path not in self._marks:
                path = path.rpartition(".")[0]
            mark = self._marks.get(path)
            if problem.line is None and mark is not None:
                problem = Problem(problem.field, problem.message, *mark)
            located.append(problem)
        return ScenarioError(sorted(located, key=lambda p: (p.line or 0, p.column or 0)))
