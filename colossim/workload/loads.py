"""How many tokens come to experts: a draw of each layer's loads, and what their capacity leaves of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.workload.transformer import is_moe


@dataclass(frozen=True)
class Load:
    """Copies of tokens in a layer, over the k T of a rank that drops and pads none.

    sent: that a rank sends, of its own tokens.  fullest: that the fullest rank of an expert group gets.
    """

    sent: float = 1.0
    fullest: float = 1.0


#: As much for every rank.
EVEN = Load()


def layer_loads(plan: Plan, job: JobSpec) -> tuple[Load, ...]:
    """The load of each of the model's layers; an even one where a layer has no experts.

    An expert takes at most ceil(F k T'/E) tokens of each rank's T' (1/t of its T with sequence parallelism), F the capacity
    factor, the rest is dropped; padded, as many come whatever the router says (Megatron-Core,
    core/transformer/moe/moe_utils.py, get_capacity). Experts' shares of a layer's tokens are the same from every rank, as
    their router is; the whole group waits for the rank whose E/e neighbouring experts get most.
    """
    model, given = job.model, job.experts
    if not model.experts:
        return (EVEN,) * model.layers
    most = math.inf
    if given.capacity_factor is not None:
        own = plan.tokens / (plan.tensor if job.parallelism.sequence else 1)
        mean = own * model.experts_per_token / model.experts
        most = math.ceil(given.capacity_factor * mean) / mean
    if given.pad:
        every = [Load(most, most)] * model.layers
    elif given.fullest is not None and plan.expert > 1:
        every = [Load(min(1.0, most), min(given.fullest, most))] * model.layers
    else:
        drawn = _shares(plan.seed, model.layers, model.experts, model.experts_per_token, given.imbalance)
        kept = np.minimum(drawn, most)
        ranks = kept.reshape(model.layers, plan.expert, -1).mean(axis=2)
        every = [Load(float(row.mean()), float(row.max())) for row in ranks]
    return tuple(every[i] if is_moe(model, i) else EVEN for i in range(model.layers))


@lru_cache(maxsize=64)
def _shares(seed: int, layers: int, experts: int, per_token: int, imbalance: float) -> NDArray[np.float64]:
    """(layers, experts) tokens of each expert over their mean.

    Dirichlet with the parameter a that gives them the standard deviation `imbalance`: (E - 1)/(E a + 1) is its square. A token
    visits an expert once, so that none gets more than E/k: what is over goes to the others in proportion.
    """
    even = np.ones((layers, experts))
    if not imbalance:
        return even
    concentration = ((experts - 1) / imbalance**2 - 1) / experts
    draw = np.random.default_rng([seed, *b"experts"])
    loads = experts * draw.dirichlet(np.full(experts, concentration), size=layers)
    limit = experts / per_token
    for row in loads:
        while np.any(row > limit * (1 + 1e-12)):
            row[row > limit] = limit
            below = row < limit
            row[below] *= (experts - limit * np.count_nonzero(~below)) / row[below].sum()
    return loads
