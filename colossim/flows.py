"""Flows that routing pins to single paths: hashed (ecmp), or by their destination (static). They collide, and don't fold.

All flows stay arrays: each queue pair's path through the Clos is drawn at once, and one max-min solve gives the rates of
those that are in flight together. A collective moves at its slowest flow; a flow that is spread over several queue pairs
sends as many bytes on each, so that it moves at the pace of the slowest. Solves are remembered by which classes of groups
are in flight: a step meets few such sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from colossim.cluster.hashed import Members, hashed_paths
from colossim.footprint import Floats, Flows, Ints
from colossim.maxmin import max_min
from colossim.traffic import Traffic

Kind = tuple[int, int]
#: Channels that join all replicas of a stage; the others stay inside one.
_ACROSS = frozenset({"data", "data_shards", "data_replicas", "expert_data"})
#: Replicas that are played apart, those with the slowest flows.
SAMPLED = 4
#: Up to this many kinds of groups that share links with one kind, its rate is found anew as they come and go; where more
#: do (ranks placed at random), all groups of a channel count as in flight as soon as some are.
MOST_NEAR = 16


@dataclass(frozen=True)
class Pinned:
    """All pinned flows of a job. F flows of S queue pairs.

    flows: group of its channel, ends, weight.  channel: (F,).  pairs: queue pairs a flow.
    who, where: (rows,) queue pair and link: member links of the fabric first, then NICs out, NICs in.  capacity: (links,).
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
        fabric, gpus = cluster.fabric, cluster.gpus
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
        pair = np.arange(paths.flow.size)
        who = np.concatenate([paths.who, pair, pair])
        where = np.concatenate(
            [paths.where, members.links + flows.src[paths.flow], members.links + gpus + flows.dst[paths.flow]]
        )
        order = np.argsort(who, kind="stable")
        return Pinned(
            traffic=traffic,
            members=members,
            flows=flows,
            channel=channel,
            pairs=paths.flow.size // max(1, flows.group.size),
            who=who[order].astype(np.int32),
            where=where[order].astype(np.int32),
            capacity=np.concatenate([capacity, cluster.nic, cluster.nic]),
            sprayed=tuple(c.name for c, part in zip(traffic.channels, parts, strict=True) if part is None),
        )

    @cached_property
    def _width(self) -> Ints:
        """(S,) rows of each queue pair."""
        return np.bincount(self.who, minlength=self.flows.group.size * self.pairs)

    @cached_property
    def _start(self) -> Ints:
        """(S,) first row of each queue pair."""
        return np.cumsum(self._width) - self._width

    def pair_rates(self, active: NDArray[np.bool_], *, nics: bool = True) -> Floats:
        """(S of the active flows,) bytes/s of an edge that their queue pairs allow, max-min fair. active: (F,).

        A queue pair moves its part of the edges that its flow stands for: weight / pairs of that rate. nics: whether flows
        share their NICs, too; else a NIC is only a limit to each of them, and sharing it is left to the engine.
        """
        chosen = np.flatnonzero(active)
        pair = (chosen[:, None] * self.pairs + np.arange(self.pairs)).ravel()
        count, width = pair.size, self._width[pair]
        who = np.repeat(np.arange(count), width)
        # A pair's rows are side by side: those of the chosen ones, without a look at the others.
        first = self._start[pair] - (np.cumsum(width) - width)
        where = self.where[np.repeat(first, width) + np.arange(who.size)]
        cap = np.full(count, np.inf)
        if not nics:
            fabric = where < self.members.links
            who, where = who[fabric], where[fabric]
            nic = self.traffic.cluster.nic
            cap = np.repeat(np.minimum(nic[self.flows.src[chosen]], nic[self.flows.dst[chosen]]), self.pairs)
        met = np.zeros(self.capacity.size, dtype=bool)
        met[where] = True
        number = np.cumsum(met) - 1
        weight = np.repeat(self.flows.weight[chosen] / self.pairs, self.pairs)[who]
        return max_min(who, number[where], weight, self.capacity[met], cap)

    def group_rates(self, active: NDArray[np.bool_]) -> list[Floats]:
        """For each channel (G,) bytes/s of an edge that the fabric allows each group's slowest flow; inf where it has none."""
        found = [np.full(channel.groups, np.inf) for channel in self.traffic.channels]
        if not active.any():
            return found
        pace = self.pair_rates(active, nics=False).reshape(-1, self.pairs).min(axis=1)
        group, channel = self.flows.group[active], self.channel[active]
        for number in np.flatnonzero(np.bincount(channel)):
            mine = channel == number
            np.minimum.at(found[number], group[mine], pace[mine])
        return found

    def alone(self, number: int) -> list[Floats]:
        """`group_rates` when all groups of one channel are in flight, and no others."""
        return self.group_rates(self.channel == number)

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
                np.add.at(slow, of, 1.0 / self.alone(number)[number])
        numbers = np.zeros(count, np.int64)
        chosen = [np.flatnonzero(job == which) for which in np.unique(job)]
        chosen = [own[np.argsort(-slow[own], kind="stable")[:most]] for own in chosen]
        numbers[np.concatenate(chosen)] = np.arange(1, sum(map(len, chosen)) + 1)
        return numbers[replica]


