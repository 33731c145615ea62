"""Which replicas stand where, whose settings they have, and how many micro-batches each plays.

Replicas that share experts wait for each other in every pass: such a *block* plays as many micro-batches and has one
setting. A block whose nodes are of one type has the settings of this type in `job.groups`; one that spans several, the job's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colossim.cluster import Cluster
from colossim.collective import Library
from colossim.errors import Problem, ScenarioError
from colossim.legs import Alone, Blocking, Leg, Meeting, Slowed
from colossim.partition import refine
from colossim.quotient import quotient
from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.segments import Compiler
from colossim.traffic import Traffic, along
from colossim.workload.program import StageProgram, kernel_pricer
from colossim.workload.replicas import Floats, Ints, ReplicaKind, apportion

#: Digits of a speed that count: below are latencies of switches.
_DIGITS = 6


@dataclass(frozen=True)
class Blocks:
    """All B blocks of a job. of_rank: (world,) block of every rank.  replicas: of each block.

    types: (B, node types) bool: whether the block stands on nodes of this type.  settings: (B,) index of the node type
    whose settings it has; -1: the job's own.
    """

    of_rank: Ints
    replicas: int
    types: NDArray[np.bool_]
    settings: Ints

    @staticmethod
    def of(plan: Plan, job: JobSpec, cluster: Cluster) -> Blocks:
        """The job laid onto the cluster's first GPUs."""
        of_rank = along(plan, "data")
        types = np.zeros((plan.axes["data"], len(cluster.node_types)), dtype=bool)
        types[of_rank, cluster.gpu_type[: plan.world]] = True
        named = np.array([node.name in job.groups for node in cluster.node_types])
        own = types.argmax(axis=1)
        settings = np.where((types.sum(axis=1) == 1) & named[own], own, -1)
        return Blocks(of_rank, plan.axes["expert"], types, settings)


@dataclass(frozen=True)
class Shares:
    """What each block plays. kinds: of replicas.  kind: (B,) each block's."""

    blocks: Blocks
    kinds: tuple[ReplicaKind, ...]
    kind: Ints

    @staticmethod
    def of(plan: Plan, job: JobSpec, cluster: Cluster, blocks: Blocks, micro_batches: Ints) -> Shares:
        """micro_batches: (B,) of each replica of a block."""
        rows = np.stack([blocks.settings, micro_batches], axis=1)
        found, first, kind, count = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(first, kind="stable")
        kinds = tuple(
            ReplicaKind.of(
                plan, job, _settings(cluster, int(found[i, 0])), int(found[i, 1]), int(count[i]) * blocks.replicas
            )
            for i in order
        )
        return Shares(blocks, kinds, np.argsort(order)[kind.reshape(-1)].astype(np.int32))

    @property
    def kind_of_rank(self) -> Ints:
        """(world,) kind of every rank's replica."""
        found: Ints = self.kind[self.blocks.of_rank]
        return found

    @property
    def programs(self) -> list[StageProgram]:
        """Those of all kinds and stages."""
        return [program for kind in self.kinds for program in kind.programs]

    def on(self, node: int, kind: int) -> int:
        """Replicas of a kind that stand on nodes of this type, wholly or in part."""
        return int(np.count_nonzero(self.blocks.types[:, node] & (self.kind == kind))) * self.blocks.replicas


def _settings(cluster: Cluster, index: int) -> str:
    return cluster.node_types[index].name if index >= 0 else ""


def equal_shares(plan: Plan, job: JobSpec, cluster: Cluster) -> Shares:
    """As many sequences for every replica; rounded down where these are no whole micro-batches of a group's own size."""
    blocks = Blocks.of(plan, job, cluster)
    together = _together(plan)
    sizes = _sizes(job, cluster, blocks)
    whole = plan.micro_batches * plan.micro_batch // (sizes * together) * together
    return Shares.of(plan, job, cluster, blocks, np.maximum(together, whole))


def shares_by_speed(
    plan: Plan, job: JobSpec, cluster: Cluster, traffic: Traffic, library: Library, equal: Shares
) -> Shares:
    """Sequences in proportion to speed: 1 over the time of the block's slowest rank for a sequence, when nobody disturbs it.

    That time is of the programs of equal shares, compiled as they are played: kernels, launches and collectives within the
    replica; the step's end is left out. Whole micro-batches, and of interleaved schedules whole rounds of the stages, by
    largest remainder. Raises ScenarioError if no such shares add up to the global batch.
    """
    blocks = equal.blocks
    seconds = np.zeros(len(blocks.settings))
    np.maximum.at(seconds, blocks.of_rank, _seconds_a_sequence(job, cluster, traffic, library, equal.kinds))
    weights = 1.0 / _rounded(seconds)
    quanta = _sizes(job, cluster, blocks) * blocks.replicas * _together(plan)
    try:
        rounds = apportion(job.global_batch, weights, quanta)
    except ValueError as error:
        message = f"shares by speed: {error} (sequences that replicas of a block take at once): balance: equal would do"
        raise ScenarioError([Problem("job.balance", message)]) from None
    return Shares.of(plan, job, cluster, blocks, rounds * _together(plan))


def _together(plan: Plan) -> int:
    """Micro-batches come in multiples of it: interleaved schedules take as many as there are stages at a time."""
    return plan.pipeline if plan.chunks > 1 else 1


def _sizes(job: JobSpec, cluster: Cluster, blocks: Blocks) -> Ints:
    """(B,) sequences of a micro-batch."""
    # The last is for -1.
    sizes = [job.on(node.name).micro_batch for node in cluster.node_types] + [job.micro_batch]
    found: Ints = np.array(sizes)[blocks.settings]
    return found


def _rounded(seconds: Floats) -> Floats:
    unit = 10.0 ** (np.floor(np.log10(seconds.max())) - _DIGITS)
    return np.asarray(np.round(seconds / unit) * unit)


def _seconds_a_sequence(
    job: JobSpec, cluster: Cluster, traffic: Traffic, library: Library, kinds: Sequence[ReplicaKind]
) -> Floats:
    """(world,) s of every rank's own passes for a sequence, in the mean over its micro-batches."""
    partition = refine(traffic, bundles=False)
    folded = quotient(traffic, partition)
    overlap = job.software.overlap
    pricer = kernel_pricer([node.gpu for node in cluster.node_types], job.precision)
    compiler = Compiler(folded, library, pricer, (overlap.compute, overlap.transfer))
    seconds = []
    for rank in folded.ranks:
        kind = kinds[rank.kind]
        legs = compiler.compile(kind.programs[rank.stage], rank)
        seconds.append(sum(_busy(leg) for leg in legs if leg.micro_batch >= 0) / kind.sequences)
    return np.array(seconds)[partition.rank]


def _busy(leg: Leg) -> float:
    """s of a pass in which nobody is waited for."""
    total = 0.0
    for step in leg.steps:
        if isinstance(step, Alone | Meeting):
            total += step.segment.seconds
        elif isinstance(step, Slowed):
            total += step.seconds
        elif isinstance(step, Blocking):
            total += step.exposed * step.timing.alone
    return total
