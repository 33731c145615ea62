"""Where ranks of a class sit in groups of another: who is the last of each group, and who hears of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossim.footprint import Floats, Ints

#: Groups with up to this many members are compared member by member, larger ones by numpy's reduction.
_FEW = 32


@dataclass(frozen=True)
class Seats:
    """Which ranks of one class are in which group of another. of: (n,) group of each rank.

    order: (n,) ranks by their group; None if they stand so. bounds: (G,) where each group begins then.  each: ranks of every
    group, 0 if these differ.
    """

    groups: int
    of: Ints
    order: Ints | None
    bounds: Ints
    each: int

    @staticmethod
    def taken(of: Ints, groups: int) -> Seats:
        counts = np.bincount(of, minlength=groups)
        order = None if np.all(of[1:] >= of[:-1]) else np.argsort(of, kind="stable")
        each = int(counts[0]) if np.all(counts == counts[0]) else 0
        return Seats(groups, of, order, np.cumsum(counts) - counts, each)

    def last(self, times: NDArray[Any]) -> NDArray[Any]:
        """(..., G) the largest of each group's, of (..., n)."""
        at = times if self.order is None else times[..., self.order]
        if not self.each:
            return np.asarray(np.maximum.reduceat(at, self.bounds, axis=-1))
        if self.each > _FEW:
            return np.asarray(at.reshape(*at.shape[:-1], self.groups, self.each).max(axis=-1))
        found = at[..., :: self.each].copy()
        for member in range(1, self.each):
            np.maximum(found, at[..., member :: self.each], out=found)
        return np.asarray(found)

    def told(self, times: Floats) -> Floats:
        """(..., n) what each rank hears of its group, of (..., G)."""
        return np.asarray(np.take(times, self.of, axis=-1))
