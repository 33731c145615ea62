"""How a collective is timed: bytes on one edge, latency, and the rate that it can reach at best.

This is the file to change when an all-reduce should be timed differently. What each algorithm puts on which links is
counted in `patterns.py` and `trees.py`; which one NCCL takes is `nccl.py`'s; sharing links with others happens in
`engine/network.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from colossim import nccl
from colossim.catalog.types import NodeType
from colossim.footprint import Shape

#: Passes over the group: an all-reduce is a reduce-scatter and an all-gather.
PASSES = {"all_reduce": 2}
#: What nothing of NCCL's choices applies to: one message to the next, or one to everyone.
_MESSAGES = frozenset({"all_to_all", "shift", "send"})
#: Share of a rate that each protocol's payload reaches, in a node and between nodes: flags travel with LL and LL128.
_PAYLOAD = {"ll": (nccl.LL_SHARE, 0.5), "ll128": (0.92, 0.92), "simple": (1.0, 1.0)}


@dataclass(frozen=True)
class Timing:
    """bytes: on one network edge (NVLink edge inside a node).  latency: s before the first byte.  cap: bytes/s of an edge.

    algorithm, protocol: what was chosen.  which: its place among the shapes that were offered.
    operation, size: what was asked for; S bytes.
    """

    bytes: float
    latency: float
    cap: float
    algorithm: str = ""
    protocol: str = ""
    which: int = 0
    operation: str = ""
    size: float = 0.0

    @property
    def alone(self) -> float:
        """s that it takes with its links to itself."""
        return self.latency + self.bytes / self.cap


@dataclass(frozen=True)
class MessageCost:
    """The same of one message: base: s once a collective.  nvlink_hop, network_hop: s of a message, without switches.

    nvlink, nic: bytes/s that all messages of the collective together sustain on one such link, protocol and ramp included.
    """

    base: float
    nvlink_hop: float
    network_hop: float
    nvlink: float
    nic: float


@dataclass
class Library:
    """The communication library on a cluster's machines.

    nodes: the cluster's node types; link: bytes/s of the fabric's port.  able: algorithms that stack and machines can
    run beside a ring (their shapes are what is offered); algorithm, protocol: `auto`, or what is forced where it can be.
    """

    nodes: tuple[NodeType, ...]
    link: float
    able: frozenset[str] = frozenset(nccl.CAN)
    algorithm: str = "auto"
    protocol: str = "auto"
    _known: dict[tuple[object, ...], Timing] = field(default_factory=dict)

    def timing(self, operation: str, size: float, shapes: Sequence[Shape]) -> Timing:
        """Timing of one collective of `size` bytes (S of network.md). shapes: of the group, one an algorithm it may run."""
        key = (operation, size, *(id(shape) for shape in shapes))
        found = self._known.get(key)
        if found is None:
            which, protocol = self.choose(operation, size, shapes)
            found = self.price(operation, size, shapes[which], protocol, which)
            if not math.isfinite(found.latency + found.bytes / found.cap):
                raise OverflowError(f"{operation} of {size:g} bytes never ends")
            self._known[key] = found
            self._held.extend(shapes)
        return found

    #: keeps the shapes alive whose ids are keys
    _held: list[Shape] = field(default_factory=list)

    def choose(self, operation: str, size: float, shapes: Sequence[Shape]) -> tuple[int, str]:
        """Place of the shape and name of the protocol that NCCL's tuner takes."""
        if operation in _MESSAGES:
            return 0, "simple"
        able = [
            (i, algorithm, protocol)
            for i, shape in enumerate(shapes)
            for algorithm, protocol in nccl.choices(operation, shape)
            if protocol != "ll128" or shape.nodes == 1 or all(_runs_ll128(self.nodes[t], shape) for t in shape.hardware)
        ]
        # What is forced but can't be done is left to the tuner, as NCCL does it.
        for at, wanted in ((1, self.algorithm), (2, self.protocol)):
            able = [way for way in able if way[at] == wanted] or able
        if len(able) == 1:
            return able[0][0], able[0][2]
        prices = [
            nccl.estimate(operation, size, algorithm, protocol, shapes[i], self._nominal(shapes[i]))
            for i, algorithm, protocol in able
        ]
        best = able[prices.index(min(prices))]
        return best[0], best[2]

    def _nominal(self, shape: Shape) -> nccl.Nominal:
        types = [self.nodes[t] for t in shape.hardware]
        return nccl.Nominal(
            ring=min(t.nvlink_ring.bandwidth for t in types),
            nic=min(min(t.nic, self.link) for t in types),
            nic_latency=max(_nic_latency(t) for t in types),
            nvls=min(t.nvls.nominal if t.nvls is not None else 0.0 for t in types),
        )

    def price(self, operation: str, size: float, shape: Shape, protocol: str, which: int = 0) -> Timing:
        """Timing with one algorithm and protocol.

        latency + bytes/rate (1 + (S0 lanes / S)^g): a ramp in Simple, for buffers too small to fill the pipes. Ring:
        2(n-1)/n S/C bytes on an edge of each of C rings and 2(n-1) steps (Patarasuk & Yuan 2009); trees, NVLS and SHARP
        as network.md's table has them. The slowest node type of a group prices every step. Curves are fitted a node type
        on measured tables (calibration/collectives.py).
        """
        types = [self.nodes[t] for t in shape.hardware]
        inside = shape.nodes == 1
        passes = PASSES.get(operation, 1)
        p = nccl.PROTOCOLS.index(protocol)
        rates, fills = [], [0.0]
        for t in types:
            nvlink, nic = self._rates(t, operation, size, shape, protocol)
            if operation == "broadcast" and not inside:
                fills.append(_fill(t, size, shape, protocol, nvlink, nic))
            if shape.nvlink_weight:
                rates.append(nvlink / shape.nvlink_weight)
            if shape.nic_weight:
                rates.append(nic / shape.nic_weight)
        share = shape.share * (shape.size / (shape.size - 1) if operation == "broadcast" else 1.0)
        steps = max(_steps(t, shape, p, passes) for t in types)
        base = max(_base(t, shape.algorithm, p, inside) for t in types)
        if shape.algorithm == "pat":
            # Its steps overlap, but each rank costs some time of its own.
            base, steps = base + nccl.PAT_RANK * shape.size, steps / nccl.PAT_OVERLAP
        return Timing(
            bytes=passes * share * size,
            latency=base + steps + passes * shape.switches + max(fills),
            cap=min(rates),
            algorithm=_name(shape),
            protocol=protocol,
            which=which,
            operation=operation,
            size=size,
        )

    def message_cost(self, operation: str, size: float, shape: Shape, protocol: str) -> MessageCost:
        """What its messages pay when the collective is played one by one; as in `price`, the slowest node type counts.

        In-switch reduction has no hops of its own in a node: `base` holds them.
        """
        types = [self.nodes[t] for t in shape.hardware]
        p, algorithm = nccl.PROTOCOLS.index(protocol), shape.algorithm
        nvlink, nic = zip(*(self._rates(t, operation, size, shape, protocol) for t in types), strict=True)
        base = max(_base(t, algorithm, p, shape.nodes == 1) for t in types)
        nvlink_hop = 0.0 if algorithm in ("nvls", "collnet") else max(_nvlink_step(t, algorithm, p) for t in types)
        network_hop = max(_network_step(t, shape, p) for t in types)
        if algorithm == "pat":
            base, network_hop = base + nccl.PAT_RANK * shape.size, network_hop / nccl.PAT_OVERLAP
        return MessageCost(base, nvlink_hop, network_hop, min(nvlink), min(nic))

    def _rates(self, t: NodeType, operation: str, size: float, shape: Shape, protocol: str) -> tuple[float, float]:
        """bytes/s that a collective sustains on an NVLink and on a NIC of this node type."""
        ramp = self._ramp(t, size, shape, operation, protocol)
        nvlink = t.nvls.bandwidth if shape.algorithm in ("nvls", "collnet") and t.nvls else t.nvlink_ring.bandwidth
        nic = t.network.efficiency * min(t.nic, self.link) * (t.network.crossing if _crosses(t, shape) else 1.0)
        return nvlink * _PAYLOAD[protocol][0] / ramp, nic * _PAYLOAD[protocol][1] / ramp

    def _ramp(self, t: NodeType, size: float, shape: Shape, operation: str, protocol: str) -> float:
        # LL128 fills a tree over nodes as Simple does: without it the tables at 1 to 16 MiB come out a fifth too fast.
        filled = protocol != "simple" and (protocol, shape.algorithm) != ("ll128", "tree")
        if operation in _MESSAGES or filled or size <= 0:
            return 1.0
        if shape.nodes > 1:
            half, exponent = t.network.half_size * shape.size / shape.nodes / 8, t.network.exponent
        elif shape.algorithm == "nvls" and t.nvls is not None:
            half, exponent = t.nvls.half_size, t.nvls.exponent
        else:
            half, exponent = t.nvlink_ring.half_size * shape.size / 8, t.nvlink_ring.exponent
        ramp: float = (half / size) ** exponent
        return 1.0 + ramp


