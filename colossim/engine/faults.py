"""When the components of a class fail, one after the other."""

from __future__ import annotations

import math
import zlib

import numpy as np

from colossim.catalog.faults import FaultClass


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one concern, whatever others draw."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


class Failures:
    """Failures of `count` components of a class, in time.

    Exponential lifetimes are drawn as those of all components together, rate count/mtbf, without those of components that
    aren't there; Weibull ones each by itself, from new, scale mtbf/Gamma(1 + 1/shape).
    """

    def __init__(self, kind: FaultClass, count: int, rng: np.random.Generator) -> None:
        self.kind, self.count, self.rng = kind, count, rng
        self.now = 0.0
        self._ends: np.ndarray | None = None
        #: Of exponential lifetimes: when a component is there again.
        self._until: dict[int, float] = {}
        if kind.shape != 1.0:
            self._scale = kind.mtbf / math.gamma(1.0 + 1.0 / kind.shape)
            self._ends = self._scale * rng.weibull(kind.shape, count)

    def next(self) -> tuple[float, int]:
        """(s at which the next component fails, its number)."""
        if self._ends is None:
            while True:
                self.now += float(self.rng.exponential(self.kind.mtbf / self.count))
                component = int(self.rng.integers(self.count))
                if self._until.get(component, 0.0) <= self.now:
                    return self.now, component
        component = int(np.argmin(self._ends))
        self.now = float(self._ends[component])
        return self.now, component

    def renew(self, component: int, when: float) -> None:
        """A component, or the one in its place, is new from `when` on, and until then can't fail."""
        if self._ends is None:
            self._until[component] = when
        else:
            self._ends[component] = when + self._scale * float(self.rng.weibull(self.kind.shape))

    def repair(self) -> float:
        """s that a repair takes: lognormal around its mean."""
        spread = self.kind.repair_spread
        draw = math.exp(spread * float(self.rng.standard_normal()) - spread**2 / 2.0) if spread else 1.0
        return self.kind.repair * draw
