"""The scenario: what a user says about a cluster, a job and a run.

Each field is declared once, with unit, default and meaning; the reader, `colossim schema` and the docs follow from here.
Keys of capabilities that are not there yet are known, and say so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from colossim.catalog.types import (
    Count,
    Fabric,
    Facts,
    Model,
    NodeType,
    Positive,
    Precision,
    Seconds,
    Share,
    Size,
    Software,
    named,
)
from colossim.errors import Problem, ScenarioError

Axis = Literal["tensor", "context", "expert", "data", "pipeline"]
ORDER: tuple[Axis, ...] = ("tensor", "context", "expert", "data", "pipeline")
Index = Annotated[int, Field(ge=0)]

#: Keys of the contract whose capability comes later: path, and what it comes with.
LATER_KEYS = {
    ("faults",): "campaigns",
    ("checkpoint",): "campaigns",
    ("spares",): "campaigns",
    ("jitter",): "campaigns",
    ("events",): "campaigns",
    ("run", "duration"): "campaigns",
    ("jobs",): "several jobs on one fabric",
}
#: Values of the contract whose capability comes later.
LATER_VALUES = {
    ("cluster", "fabric", "routing"): {"ecmp": "routing by hash", "static": "routing by hash"},
    ("cluster", "fabric", "type"): {"graph": "own fabrics"},
    ("run", "collectives"): {"chunked": "chunked collectives"},
    ("job", "parallelism", "schedule"): {"zero-bubble": "zero-bubble schedules"},
}


class NodeGroup(Facts):
    """Nodes of one type, side by side."""

    type: Annotated[NodeType, named("nodes")] = Field(description="catalogue name, or the node's fields")
    count: Positive = Field(description="nodes")


class Degraded(Facts):
    """A link of one GPU that runs below its rate."""

    node: Index = Field(description="index of the node, from 0")
    gpu: Index = Field(description="index of the GPU in the node, from 0")
    link: Literal["nic", "nvlink"] = Field("nic", description="which of its links")
    rate: Share = Field(description="share of its rate that is left")


class ClusterSpec(Facts):
    """Nodes and what joins them."""

    nodes: Annotated[tuple[NodeGroup, ...], Field(min_length=1)] = Field(description="one entry a homogeneous group")
    fabric: Annotated[Fabric, named("fabrics")] = Field(description="catalogue name, fields, or `base: NAME` with changes")
    degraded: tuple[Degraded, ...] = Field((), description="links below their rate")
    pue: Annotated[float, Field(ge=1)] = Field(1.2, description="power of the site over power of its IT")

    @property
    def gpus(self) -> int:
        return sum(group.count * group.type.gpus for group in self.nodes)


class Parallelism(Facts):
    """How the job is cut."""

    tensor: Positive = Field(1, description="ranks that share each layer")
    sequence: bool = Field(False, description="sequence parallelism in the tensor group")
    context: Positive = Field(1, description="ranks that share each sequence")
    pipeline: Positive = Field(1, description="stages")
    virtual_pipeline: Positive = Field(1, description="model chunks a stage (interleaved)")
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero-bubble"] = Field("1f1b", description="order of the passes")
    expert: Positive = Field(1, description="ranks that share the experts of a layer")
    data: Positive | Literal["auto"] = Field("auto", description="replicas; auto takes the most that fit and divide the batch")
    sharding: Literal["none", "optimizer", "gradients", "parameters"] = Field("none", description="ZeRO 0, 1, 2, 3")
    order: tuple[Axis, ...] = Field(ORDER, description="how ranks land on GPUs, fastest-varying first")

    @field_validator("order")
    @classmethod
    def _all_axes(cls, order: tuple[Axis, ...]) -> tuple[Axis, ...]:
        if sorted(order) != sorted(ORDER):
            raise ValueError(f"names each of {', '.join(ORDER)} once")
        return order


class Overlap(Facts):
    """What runs beside kernels."""

    data: bool = Field(True, description="gradient buckets beside the backward pass")
    tensor: bool = Field(False, description="tensor collectives beside their products")
    pipeline: bool = Field(True, description="stage boundaries: a send starts when its data are ready")
    expert: bool = Field(False, description="expert all-to-all beside the shared MLP")


class JobSpec(Facts):
    """One training job."""

    model: Annotated[Model, named("models")] = Field(description="catalogue name, fields, or `base: NAME` with changes")
    software: Annotated[Software, named("software")] = Field("megatron-2024", validate_default=True, description="the training stack")
    sequence_length: Positive = Field(description="tokens of a sequence")
    global_batch: Positive = Field(description="sequences a step")
    micro_batch: Positive = Field(1, description="sequences a pipeline slot")
    precision: Precision = Field("bf16", description="of the matrix products")
    parallelism: Parallelism = Field(Parallelism(), description="how the job is cut")
    recompute: Literal["none", "selective", "full"] = Field("selective", description="activations computed again in the backward pass")
    overlap: Overlap = Field(Overlap(), description="what runs beside kernels")
    bucket: Size | None = Field(None, description="bytes of a gradient bucket; by the software when absent")
    tokens: Count | None = Field(None, description="tokens of the whole run; gives the time to train")
    collectives_algorithm: Literal["ring", "hierarchical"] = Field("ring", description="of gradient and tensor collectives across nodes")
    optimizer: bool = Field(True, description="whether a step ends with the optimizer")


class RunSpec(Facts):
    """How to play it."""

    steps: Positive = Field(1, description="steps")
    seed: int = Field(0, description="of all random draws")
    fold: Literal["exact", "bundles", "off"] = Field("exact", description="a process a class, an estimate of the fabric, or a process a GPU")
    collectives: Literal["fluid", "chunked"] = Field("fluid", description="one transfer a collective, or every chunk")


class Measured(Facts):
    """What the real world gave."""

    step_time: Seconds | None = Field(None, description="s a step")
    mfu: Share | None = Field(None, description="model FLOPs utilisation")
    memory: Size | None = Field(None, description="bytes a GPU at the peak")
    source: str = Field(description="where it was published")
    flag: str = Field("", description="why the row is to be distrusted, if it is")


class Case(Facts):
    """A variant of the scenario."""

    name: str | None = Field(None, description="what the variant is called")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted path: value")
    measured: Measured | None = Field(None, description="what the real world gave")


class Scenario(Facts):
    """A cluster, a job, and how long to run."""

    name: str = Field(description="what the scenario is called")
    description: str = Field("", description="what it is, and what is argued")
    sources: tuple[str, ...] = Field((), description="where its facts come from")
    assumptions: tuple[str, ...] = Field((), description="what isn't published, and why it is as it is")
    catalog: str | None = Field(None, description="a file with catalogue entries of one's own")
    cluster: ClusterSpec = Field(description="nodes and fabric")
    job: JobSpec = Field(description="the training job")
    run: RunSpec = Field(RunSpec(), description="how to play it")
    cases: tuple[Case, ...] = Field((), description="variants, one by one")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="variants, as a product")

    #: (file, line, column) of each dotted path that the user wrote
    _marks: dict[str, tuple[str, int | None, int | None]] = PrivateAttr(default_factory=dict)

    def written(self, path: str) -> bool:
        """Whether the user wrote this dotted path."""
        return path in self._marks

    def located(self, error: ScenarioError) -> ScenarioError:
        """The same problems with file, line and column of the nearest enclosing path that the user wrote."""
        located = []
        for problem in error.problems:
            path = problem.field
            while path and path not in self._marks:
                path = path.rpartition(".")[0]
            mark = self._marks.get(path)
            if problem.line is None and mark is not None:
                problem = Problem(problem.field, problem.message, *mark)
            located.append(problem)
        return ScenarioError(sorted(located, key=lambda p: (p.line or 0, p.column or 0)))
