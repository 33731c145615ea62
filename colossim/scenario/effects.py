"""What the user wrote and what changed nothing, with the reason; and what costs more than it looks."""

from __future__ import annotations

import math

from colossim.scenario.job import Experts
from colossim.scenario.plan import Plan
from colossim.scenario.schema import Scenario
from colossim.scenario.timetable import changes_of
from colossim.units import format_time

#: Fields of a fabric that say how switches are wired.
_NOT_OF_GRAPHS = (
    "tiers", "switch_ports", "nodes_per_pod", "pods_per_block", "blocks_per_zone", "oversubscription", "rails", "planes",
)  # fmt: skip


def no_effects(scenario: Scenario, plan: Plan) -> list[str]:
    """Notes on keys that the user wrote and that changed nothing, such as "`run.seed` had no effect: ..."."""
    job, par, fabric = scenario.job, scenario.job.parallelism, scenario.cluster.fabric
    overlap, model, experts = job.overlap, job.model, job.experts
    jitter = scenario.jitter
    slow = None if jitter is None else jitter.slow
    alone, hiding = "there is one replica", job.software.tensor_overlap
    silent = [
        ("job.overlap.expert", overlap.expert and not model.experts, "the model has no experts"),
        (
            "job.overlap.expert",
            overlap.expert and model.experts and plan.expert == 1,
            "each rank holds all experts",
        ),
        (
            "job.overlap.expert",
            overlap.expert and model.experts and plan.expert > 1 and not model.shared_ffn,
            "no shared MLP could hide the all-to-all",
        ),
        *((f"job.experts.{key}", not model.experts, "the model has no experts") for key in Experts.model_fields),
        *(
            (f"job.experts.{key}", model.experts and experts.pad, "each expert's input is padded to its capacity")
            for key in ("imbalance", "fullest")
        ),
        *(
            (
                f"job.experts.{key}",
                model.experts and plan.expert == 1 and whole,
                "each rank holds all experts",
            )
            for key, whole in (("imbalance", experts.capacity_factor is None), ("fullest", not experts.pad))
        ),
        (
            "job.experts.capacity_factor",
            model.experts
            and not experts.pad
            and not experts.imbalance
            and (experts.fullest or 1.0) <= (experts.capacity_factor or 0.0),
            "no expert gets more",
        ),
        ("job.experts.limit_nodes", model.experts and plan.expert == 1, "each rank holds all experts"),
        (
            "job.experts.limit_nodes",
            model.experts
            and plan.expert > 1
            and plan.world <= min(group.type.gpus for group in scenario.cluster.nodes),
            "the job sits in one node",
        ),
        ("job.overlap.tensor", overlap.tensor and par.tensor == 1, "tensor parallelism is 1"),
        (
            "job.overlap.tensor",
            overlap.tensor and par.tensor > 1 and not (hiding.share or hiding.by_product),
            f"{job.software.name} hides no part of a tensor collective",
        ),
        (
            "job.overlap.tensor",
            overlap.tensor and par.tensor > 1 and hiding.by_product and not par.sequence,
            f"{job.software.name} needs sequence parallelism for it",
        ),
        ("job.parallelism.expert_tensor", not model.experts, "the model has no experts"),
        ("job.parallelism.context_style", par.context == 1, "context parallelism is 1"),
        ("job.offload.optimizer", job.offload.optimizer and not job.optimizer, "steps end without an optimizer"),
        ("job.overlap.offload", not job.offload.keys, "nothing is offloaded"),
        ("job.overlap.pipeline", par.pipeline == 1, "there is one stage"),
        *(
            (f"job.parallelism.{key}", par.pipeline == 1, "there is one stage")
            for key in ("stage_layers", "account_for_embedding", "account_for_loss", "defer_head")
        ),
        ("job.overlap.data", plan.replica_group == 1, alone),
        ("job.bucket", plan.replica_group == 1, alone),
        (
            "job.bucket",
            plan.replica_group > 1 and not overlap.data,
            "gradients are reduced after the backward pass, in one piece",
        ),
        ("job.parallelism.sequence", par.sequence and par.tensor == 1, "tensor parallelism is 1"),
        ("job.parallelism.sharding", par.sharding != "none" and plan.replica_group == 1, alone),
        (
            "job.parallelism.sharding_group",
            par.sharding == "none",
            "nothing is sharded",
        ),
        ("job.parallelism.reshard", par.sharding != "parameters", "parameters aren't sharded"),
        ("job.overlap.parameters", plan.replica_group == 1, alone),
        (
            "job.overlap.parameters",
            plan.replica_group > 1 and par.sharding not in ("optimizer", "gradients"),
            "no sharded optimizer has whole parameters to gather",
        ),
        (
            "job.recompute",
            job.recompute == "selective" and job.software.attention != "unfused",
            "fused attention keeps no scores to compute again",
        ),
        (
            "job.collectives_algorithm",
            plan.world <= min(group.type.gpus for group in scenario.cluster.nodes)
            and job.collectives_algorithm in ("tree", "collnet", "pat", "hierarchical"),
            "the job sits in one node",
        ),
        (
            "cluster.fabric.paths_per_flow",
            fabric.routing == "adaptive",
            "adaptive routing uses all paths",
        ),
        (
            "cluster.fabric.paths_per_flow",
            fabric.routing == "static",
            "static routing pins all queue pairs between two ends to one path",
        ),
        (
            "cluster.fabric.blocks_per_zone",
            fabric.tiers < 4,
            f"a fabric of {fabric.tiers} tiers has no zones",
        ),
        (
            "cluster.fabric.pods_per_block",
            fabric.tiers < 3,
            f"a fabric of {fabric.tiers} tiers has one block",
        ),
        *(
            (
                f"cluster.fabric.oversubscription.{i}",
                True,
                f"a fabric of {fabric.tiers} tiers has no such boundary",
            )
            for i in range(fabric.tiers - 1, 3)
        ),
        (
            "run.fold",
            scenario.run.collectives == "chunked" and scenario.run.fold != "off",
            "chunked collectives are played unfolded",
        ),
        (
            "run.steps",
            scenario.run.duration is not None,
            "`run.duration` says how long",
        ),
        *(
            (
                key,
                scenario.faults is None and scenario.run.duration is None and not scenario.events,
                "nothing fails: write `faults`",
            )
            for key in ("checkpoint", "spares", "warm", "repairs", "when_short")
        ),
        ("jitter", jitter is not None and not jitter.given, "it says how GPUs differ by 0 %"),
        ("jitter.slow.factor", slow is not None and slow.factor == 1.0, "slow machines take 1 times as long as others"),
        (
            "jitter.slow.share",
            slow is not None and not slow.count(_machines(scenario, slow.per)),
            f"that is none of the cluster's {_machines(scenario, slow.per):,} {slow.per}s" if slow is not None else "",
        ),
        *(
            (
                f"events.{i}",
                scenario.run.duration is not None
                and min(change.at for change in changes_of(i, event)) >= scenario.run.duration,
                f"the run ends before, after {format_time(scenario.run.duration or 0.0)}",
            )
            for i, event in enumerate(scenario.events)
        ),
        (
            "checkpoint.watchdog",
            scenario.faults is not None and not any(kind.hang for kind in scenario.faults.classes.values()),
            "nothing hangs: `hang: true` in a class of faults",
        ),
        *(
            (key, scenario.when_short == "wait", "the job waits for a node: `when_short: shrink`")
            for key in ("regrow", "short_batch")
        ),
        (
            "run.seed",
            scenario.faults is None
            and (jitter is None or not jitter.given)
            and fabric.routing != "ecmp"
            and job.placement != "scattered"
            and scenario.traffic is None
            and not (model.experts and experts.imbalance),
            "nothing is drawn at random in this run",
        ),
    ]
    if fabric.type == "graph":
        of_all = ("cluster.fabric.paths_per_flow",)
        silent = [row for row in silent if not row[0].startswith("cluster.fabric.") or row[0] in of_all]
        silent += [(f"cluster.fabric.{name}", True, "the graph says how nodes meet") for name in _NOT_OF_GRAPHS]
        silent.append(("cluster.fabric.sharp", fabric.sharp, "a graph's switches don't reduce"))
    else:
        silent.append(("cluster.fabric.graph", True, f"only a fabric of type graph has one, not {fabric.type}"))
    return [f"`{path}` had no effect: {why}" for path, quiet, why in silent if quiet and scenario.written(path)]


def _machines(scenario: Scenario, per: str) -> int:
    """Nodes of the cluster, or GPUs."""
    return scenario.cluster.gpus if per == "gpu" else sum(group.count for group in scenario.cluster.nodes)


def advice(scenario: Scenario, plan: Plan) -> list[str]:
    """Notes on sizes that cost the job dear, and what would not."""
    job, curves = scenario.job, [group.type.gpu.gemm for group in scenario.cluster.nodes]
    worst = min(curve["bf16" if job.precision == "fp8" else job.precision].unaligned for curve in curves)
    unit = 8 * plan.tensor
    vocabulary = job.model.vocabulary
    if worst == 1.0 or vocabulary % unit == 0:
        return []
    return [
        f"a vocabulary of {vocabulary:,} on {plan.tensor} tensor ranks leaves rows of the logits off 16 bytes, and the head's "
        f"products reach {worst:.0%} of what aligned ones do: {math.ceil(vocabulary / unit) * unit:,} would not"
    ]
