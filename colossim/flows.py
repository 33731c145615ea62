"""Flows that routing pins to single paths: hashed (ecmp), or by their destination (static). They collide, and don't fold.

All flows stay arrays: each queue pair's path through the Clos is drawn at once, and one max-min solve gives the rates of
those that are in flight together. A collective moves at its slowest flow; a flow that is spread over several queue pairs
sends as many bytes on each, so that it moves at the pace of the slowest. Solves are remembered by which classes of groups
are in flight: a step meets few such sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from colossim.cluster.hashed import Members, hashed_paths
from colossim.footprint import Floats, Flows, Ints
from colossim.maxmin import Rows, fill
from colossim.traffic import Traffic

Kind = tuple[int, int]
#: Channels that join all replicas of a stage; the others stay inside one.
_ACROSS = frozenset({"data", "data_shards", "data_replicas", "expert_data"})
#: Replicas that are played apart, those with the slowest flows.
SAMPLED = 4
#: Up to this many kinds of groups that share links with one kind, its rate is found anew as they come and go; where more
#: do (ranks placed at random), all groups of a channel count as in flight as soon as some are.
MOST_NEAR = 16


class Part(NamedTuple):
    """Flows that come and go together. group: (flows,) of the channel; rows: of their queue pairs."""

    channel: int
    group: Ints
    rows: Rows


@dataclass(frozen=True)
class Pinned:
    """All pinned flows of a job. F flows of S queue pairs.

    flows: group of its channel, ends, weight.  channel: (F,).  pairs: queue pairs a flow.
    who, where: (rows,) queue pair and member link of the fabric, those of a pair side by side.
    capacity: (links,) bytes/s of the fabric's links, then of NICs out and NICs in.
    sprayed: names of channels whose flows are too many to be told apart; they are left to average out.
    """

    traffic: Traffic
    members: Members
    flows: Flows
    channel: Ints
    pairs: int
    who: Ints
    where: Ints
    capacity: Floats
    sprayed: tuple[str, ...]

    @staticmethod
    def of(traffic: Traffic, seed: int) -> Pinned:
        """Draws the paths. seed: of the hash."""
        cluster = traffic.cluster
        fabric = cluster.fabric
        parts = [c.footprint.flows for c in traffic.channels]
        flows = Flows.joined([part for part in parts if part is not None])
        channel = np.repeat(np.arange(len(parts)), [0 if part is None else part.group.size for part in parts])
        members = Members.of(cluster)
        capacity = members.capacity()
        # A connection is its channel's own. Its number in its job and its two ends are what is hashed, and these as machines:
        # a job draws the same paths alone and among others.
        first = {c.job: number for number, c in reversed(list(enumerate(traffic.channels)))}
        own = np.array([number - first[c.job] for number, c in enumerate(traffic.channels)])[channel]
        most = max(t.gpus for t in cluster.node_types)
        machine = cluster.gpu_node.astype(np.int64) * most + cluster.gpu_local
        ends = cluster.nodes * most
        key = (own * ends + machine[flows.src]) * ends + machine[flows.dst]
        paths = hashed_paths(
            members,
            flows.src,
            flows.dst,
            flows.level,
            flow_key=key,
            seed=seed,
            paths_per_flow=fabric.paths_per_flow,
            policy="static" if fabric.routing == "static" else "ecmp",
            alive=capacity > 0,
        )
        return Pinned(
            traffic=traffic,
            members=members,
            flows=flows,
            channel=channel,
            pairs=paths.flow.size // max(1, flows.group.size),
            who=paths.who,
            where=paths.where,
            capacity=np.concatenate([capacity, cluster.nic, cluster.nic]),
            sprayed=tuple(c.name for c, part in zip(traffic.channels, parts, strict=True) if part is None),
        )

    @cached_property
    def _span(self) -> tuple[Ints, Ints]:
        """(S,) first row and number of rows of each queue pair."""
        width = np.bincount(self.who, minlength=self.flows.group.size * self.pairs)
        return np.cumsum(width) - width, width

    def rows(self, chosen: Ints, *, nics: bool) -> Rows:
        """What the queue pairs of some flows put on links, those of a flow side by side. chosen: numbers of flows, ascending.

        A queue pair moves its part of the edges that its flow stands for: weight / pairs of the rate of one. nics: whether
        flows share their NICs, too; else a NIC is only a limit to each of them, and sharing it is left to the engine.
        """
        pair = (chosen[:, None] * self.pairs + np.arange(self.pairs)).ravel()
        # A pair's rows are side by side: those of the chosen ones, without a look at the others.
        first, width = (each.take(pair) for each in self._span)
        who = np.repeat(np.arange(pair.size), width)
        rows = np.repeat(first - (np.cumsum(width) - width), width)
        rows += np.arange(rows.size)
        where = self.where.take(rows)
        src, dst = (np.repeat(end[chosen], self.pairs) for end in (self.flows.src, self.flows.dst))
        nic = self.traffic.cluster.nic
        cap = np.full(pair.size, np.inf) if nics else np.minimum(nic[src], nic[dst])
        if nics:
            links, ends = self.members.links, np.arange(pair.size)
            who = np.concatenate([who, ends, ends])
            where = np.concatenate([where, links + src, links + nic.size + dst])
        weight = np.repeat(self.flows.weight[chosen] / self.pairs, self.pairs)
        return Rows.of(who, where, weight.take(who), cap)

    def pair_rates(self, active: NDArray[np.bool_]) -> Floats:
        """(S of the active flows,) bytes/s of an edge that their queue pairs allow, max-min fair. active: (F,)."""
        return fill([self.rows(np.flatnonzero(active), nics=True)], self.capacity)[0]

    def part(self, channel: int, chosen: Ints) -> Part:
        """Some of a channel's flows, of numbers that ascend."""
        return Part(channel, self.flows.group[chosen], self.rows(chosen, nics=False))

    def group_rates(self, parts: Sequence[Part]) -> dict[int, Floats]:
        """{channel: (G,) bytes/s of an edge} that the fabric allows each group's slowest flow of all these; inf without."""
        found = {part.channel: np.full(self.traffic.channels[part.channel].groups, np.inf) for part in parts}
        rates, _ = fill([part.rows for part in parts], self.capacity)
        ends = np.cumsum([part.rows.cap.size for part in parts])
        for part, own in zip(parts, np.split(rates, ends[:-1]), strict=True):
            np.minimum.at(
                found[part.channel], part.group, own.reshape(part.group.size, self.pairs).min(axis=1, initial=np.inf)
            )
        return found

    def alone(self, number: int) -> Floats:
        """(G,) `group_rates` of a channel when all of its groups are in flight, and no others."""
        return self.group_rates([self.part(number, np.flatnonzero(self.channel == number))])[number]

    @cached_property
    def replicas(self) -> Ints:
        """(R,) the replica of each rank: what communicates other than across all of them."""
        label = np.arange(self.traffic.ranks)
        inside = [c.members for c in self.traffic.channels if c.name not in _ACROSS]
        while True:
            before = label.copy()
            for members in inside:
                least = label[members].min(axis=1)
                np.minimum.at(label, members, np.repeat(least[:, None], members.shape[1], axis=1))
                # A label's own label, so that chains of groups close in few rounds.
                label = np.minimum(label, label[label])
            if np.array_equal(before, label):
                return np.unique(label, return_inverse=True)[1]

    def apart(self, most: int = SAMPLED) -> Ints:
        """(R,) 0, or a number of its own for the ranks of each of the `most` replicas of a job with the slowest flows.

        All of a job's if they are no more. Slow: the sum over a replica's groups of s/byte, each channel in flight alone.
        """
        replica = self.replicas
        count = int(replica.max()) + 1
        slow, job = np.zeros(count), np.zeros(count, np.int64)
        for number, channel in enumerate(self.traffic.channels):
            of = replica[channel.members[:, 0]]
            job[of] = channel.job
            if channel.name not in _ACROSS and count > most:
                np.add.at(slow, of, 1.0 / self.alone(number))
        numbers = np.zeros(count, np.int64)
        chosen = [np.flatnonzero(job == which) for which in np.unique(job)]
        chosen = [own[np.argsort(-slow[own], kind="stable")[:most]] for own in chosen]
        numbers[np.concatenate(chosen)] = np.arange(1, sum(map(len, chosen)) + 1)
        return numbers[replica]


