"""One collective that nobody disturbs: the table of nccl-tests, for machines that may not exist yet.

A group of GPUs on a cluster, an operation, a size: which algorithm and protocol run, how long they take, and nccl-tests'
algorithm and bus bandwidth. The same footprints and timing as in a step; the group has all links to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from colossim import patterns
from colossim.cluster import Cluster
from colossim.collective import Library, Timing
from colossim.footprint import Floats, Footprint, Ints, Shape
from colossim.nccl import CAN
from colossim.traffic import ALGORITHMS

#: nccl-tests' bus bandwidth over its algorithm bandwidth, for n ranks (PERFORMANCE.md of nccl-tests).
BUS_FACTOR: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "send_receive": lambda n: 1.0,
}
OPERATIONS = tuple(BUS_FACTOR)
#: Operations whose `count` is of one rank's part, the size being that of the whole buffer; a part is whole 16 bytes.
_IN_PARTS = frozenset({"all_gather", "reduce_scatter", "all_to_all"})
_ALIGNED = 16
#: Operations that nccl-tests prints an operator for; sendrecv_perf has one that it doesn't use.
_REDUCING = frozenset({"all_reduce", "reduce_scatter", "send_receive"})


def elements(operation: str, size: int, ranks: int, width: int) -> int:
    """nccl-tests' `count` for a buffer of at most `size` bytes, of elements of `width` bytes.

    Of all-gather, reduce-scatter and all-to-all it is one rank's part, a multiple of 16 bytes (GetCollByteCount).
    """
    if operation not in _IN_PARTS:
        return size // width
    return size // width // ranks // (_ALIGNED // width) * (_ALIGNED // width)


@dataclass(frozen=True)
class Row:
    """One line of the table. size: bytes.  count: elements.  time: s.  algbw, busbw: bytes/s."""

    operation: str
    size: int
    count: int
    type: str
    redop: str
    time: float
    algbw: float
    busbw: float
    algorithm: str
    protocol: str


@dataclass
class Alone:
    """One group of a cluster. members: (n,) GPUs, ascending."""

    cluster: Cluster
    members: Ints
    library: Library
    _ways: dict[str, tuple[list[Shape], list[float]]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return int(self.members.size)

    def seconds(self, operation: str, size: float) -> tuple[float, Timing]:
        """Seconds of one collective of `size` bytes (nccl-tests' size), and how it was timed."""
        shapes, most = self.offered(operation)
        t = self.library.timing("shift" if operation == "send_receive" else operation, size, shapes)
        return t.latency + t.bytes / min(t.cap, most[t.which]), t

    def row(self, operation: str, size: int, *, type: str = "float", width: int = 4) -> Row:
        """A line of the table, its size rounded down as nccl-tests does. width: bytes of an element of this type."""
        count = elements(operation, size, self.size, width)
        size = count * width * (self.size if operation in _IN_PARTS else 1)
        seconds, t = self.seconds(operation, size)
        algbw = size / seconds
        return Row(
            operation=operation,
            size=size,
            count=count,
            type=type,
            redop="sum" if operation in _REDUCING else "none",
            time=seconds,
            algbw=algbw,
            busbw=algbw * BUS_FACTOR[operation](self.size),
            algorithm=t.algorithm,
            protocol=t.protocol,
        )

    def offered(self, operation: str) -> tuple[list[Shape], list[float]]:
        """Shapes that can run an operation, and the bytes/s of an edge that the links of each leave it."""
        if operation not in self._ways:
            members = self.members[None, :]
            types = tuple(int(t) for t in np.unique(self.cluster.gpu_type[self.members]))
            if operation == "all_to_all":
                ways = {"direct": patterns.all_to_all(self.cluster, members)}
            elif operation == "send_receive":
                ways = {"send": patterns.shift(self.cluster, members)}
            else:
                ways = self._collective(operation, members)
            self._ways[operation] = (
                [footprint.shape(0, name, self.size, types) for name, footprint in ways.items()],
                [self._most(footprint) for footprint in ways.values()],
            )
        return self._ways[operation]

    def _collective(self, operation: str, members: Ints) -> dict[str, Footprint]:
        """What the library can run; one that is forced and usable alone. members: (1, n)."""
        names = [n for n in ALGORITHMS if n == "ring" or (n in self.library.able and operation in CAN[n])]
        forced = self.library.algorithm
        for some in ([forced] if forced in names else [], names):
            ways = {name: ALGORITHMS[name](self.cluster, members) for name in some}
            usable = {name: footprint for name, footprint in ways.items() if footprint.usable[0]}
            if usable:
                return usable
        raise AssertionError("a ring is always usable")

    def _most(self, footprint: Footprint) -> float:
        """Bytes/s of an edge that the group's links allow: the least of capacity over weight."""
        load: Floats = np.bincount(footprint.link, weights=footprint.weight, minlength=self.cluster.links).astype(float)
        gpus = self.cluster.gpus
        for _, kind, column in footprint.own:
            load[kind * gpus : (kind + 1) * gpus] += column
        used = load > 0
        return float(np.min(self.cluster.capacity()[used] / load[used]))
