"""Before the first event: the job laid onto the cluster, folded, and compiled.

`prepare` goes from a scenario to all that a step is played with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from colossim.capacity import check_memory
from colossim.cluster import Cluster, build_cluster
from colossim.cluster.variation import with_slowest
from colossim.collective import Library
from colossim.engine.chunked_step import (
    refuse_many_gpus,
    refuse_many_messages,
    refuse_pinned_paths,
)
from colossim.errors import ScenarioError
from colossim.flows import Pace
from colossim.fold import fold
from colossim.legs import Leg
from colossim.quotient import Quotient
from colossim.scenario.derive import Plan, derive
from colossim.scenario.power import capped
from colossim.scenario.schema import Scenario
from colossim.segments import Compiler
from colossim.shares import Shares, equal_shares, shares_by_speed
from colossim.site import library_of, place_job, storage_tiers
from colossim.traffic import Traffic, build_traffic
from colossim.workload.program import Compute, kernel_pricer, used_operations

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class LaidOut:
    """The job on the cluster, before folding. plan: of the whole job; each kind of replica in `shares` has its own."""

    scenario: Scenario
    plan: Plan
    cluster: Cluster
    shares: Shares
    traffic: Traffic
    library: Library


@dataclass(frozen=True)
class Setup:
    """Everything before the first event. legs: a compiled program a rank class.

    chosen: (channel, operation, bytes, nodes, algorithm, protocol) of the collectives.  pace: of flows that routing pins.
    """

    laid: LaidOut
    quotient: Quotient
    legs: list[tuple[Leg, ...]]
    chosen: tuple[tuple[str, str, float, int, str, str], ...]
    pace: Pace | None = None

    def of(self, scenario: Scenario) -> Setup:
        """The same for a scenario that differs in what changes no step."""
        return replace(self, laid=replace(self.laid, scenario=capped(scenario)))


def lay_out(scenario: Scenario, progress: Progress | None = None, *, must_fit: bool = True) -> LaidOut:
    """Wires the cluster and lays the job onto it. Raises ScenarioError (located) and, if it must fit, DoesNotFit."""
    scenario = capped(scenario)
    try:
        plan = derive(scenario)
        if scenario.run.collectives == "chunked":
            refuse_pinned_paths(scenario.cluster.fabric)
            refuse_many_gpus(plan.world)
        tell(progress, "wiring the cluster", 0.0)
        cluster = place_job(build_cluster(scenario.cluster), plan, scenario)
        tell(progress, "laying the job onto it", 0.05)
        return lay_onto(scenario, plan, cluster, must_fit=must_fit)
    except ScenarioError as error:
        raise scenario.located(error) from None


def lay_onto(scenario: Scenario, plan: Plan, cluster: Cluster, *, must_fit: bool = True) -> LaidOut:
    """Lays the job onto the first GPUs of the cluster. Raises ScenarioError and, if it must fit, DoesNotFit."""
    job = scenario.job
    if scenario.jitter is None or not scenario.jitter.gpu:
        # Else each GPU draws a pace of its own.
        cluster = with_slowest(cluster, plan.world)
    shares = equal_shares(plan, job, cluster)
    if must_fit and job.balance == "equal":
        check_memory(scenario, plan, cluster, shares)
    library = library_of(cluster, job)
    traffic = build_traffic(
        cluster,
        plan,
        operations=used_operations(shares.programs),
        algorithms=library.able,
        kind=shares.kind_of_rank,
        storage_tiers=storage_tiers(scenario),
    )
    laid = balanced(LaidOut(scenario, plan, cluster, shares, traffic, library))
    if must_fit and job.balance == "speed":
        check_memory(scenario, plan, cluster, laid.shares)
    return laid


def balanced(laid: LaidOut) -> LaidOut:
    """The job with the shares that it asks for, laid out with equal ones. Raises ScenarioError."""
    job = laid.scenario.job
    if job.balance == "equal":
        return laid
    shares = shares_by_speed(laid.plan, job, laid.cluster, laid.traffic, laid.library, laid.shares)
    return replace(laid, shares=shares, traffic=replace(laid.traffic, kind=shares.kind_of_rank))


def with_batch(laid: LaidOut, batch: int) -> LaidOut:
    """The same job on the same GPUs with another global batch."""
    job = laid.scenario.job
    parallelism = job.parallelism.model_copy(update={"data": laid.plan.data})
    job = job.model_copy(update={"global_batch": batch, "batch_ramp": None, "parallelism": parallelism})
    scenario = laid.scenario.model_copy(update={"job": job})
    plan = derive(scenario)
    shares = equal_shares(plan, job, laid.cluster)
    traffic = replace(laid.traffic, kind=shares.kind_of_rank)
    return balanced(LaidOut(scenario, plan, laid.cluster, shares, traffic, laid.library))


def tell(progress: Progress | None, what: str, share: float) -> None:
    if progress is not None:
        progress(what, share)


def pricer_of(laid: LaidOut) -> Callable[[Compute, int], float]:
    """Seconds of an operation's kernels on a node type."""
    return kernel_pricer([node.gpu for node in laid.cluster.node_types], laid.scenario.job.precision)


def compile_setup(laid: LaidOut, quotient: Quotient, pace: Pace | None = None) -> Setup:
    """Compiles the programs of all rank classes of a folded job."""
    overlap = laid.scenario.job.software.overlap
    fluid = laid.scenario.run.collectives == "fluid"
    slowdowns = (overlap.compute, overlap.transfer)
    jitter = laid.scenario.jitter
    varies = jitter is not None and jitter.kernel > 0
    compiler = Compiler(quotient, laid.library, pricer_of(laid), slowdowns, absorb=fluid, grains=varies)
    legs = [compiler.compile(laid.shares.kinds[rank.kind].programs[rank.stage], rank) for rank in quotient.ranks]
    return Setup(laid, quotient, legs, tuple(sorted(compiler.chosen)), pace)


def folded(laid: LaidOut) -> tuple[Quotient, Pace | None]:
    """The job folded as its scenario says. Raises TooManyClasses."""
    run = laid.scenario.run
    return fold(laid.traffic, "off" if run.collectives == "chunked" else run.fold, run.seed)


def prepare(scenario: Scenario, progress: Progress | None = None, *, must_fit: bool = True) -> Setup:
    """Lays the job out, folds it and compiles it. Raises ScenarioError (located), DoesNotFit, TooManyClasses."""
    laid = lay_out(scenario, progress, must_fit=must_fit)
    tell(progress, "folding", 0.3)
    chunked = scenario.run.collectives == "chunked"
    quotient, pace = folded(laid)
    tell(progress, "compiling", 0.9)
    setup = compile_setup(laid, quotient, pace)
    if chunked:
        plan = laid.plan
        together = plan.pipeline if plan.chunks > 1 else 1
        refuse_many_messages(quotient, setup.legs, scenario.job.global_batch // plan.micro_batches, together)
    return setup
