"""Random numbers: a generator for each concern, whatever others draw."""

from __future__ import annotations

import math
import zlib

import numpy as np


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one concern, whatever others draw."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def log_spread(cv: float) -> float:
    """Standard deviation of the logarithm of a lognormal whose standard deviation is cv times its mean."""
    return math.sqrt(math.log1p(cv * cv))