class _Role(NamedTuple):
    """What a class of groups counts as. Sets are integers with a bit for each unit.

    unit: number of what comes and goes as one.  bit: the unit's own.  near: units that share links with it; 0 if it has no
    flows.  typical: of the replicas that aren't apart.  sampled: whether some classes of its channel stand for those.
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

    @cached_property
    def _flow_kind(self) -> Ints:
        """(F,) place of each flow's kind in `_all`."""
        flows, channel = self.pinned.flows, self.pinned.channel
        kind = np.zeros(flows.group.size, np.int64)
        for number, colours in enumerate(self.colours):
            mine = channel == number
            kind[mine] = self.kinds[number][colours[flows.group[mine]]]
        return channel * self._stride + kind

    @property
    def _stride(self) -> int:
        return 1 + max(int(kinds.max(initial=0)) for kinds in self.kinds)

    @cached_property
    def _near(self) -> dict[Kind, frozenset[Kind]]:
        """For each kind with flows those that share a link with it, itself among them."""
        size = np.bincount(self._flow_kind, minlength=len(self.colours) * self._stride)
        present = np.flatnonzero(size)
        place = np.cumsum(size > 0) - 1
        fabric = self.pinned.where < self.pinned.members.links
        kind = place[np.repeat(self._flow_kind, self.pinned.pairs)]
        # Each kind once a link, link by link: m kinds on one link are m^2 pairs.
        row = np.sort(self.pinned.where[fabric].astype(np.int64) * present.size + kind[self.pinned.who[fabric]])
        row = row[np.diff(row, prepend=-1) > 0]
        link, user = row // present.size, row % present.size
        first = np.flatnonzero(np.diff(link, prepend=-1))
        many = np.diff(first, append=row.size)
        sharing = np.repeat(many, many)
        one = np.repeat(user, sharing)
        within = np.arange(one.size) - np.repeat(np.cumsum(sharing) - sharing, sharing)
        together = np.eye(present.size, dtype=bool)
        together[one, user[np.repeat(np.repeat(first, many), sharing) + within]] = True
        names = [(int(number) // self._stride, int(number) % self._stride) for number in present]
        return {
            name: frozenset(names[j] for j in np.flatnonzero(row)) for name, row in zip(names, together, strict=True)
        }

    @cached_property
    def crowded(self) -> bool:
        """Whether some kind shares links with so many others that whole channels count as in flight."""
        return max(map(len, self._near.values()), default=0) > MOST_NEAR + 1

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
        kind = (channel, int(self.kinds[channel][index]))
        near = 0
        if kind in self._near:
            near = -1 if self.crowded else sum(1 << self._unit(other) for other in self._near[kind])
        unit = self._unit(kind)
        typical = self.typical[channel]
        role = _Role(channel, unit, 1 << unit, near, bool(typical[index]), bool(typical.any()))
        self._roles[item] = role
        return role

    def _unit(self, kind: Kind) -> int:
        """Number of what comes and goes as one: a kind, or where they are crowded a channel."""
        return kind[0] if self.crowded else kind[0] * self._stride + kind[1]

    @cached_property
    def _flow_unit(self) -> Ints:
        """(F,) what each flow belongs to."""
        return self.pinned.channel if self.crowded else self._flow_kind

    def _solved(self, role: _Role, beside: int) -> Floats:
        """(classes,) of the role's channel, when these units are in flight (a bit each)."""
        units = [unit for unit in range(beside.bit_length()) if beside >> unit & 1]
        wanted = np.zeros(len(self.colours) * self._stride, dtype=bool)
        wanted[units] = True
        rates = self.pinned.group_rates(wanted[self._flow_unit])
        for unit in units if self.crowded else [role.unit]:
            channel = unit if self.crowded else role.channel
            self._known[unit, beside] = _by_class(rates[channel], self.colours[channel], self.typical[channel])
        return self._known[role.unit, beside]

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
