"""The scenario: what a user says about a cluster, a job and a run.

Each field is declared once, with unit, default and meaning: the reader, JSON Schema and the docs follow.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from colossim import units
from colossim.catalog.facts import Facts
from colossim.catalog.faults import FaultProfile
from colossim.catalog.quantities import (
    Named,
    Natural,
    Positive,
    Quantity,
    Rate,
    Ratio,
    Short,
    SomeSeconds,
    SomeShare,
    SomeSize,
)
from colossim.catalog.types import Fabric, NodeType
from colossim.errors import Problem, ScenarioError
from colossim.scenario.campaign import Checkpoint, Repairs, Warm
from colossim.scenario.degraded import Degraded
from colossim.scenario.events import Event
from colossim.scenario.jitter import Jitter
from colossim.scenario.job import JobSpec, NamedJob
from colossim.scenario.power import PowerCap, Price


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
    power_cap: Annotated[PowerCap, Short("site", Quantity(units.POWER, zero=False))] | None = Field(
        default=None, description="what the site may draw, such as 100 MW; or {gpu: 500 W}: GPUs are limited to it"
    )
    price: Price | None = Field(default=None, description="of energy and of GPU hours: a run then says what it costs")

    #: a networkx graph, or the path of its file; the fabric's own words where a scenario has no file
    _graph: Any = PrivateAttr(default=None)

    @property
    def graph(self) -> Any:
        """The graph of a fabric of that type: a networkx graph or the path of its file; None if there is none."""
        return self._graph if self._graph is not None else self.fabric.graph

    @property
    def gpus(self) -> int:
        return sum(group.count * group.type.gpus for group in self.nodes)


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
    duration: SomeSeconds | None = Field(
        default=None, description="s of wall time to play, in place of so many steps: weeks of them are a campaign"
    )
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
    faults: Annotated[FaultProfile, Named("faults")] | None = Field(
        default=None, description="what fails: a profile of the catalogue, classes by name, or `base` and changes"
    )
    checkpoint: Checkpoint | None = Field(default=None, description="checkpoints and restarts, which faults need")
    spares: Natural | None = Field(
        default=None, description="nodes that stand by for failed ones; those that the job doesn't use when absent"
    )
    warm: Warm | None = Field(default=None, description="spares more, that take a time to join")
    repairs: Repairs | None = Field(default=None, description="who repairs; as many as it takes when absent")
    when_short: Literal["wait", "shrink"] = Field(
        default="wait", description="what the job does without a spare: wait for a node, or go on with fewer replicas"
    )
    jitter: Jitter | None = Field(
        default=None, description="how GPUs differ from each other, and kernels from time to time"
    )
    regrow: Literal["at restart", "at once"] = Field(
        default="at restart",
        description="when a job that has shrunk takes up nodes that are back: when it restarts anyway, or stopping for them",
    )
    short_batch: Literal["smaller", "same"] = Field(
        default="smaller",
        description="global batch of a job that has shrunk: as many micro-batches a replica as before, or the same where"
        " fewer replicas divide it",
    )
    events: tuple[Event, ...] = Field(default=(), description="the cluster over time, in its order")
    run: RunSpec = Field(default=RunSpec(), description="how to play it")
    cases: tuple[Case, ...] = Field(default=(), description="variants, one by one")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="variants, as a product")

    #: the job as the `job` of each event leaves it, by the event's index
    _jobs_after: dict[int, JobSpec] = PrivateAttr(default_factory=dict)
    #: (file, line, column) of each dotted path that the user wrote
    _marks: dict[str, tuple[str | None, int | None, int | None]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, data: Any) -> Any:
        """`jobs` stand in the place of `job`, which is then the first of them. Weeks are played of one job."""
        if isinstance(data, dict) and ("jobs" in data or "traffic" in data):
            others = "several jobs" if "jobs" in data else "`traffic`"
            run = data.get("run")
            for key, there in (
                ("faults", "faults" in data),
                ("jitter", "jitter" in data),
                ("events", "events" in data),
                ("run.duration", isinstance(run, dict) and "duration" in run),
            ):
                if there:
                    what = "stragglers" if key == "jitter" else "weeks"
                    raise ValueError(f"{what} of {others} can't be played yet: leave `{key}` out, or write one job")
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

    def job_after(self, event: int) -> JobSpec:
        """The job with the fields that events up to this one have changed; its replicas are as the last of them says."""
        return next((self._jobs_after[i] for i in range(event, -1, -1) if i in self._jobs_after), self.job)

    def written(self, path: str) -> bool:
        """Whether the user wrote this dotted path."""
        return path in self._marks

    @property
    def paths(self) -> tuple[str, ...]:
        """Dotted paths of all that the user wrote."""
        return tuple(self._marks)

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
