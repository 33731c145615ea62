"""Max-min filling against exact fractions that know nothing of rounds, what defines the rates, and toy numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossim.maxmin import Rows, fill, max_min

INF = float("inf")


def rates(rows, capacity, cap):
    who, where, weight = (np.array([row[i] for row in rows]) for i in range(3))
    return max_min(who, where, weight, np.array(capacity, dtype=float), np.array(cap, dtype=float))


def exact(rows, capacity, cap):
    """Max-min rates as fractions, from the definition by functions of the common level alone.

    A link's load when every flow runs at min(its ceiling, level) is piecewise linear in the level; the ceiling of a flow is its
    cap, lowered to the level at which one of its links is full. The lowest such level is found link by link over the sorted
    ceilings, and lowers the ceilings of the flows above it. Nothing is subtracted from capacities and no flow is ever frozen.
    """
    ceiling = {f: Fraction(c) if c != INF else None for f, c in enumerate(cap)}
    on = [{} for _ in capacity]
    for flow, link, weight in rows:
        if weight > 0 and capacity[link] != INF:
            on[link][flow] = on[link].get(flow, Fraction(0)) + Fraction(weight)
    while True:
        lowest = None
        for link, flows in enumerate(on):
            level = full_at(flows, ceiling, Fraction(capacity[link]) if flows else None)
            if level is not None and (lowest is None or level < lowest[0]):
                lowest = level, link
        if lowest is None:
            return [INF if c is None else c for c in ceiling.values()]
        level, link = lowest
        for flow in on[link]:
            if ceiling[flow] is None or ceiling[flow] > level:
                ceiling[flow] = level


def full_at(flows, ceiling, capacity):
    """The level at which the link is full while some flow is still below its ceiling there; None if never."""
    if not flows:
        return None
    known = sorted((ceiling[f], w) for f, w in flows.items() if ceiling[f] is not None)
    slope, load, level = sum(flows.values()), Fraction(0), Fraction(0)
    for top, weight in known:
        if load + slope * (top - level) > capacity:
            return level + (capacity - load) / slope
        load, level, slope = load + slope * (top - level), top, slope - weight
    return level + (capacity - load) / slope if slope > 0 else None


def random_network(seed):
    rng = np.random.default_rng(seed)
    links, flows = int(rng.integers(1, 30)), int(rng.integers(1, 40))
    weights = [1.0] if seed % 3 == 0 else [1.0, 2.0, 0.5, 7.0, 1 / 3, 0.0]
    capacity = rng.choice(
        [1.0, 1.0, 2.0, 0.3, 50.0, 0.0, INF] if seed % 5 == 0 else [1.0, 1.0, 2.0, 0.7], links
    ).tolist()
    if seed % 2:
        capacity = (np.array(capacity) * rng.uniform(0.1, 3.0, links)).tolist()
    cap = rng.choice([INF, INF, 0.2, 1.5, 0.05], flows).tolist()
    rows = [
        (flow, int(link), float(rng.choice(weights)))
        for flow in range(flows)
        for link in rng.choice(links, int(rng.integers(0, min(links, 6) + 1)), replace=False)
    ]
    rng.shuffle(rows)
    return [(int(f), int(link), float(w)) for f, link, w in rows], capacity, cap


@pytest.mark.parametrize("block", range(10))
def test_equals_exact_fractions(block):
    for seed in range(50 * block, 50 * block + 50):
        rows, capacity, cap = random_network(seed)
        expected = np.array([float(rate) for rate in exact(rows, capacity, cap)])
        np.testing.assert_allclose(rates(rows, capacity, cap), expected, rtol=1e-12, atol=0, err_msg=f"network {seed}")


# -- what defines the rates ----------------------------------------------------------------------------------------------------
@st.composite
def networks(draw):
    links, flows = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    numbers = st.one_of(st.sampled_from([1.0, 1.0, 2.0]), st.floats(0.01, 100.0))
    capacity = [draw(st.one_of(numbers, st.just(0.0))) for _ in range(links)]
    cap = [draw(st.one_of(st.just(INF), numbers)) for _ in range(flows)]
    rows = [
        (flow, link, draw(numbers))
        for flow in range(flows)
        for link in sorted(draw(st.sets(st.integers(0, links - 1), max_size=4)))
    ]
    return rows, capacity, cap


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(networks())
def test_no_link_over_capacity_and_every_flow_has_a_bottleneck(case):
    """A flow runs at its cap, or crosses a full link on which nobody is faster: with feasibility, that is max-min fairness."""
    rows, capacity, cap = case
    rate = rates(rows, capacity, cap)
    load, fastest = np.zeros(len(capacity)), np.zeros(len(capacity))
    for flow, link, weight in rows:
        load[link] += weight * rate[flow]
        fastest[link] = max(fastest[link], rate[flow])
    room = np.array(capacity)
    assert np.all(load <= room * (1 + 1e-12))
    full = load >= room * (1 - 1e-9)
    for flow, own in enumerate(cap):
        held = any(full[link] and rate[flow] >= fastest[link] * (1 - 1e-9) for f, link, _ in rows if f == flow)
        assert held or rate[flow] == own


@settings(max_examples=100, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_the_order_of_rows_is_nothing_and_units_cancel(case, random):
    rows, capacity, cap = case
    plain = rates(rows, capacity, cap)
    shuffled = list(rows)
    random.shuffle(shuffled)
    np.testing.assert_allclose(rates(shuffled, capacity, cap), plain, rtol=1e-12, atol=0)
    giga = rates(rows, np.array(capacity) * 1e9, np.array(cap) * 1e9)
    np.testing.assert_allclose(giga, plain * 1e9, rtol=1e-12, atol=0)


# -- toy numbers ---------------------------------------------------------------------------------------------------------------
def test_two_links():
    """A on links 0, 1; B on 0; C on 1; capacities 1 and 3: A and B get 1/2, C what A leaves: 2.5."""
    assert rates([(0, 0, 1), (0, 1, 1), (1, 0, 1), (2, 1, 1)], [1, 3], [INF] * 3).tolist() == [0.5, 0.5, 2.5]


def test_weights_share_a_link_by_level():
    """Weights 3 and 1 on a link of 4: both at 4 / (3 + 1) = 1."""
    assert rates([(0, 0, 3), (1, 0, 1)], [4], [INF] * 2).tolist() == [1, 1]


def test_a_cap_leaves_its_rest():
    assert rates([(0, 0, 1), (1, 0, 1)], [10], [2, INF]).tolist() == [2, 8]


def test_flows_without_links_have_their_caps():
    assert max_min(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.array([3.0, INF])).tolist() == [3, INF]
    assert max_min(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)).tolist() == []


def test_dead_links_stop_their_flows_only():
    assert rates([(0, 0, 1), (0, 1, 1), (1, 1, 1)], [0, 1], [INF] * 2).tolist() == [0, 1]


def test_weight_0_holds_nobody_back():
    """Flow 0 crosses the full link 0, and the dead link 1, with weight 0."""
    assert rates([(0, 0, 0), (0, 1, 0), (1, 0, 1)], [1, 0], [5, INF]).tolist() == [5, 1]


def test_links_without_end():
    """An infinite link holds nobody back, beside flows with and without limits."""
    assert rates([(0, 0, 1), (1, 0, 1), (1, 1, 2)], [INF, 3], [INF] * 2).tolist() == [INF, 1.5]


def test_a_flow_may_cross_a_link_twice():
    assert rates([(0, 0, 1), (0, 0, 1), (1, 0, 1)], [3], [INF] * 2).tolist() == [1, 1]


def test_ties_are_one_round():
    """Flow 1 on links of 0.1 + 0.2 and of 0.3, each with another flow: equal but for rounding, they freeze together."""
    rows = np.array([(0, 0), (1, 0), (1, 1), (2, 1)])
    assert 0.1 + 0.2 > 0.3
    rate, rounds = fill([Rows.of(rows[:, 0], rows[:, 1], np.ones(4), np.full(3, INF))], np.array([0.1 + 0.2, 0.3]))
    assert rate == pytest.approx([0.15] * 3, rel=1e-12)
    assert rounds == 1


def test_many_levels_are_one_round():
    """A thousand links of capacities 1 to 1000 with two flows each, apart: a thousand levels, one round."""
    flows = np.arange(2000)
    rate, rounds = fill([Rows.of(flows, flows // 2, np.ones(2000), np.full(2000, INF))], np.arange(1.0, 1001.0))
    assert rate.tolist() == (np.arange(1.0, 1001.0) / 2).repeat(2).tolist()
    assert rounds == 1


def test_a_chain_is_a_round_a_link():
    """Flow i on links i and i + 1, capacities 1, 3, 9, ...: each link waits for the one before: rates 1, 2, 7, 20, ..."""
    links = 8
    rows = [(flow, flow + side, 1.0) for flow in range(links - 1) for side in (0, 1)]
    who, where, weight = (np.array(column) for column in zip(*rows, strict=True))
    capacity = 3.0 ** np.arange(links)
    rate, rounds = fill([Rows.of(who, where, weight, np.full(links - 1, INF))], capacity)
    expected = [1.0]
    for i in range(1, links - 1):
        expected.append(capacity[i] - expected[-1])
    assert rate.tolist() == expected
    assert rounds == links - 1
