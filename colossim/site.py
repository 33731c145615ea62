"""What a job finds on its cluster: its nodes, its communication library, its storage."""

from __future__ import annotations

import numpy as np

from colossim.cluster import Cluster
from colossim.cluster.placement import Wish, place
from colossim.collective import Library
from colossim.scenario.job import JobSpec, NamedJob
from colossim.scenario.plan import Plan
from colossim.scenario.schema import Scenario
from colossim.traffic import STORAGE_TIERS


def storage_tiers(scenario: Scenario) -> int:
    """Tiers of switches that writes to storage pass; 0 if there are none."""
    storage = scenario.cluster.storage
    return 0 if storage is None else STORAGE_TIERS[storage.tier]


def writes_of(scenario: Scenario) -> float:
    """Bytes/s that every rank writes to storage; 0 if there is none."""
    storage = scenario.cluster.storage
    return 0.0 if storage is None else storage.write


def place_job(cluster: Cluster, plan: Plan, scenario: Scenario) -> Cluster:
    """The cluster with the job's nodes first, in the order in which its ranks take them. Raises ScenarioError."""
    if scenario.job.placement == "packed":
        return cluster
    sizes = np.array([t.gpus for t in cluster.node_types])[cluster.node_type]
    name = scenario.job.name if isinstance(scenario.job, NamedJob) else ""
    (own,) = place([Wish(name, plan.world, scenario.job.placement, "job.placement")], sizes, scenario.run.seed)
    rest = np.ones(cluster.nodes, dtype=bool)
    rest[own] = False
    return cluster.placed(np.concatenate([own, np.flatnonzero(rest)]))


def library_of(cluster: Cluster, job: JobSpec) -> Library:
    """The job's communication library on the cluster's machines."""
    able: set[str] = set(job.software.algorithms)
    if not cluster.fabric.sharp:
        able.discard("collnet")
    if any(node.nvls is None for node in cluster.node_types):
        able -= {"nvls", "collnet"}
    if job.collectives_algorithm not in ("auto", "nvls", "collnet"):
        able.add(job.collectives_algorithm)
    return Library(
        nodes=cluster.node_types,
        link=cluster.fabric.link,
        able=frozenset(able),
        algorithm=job.collectives_algorithm,
        protocol=job.collectives_protocol,
    )
