"""The layout of a job on a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeLimit:
    """Routing that sends a token's copies to few nodes. nodes: at most.  experts: routed ones, `per_token` a token."""

    nodes: int
    experts: int
    per_token: int


@dataclass(frozen=True)
class Plan:
    """The layout of the job.

    gpus: of the cluster.  world: ranks.  spares: (node type, nodes) that no rank uses.
    tensor, context, pipeline, expert, data: sizes of the parallelisms.  chunks: model chunks a stage.
    layers: (stages x chunks,) layers of each chunk in the order of the model: chunk c of stage i is number i + pipeline c.
    micro_batches: of a replica and step.  micro_batch: its sequences.  sequence: tokens of a sequence.
    tokens: of a rank's micro-batch.  order: axes, fastest-varying first.  axes: their sizes; `expert` and
    `data` share the replicas.  expert_context: consecutive contexts that an expert group spans as well.
    expert_tensor: ranks that share an expert.  expert_within: groups of them in a tensor group that an expert group spans.
    sharding_group: ranks that share the states of the same dense parameters, if any are sharded.  seed: of random draws.
    node_limit: None if copies go wherever their experts are.
    """

    gpus: int
    world: int
    spares: tuple[tuple[str, int], ...]
    tensor: int
    context: int
    pipeline: int
    chunks: int
    layers: tuple[int, ...]
    expert: int
    data: int
    micro_batches: int
    micro_batch: int
    sequence: int
    tokens: int
    order: tuple[str, ...]
    axes: dict[str, int]
    expert_context: int
    expert_tensor: int
    expert_within: int
    sharding_group: int
    seed: int = 0
    node_limit: NodeLimit | None = None

    @property
    def replica_group(self) -> int:
        """Ranks that hold the same dense parameters: data x context."""
        return self.data * self.context

    @property
    def expert_group(self) -> int:
        """Ranks that hold the same experts."""
        return self.data * self.context * self.tensor // (self.expert * self.expert_tensor)

    @property
    def experts_apart(self) -> bool:
        """Whether other ranks hold the same experts than hold the same dense parameters."""
        return self.expert > 1 or self.expert_tensor < self.tensor
