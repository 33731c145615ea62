"""A step whose collectives and boundary transfers are played message by message, on the network of the fluid step.

Nothing is folded: every rank, group and link is a class of its own. A call pays what its collective costs once, then its
`Play` moves the messages that the library's choice of algorithm spells out; rates and latencies are those of the fluid
timing (`Library.message_cost`). In-switch reductions between nodes have no messages on GPUs' links alone: they stay one
transfer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from colossim.catalog.types import Fabric
from colossim.chunks import ALGORITHMS, collective_messages, default_slices, message_count
from colossim.cluster import Cluster
from colossim.collective import Library, MessageCost, Timing
from colossim.engine.group import Call, Carrier, Communicator, Group
from colossim.engine.network import Network
from colossim.engine.script import Ground, Limits, Play, Script
from colossim.errors import Problem, ScenarioError, SimulationError
from colossim.legs import Blocking, Leg, Ship, Start
from colossim.quotient import GroupClass, Quotient
from colossim.traffic import BOUNDARY_CHANNELS

#: A message takes about 0.1 ms of wall-clock time, and more where many share links.
MOST_MESSAGES = 3_000_000
MOST_GPUS = 1024
#: Algorithms that are played as one transfer: switches add up, or nodes share out what came once, which no message says.
WHOLE = frozenset({"nvls", "collnet", "node-limited"})


@dataclass(frozen=True)
class Chunking:
    """What a chunked step needs beside the quotient: the cluster behind it, and its communication library."""

    cluster: Cluster
    library: Library


class Stage:
    """The ground of a chunked step: the quotient's links, then GPUs' links that only messages touch."""

    def __init__(self, chunking: Chunking, quotient: Quotient, network: Network) -> None:
        self.cluster, self.library, self.quotient = chunking.cluster, chunking.library, quotient
        numbers = quotient.partition.link.astype(int).tolist()
        for link, capacity in enumerate(self.cluster.capacity()[: 4 * self.cluster.gpus].tolist()):
            if numbers[link] < 0:
                numbers[link] = network.add_link(capacity)
        self.ground = Ground(self.cluster, network, numbers)
        self._passive = {link.kind: i for i, link in enumerate(quotient.passive)}

    def group(self, communicator: Communicator, kind: GroupClass, name: str, watched: set[int]) -> Group:
        """The group at play. name: of its channel.  watched: links whose throughput is kept."""
        boundary = name in BOUNDARY_CHANNELS
        if kind.shape.algorithm in WHOLE:
            return Group(communicator, kind, boundary, bool(kind.passive) or any(n in watched for n, _ in kind.links))
        return ChunkedGroup(self, communicator, kind, boundary, watched)

    def carrier(self, kind: GroupClass, links: Sequence[int], watched: set[int]) -> Carrier:
        """What one edge of a group carries. links: of the cluster."""
        quotient, cluster = self.quotient, self.cluster
        own = [n for link in links if 0 <= (n := self.ground.numbers[link]) < len(quotient.links)]
        beyond = [self._passive[cluster.link_kind_name(link)] for link in links if self.ground.numbers[link] < 0]
        edge = replace(
            kind,
            links=tuple((n, 1.0) for n in own),
            passive=tuple((i, 1.0 / quotient.passive[i].count) for i in beyond),
        )
        return Carrier(edge, bool(beyond) or not watched.isdisjoint(own))


class ChunkedCall(Call):
    """A collective whose messages move; it is on no link itself."""

    __slots__ = ("exposed", "play", "timing")
    quiet = False

    def __init__(self, group: ChunkedGroup) -> None:
        super().__init__(group)
        self.links = ()
        self.log = None
        self.play: Play | None = None

    def load(self, timing: Timing, exposed: float) -> None:
        """What is to be moved; the latency is what the collective pays before its first message."""
        super().load(timing, exposed)
        self.timing, self.exposed = timing, exposed
        self.latency = self.owner.pace(timing).base * exposed

    def due(self, network: Network) -> None:
        """Its turn has come, and what it pays once is over."""
        self.play = self.owner.play(self)
        self.play.stretched(self.stretch)
        self.play.begin()

    def disturbed(self, network: Network) -> None:
        """Something computes beside it, or no longer does: its messages weigh more, or less."""
        if self.play is not None:
            self.play.stretched(self.stretch)

    def moves(self) -> None:
        """Its first message's first byte."""
        self.began = self.owner.network.env.now
        if self.size > 0:
            for watcher in self.watchers:
                watcher.transfer_began(self)

    def arrived_whole(self) -> None:
        """Its last message has arrived."""
        self.owner.network.finish(self)