class _Role(NamedTuple):
    """What a class of groups counts as. Sets are integers with a bit for each unit.

    unit: number of what comes and goes as one: a kind, or where they are crowded a channel.  bit: the unit's own.
    near: units that share links with it.  bit and near are 0 if it has no flows.  typical: of the replicas that aren't
    apart.  sampled: whether some classes of its channel stand for those.
    """

    channel: int
    unit: int
    bit: int
    near: int
    typical: bool
    sampled: bool


@dataclass
class Pace:
    """What pinned flows leave each class of groups, by the classes in flight.

    A *kind* is the class of a group before replicas were set apart. The rate of a kind's flows depends on which of the
    kinds that share links with it are in flight; that is solved once for each such set, without what those others share
    with third ones.
    colours: a channel's (G,) class of each group.  kinds: a channel's (classes,) kind.  typical: a channel's (classes,)
    bool: of the replicas that aren't apart, whose groups move at their harmonic mean; the others at their slowest.
    """

    pinned: Pinned
    colours: tuple[Ints, ...]
    kinds: tuple[Ints, ...]
    typical: tuple[NDArray[np.bool_], ...]
    _known: dict[tuple[int, int], Floats] = field(default_factory=dict)
    _roles: dict[Kind, _Role] = field(default_factory=dict)
    _parts: dict[int, Part] = field(default_factory=dict)

    @cached_property
    def _kinds_of_flows(self) -> tuple[dict[Kind, int], Ints]:
        """The kinds that have flows, numbered, and (F,) that of each flow."""
        flows, channel = self.pinned.flows, self.pinned.channel
        kind = np.zeros(flows.group.size, np.int64)
        for number, colours in enumerate(self.colours):
            mine = channel == number
            kind[mine] = self.kinds[number][colours[flows.group[mine]]]
        stride = 1 + max(int(kinds.max(initial=0)) for kinds in self.kinds)
        present, of = np.unique(channel * stride + kind, return_inverse=True)
        return {(int(each) // stride, int(each) % stride): i for i, each in enumerate(present)}, of

    @cached_property
    def _near(self) -> list[int]:
        """For each kind with flows those that share a link with it, itself among them: a bit for each."""
        kinds, of = self._kinds_of_flows
        row = np.repeat(of, self.pinned.pairs)[self.pinned.who].astype(np.uint16 if len(kinds) < 2**16 else np.int64)
        order = np.argsort(row, kind="stable")
        links = np.split(self.pinned.where[order], np.cumsum(np.bincount(row, minlength=len(kinds)))[:-1])
        users = np.zeros((self.pinned.members.links, -(-len(kinds) // 64)), "<u8")
        for i, own in enumerate(links):
            users[own, i // 64] |= np.uint64(1 << i % 64)
        return [
            int.from_bytes(np.bitwise_or.reduce(users[own]).tobytes(), "little") | 1 << i for i, own in enumerate(links)
        ]

    @cached_property
    def crowded(self) -> bool:
        """Whether some kind shares links with so many others that whole channels count as in flight."""
        return max((near.bit_count() for near in self._near), default=0) > MOST_NEAR + 1

    @property
    def governed(self) -> frozenset[int]:
        """Channels that have pinned flows."""
        return frozenset(int(number) for number in np.flatnonzero(np.bincount(self.pinned.channel)))

    def limits(self, in_flight: Iterable[Kind]) -> dict[Kind, float]:
        """{(channel, class): bytes/s of an edge} of the groups that move bytes."""
        roles = {item: self._roles.get(item) or self._role(item) for item in in_flight}
        every = standing = lasting = 0
        for role in roles.values():
            every |= role.bit
            if role.typical:
                standing |= role.bit
            if not role.sampled:
                lasting |= role.bit
        others = (standing or every) | lasting
        found = {}
        for item, role in roles.items():
            if role.near:
                beside = role.near & others | role.bit
                rates = self._known.get((role.unit, beside))
                found[item] = float((self._solved(role, beside) if rates is None else rates)[item[1]])
            else:
                found[item] = np.inf
        return found

    def _role(self, item: Kind) -> _Role:
        """What a class of groups counts as, found once."""
        channel, index = item
        number = self._kinds_of_flows[0].get((channel, int(self.kinds[channel][index])))
        near = unit = 0
        if number is not None:
            near, unit = (-1, channel) if self.crowded else (self._near[number], number)
        typical = self.typical[channel]
        bit = 1 << unit if near else 0
        role = _Role(channel, unit, bit, near, bool(typical[index]), bool(typical.any()))
        self._roles[item] = role
        return role

    def _solved(self, role: _Role, beside: int) -> Floats:
        """(classes,) of the role's channel, when these units are in flight (a bit each)."""
        parts = {unit: self._part(unit) for unit in range(beside.bit_length()) if beside >> unit & 1}
        rates = self.pinned.group_rates(list(parts.values()))
        by_class = {
            channel: _by_class(found, self.colours[channel], self.typical[channel]) for channel, found in rates.items()
        }
        # All of these units may be asked for beside the same others.
        for unit, part in parts.items():
            self._known[unit, beside] = by_class[part.channel]
        return self._known[role.unit, beside]

    def _part(self, unit: int) -> Part:
        """The flows of a unit, found once."""
        if unit not in self._parts:
            flows = np.flatnonzero((self.pinned.channel if self.crowded else self._kinds_of_flows[1]) == unit)
            self._parts[unit] = self.pinned.part(int(self.pinned.channel[flows[0]]), flows)
        return self._parts[unit]

    @property
    def solves(self) -> int:
        """How many sets of flows were solved."""
        return len(self._known)


def _by_class(rates: Floats, colours: Ints, typical: NDArray[np.bool_]) -> Floats:
    slowest = np.full(typical.size, np.inf)
    np.minimum.at(slowest, colours, rates)
    size = np.bincount(colours, minlength=typical.size)
    mean = size / np.maximum(np.bincount(colours, weights=1.0 / rates, minlength=typical.size), 1e-300)
    return np.where(typical & np.isfinite(slowest), mean, slowest)


def pinned_assumptions(pace: Pace, routing: str) -> list[str]:
    """What an answer under pinned routing leaves out."""
    pinned = pace.pinned
    found = []
    replicas = int(pinned.replicas.max()) + 1
    if any(typical.any() for typical in pace.typical):
        found.append(
            f"routing {routing}: the {SAMPLED} of {replicas:,} replicas with the slowest flows are played, the others move "
            "at their mean"
        )
    if pinned.sprayed:
        found.append(
            f"routing {routing}: the messages of {', '.join(pinned.sprayed)} are too many to be told apart and are sprayed"
        )
    return found
