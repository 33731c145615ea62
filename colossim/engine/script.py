"""Messages on the network: each waits for what it needs and for its channel, pays its latency, then moves its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, Cluster
from colossim.collective import MessageCost
from colossim.engine.network import Activity, Network
from colossim.footprint import LEVELS, Floats, Ints
from colossim.messages import SWITCH, Messages

Links = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Ground:
    """A network that plays the messages of one cluster. numbers: (cluster.links,) of each link there, -1 where it has none."""

    cluster: Cluster
    network: Network
    numbers: list[int]


@dataclass(frozen=True)
class Edges:
    """The (src, dst) of some messages, each once. outside: (E,) leaves the node.  switches: (E,) s.

    edge, link: rows (edge, link of the cluster) of all links that an edge crosses.
    """

    src: Ints
    dst: Ints
    outside: np.ndarray[Any, np.dtype[np.bool_]]
    switches: Floats
    edge: Ints
    link: Ints

    @staticmethod
    def of(cluster: Cluster, src: Ints, dst: Ints) -> Edges:
        gpus, every = cluster.gpus, np.arange(src.size)
        up, down = dst == SWITCH, src == SWITCH
        routes = cluster.routes(np.where(down, dst, src), np.where(up, src, dst))
        outside = routes.level > 0
        inside, via = every[~outside], routes.exit_gpu
        relayed = every[(via != src) & outside]
        far = every[outside]
        rows = [
            (inside[~down[inside]], NVLINK_OUT * gpus + src[inside][~down[inside]]),
            (inside[~up[inside]], NVLINK_IN * gpus + dst[inside][~up[inside]]),
            (relayed, NVLINK_OUT * gpus + src[relayed]),
            (relayed, NVLINK_IN * gpus + via[relayed]),
            (far, NIC_OUT * gpus + via[far]),
            (far, NIC_IN * gpus + dst[far]),
        ]
        for level in LEVELS:
            crossing = every[routes.level > level]
            if crossing.size and cluster.bundle_capacity(level).size:
                place = (cluster.leaf, cluster.block, cluster.zone)[level - 1]
                rows.append((crossing, cluster.bundle_offset(level, False) + place(via[crossing])))
                rows.append((crossing, cluster.bundle_offset(level, True) + place(dst[crossing])))
        edge, link = (np.concatenate(column).astype(np.int64) for column in zip(*rows, strict=True))
        order = np.argsort(edge, kind="stable")
        return Edges(src, dst, outside, routes.latency, edge[order], link[order])


@dataclass
class Limits:
    """What one group sustains on each GPU's NVLink and NIC, as links of the network that only its messages cross."""

    ground: Ground
    numbers: dict[int, int] = field(default_factory=dict)

    def number(self, link: int) -> int:
        """Of the network, for an own link of a GPU."""
        if link not in self.numbers:
            self.numbers[link] = self.ground.network.add_link(float("inf"))
        return self.numbers[link]

    def set(self, pace: MessageCost) -> None:
        """For the collective that comes; none of the group's may be in flight."""
        gpus, capacity = self.ground.cluster.gpus, self.ground.network.capacity
        for link, number in self.numbers.items():
            capacity[number] = pace.nic if link // gpus in (NIC_OUT, NIC_IN) else pace.nvlink


