"""The program of one GPU that isn't like the others: what `lateness` is compared with, and what is played unfolded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from colossim.draws import log_spread, lognormal
from colossim.legs import Alone, Leg, Meeting, Part, Segment, Slowed, Step


def paced(
    legs: tuple[Leg, ...], pace: float, kernel: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[Leg, ...]:
    """The legs with kernels that take `pace` times as long; and each a draw of its own, if they vary.

    kernel: standard deviation of one kernel's time over its mean, lognormal, drawn from `rng` (which is needed then).
    """
    if pace == 1.0 and not kernel:
        return legs
    known: dict[int, Segment] = {}

    def factor(grain: float) -> float:
        if not grain or not kernel:
            return pace if grain else 1.0
        assert rng is not None
        spread = log_spread(kernel * grain)
        return pace * float(lognormal(spread * rng.standard_normal(1), spread)[0])

    def stretched(segment: Segment) -> Segment:
        if kernel or id(segment) not in known:
            known[id(segment)] = Segment.of([_longer(part, factor) for part in segment.parts])
        return known[id(segment)]

    def step(one: Step) -> Step:
        match one:
            case Alone(segment):
                return Alone(stretched(segment))
            case Meeting(segment, channel):
                return Meeting(stretched(segment), channel)
            case Slowed(seconds, _, grain):
                return replace(one, seconds=seconds * factor(grain))
        return one

    return tuple(replace(leg, steps=tuple(step(one) for one in leg.steps)) for leg in legs)


def draws_of(legs: tuple[Leg, ...]) -> int:
    """How many draws `paced` makes for them."""
    found = 0
    for leg in legs:
        for one in leg.steps:
            match one:
                case Alone(segment) | Meeting(segment, _):
                    found += sum(part.grain > 0 for part in segment.parts)
                case Slowed(_, _, grain):
                    found += grain > 0
    return found


def _longer(part: Part, factor: Callable[[float], float]) -> Part:
    return replace(part, seconds=part.seconds * factor(part.grain)) if part.grain else part