class ChunkedGroup(Group):
    """One group at play, message by message."""

    def __init__(
        self, stage: Stage, communicator: Communicator, kind: GroupClass, boundary: bool, watched: set[int]
    ) -> None:
        super().__init__(communicator, kind, boundary, False)
        self.stage = stage
        self.carriers: list[Carrier] = []
        self._watched_links = watched
        self._limits = Limits(stage.ground)
        self._scripts: dict[tuple[str, int], tuple[Script, list[Carrier], list[float]]] = {}
        self._edges: dict[tuple[int, int], Carrier] = {}

    def new_call(self) -> Call:
        """A call whose messages are played."""
        return ChunkedCall(self)

    def pace(self, timing: Timing) -> MessageCost:
        """What its messages pay."""
        return self.stage.library.message_cost(timing.operation, timing.size, self.kind.shape, timing.protocol)

    def play(self, call: ChunkedCall) -> Play:
        """The call's messages, ready to begin. A group's calls take turns, so that its limits are this one's alone."""
        timing = call.timing
        script, carriers, carried = self._script(timing)
        for carrier, part in zip(carriers, carried, strict=True):
            carrier.bytes += part * timing.size
        pace = self.pace(timing)
        self._limits.set(pace)
        return Play(
            self.network,
            script,
            pace,
            scale=timing.size,
            shown=call.exposed,
            began=call.moves,
            done=call.arrived_whole,
            logs=[carrier.log for carrier in carriers],
        )

    def _script(self, timing: Timing) -> tuple[Script, list[Carrier], list[float]]:
        slices = slices_of(timing, self.kind)
        key = (timing.operation, slices)
        found = self._scripts.get(key)
        if found is None:
            cluster = self.stage.cluster
            messages = collective_messages(
                cluster,
                np.array(self.kind.members),
                timing.operation,
                1.0,
                algorithm=self.kind.shape.algorithm,
                slices=slices,
            )
            script = Script.of(messages, self._limits, overlap=True)
            edges = script.edges
            links: list[list[int]] = [[] for _ in script.links]
            for edge, link in zip(edges.edge.tolist(), edges.link.tolist(), strict=True):
                links[edge].append(link)
            carriers = []
            for key_of, crossed in zip(zip(edges.src.tolist(), edges.dst.tolist(), strict=True), links, strict=True):
                carrier = self._edges.get(key_of)
                if carrier is None:
                    carrier = self._edges[key_of] = self.stage.carrier(self.kind, crossed, self._watched_links)
                    self.carriers.append(carrier)
                carriers.append(carrier)
            parts = np.bincount(script.way, weights=messages.size, minlength=len(carriers)).tolist()
            found = self._scripts[key] = (script, carriers, parts)
        return found


def slices_of(timing: Timing, kind: GroupClass) -> int:
    """Slices of a collective of this group."""
    shape = kind.shape
    return default_slices(shape.algorithm, timing.size, shape.size, shape.nodes)


def plays_whole(algorithm: str) -> bool:
    """Whether collectives by this algorithm (as `Timing` names it) are played as one transfer in a chunked step."""
    return not any(algorithm in ways for ways in ALGORITHMS.values()) or algorithm in WHOLE


def refuse_pinned_paths(fabric: Fabric) -> None:
    """Raises ScenarioError where routing pins flows to paths: messages share the bundles of adaptive routing."""
    if fabric.routing != "adaptive":
        words = (
            f"chunked plays adaptive routing, not {fabric.routing}: set cluster.fabric.routing: adaptive, or fluid here"
        )
        raise ScenarioError([Problem("run.collectives", words)])


def refuse_many_gpus(world: int) -> None:
    """Raises SimulationError for a job that can't be played without folding."""
    if world > MOST_GPUS:
        raise SimulationError(
            f"run.collectives: chunked plays every rank and message of {world:,} GPUs; at most {MOST_GPUS:,} would do. "
            f"What would fit: run.collectives: fluid, or fewer GPUs"
        )


def refuse_many_messages(quotient: Quotient, legs: list[tuple[Leg, ...]], sequences: int, multiple: int) -> None:
    """Raises SimulationError for a step of too many messages, with what would fit.

    sequences: of all replicas' micro-batches of one number.  multiple: the schedule wants so many micro-batches at once.
    """
    by_micro_batch = messages_of_step(quotient, legs)
    total = sum(by_micro_batch.values())
    if total <= MOST_MESSAGES:
        return
    each = [count for micro_batch, count in by_micro_batch.items() if micro_batch >= 0]
    drop = math.ceil((total - MOST_MESSAGES) / max(1, min(each, default=1)))
    left = (len(each) - drop) // multiple * multiple
    fewer = f"job.global_batch: {left * sequences} ({left} micro-batches a replica), " if left > 0 else ""
    raise SimulationError(
        f"run.collectives: chunked: a step of this job is about {total:,} messages; at most {MOST_MESSAGES:,} would do. "
        f"What would fit: {fewer}fewer layers or GPUs, or run.collectives: fluid"
    )


def messages_of_step(quotient: Quotient, legs: list[tuple[Leg, ...]]) -> dict[int, int]:
    """Messages of each micro-batch, and of what is outside the pipeline (-1); of relays no more than there could be."""
    found: dict[int, int] = {}
    for index, rank in enumerate(quotient.ranks):
        known: dict[int, int] = {}
        for leg in legs[index]:
            if id(leg.steps) not in known:
                count = 0
                for step in leg.steps:
                    if not isinstance(step, Blocking | Start | Ship):
                        continue
                    kind = quotient.groups[step.channel][rank.groups[step.channel][0]]
                    if kind.members[0] != index:
                        continue
                    shape, t = kind.shape, step.timing
                    if shape.algorithm not in WHOLE:
                        count += message_count(
                            shape.algorithm, t.operation, shape.size, shape.nodes, slices_of(t, kind)
                        )
                known[id(leg.steps)] = count
            found[leg.micro_batch] = found.get(leg.micro_batch, 0) + known[id(leg.steps)]
    return found
