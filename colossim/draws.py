"""Random numbers: a generator for each concern, whatever others draw."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one concern, whatever others draw."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def log_spread(cv: float) -> float:
    """Standard deviation of the logarithm of a lognormal whose standard deviation is cv times its mean."""
    return math.sqrt(math.log1p(cv * cv))


def lognormal(logs: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    """Lognormal draws with a mean of 1, of their logarithms around 0, whose standard deviation is `spread`."""
    return np.asarray(np.exp(logs - spread**2 / 2.0))
