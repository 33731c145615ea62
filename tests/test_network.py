"""The fluid network against arithmetic on toy numbers, and its filling against a solver of a different shape."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossim.engine.clock import Clock
from colossim.engine.network import Activity, Network
from colossim.maxmin import max_min


class Log:
    """Owner of activities: remembers when each ended."""

    def __init__(self, env):
        self.env = env
        self.ends = {}

    def ended(self, activity):
        self.ends[activity] = self.env.now


def play(capacity, transfers):
    """transfers: (start, latency, size, cap, links). Returns the end of each."""
    env = Clock()
    network = Network(env, capacity)
    log = Log(env)
    activities = []
    for start, latency, size, cap, links in transfers:
        activity = Activity(tuple(links), size, cap)
        activity.owner = log
        activities.append(activity)

        def begin(start=start, latency=latency, activity=activity):
            yield env.timeout(start)
            network.start(activity, latency)

        env.process(begin())
    env.run()
    return [log.ends[activity] for activity in activities]


INF = float("inf")


def test_one_message():
    """1 byte at 1 byte/s with 500 ms latency: 0.5 + 1 / 1 = 1.5 s."""
    assert play([1.0], [(0.0, 0.5, 1.0, INF, [(0, 1.0)])]) == [1.5]


def test_two_messages_share_a_link():
    """10 B and 20 B on 2 B/s: 1 B/s each until 10 s, then the second moves its last 10 B at 2 B/s: 10 + 5 = 15 s."""
    assert play([2.0], [(0, 0, 10.0, INF, [(0, 1.0)]), (0, 0, 20.0, INF, [(0, 1.0)])]) == pytest.approx([10.0, 15.0])


def test_a_cap_leaves_its_remainder_to_others():
    """Capacity 10, one flow capped at 2: the other gets 8. 16 B each: 8 s and 2 s."""
    ends = play([10.0], [(0, 0, 16.0, 2.0, [(0, 1.0)]), (0, 0, 16.0, INF, [(0, 1.0)])])
    assert ends == pytest.approx([8.0, 2.0])


def test_weights_are_edges():
    """Weight 3 on a link of 4 beside weight 1: both move at 4 / (3 + 1) = 1 B/s an edge."""
    assert play([4.0], [(0, 0, 5.0, INF, [(0, 3.0)]), (0, 0, 5.0, INF, [(0, 1.0)])]) == pytest.approx([5.0, 5.0])


def test_max_min_over_two_links():
    """A on links 0, 1; B on 0; C on 1; capacities 1 and 3: A and B get 0.5, C what A leaves: 2.5."""
    ends = play([1.0, 3.0], [(0, 0, 1, INF, [(0, 1), (1, 1)]), (0, 0, 1, INF, [(0, 1)]), (0, 0, 1, INF, [(1, 1)])])
    assert ends == pytest.approx([2.0, 2.0, 1 / 2.5])


def test_a_late_arrival_slows_only_its_neighbours():
    """A 10 B on link 0 (1 B/s), joined at t = 4 by B 3 B: both at 0.5 until B ends at 10; A then has 3 B left: 13 s.
    C on link 1 is untouched: 7 B at 1 B/s."""
    ends = play([1.0, 1.0], [(0, 0, 10, INF, [(0, 1)]), (4, 0, 3, INF, [(0, 1)]), (0, 0, 7, INF, [(1, 1)])])
    assert ends == pytest.approx([13.0, 10.0, 7.0])


def test_nothing_to_move_costs_its_latency():
    assert play([1.0], [(0, 0.25, 0.0, INF, [(0, 1.0)])]) == [0.25]


def brute_force(rows, capacity, cap):
    """Max-min by bisection: the common level is raised until something is full, one bottleneck at a time."""
    rate = [None] * len(cap)
    while any(r is None for r in rate):

        def feasible(level, rate=rate):
            load = [0.0] * len(capacity)
            for flow, link, weight in rows:
                load[link] += weight * (min(level, cap[flow]) if rate[flow] is None else rate[flow])
            return all(used <= limit * (1 + 1e-13) for used, limit in zip(load, capacity, strict=True))

        low, high = 0.0, 1e3
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if feasible(middle) else (low, middle)
        frozen = False
        load = [0.0] * len(capacity)
        for flow, link, weight in rows:
            load[link] += weight * (min(low, cap[flow]) if rate[flow] is None else rate[flow])
        full = {link for link, used in enumerate(load) if used >= capacity[link] * (1 - 1e-9)}
        for flow, r in enumerate(rate):
            if r is None and (cap[flow] <= low * (1 + 1e-12) or any(f == flow and link in full for f, link, _ in rows)):
                rate[flow] = min(low, cap[flow])
                frozen = True
        assert frozen
    return rate


@st.composite
def networks(draw):
    links = draw(st.integers(1, 5))
    flows = draw(st.integers(1, 7))
    capacity = [draw(st.sampled_from([1.0, 2.0, 3.0, 7.0, 0.3])) for _ in range(links)]
    cap = [draw(st.sampled_from([INF, INF, 0.2, 1.5])) for _ in range(flows)]
    rows = []
    for flow in range(flows):
        on = draw(st.sets(st.integers(0, links - 1), min_size=1))
        rows += [(flow, link, draw(st.sampled_from([1.0, 1.0, 2.0, 0.5, 7.0]))) for link in sorted(on)]
    return rows, capacity, cap


@settings(max_examples=200, deadline=None)
@given(networks())
def test_both_fillings_equal_bisection(case):
    rows, capacity, cap = case
    expected = brute_force(rows, capacity, cap)
    who, where, weight = (np.array(column) for column in zip(*rows, strict=True))
    arrays = max_min(who, where, weight, np.array(capacity), np.array(cap))
    assert list(arrays) == pytest.approx(expected, rel=1e-9)

    network = Network(Clock(), capacity)
    component = []
    for flow in range(len(cap)):
        component.append(Activity(tuple((link, w) for f, link, w in rows if f == flow), 1.0, cap[flow]))
    assert network._rates._fill(component) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(networks())
def test_no_link_over_capacity_and_every_flow_has_a_reason(case):
    rows, capacity, cap = case
    who, where, weight = (np.array(column) for column in zip(*rows, strict=True))
    rate = max_min(who, where, weight, np.array(capacity), np.array(cap))
    load = np.bincount(where, weights=weight * rate[who], minlength=len(capacity))
    assert np.all(load <= np.array(capacity) * (1 + 1e-12))
    full = load >= np.array(capacity) * (1 - 1e-9)
    for flow, r in enumerate(rate):
        own = rows and any(full[link] for f, link, _ in rows if f == flow)
        assert own or r == pytest.approx(cap[flow])


def test_bytes_arrive_whatever_disturbs_them():
    """Ends are ordered and the sum of what passed a shared link is its capacity times its busy time."""
    transfers = [(0.1 * i, 0.0, 3.0 + i, INF, [(0, 1.0)]) for i in range(60)]
    ends = play([5.0], transfers)
    assert all(a <= b for a, b in pairwise(sorted(ends)))
    assert max(ends) == pytest.approx(sum(t[2] for t in transfers) / 5.0)