@dataclass(frozen=True)
class Script:
    """Messages ready to be played, as lists over M messages. size: as in `messages`; a play may scale it.

    way: (M,) its edge.  links: (E,) of an edge, on the network.  missing: (M,) messages that it waits for; waiters: (M,) those
    that wait for it; following: (M,) the next of its channel, or -1; free: (M,) whether it is its channel's first.
    """

    messages: Messages
    edges: Edges
    cluster_links: int
    way: list[int]
    links: list[Links]
    size: list[float]
    missing: list[int]
    waiters: list[list[int]]
    following: list[int]
    free: list[bool]

    @staticmethod
    def of(messages: Messages, limits: Limits, *, overlap: bool) -> Script:
        """overlap: whether a message may pay its latency while the one before it on its channel still moves."""
        ground, count = limits.ground, messages.count
        gpus = ground.cluster.gpus
        key, way = np.unique((messages.src + 1) * (gpus + 1) + messages.dst + 1, return_inverse=True)
        edges = Edges.of(ground.cluster, key // (gpus + 1) - 1, key % (gpus + 1) - 1)
        links: list[list[tuple[int, float]]] = [[] for _ in range(key.size)]
        for edge, link in zip(edges.edge.tolist(), edges.link.tolist(), strict=True):
            if ground.numbers[link] >= 0:
                links[edge].append((ground.numbers[link], 1.0))
            if link < 4 * gpus:
                links[edge].append((limits.number(link), 1.0))
        follower = np.flatnonzero(messages.after >= 0)
        before = messages.after[follower]
        waiter, needed = messages.waiter, messages.needed
        following, free = np.full(count, -1), np.ones(count, dtype=bool)
        if overlap:
            following[before] = follower
            free[follower] = False
        else:
            waiter, needed = np.concatenate([waiter, follower]), np.concatenate([needed, before])
        order = np.argsort(needed, kind="stable")
        bounds = np.searchsorted(needed[order], np.arange(count + 1)).tolist()
        sorted_waiters = waiter[order].tolist()
        return Script(
            messages=messages,
            edges=edges,
            cluster_links=ground.cluster.links,
            way=way.ravel().tolist(),
            links=[tuple(on) for on in links],
            size=messages.size.tolist(),
            missing=np.bincount(waiter, minlength=count).tolist(),
            waiters=[sorted_waiters[a:b] for a, b in pairwise(bounds)],
            following=following.tolist(),
            free=free.tolist(),
        )

    def link_bytes(self) -> Floats:
        """(cluster.links,) bytes that all messages put there."""
        on_edge = np.bincount(self.way, weights=self.messages.size, minlength=len(self.links))
        carried = np.zeros(self.cluster_links)
        np.add.at(carried, self.edges.link, on_edge[self.edges.edge])
        return carried


class Message(Activity):
    """A message in flight, of a play. held: its latency is over, but its channel still moves the one before it."""

    __slots__ = ("held", "number", "ready_at")
    quiet = False

    def __init__(self, play: Play, number: int, links: Links, size: float) -> None:
        super().__init__(links, size, float("inf"))
        self.owner = play
        self.number = number
        self.held = False
        self.ready_at = play.network.env.now

    def due(self, network: Network) -> None:
        """Its latency is over, or its bytes have arrived."""
        if self.began is not None:
            network.finish(self)
        elif self.owner.free[self.number]:
            self.owner.move(self)
        else:
            self.held = True


class Play:
    """One collective at play, message by message.

    scale: on the script's sizes.  shown: part of sizes and latencies that counts.  logs: a log of (start, end, rate) an edge.
    """

    def __init__(
        self, network: Network, script: Script, pace: MessageCost, *, scale: float = 1.0, shown: float = 1.0,
        done: Callable[[], None] | None = None, began: Callable[[], None] | None = None,
        logs: list[list[tuple[float, float, float]] | None] | None = None,
    ) -> None:  # fmt: skip
        self.network = network
        self.script = script
        self.unfinished = len(script.size)
        self.free = list(script.free)
        self.stretch = 1.0
        #: every message that has begun to pay its latency, by number
        self.started: dict[int, Message] = {}
        self.moving: dict[Message, None] = {}
        self._missing = list(script.missing)
        self._scale = scale * shown
        self._done, self._began = done, began
        self._logs = logs
        hops = np.where(script.edges.outside, pace.network_hop + script.edges.switches, pace.nvlink_hop)
        self._latency = (hops * shown).tolist()

    def begin(self) -> None:
        """What waits for nothing starts."""
        for number in [i for i, missing in enumerate(self._missing) if not missing]:
            self._start(number)

    def _start(self, number: int) -> None:
        way = self.script.way[number]
        message = Message(self, number, self.script.links[way], self.script.size[number] * self._scale)
        self.started[number] = message
        if self._logs is not None:
            message.log = self._logs[way]
        self.network.start(message, self._latency[way])

    def move(self, message: Message) -> None:
        """A message's first byte."""
        if self._began is not None:
            began, self._began = self._began, None
            began()
        message.stretch = self.stretch
        self.moving[message] = None
        self.network.begin(message)

    def stretched(self, stretch: float) -> None:
        """From now on all its messages weigh so much on their links."""
        self.stretch = stretch
        for message in self.moving:
            message.stretch = stretch
            self.network.disturb(message)

    def ended(self, activity: Activity) -> None:
        """A message has arrived: those that waited for it alone may start."""
        assert isinstance(activity, Message)
        self.unfinished -= 1
        del self.moving[activity]
        number = activity.number
        following = self.script.following[number]
        if following >= 0:
            self.free[following] = True
            waiting = self.started.get(following)
            if waiting is not None and waiting.held:
                self.move(waiting)
        missing = self._missing
        for waiter in self.script.waiters[number]:
            missing[waiter] -= 1
            if not missing[waiter]:
                self._start(waiter)
        if not self.unfinished and self._done is not None:
            self._done()
