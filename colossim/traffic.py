"""Where cluster meets job: which ranks form which groups, and which links each group touches.

Ranks are laid onto the first GPUs of the cluster in the job's `order`; a *channel* is one kind of communication
(tensor, context, expert, expert_tensor, data, expert_data, embedding; forward and backward over stage boundaries) with all
its groups.
Everything is an array over ranks or groups: 100,000 GPUs are a few numpy expressions.

Slack bundles are found here: a bundle whose feeding NICs sum to no more than its capacity can never bind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from colossim import patterns, trees, writes
from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster, GraphCluster
from colossim.dispatch import node_limited
from colossim.errors import SimulationError
from colossim.footprint import LEVELS, Floats, Footprint, Ints, with_stand_ins
from colossim.nccl import CAN
from colossim.scenario.derive import Plan

#: Channels a job can have, in the order in which they are numbered.
COLLECTIVE_CHANNELS = (
    "tensor", "context", "expert", "expert_tensor", "data", "data_shards", "data_replicas", "expert_data", "embedding", "amax",
)  # fmt: skip
BOUNDARY_CHANNELS = ("forward", "backward")
#: Writes of every rank that run beside the step, whatever the programs do.
STORAGE = "storage"
#: Tiers of switches that writes pass, by where the storage hangs.
STORAGE_TIERS = {"leaf": 1, "spine": 2, "core": 3}

Builder = Callable[[Cluster, Ints], Footprint]


@dataclass(frozen=True)
class Channel:
    """All groups of one kind. members: (G, n) ranks; a boundary's columns are sender and receiver.

    roles: for each role the (R,) group of every rank, -1 where it has none. footprint: what the groups put on links when
    they run `algorithm`. A kind of communication that may run several has a channel each, of the same groups.  job: whose.
    """

    name: str
    algorithm: str
    job: int
    members: Ints
    roles: tuple[Ints, ...]
    footprint: Footprint

    @property
    def groups(self) -> int:
        return int(self.members.shape[0])

    @property
    def size(self) -> int:
        return int(self.members.shape[1])


@dataclass(frozen=True)
class Traffic:
    """The job on the cluster, as arrays. R ranks on GPUs 0..R-1; of several jobs their ranks, and idle GPUs between them.

    stage: (R,) pipeline stage, counted on from job to job.  hardware: (R,) node type.
    kind: (R,) kind of replica within the job: ranks of different kinds play different programs.
    capacity: (links,) bytes/s of every link of the cluster.
    slack: (links,) bool: bundles that can never bind.  aligned: whether pipeline stages end where pods end.
    """

    cluster: Cluster
    ranks: int
    stage: Ints
    hardware: Ints
    channels: tuple[Channel, ...]
    capacity: Floats
    slack: NDArray[np.bool_]
    aligned: bool
    kind: Ints

    def channel(self, name: str, algorithm: str | None = None) -> Channel | None:
        """The channel of this name (and algorithm, else the first), or None if no group of it has two members."""
        return next((c for c in self.channels if c.name == name and algorithm in (None, c.algorithm)), None)

    def ways(self) -> list[list[int]]:
        """Numbers of the channels of each job and name: the same groups, under each algorithm that they may run."""
        found: dict[tuple[int, str], list[int]] = {}
        for number, channel in enumerate(self.channels):
            found.setdefault((channel.job, channel.name), []).append(number)
        return list(found.values())


def group_members(plan: Plan) -> dict[str, Ints]:
    """(G, n) ranks of every group of every channel, ascending; channels whose groups have one member are left out.

    The grid of ranks has `order`'s first axis fastest. The data group holds every rank of a stage with the same tensor
    index (Megatron's data x context), cut into shards and replicas of them if states are sharded over some of its ranks; an
    expert group takes `expert` consecutive ones of it by the order; where fewer than the tensor group share an expert, it takes
    neighbours in the tensor group first, at the same place of their `expert_tensor` ones. The embedding group joins the
    first and the last stage, which hold a tied embedding each.
    """
    axes = [axis for axis in reversed(plan.order)]
    sizes = [plan.axes[axis] for axis in axes]
    grid = np.arange(plan.world, dtype=np.int32).reshape(sizes)
    # The context axis is cut in two, so that an expert group may span some of it.
    at = axes.index("context")
    spanned = plan.expert_context
    grid = grid.reshape([*sizes[:at], sizes[at] // spanned, spanned, *sizes[at + 1 :]])
    axes = [*axes[:at], "context", "inner_context", *axes[at + 1 :]]
    # And the tensor axis in three: groups that share experts, those of an expert group, and its others.
    at, sizes = axes.index("tensor"), list(grid.shape)
    within, shared = plan.expert_within, plan.expert_tensor
    grid = grid.reshape([*sizes[:at], plan.tensor // (within * shared), within, shared, *sizes[at + 1 :]])
    axes = [*axes[:at], "outer_tensor", "middle_tensor", "inner_tensor", *axes[at + 1 :]]

    def grouped(*inside: str) -> Ints:
        last = [axis for axis in axes if axis in inside]
        rest = [axis for axis in axes if axis not in inside]
        moved = grid.transpose([axes.index(axis) for axis in (*rest, *last)])
        n = math.prod(grid.shape[axes.index(axis)] for axis in last)
        return moved.reshape(-1, n)

    groups = {
        "tensor": grouped("outer_tensor", "middle_tensor", "inner_tensor"),
        "context": grouped("context", "inner_context"),
        "expert": grouped("expert", "inner_context", "middle_tensor"),
        "expert_tensor": grouped("inner_tensor"),
        "data": grouped("context", "inner_context", "expert", "data"),
        "expert_data": grouped("context", "data", "outer_tensor"),
        "amax": grouped(*(axis for axis in axes if axis != "pipeline")),
    }
    shards = plan.sharding_group
    if shards < plan.replica_group:
        # Neighbours by the order share the shards; ranks with the same shard are the others' columns.
        cut = groups["data"].reshape(-1, plan.replica_group // shards, shards)
        groups["data_shards"] = cut.reshape(-1, shards)
        groups["data_replicas"] = cut.transpose(0, 2, 1).reshape(-1, plan.replica_group // shards)
    if not plan.experts_apart:
        del groups["expert_data"]
    if plan.expert_tensor == plan.tensor:
        del groups["expert_tensor"]
    if plan.pipeline > 1:
        along = np.moveaxis(grid, axes.index("pipeline"), 0).reshape(plan.pipeline, -1)
        after = np.roll(along, -1, axis=0)
        wraps = plan.chunks > 1
        stages = plan.pipeline if wraps else plan.pipeline - 1
        ahead = np.stack([along[:stages].ravel(), after[:stages].ravel()], axis=1)
        groups["forward"] = ahead
        groups["backward"] = ahead[:, ::-1]
        groups["embedding"] = along[[0, -1]].T
    return {name: members for name, members in groups.items() if members.shape[1] > 1}


def stage_of_ranks(plan: Plan) -> Ints:
    """(world,) pipeline stage of every rank."""
    return along(plan, "pipeline")


def along(plan: Plan, axis: str) -> Ints:
    """(world,) every rank's place on one axis of `order`."""
    before = plan.order[: plan.order.index(axis)]
    stride = math.prod(plan.axes[name] for name in before)
    return (np.arange(plan.world, dtype=np.int32) // np.int32(stride)) % np.int32(plan.axes[axis])


def describe(channel: Channel, cluster: Cluster, ranks: int) -> str:
    """One line for people: how many groups of how many ranks, and which links they cross."""
    footprint = channel.footprint
    loads = {kind: float(weights[:ranks].max()) for _, kind, weights in footprint.own}
    crossed = [
        name
        for name, used in (
            ("NVLink", max(loads.get(NVLINK_OUT, 0.0), loads.get(NVLINK_IN, 0.0)) > 0),
            ("NIC", max(loads.get(NIC_OUT, 0.0), loads.get(NIC_IN, 0.0)) > 0),
            ("spine", bool(footprint.crossings[0].any())),
            ("core", bool(footprint.crossings[1].any())),
            ("top tier", bool(footprint.crossings[2].any())),
            ("the graph", isinstance(cluster, GraphCluster) and bool(np.any(footprint.link >= 4 * cluster.gpus))),
        )
        if used
    ]
    return f"{channel.groups:,} groups of {channel.size:,} over {', '.join(crossed)}"


#: Algorithms that put bytes on links in their own way, and what counts them.
ALGORITHMS: dict[str, Builder] = {
    "ring": patterns.ring,
    "hierarchical": patterns.hierarchical,
    "tree": trees.tree,
    "nvls": trees.nvls,
    "collnet": trees.collnet,
    "pat": trees.pat,
}
#: Operations whose messages are what they are, whatever the library would choose.
_FIXED: dict[str, tuple[str, Builder]] = {
    "shift": ("shift", patterns.shift),
    "all_to_all": ("direct", patterns.all_to_all),
    "send": ("send", patterns.pair),
}


@dataclass(frozen=True)
class Share:
    """What one job asks of the cluster. first: the GPU of its first rank.

    operations: those that its programs use, by channel name.  algorithms: those that its collectives may run beside a ring.
    kind: (world,) kind of replica of each of its ranks.
    """

    plan: Plan
    first: int
    operations: Mapping[str, frozenset[str]]
    algorithms: frozenset[str]
    kind: Ints


def build_traffic(
    cluster: Cluster,
    plan: Plan,
    *,
    operations: Mapping[str, frozenset[str]],
    algorithms: frozenset[str],
    kind: Ints | None = None,
    storage_tiers: int = 0,
) -> Traffic:
    """Lays one job onto the cluster's first GPUs; arguments as in `Share` and `join_traffic`."""
    kind = np.zeros(plan.world, np.int32) if kind is None else kind
    return join_traffic(cluster, [Share(plan, 0, operations, algorithms, kind)], storage_tiers)


def join_traffic(cluster: Cluster, shares: Sequence[Share], storage_tiers: int = 0) -> Traffic:
    """Lays jobs onto a cluster. Stages are numbered on from job to job; GPUs between them idle in a stage of their own.

    storage_tiers: tiers of switches that every rank's writes to storage pass; 0: nothing is written.
    """
    ranks = max(share.first + share.plan.world for share in shares)
    channels = [channel for job, share in enumerate(shares) for channel in _channels(cluster, share, job, ranks)]
    if storage_tiers:
        writers = np.concatenate([np.arange(s.first, s.first + s.plan.world, dtype=np.int32) for s in shares])[:, None]
        footprint = writes.storage(cluster, writers, tiers=storage_tiers)
        channels.append(Channel(STORAGE, "write", 0, writers, (_group_of(writers, ranks),), footprint))
    stage = np.full(ranks, sum(share.plan.pipeline for share in shares), np.int32)
    kind = np.zeros(ranks, np.int32)
    before = 0
    for share in shares:
        own = slice(share.first, share.first + share.plan.world)
        stage[own] = stage_of_ranks(share.plan) + np.int32(before)
        kind[own] = share.kind
        before += share.plan.pipeline
    capacity = cluster.capacity()
    _check_ways(cluster, channels, capacity)
    return Traffic(
        cluster=cluster,
        ranks=ranks,
        stage=stage,
        hardware=cluster.gpu_type[:ranks].astype(np.int32),
        channels=tuple(channels),
        capacity=capacity,
        slack=_slack(cluster, channels, capacity),
        aligned=_aligned(cluster, stage),
        kind=kind,
    )


def _channels(cluster: Cluster, share: Share, job: int, ranks: int) -> list[Channel]:
    """A job's channels: an algorithm is laid out where an operation can use it and some group is able to."""
    found = []
    for name, own in group_members(share.plan).items():
        if name not in share.operations:
            continue
        members = own + np.int32(share.first)
        columns = [members[:, :1], members[:, 1:]] if name in BOUNDARY_CHANNELS else [members]
        roles = tuple(_group_of(column, ranks) for column in columns)
        operations = share.operations[name]
        for operation in sorted(operations & _FIXED.keys()):
            algorithm, builder = _FIXED[operation]
            if name == "expert" and share.plan.node_limit is not None:
                algorithm, builder = "node-limited", partial(node_limited, limit=share.plan.node_limit)
            found.append(Channel(name, algorithm, job, members, roles, _footprint(builder, cluster, members)))
        for algorithm, builder in ALGORITHMS.items():
            ring = algorithm == "ring" and operations & CAN["ring"]
            if ring or (algorithm in share.algorithms and operations & CAN[algorithm]):
                footprint = _footprint(builder, cluster, members)
                if footprint.usable.any():
                    found.append(Channel(name, algorithm, job, members, roles, footprint))
    return found


def _footprint(builder: Builder, cluster: Cluster, members: Ints) -> Footprint:
    footprint = builder(cluster, members)
    if cluster.any_dark and builder is not patterns.pair:
        return with_stand_ins(footprint, cluster, members)
    return footprint


def _group_of(members: Ints, ranks: int) -> Ints:
    """(G, k) members -> (ranks,) the group of each rank, -1 where it has none."""
    group_of = np.full(ranks, -1, dtype=np.int32)
    group_of[members] = np.arange(members.shape[0], dtype=np.int32)[:, None]
    return group_of


def _check_ways(cluster: Cluster, channels: list[Channel], capacity: Floats) -> None:
    """Raises SimulationError if messages must cross a bundle whose links are all dead."""
    for channel in channels:
        dead = np.flatnonzero(capacity[channel.footprint.link] == 0)
        if dead.size:
            link = int(channel.footprint.link[dead[0]])
            raise SimulationError(f"{cluster.above(link)} is dead, and {channel.name} messages must cross it")


def _slack(cluster: Cluster, channels: list[Channel], capacity: Floats) -> NDArray[np.bool_]:
    """Bundles whose feeding NICs (those with traffic through it) sum to no more than their capacity.

    Only NIC capacities are summed, never those of other bundles: a link that may itself be pruned proves nothing.
    The margin of 1e-9 is for the rounding of the sum.
    """
    if isinstance(cluster, GraphCluster):
        return cluster.slack()
    slack = np.zeros(cluster.links, dtype=bool)
    gpus = np.arange(cluster.gpus)
    for level in LEVELS:
        groups = cluster.bundle_capacity(level).size
        if not groups:
            continue
        bundle = (cluster.leaf, cluster.block, cluster.zone)[level - 1](gpus)
        for down in (False, True):
            feeds = np.zeros(cluster.gpus, dtype=bool)
            for channel in channels:
                feeds |= channel.footprint.feeds[int(down), level - 1]
            fed = np.bincount(bundle, weights=np.where(feeds, cluster.nic, 0.0), minlength=groups)
            first = cluster.bundle_offset(level, down)
            slack[first : first + groups] = fed <= capacity[first : first + groups] * (1 + 1e-9)
    return slack


def _aligned(cluster: Cluster, stage: Ints) -> bool:
    """Whether every pipeline stage begins at a pod's first GPU."""
    begins = np.flatnonzero(np.diff(stage, prepend=-1))
    pod = cluster.pod(np.arange(stage.size))
    return bool(np.all((begins == 0) | (pod[begins] != pod[np.maximum(begins - 1, 0)])))
