"""What a run gives: numbers with their unit in their name, and the record that they come from."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from colossim import __version__
from colossim.engine.record import CATEGORIES, Floats, LinkUse, StepRecord
from colossim.errors import SimulationError
from colossim.flows import Pinned
from colossim.result.campaign import Campaign
from colossim.result.confidence import error_band
from colossim.result.cost import cost_of, cost_of_campaign, cost_of_growth
from colossim.result.power import Course, Load, Power, course_of, power_of, power_of_trace
from colossim.result.ramp import Sizes, cost_of_ramp, time_to_train
from colossim.result.routing import routing_of
from colossim.scenario.plan import Plan
from colossim.scenario.schema import ClusterSpec, Scenario

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Result:
    """A run's numbers. Keys are those of `--json`; seconds, bytes, bytes/s, FLOP/s, W, J.

    Per-GPU figures are per GPU in the job. breakdown_s: seconds of the rank class that computes longest, by what they went
    to; they add up to step_time_s. links: a link class each. shares: of each kind of replicas {nodes that they stand on,
    replicas, micro_batches, micro_batch, sequences, recompute}. ramp: of the global batch (`result.ramp`). mix: what a job
    of several node types costs itself. jitter: what steps of GPUs that differ cost (`colossim.jitter.Late`). collectives:
    {channel, operation, bytes, nodes, algorithm, protocol} of each kind that a step runs. routing: what it does to flows
    (`result.routing`). error_band: how far published runs like it are predicted off (`result.confidence`). power: through
    the step (`result.power`); power_W is its mean. cost: of the run (`result.cost`), of its campaign where there is one.
    notes: keys of the scenario that changed nothing. record: the played step, loads: what its ranks run on, cluster: all
    of it, for plots.  goodput, ettr, interruptions, campaign: of weeks of training (`result.campaign`), where these were
    asked for.
    """

    scenario: str
    description: str
    gpus: int
    gpus_in_job: int
    nodes: int
    spares: dict[str, int]
    seed: int
    version: str
    step_time_s: float
    step_time_p99_s: float
    tokens_per_step: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    model_flops_per_gpu: float
    mfu: float
    hfu: float
    breakdown_s: dict[str, float]
    bottleneck: dict[str, Any]
    bound: str
    memory_bytes: dict[str, float]
    links: dict[str, dict[str, float]]
    collectives: tuple[dict[str, Any], ...]
    routing: dict[str, Any]
    power_W: float
    energy_per_step_J: float
    power: Power
    cost: dict[str, Any]
    time_to_train_s: float | None
    ramp: dict[str, Any] | None
    assumptions: tuple[str, ...]
    error_band: dict[str, Any]
    notes: tuple[str, ...]
    shares: tuple[dict[str, Any], ...]
    mix: dict[str, Any] | None
    jitter: dict[str, Any] | None
    classes: dict[str, int]
    processes: int
    events: int
    setup_s: float
    wall_s: float
    peak_memory_bytes: float
    fold: str
    fold_rounds: int
    aligned: bool
    steps: tuple[dict[str, float], ...] = field(repr=False)
    record: StepRecord = field(repr=False, compare=False)
    loads: tuple[Load, ...] = field(repr=False, compare=False)
    cluster: ClusterSpec = field(repr=False, compare=False)
    goodput: float | None = None
    ettr: float | None = None
    interruptions: tuple[dict[str, Any], ...] | None = None
    campaign: Campaign | None = None

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON; the steps and the record stay out, and so do figures that were not asked for."""
        left_out = {"steps", "record", "loads", "cluster"}
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        values["power"] = self.power.to_dict()
        if self.campaign is not None:
            values["campaign"] = self.campaign.to_dict()
        return {name: value for name, value in values.items() if value is not None}

    def with_campaign(self, campaign: Campaign) -> Result:
        """The same step with weeks of it."""
        growth = campaign.growth
        return replace(
            self,
            goodput=campaign.goodput,
            ettr=campaign.ettr,
            interruptions=campaign.interruptions,
            campaign=campaign,
            cost=cost_of_campaign(self.cost, self.power, self.gpus, campaign.spent_s)
            if growth is None
            else cost_of_growth(self.cost, growth.energy, growth.gpu_seconds, campaign.wall_s),
            notes=(*self.notes, *(() if growth is None else growth.notes)),
        )

    def with_cap(self, cap: dict[str, Any]) -> Result:
        """The same step with what its power cap costs and saves."""
        way = "cluster.power_cap: the clock of a GPU under load goes with the third root of its limit (seen down to 3/4 of TDP)"
        assumptions = (*self.assumptions, f"{way}; kernels that memory bounds, and transfers, keep their pace")
        notes = self.notes
        if all(clock == 1 for clock in cap["clock"].values()):
            notes = (*notes, "`cluster.power_cap` had no effect: the GPUs' own limits are lower")
        return replace(self, power=replace(self.power, cap=cap), assumptions=assumptions, notes=notes)

    @property
    def course(self) -> Course:
        """Power through the step."""
        return course_of(self.record, self.loads, self.cluster, self.step_time_s)

    def power_over_time(self) -> tuple[Floats, Floats]:
        """(n + 1,) s, (n,) W of the site over a campaign's first seed: the step's mean where it trained, or standing still.

        Checkpoints aren't told apart. Raises SimulationError if there is no campaign.
        """
        if self.campaign is None:
            raise SimulationError(f"{self.scenario} played a step: `faults` or `run.duration` make a campaign of it")
        if self.campaign.growth is not None:
            return self.campaign.growth.power
        return power_of_trace(self.campaign.logs[0].trace, self.campaign.spent_s, self.power)

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, default=list)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a step. Needs pandas (the extra `frames`)."""
        import pandas as pd

        return pd.DataFrame(list(self.steps)).set_index("step")

    def __str__(self) -> str:
        from colossim.result.summary import text

        return text(self)


def build_result(
    scenario: Scenario,
    plan: Plan,
    record: StepRecord,
    loads: Sequence[Load],
    *,
    memory: dict[str, float],
    model_flops_per_step: float,
    hardware_flops_per_step: float,
    peak_flops_per_gpu: float,
    tokens_per_step: float,
    classes: dict[str, int],
    fold: str,
    fold_rounds: int,
    aligned: bool,
    setup_s: float,
    wall_s: float,
    peak_memory_bytes: float,
    assumptions: list[str],
    notes: list[str],
    shares: tuple[dict[str, Any], ...],
    ramp: Sizes,
    late: tuple[Sequence[float], dict[str, Any]] | None,
    mix: dict[str, Any] | None,
    chosen: tuple[tuple[str, str, float, int, str, str], ...],
    pinned: Pinned | None,
) -> Result:
    """Puts a played step into numbers. Without jitter every step of the run is like it.

    loads: what each timeline's ranks run on.  late: s of each step that was played with jitter, and what is told of it.
    Raises SimulationError if a figure is beyond what a float holds.
    """
    seconds = (record.step_time,) if late is None else tuple(late[0])
    step = float(np.median(seconds))
    critical = record.timelines[record.critical]
    breakdown = dict(zip(CATEGORIES, (float(s) for s in critical.seconds()), strict=True))
    breakdown["straggler"] += step - record.step_time
    per_gpu = model_flops_per_step / step / plan.world
    links = _links(record)
    power = power_of(record, loads, scenario.cluster, tokens_per_step, step)
    job, tokens = scenario.job, scenario.job.tokens
    training = None if tokens is None else time_to_train(tokens / job.sequence_length, ramp, job.global_batch, step)
    result = Result(
        scenario=scenario.name,
        description=scenario.description,
        gpus=plan.gpus,
        gpus_in_job=plan.world,
        nodes=sum(group.count for group in scenario.cluster.nodes),
        spares=dict(plan.spares),
        seed=scenario.run.seed,
        version=__version__,
        step_time_s=step,
        step_time_p99_s=float(np.quantile(seconds, 0.99)),
        tokens_per_step=tokens_per_step,
        tokens_per_s=tokens_per_step / step,
        tokens_per_s_per_gpu=tokens_per_step / step / plan.world,
        model_flops_per_gpu=per_gpu,
        mfu=per_gpu / peak_flops_per_gpu,
        hfu=hardware_flops_per_step / step / plan.world / peak_flops_per_gpu,
        breakdown_s=breakdown,
        bottleneck={"stage": critical.stage, "stages": plan.pipeline, "hardware": critical.hardware},
        bound=_bound(breakdown, links, step),
        memory_bytes=memory,
        links=links,
        collectives=tuple(dict(zip(_COLLECTIVE, kind, strict=True)) for kind in chosen),
        routing=routing_of(
            scenario.cluster.fabric.routing,
            pinned,
            frozenset((kind[0], kind[4].removesuffix("-tree")) for kind in chosen),
            links,
        ),
        power_W=power.site_W,
        energy_per_step_J=power.energy_per_step_J,
        power=power,
        cost=cost_of(power, scenario.cluster.price, plan.gpus, training),
        time_to_train_s=training,
        ramp=cost_of_ramp(ramp, job.global_batch, step),
        assumptions=tuple(assumptions),
        error_band=error_band(scenario, plan),
        notes=tuple(notes),
        shares=shares,
        mix=mix,
        jitter=None if late is None else late[1],
        classes=classes,
        processes=record.processes,
        events=record.events,
        setup_s=setup_s,
        wall_s=wall_s,
        peak_memory_bytes=peak_memory_bytes,
        fold=fold,
        fold_rounds=fold_rounds,
        aligned=aligned,
        steps=_steps(
            seconds * (scenario.run.steps if len(seconds) == 1 else 1),
            tokens_per_step,
            per_gpu * step / peak_flops_per_gpu,
        ),
        record=record,
        loads=tuple(loads),
        cluster=scenario.cluster,
    )
    beyond = [name for name, value in _figures(result.to_dict()) if not math.isfinite(value)]
    if beyond:
        raise SimulationError(
            f"{', '.join(beyond[:3])} cannot be told: a quantity of the scenario is too large or too small to reckon with"
        )
    return result


def _steps(seconds: Sequence[float], tokens: float, needed: float) -> tuple[dict[str, float], ...]:
    """A row a step. tokens: a step.  needed: s that its model FLOPs would take at the GPUs' peak."""
    return tuple(
        {
            "step": i,
            "start_s": sum(seconds[:i]) if len(set(seconds)) > 1 else i * step,
            "end_s": sum(seconds[: i + 1]) if len(set(seconds)) > 1 else (i + 1) * step,
            "step_time_s": step,
            "tokens": tokens,
            "tokens_per_s": tokens / step,
            "mfu": needed / step,
        }
        for i, step in enumerate(seconds)
    )


