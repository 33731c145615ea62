"""What was read and what follows from it, without playing anything: the page of `colossim check`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossim.campaign import (
    checkpoint_bytes,
    is_campaign,
    mtbf_of,
    nodes_of,
    sources_of,
    spares_of,
    times_of,
)
from colossim.capacity import fitting, fullest_host, memory_of_kinds
from colossim.cluster import Cluster, GraphCluster
from colossim.cluster.variation import paces_of, slow_gpus
from colossim.damage import fewer_of
from colossim.jobs import stand
from colossim.layout import LaidOut, lay_out
from colossim.mix import silent_shares, told_shares
from colossim.reliability import best_interval
from colossim.result.summary import said_share
from colossim.scenario.derive import Plan, advice, no_effects
from colossim.scenario.jitter import Jitter
from colossim.scenario.job import JobSpec
from colossim.scenario.power import limits
from colossim.scenario.schema import Scenario, TrafficSpec
from colossim.scenario.stretch import Stretch, at_first, stretches_of
from colossim.shares import Shares
from colossim.traffic import Traffic, describe
from colossim.units import format_count, format_power, format_rate, format_share, format_size, format_time
from colossim.workload.memory import Memory
from colossim.workload.replicas import ReplicaKind
from colossim.workload.transformer import active_parameters, parameters

Section = dict[str, str]
_OWNERS = {"gpu": "GPUs", "node": "nodes", "rack": "racks", "leaf": "leaf switches", "job": "job"}
#: Links that are named.
_NAMED = 4


def explain(scenario: Scenario) -> dict[str, Section]:
    """Sections of label and value: cluster, job, memory, who talks over what, notes; of several jobs each job's.

    Raises ScenarioError. A model that doesn't fit is explained, not raised.
    """
    if scenario.jobs:
        sections: dict[str, Section] = {}
        for standing, i in zip(stand(scenario, fits=False), range(len(scenario.jobs)), strict=True):
            own = _sections(scenario.alone(i), standing.laid)
            sections |= {title if title == "cluster" else f"{standing.name}: {title}": own[title] for title in own}
        return sections
    return _sections(scenario, lay_out(at_first(scenario), must_fit=False))


def _sections(scenario: Scenario, laid: LaidOut) -> dict[str, Section]:
    """One job's."""
    stretches = stretches_of(scenario) if scenario.events else []
    here = stretches[0].scenario if stretches else scenario
    plan, cluster, traffic = laid.plan, laid.cluster, laid.traffic
    sections = {
        "cluster": _cluster(here, cluster, traffic),
        "job": _job(here.job, plan, told_shares(cluster, laid.shares)),
        "memory a GPU": _memory(here, laid),
        "who talks over what": {c.name: describe(c, cluster, plan.world) for c in traffic.channels},
    }
    if scenario.jitter is not None:
        sections["jitter"] = _jitter(scenario.jitter, scenario, plan, cluster)
    if is_campaign(scenario):
        sections["weeks"] = _weeks(here, plan, cluster)
    if scenario.events:
        sections["events"] = _events(stretches)
    if scenario.traffic is not None:
        sections["traffic"] = _offered(scenario.traffic)
    notes = [*no_effects(scenario, plan), *advice(scenario, plan), *silent_shares(scenario.job, cluster, laid.shares)]
    notes += [note for one in stretches for note in one.notes]
    if notes:
        sections["notes"] = {str(i + 1): note for i, note in enumerate(notes)}
    return sections


def _cluster(scenario: Scenario, cluster: Cluster, traffic: Traffic) -> Section:
    fabric = cluster.fabric
    groups = [
        f"{g.count * g.type.gpus:,} x {g.type.gpu.name} ({g.count:,} {g.type.name})" for g in scenario.cluster.nodes
    ]
    bundles = traffic.slack[4 * cluster.gpus :]
    if isinstance(cluster, GraphCluster):
        return {"GPUs": ", ".join(groups), **_graph(scenario, cluster, bundles)}
    return {
        "GPUs": ", ".join(groups),
        "fabric": f"{fabric.name}: {fabric.type}, {fabric.tiers} tier(s), {fabric.routing} routing",
        "link": f"{format_rate(fabric.link)} a NIC port, one direction",
        "oversubscription": ", ".join(f"{ratio:g}:1" for ratio in fabric.oversubscription) or "none (one tier)",
        "bundles that can bind": f"{int((~bundles).sum()):,} of {bundles.size:,}",
        **_cap(scenario),
    }


