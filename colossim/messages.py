"""Messages of collectives as arrays: who sends which bytes to whom on which lane, and what each message waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from colossim.footprint import Floats, Ints

#: In place of a GPU: the NVSwitch of the other's node, where it reduces and multicasts.
SWITCH = -1


@dataclass(frozen=True)
class Messages:
    """M messages, numbered by their place in the arrays.

    src, dst: (M,) GPUs, or SWITCH.  size: (M,) bytes.  lane: (M,) channel that carries it.  chunk, slice: (M,) which part of
    the buffer.  after: (M,) the message before it on the same lane and edge, which must have ended (a channel sends in
    order), or -1.  waiter, needed: message `waiter[i]` may start once `needed[i]` has arrived.
    """

    src: Ints
    dst: Ints
    size: Floats
    lane: Ints
    chunk: Ints
    slice: Ints
    after: Ints
    waiter: Ints
    needed: Ints

    @property
    def count(self) -> int:
        return int(self.src.size)


@dataclass
class Book:
    """Collects messages. Ids are handed out in order."""

    columns: list[list[Ints]] = field(default_factory=list)
    sizes: list[Floats] = field(default_factory=list)
    needs: list[tuple[Ints, Ints]] = field(default_factory=list)
    orders: list[Ints] = field(default_factory=list)
    count: int = 0

    def add(
        self, shape: tuple[int, ...], size: float, src: Ints, dst: Ints, lane: int, chunk: Ints, piece: Ints
    ) -> Ints:
        """Ids, in an array of this shape, of messages of `size` bytes; the other columns broadcast to the shape."""
        columns = (src, dst, np.asarray(lane), chunk, piece)
        self.columns.append([np.broadcast_to(column, shape).ravel() for column in columns])
        ids = np.arange(self.count, self.count + int(np.prod(shape))).reshape(shape)
        self.sizes.append(np.full(ids.size, size))
        self.count += ids.size
        return ids

    def need(self, waiter: Ints, needed: Ints) -> None:
        """waiter may start when needed has arrived (element by element)."""
        waiter, needed = np.broadcast_arrays(waiter, needed)
        self.needs.append((waiter.ravel(), needed.ravel()))

    def in_order(self, ids: Ints) -> None:
        """Each row of ids (edges, messages) is sent in order."""
        self.orders.append(ids)

    def close(self) -> Messages:
        src, dst, lane, chunk, piece = (np.concatenate(column) for column in zip(*self.columns, strict=True))
        after = np.full(self.count, -1)
        for ids in self.orders:
            after[ids[:, 1:]] = ids[:, :-1]
        none = [np.zeros(0, np.int64)]
        waiter = np.concatenate([w for w, _ in self.needs] or none)
        needed = np.concatenate([n for _, n in self.needs] or none)
        return Messages(src, dst, np.concatenate(self.sizes), lane, chunk, piece, after, waiter, needed)


def joined(parts: Sequence[Messages]) -> Messages:
    """The messages of several collectives as one, renumbered, part after part."""
    first = np.concatenate(([0], np.cumsum([part.count for part in parts]))).astype(np.int64)
    shifted = list(zip(parts, first[:-1], strict=True))

    def column(name: str) -> Ints:
        return np.concatenate([np.asarray(getattr(part, name)) for part in parts])

    return Messages(
        **{name: column(name) for name in ("src", "dst", "size", "lane", "chunk", "slice")},
        after=np.concatenate([np.where(part.after < 0, -1, part.after + offset) for part, offset in shifted]),
        waiter=np.concatenate([part.waiter + offset for part, offset in shifted]),
        needed=np.concatenate([part.needed + offset for part, offset in shifted]),
    )