def _figures(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """All floats of a nested dict, with their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _figures(value, f"{above}{name}.")
        elif isinstance(value, float):
            yield f"{above}{name}", value


#: Stands in the name of every link of a graph.
ARROW = " -> "
_COLLECTIVE = ("channel", "operation", "bytes", "nodes", "algorithm", "protocol")
#: Above this many link classes those of a kind are one entry.
_FEW = 64


def _links(record: StepRecord) -> dict[str, dict[str, float]]:
    """Link classes by name; those of one name are numbered.

    When they are many, those of a name and capacity are one entry (mean bytes, busiest share), and if these are still
    many, those of a name (least capacity). Links of a graph, of which each has its own name, are then one entry `fabric`.
    """
    groups: list[list[LinkUse]] = []
    keys: tuple[Callable[[LinkUse], Any], ...] = (
        id,
        lambda use: (use.name, use.capacity),
        lambda use: use.name,
        lambda use: use.kind,
    )
    for key in keys:
        joined: dict[Any, list[LinkUse]] = {}
        for use in record.links:
            joined.setdefault(key(use), []).append(use)
        groups = list(joined.values())
        if len(groups) <= _FEW:
            break
    names = [uses[0].name if len({use.name for use in uses}) == 1 else uses[0].kind for uses in groups]
    total = Counter(names)
    seen: Counter[str] = Counter()
    entries = {}
    for name, uses in sorted(zip(names, groups, strict=True), key=lambda item: names.index(item[0])):
        seen[name] += 1
        count = sum(use.count for use in uses)
        mean = sum(use.bytes * use.count for use in uses) / count
        entries[name if total[name] == 1 else f"{name} {seen[name]}"] = {
            "count": count,
            "capacity_Bps": min(use.capacity for use in uses),
            "busy_fraction": max(use.busy for use in uses) / record.step_time,
            "bytes_per_step": uses[0].bytes if len(uses) == 1 else mean,
        }
    return entries


_CALLED = {
    "compute": "kernels",
    "tensor_comm": "tensor-parallel communication",
    "context_comm": "context-parallel communication",
    "expert_comm": "expert all-to-all",
    "pipeline_comm": "pipeline transfers",
    "pipeline_bubble": "the pipeline bubble",
    "data_comm": "exposed gradient traffic",
    "optimizer": "the optimizer",
    "straggler": "waiting for slower ranks",
    "other": "launching kernels",
}


def kind_of(name: str) -> str:
    """The name of a link class without its number; a link of a graph keeps its own, `leaf0 -> spine1`."""
    return name if ARROW in name else name.rstrip("0123456789 ")


def _bound(breakdown: dict[str, float], links: dict[str, dict[str, float]], step: float) -> str:
    """One sentence: where the step goes, and which links are busiest."""
    order = sorted(breakdown, key=lambda name: -breakdown[name])
    shares = [
        f"{_CALLED[name]} {100 * breakdown[name] / step:.0f} %" for name in order[:3] if breakdown[name] > 0.005 * step
    ]
    load = {name: link["bytes_per_step"] / (link["capacity_Bps"] * step) for name, link in links.items()}
    sentence = ", ".join(shares)
    if load:
        busiest = max(load, key=lambda name: load[name])
        sentence += f"; the most loaded link ({kind_of(busiest)}) carries {100 * load[busiest]:.0f} % of what it could"
    return sentence