def _cap(scenario: Scenario) -> Section:
    """What a power cap leaves GPUs."""
    if scenario.cluster.power_cap is None:
        return {}
    left = dict(zip((g.type.gpu.name for g in scenario.cluster.nodes), limits(scenario.cluster), strict=True))
    return {"power cap": ", ".join(f"{format_power(limit)} of each {name}" for name, limit in left.items())}


def _graph(scenario: Scenario, cluster: GraphCluster, slack: NDArray[np.bool_]) -> Section:
    """A fabric of one's own. slack: (links of the graph,) bool."""
    fabric, own = cluster.fabric, cluster.own
    network = own.network
    slow, fast = float(own.capacity.min(initial=np.inf)), float(own.capacity.max(initial=0.0))
    tight = np.flatnonzero(~slack)
    named = ", ".join(own.names[link] for link in tight[:_NAMED])
    return {
        "fabric": f"{fabric.name}: graph, {fabric.routing} routing",
        "graph": f"{own.file or 'a networkx object'}: {len(network.vertices):,} vertices, {own.links:,} links, each one way",
        "links": f"{format_rate(slow)} to {format_rate(fast)}" if slow < fast else format_rate(fast),
        "NIC": f"{format_rate(float(cluster.nic.max() / fabric.efficiency))} of one GPU, one direction",
        **_cap(scenario),
        "links that can bind": f"{tight.size:,} of {slack.size:,}"
        + (f": {named}{', ...' if tight.size > _NAMED else ''}" if named else ""),
    }


def _jitter(jitter: Jitter, scenario: Scenario, plan: Plan, cluster: Cluster) -> Section:
    """How GPUs differ, and how many of the job's are slow."""
    paces = paces_of(cluster, jitter, scenario.run.seed)[: plan.world]
    section = {"kernels": f"{format_share(jitter.kernel)} of their time, each time anew"} if jitter.kernel else {}
    if jitter.slow is not None:
        slow = int(slow_gpus(cluster, jitter, scenario.run.seed)[: plan.world].sum())
        section["slow"] = (
            f"{slow:,} of the job's GPUs are on {jitter.slow.per}s that take {jitter.slow.factor:g} times as long"
        )
    return {**section, "GPUs": f"take {paces.min():.3f} to {paces.max():.3f} of their kernels' time, as drawn"}


def _weeks(scenario: Scenario, plan: Plan, cluster: Cluster) -> Section:
    """What fails how often, and when checkpoints would be best."""
    sources = sources_of(scenario, plan, cluster)
    section = {}
    for source in sources:
        rate = format_time(source.kind.mtbf / source.count)
        section[source.name] = f"every {rate} one of {source.count:,} ({_OWNERS[source.owner]}): {source.kind.effect}"
    mtbf, checkpoint = mtbf_of(sources), scenario.checkpoint
    if math.isfinite(mtbf):
        section["stops the job"] = f"something, every {format_time(mtbf)}"
    if checkpoint is not None:
        interval, write, _ = times_of(scenario, checkpoint, nodes_of(plan, cluster), mtbf)
        best = format_time(best_interval(mtbf, write)) if write and math.isfinite(mtbf) else ""
        size = format_size(checkpoint_bytes(scenario.job))
        section["checkpoint"] = f"{size} after {format_time(interval)} of training, blocks for {format_time(write)}" + (
            f"; the best interval is {best}" if best else ""
        )
    section["spares"] = f"{spares_of(scenario, plan):,} nodes"
    if scenario.warm is not None:
        section["spares"] += f", and {scenario.warm.nodes:,} that take {format_time(scenario.warm.join)} to join"
    if scenario.repairs is not None:
        section["repairs"] = f"{scenario.repairs.crews:,} at a time"
    sizes = fewer_of(scenario, plan)
    if sizes:
        largest = f"{sizes[0].replicas:,} of {plan.data:,} on {sizes[0].nodes:,} nodes"
        section["without a spare"] = f"goes on with fewer replicas, down to {sizes[-1].replicas:,}: at first {largest}"
    return section


def _events(stretches: Sequence[Stretch]) -> Section:
    section: Section = {}
    for i, one in enumerate(stretches):
        when = format_time(one.begins)
        section[f"{when} ({i})" if when in section else when] = _stretch(one)
    return section