def _crosses(t: NodeType, shape: Shape) -> bool:
    """Whether a ring that leaves a node does so behind another PCIe switch than it came in, and no relay over NVLink helps."""
    return t.gpus_per_switch is not None and shape.spacing >= t.gpus_per_switch


def _runs_ll128(t: NodeType, shape: Shape) -> bool:
    """Whether NCCL runs LL128 over the network: where both ends of a ring in a node are behind their NIC's PCIe switch.

    src/graph/tuning.cc: typeInter <= PATH_PXB, from Hopper on PATH_PXN, which relays over NVLink and always does.
    """
    return t.network.ll128 and not _crosses(t, shape)


def _nic_latency(t: NodeType) -> float:
    """s that NIC and driver add to a step over the network; `network.hop` holds it twice, beside NCCL's own 14 us."""
    return max(0.0, t.network.hop - nccl.NETWORK_STEP["ring"][2]) / 2


def _base(t: NodeType, algorithm: str, p: int, inside: bool) -> float:
    """s once a collective: the node type's in Simple, with NCCL's differences between protocols."""
    simple = t.nvlink_ring.base if inside else t.network.base
    if algorithm in ("nvls", "collnet") and t.nvls is not None:
        return t.nvls.base + max(0.0, simple - nccl.BASE["ring"][2])
    row = nccl.BASE.get(algorithm, nccl.BASE["ring"])
    return max(0.0, simple + row[p] - row[2])


