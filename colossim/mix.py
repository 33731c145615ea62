"""What a job of several node types makes of them: who plays how much, who waits for whom."""

from __future__ import annotations

from typing import Any

import numpy as np

from colossim.cluster import Cluster
from colossim.engine.record import CATEGORIES, StepRecord
from colossim.scenario.job import JobSpec
from colossim.shares import Shares
from colossim.workload.program import Compute, StageProgram, kernel_pricer


def mix(cluster: Cluster, shares: Shares, precision: str, record: StepRecord) -> dict[str, Any] | None:
    """What a job of several node types costs itself; None if there is one type.

    For each type: seconds of the same work (the kernels of a stage in the middle, of the first kind of replicas), of its own
    (of the kind of replicas on it that takes longest), and the mean seconds a step that its ranks wait for others: slower
    members of a collective, and neighbour stages. The type that is slowest at its own work sets the pace.
    """
    present = [int(index) for index in np.flatnonzero(shares.blocks.types.any(axis=0))]
    if len(present) < 2:
        return None
    pricer = kernel_pricer([node.gpu for node in cluster.node_types], precision)
    middle = [kind.programs[kind.plan.pipeline // 2] for kind in shares.kinds]

    def kernels(program: StageProgram, node: int) -> float:
        return sum(pricer(op, node) for p in program.passes for op in p.body if isinstance(op, Compute))

    waits = [CATEGORIES.index("straggler"), CATEGORIES.index("pipeline_bubble")]
    rows = {}
    for index in present:
        name = cluster.node_types[index].name
        own = [timeline for timeline in record.timelines if timeline.hardware == name]
        count = sum(timeline.count for timeline in own)
        waited = sum(timeline.count * float(timeline.seconds()[waits].sum()) for timeline in own) / count
        work = max(kernels(program, index) for kind, program in enumerate(middle) if shares.on(index, kind))
        rows[name] = {"same_work_s": kernels(middle[0], index), "work_s": work, "waits_s": waited}
    return {"types": rows, "pace": max(rows, key=lambda name: rows[name]["work_s"])}


def told_shares(cluster: Cluster, shares: Shares) -> tuple[dict[str, Any], ...]:
    """A row for each kind of replicas and set of node types that they stand on: how many, and what each plays a step."""
    types = shares.blocks.types
    rows: dict[tuple[tuple[str, ...], int], int] = {}
    patterns = {row.tobytes(): row for row in types}
    for row in patterns.values():
        names = tuple(cluster.node_types[i].name for i in np.flatnonzero(row))
        here = (types == row).all(axis=1)
        for number in range(len(shares.kinds)):
            blocks = int((here & (shares.kind == number)).sum())
            if blocks:
                rows[names, number] = blocks * shares.blocks.replicas
    return tuple(
        {
            "nodes": list(names),
            "replicas": replicas,
            "micro_batches": shares.kinds[number].plan.micro_batches,
            "micro_batch": shares.kinds[number].plan.micro_batch,
            "sequences": shares.kinds[number].sequences,
            "recompute": shares.kinds[number].job.recompute,
        }
        for (names, number), replicas in rows.items()
    )


def silent_shares(job: JobSpec, cluster: Cluster, shares: Shares) -> list[str]:
    """Notes on keys of shares that changed nothing, and why."""
    notes = []
    used = {kind.settings for kind in shares.kinds}
    alike = "replicas that share experts" if shares.blocks.replicas > 1 else "replica"
    for name in job.groups:
        if name not in used:
            notes.append(
                f"`job.groups.{name}` had no effect: no {alike} stand{'s' * (shares.blocks.replicas == 1)} on {name} alone; "
                "`job.parallelism.order` says how ranks land on nodes"
            )
    if job.balance == "speed" and len({kind.sequences for kind in shares.kinds}) == 1:
        why = "all replicas are as fast"
        spread = (shares.blocks.types != shares.blocks.types[0]).any()
        if shares.blocks.types.sum(axis=1).max() > 1 and not spread:
            why = "every replica spans the same node types"
        elif spread:
            why = "speeds differ by less than whole micro-batches can"
        notes.append(f"`job.balance` had no effect: {why}")
    return notes
