"""When the components of a class fail, one after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from colossim.catalog.faults import FaultClass


class Failures:
    """Failures of `count` components of a class, in time.

    Exponential lifetimes are drawn as those of all components together, rate count/mtbf, without those of components that
    aren't there; Weibull ones each by itself, from new, scale mtbf/Gamma(1 + 1/shape). What is more at first is drawn by
    thinning (Lewis & Shedler 1979): as if all were new, less those that by their age wouldn't have failed.
    """

    def __init__(self, kind: FaultClass, count: int, rng: np.random.Generator, now: float = 0.0) -> None:
        self.kind, self.count, self.rng, self.now = kind, count, rng, now
        self._ends: np.ndarray | None = None
        #: Of exponential lifetimes: when a component is there again.
        self._until: dict[int, float] = {}
        #: s at which components joined, from which number on.
        self._joined: list[tuple[int, float]] = [(0, now)]
        #: Those that are away until somebody says that they are back.
        self._gone: set[int] = set()
        if kind.shape != 1.0:
            self._scale = kind.mtbf / math.gamma(1.0 + 1.0 / kind.shape)
            self._ends = now + self._lives(count)

    def _lives(self, count: int) -> np.ndarray:
        """s that new components live."""
        return self._scale * self.rng.weibull(self.kind.shape, count)

    def next(self) -> tuple[float, int]:
        """(s at which the next component fails, its number); infinity if none is there and nobody knows when one will be."""
        if self._ends is None:
            while len(self._gone) < self.count:
                self.now += float(self.rng.exponential(self.kind.mtbf / (self.count * self._most)))
                component = int(self.rng.integers(self.count))
                if self._until.get(component, 0.0) <= self.now and self._by_its_age(component):
                    return self.now, component
            return math.inf, 0
        component = int(np.argmin(self._ends))
        self.now = float(self._ends[component])
        return self.now, component

    @property
    def _most(self) -> float:
        """Times the lasting rate that anything fails at."""
        return 1.0 if self.kind.infant is None else self.kind.infant.factor

    def _by_its_age(self, component: int) -> bool:
        """Whether it fails, if it would were it new."""
        infant = self.kind.infant
        if infant is None:
            return True
        joined = next(when for first, when in reversed(self._joined) if first <= component)
        rate = 1.0 + (infant.factor - 1.0) * math.exp(-(self.now - joined) / infant.lasts)
        return float(self.rng.random()) * infant.factor < rate

    def renew(self, component: int, when: float) -> None:
        """A component, or the one in its place, is new from `when` on, and until then can't fail."""
        if self._ends is None:
            self._until[component] = when
            (self._gone.add if when == math.inf else self._gone.discard)(component)
        else:
            self._ends[component] = when + self._scale * float(self.rng.weibull(self.kind.shape))

    def resize(self, count: int, now: float) -> None:
        """So many components from now on: the first are those that were there, others are new. `next` is to be asked anew."""
        # What isn't there any more is new if it comes again.
        self._until = {component: when for component, when in self._until.items() if component < count}
        self._gone = {component for component in self._gone if component < count}
        self._joined = [item for item in self._joined if item[0] < count]
        if count > self.count:
            self._joined.append((self.count, now))
        if self._ends is not None:
            new = now + self._lives(max(0, count - self.count))
            self._ends = np.concatenate([self._ends[:count], new])
        self.count, self.now = count, now

    def repair(self) -> float:
        """s that a repair takes: lognormal around its mean."""
        spread = self.kind.repair_spread
        draw = math.exp(spread * float(self.rng.standard_normal()) - spread**2 / 2.0) if spread else 1.0
        return self.kind.repair * draw

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to draw what comes next, as plain values."""
        ends = None if self._ends is None else self._ends.tolist()
        bits = self.rng.bit_generator.state
        until = list(self._until.items())
        facts = {"count": self.count, "now": self.now, "joined": self._joined}
        return {**facts, "ends": ends, "until": until, "bits": bits}

    @classmethod
    def restore(cls, kind: FaultClass, state: dict[str, Any]) -> Failures:
        """What `state` was asked of."""
        rng = np.random.default_rng(0)
        rng.bit_generator.state = state["bits"]
        made = cls.__new__(cls)
        made.kind, made.rng, made.count, made.now = kind, rng, state["count"], state["now"]
        made._until = {component: when for component, when in state["until"]}
        made._joined = [(first, when) for first, when in state["joined"]]
        made._gone = {component for component, when in state["until"] if when == math.inf}
        made._ends = None if state["ends"] is None else np.array(state["ends"])
        if kind.shape != 1.0:
            made._scale = kind.mtbf / math.gamma(1.0 + 1.0 / kind.shape)
        return made