def _nvlink_step(t: NodeType, algorithm: str, p: int) -> float:
    if p == 2:
        return t.nvlink_ring.hop
    return nccl.NVLINK_STEP.get(algorithm, nccl.NVLINK_STEP["ring"])[p]


def _network_step(t: NodeType, shape: Shape, p: int) -> float:
    if shape.algorithm == "nvls":
        return nccl.NVLS_STEP + 2 * _nic_latency(t)
    if shape.algorithm == "collnet":
        return nccl.COLLNET / 2 + _nic_latency(t)
    if p == 2:
        return t.network.hop
    row = "tree" if shape.algorithm == "tree" or shape.size == shape.nodes else "ring"
    return nccl.NETWORK_STEP[row][p] + _nic_latency(t)


def _steps(t: NodeType, shape: Shape, p: int, passes: int) -> float:
    """s of the steps that follow each other.

    A ring of several nodes has N network and n-N NVLink edges, and a chunk takes n-1 of them a pass. The last chunk to
    arrive is the one that skips the shortest: an NVLink edge, and of two passes two neighbouring edges.
    """
    nvlink, network = _nvlink_step(t, shape.algorithm, p), _network_step(t, shape, p)
    steps = passes * (shape.nvlink_steps * nvlink + shape.network_steps * network)
    if shape.algorithm == "ring" and shape.nodes > 1:
        skipped = network if shape.size == shape.nodes else nvlink
        steps -= skipped
        if passes == 2:
            steps -= nvlink if shape.size > 2 * shape.nodes else network
    return steps


def _fill(t: NodeType, size: float, shape: Shape, protocol: str, nvlink: float, nic: float) -> float:
    """s until a broadcast's first chunks are everywhere, beyond hops' latency: (H - 1) c/B, H hops that hand on whole chunks.

    A chunk c is a step of a channel's buffer (NCCL, src/device/broadcast.h), or its part of S where that is less. The proxy
    sends it when all of it is there (src/transport/net.cc, sendProxyProgress), so that each of the hops between nodes takes
    c/B of the NIC that its channels share. In a node LL and LL128 pass lines on as they come, Simple whole chunks: the same for
    its hops. What follows the first chunks is in bytes/cap. nvlink, nic: bytes/s of a link.

    Within one node the fitted ramp has it. Rings of reductions and gathers keep all edges busy from the start.
    """
    lanes = (shape.size - 1) / (shape.size * shape.share)
    channels = lanes * nccl.CHANNELS_PER_NIC / t.gpus_per_nic
    # What all channels of a lane hand on together.
    piece = min(channels * nccl.STEP_BYTES[protocol], size) / lanes
    skips = 1 if shape.size == shape.nodes else 0
    seconds = max(0.0, shape.network_steps - skips - 1) * piece * shape.nic_weight / nic
    if protocol == "simple":
        seconds += max(0.0, shape.nvlink_steps - 1) * piece * shape.nvlink_weight / nvlink
    return seconds


def _name(shape: Shape) -> str:
    return "nvls-tree" if shape.algorithm == "nvls" and shape.nodes > 1 else shape.algorithm