def _stretch(stretch: Stretch) -> str:
    """What the job stands on from a moment on, and what it does to get there."""
    plan, job = stretch.plan, stretch.scenario.job
    words = [stretch.what]
    if stretch.gate:
        words.append(stretch.gate)
    if stretch.same:
        words.append("the job stays as it is")
    else:
        words.append(
            f"{plan.world:,} of {plan.gpus:,} GPUs in {plan.data:,} replicas, {job.global_batch:,} sequences a step"
        )
        if stretch.begins > 0:
            words.append("it stops for that" if stretch.planned else "from its next restart on")
    spares = sum(count for _, count in plan.spares)
    return "; ".join([*words, f"{spares:,} nodes stand by"])


def _offered(traffic: TrafficSpec) -> Section:
    flows = f"{traffic.flows_per_nic} flow(s) a NIC, all at once"
    return {"played": "the fabric alone, in place of a step", "pattern": f"{traffic.pattern}, {flows}"}


def _job(job: JobSpec, plan: Plan, shares: Sequence[dict[str, Any]]) -> Section:
    model = job.model
    spares = ", ".join(f"{count:,} x {name}" for name, count in plan.spares) or "none"
    total, active = format_count(parameters(model)), format_count(active_parameters(model))
    layout = f"tensor {plan.tensor} x context {plan.context} x pipeline {plan.pipeline} x data {plan.data:,}"
    kinds = ((job.parallelism.context_style, plan.context > 1), (f"expert {plan.expert}", plan.expert > 1))
    tokens = format_count(job.global_batch * job.sequence_length)
    micro_batches = "; ".join(said_share(row, alone=len(shares) == 1) for row in shares)
    uneven = len(set(plan.layers)) > 1
    each = ", ".join(
        str(count) if many == 1 else f"{many} x {count}"
        for count, many in ((count, len(list(run))) for count, run in groupby(plan.layers))
    )
    there = [
        *([f"{format_share(job.offload.activations)} of what layers keep"] if job.offload.activations else []),
        *(["the optimizer's state and step"] if job.offload.optimizer else []),
    ]
    beside = "beside kernels" if job.overlap.offload else "one copy after the other"
    return {
        "model": f"{model.name}: {total} parameters, {active} active ({model.status})",
        "software": f"{job.software.name}, {job.precision}, recompute {job.recompute}",
        "world": f"{plan.world:,} ranks of {plan.gpus:,} GPUs; spare nodes: {spares}",
        "layout": layout + "".join(f" ({what})" for what, shown in kinds if shown),
        "batch": f"{job.global_batch:,} sequences of {job.sequence_length:,} = {tokens} tokens",
        "micro-batches": f"{micro_batches}, {plan.chunks} chunk(s) a stage",
        **({"layers": f"{each}, in the order of the model"} if uneven else {}),
        **({"on the host": f"{' and '.join(there)}, {beside}"} if there else {}),
    }


def _memory(scenario: Scenario, laid: LaidOut) -> Section:
    held = memory_of_kinds(laid.plan, laid.cluster, laid.shares)
    shown = {0, laid.plan.pipeline // 2, laid.plan.pipeline - 1}
    section = {
        f"stage {memory.stage}" + _whose(kind, laid.shares): _stage(memory, limit)
        for kind, memory, limit in held
        if memory.stage in shown
    }
    host = fullest_host(laid.plan, laid.cluster, laid.shares, [memory for _, memory, _ in held])
    if host is not None:
        section["host"] = f"{format_size(host[1])} of {format_size(host[2])} of the CPUs of node {host[0]}, the fullest"
    worst, memory, limit = max(held, key=lambda item: item[1].peak - item[2])
    if memory.peak <= limit:
        section["verdict"] = "fits"
    else:
        fixes = "; ".join(fitting(scenario, worst, min(c for k, _, c in held if k is worst))) or "more GPUs a replica"
        section["verdict"] = f"doesn't fit, by {format_size(memory.peak - limit)}; would fit with: {fixes}"
    return section


def _whose(kind: ReplicaKind, shares: Shares) -> str:
    """Which replicas are meant, where there are several kinds."""
    if len(shares.kinds) == 1:
        return ""
    own = f" of {kind.settings}'s settings" if kind.settings else ""
    return f", {kind.plan.micro_batches} x {kind.plan.micro_batch}{own}"


def _stage(memory: Memory, capacity: float) -> str:
    parts = ("parameters", "gradients", "optimizer", "activations", "update", "workspace")
    listed = ", ".join(f"{part} {format_size(getattr(memory, part))}" for part in parts)
    return f"{format_size(memory.peak)} of {format_size(capacity)}: {listed}"
