"""Steps on toy numbers: closed forms of pipelines, collectives, overlap, and what must hold of every step."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from test_fold import random_scenario

from colossim.collective import Library, Timing
from colossim.engine.record import CATEGORIES
from colossim.engine.step import _step_function, play
from colossim.footprint import Shape
from colossim.layout import compile_setup, lay_out, prepare
from colossim.legs import DIRECTION, Alone, Blocking, Fetch, Leg, Meeting, Part, Segment, Ship, Slowed, Start, Until
from colossim.partition import Partition, refine
from colossim.quotient import GroupClass, LinkClass, Quotient, RankClass
from colossim.quotient import quotient as fold_by
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.segments import Compiler
from colossim.simulation import play_step, simulate
from colossim.workload.kernels import kernel_time
from colossim.workload.program import (
    Collective,
    Compute,
    Copied,
    Copy,
    HostStep,
    Pass,
    Post,
    Send,
    StageProgram,
    Wait,
)
from colossim.workload.schedule import order

NOTHING = Partition(np.zeros(1, np.int32), (), np.zeros(1, np.int32), 0)


def group(channel, members, links, count=1):
    shape = Shape("ring", max(2, len(members)), (0,), 1.0, 1, 0.0, 0.0, 0.0, 0.0, 0.0)
    return GroupClass(channel, count, tuple(members), tuple(links), (), shape)


def ring_of(n):
    """A ring of n in one node."""
    return Shape("ring", n, (0,), (n - 1) / n, 1, n - 1, 0.0, 0.0, 1.0, 0.0)


def rank(stage, groups):
    return RankClass(stage, 0, 1, stage, tuple(groups))


def quotient(ranks, channels, groups, capacity):
    links = tuple(LinkClass("nic-out", 1, c, i) for i, c in enumerate(capacity))
    return Quotient(
        tuple(ranks), tuple((name, "ring") for name in channels), tuple(groups), links, (), NOTHING, frozenset(), False
    )


def seconds(value, category=0):
    return Alone(Segment.of([Part(value, category)]))


def pipeline(schedule, p, m, v, forward, backward, transfer=0.0, blocking=False, weights=None):
    """p stages: passes of forward(stage), backward(stage) and weights(stage) s, transfers of `transfer` s on own links."""
    wraps = v > 1
    pairs = [(i, (i + 1) % p) for i in range(p if wraps else p - 1)]
    ahead = [group(0, pair, [(i, 1.0)]) for i, pair in enumerate(pairs)]
    back = [group(1, pair[::-1], [(len(pairs) + i, 1.0)]) for i, pair in enumerate(pairs)]
    send = Timing(transfer, 0.0, float("inf"))
    ranks, legs = [], []
    for i in range(p):
        sends_ahead = i if (i < p - 1 or wraps) else -1
        takes_ahead = (i - 1) % p if (i > 0 or wraps) else -1
        ranks.append(rank(i, [(sends_ahead, takes_ahead), (takes_ahead, sends_ahead)]))
        stage = []
        for kind, j, c in order(schedule, i, p, m, v):
            steps = []
            first, last = i == 0 and c == 0, i == p - 1 and c == v - 1
            if kind == "F":
                steps += [] if first else [Fetch(0)]
                steps.append(seconds(forward(i)))
                steps += [] if last else [Ship(0, send, blocking, int(i == p - 1))]
            elif kind == "B":
                steps += [] if last else [Fetch(1)]
                steps.append(seconds(backward(i)))
                steps += [] if first else [Ship(1, send, blocking, -int(i == 0))]
            else:
                steps.append(seconds(weights(i)))
            stage.append(Leg(DIRECTION[kind], j, c, tuple(steps)))
        legs.append(tuple(stage))
    folded = quotient(ranks, ["forward", "backward"], [tuple(ahead), tuple(back)], [1.0] * (2 * len(pairs)))
    return play(folded, legs, ("toy",), (0.0, 0.0))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), [(1, 3), (4, 8), (4, 4), (5, 2), (2, 1)])
def test_makespan_of_equal_stages(schedule, p, m):
    """(m + p - 1)(F + B)."""
    record = pipeline(schedule, p, m, 1, lambda i: 1.0, lambda i: 2.0)
    assert record.step_time == pytest.approx((m + p - 1) * 3.0)


@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 8, 4), (3, 9, 2), (4, 4, 3)])
def test_makespan_of_interleaving(p, m, v):
    """m(F + B) + (p - 1)(F + B)/v, with F + B of a whole stage in v chunks."""
    record = pipeline("interleaved", p, m, v, lambda i: 1.0 / v, lambda i: 2.0 / v)
    assert record.step_time == pytest.approx(m * 3.0 + (p - 1) * 3.0 / v)


@pytest.mark.parametrize(("b", "w"), [(1.0, 1.0), (1.5, 0.5), (1.0, 3.0), (4.0, 4.5)])
@pytest.mark.parametrize(("p", "m"), [(1, 3), (4, 8), (4, 4), (5, 12)])
def test_makespan_of_zero_bubble(p, m, b, w):
    """m (F + B + W) + (p - 1) max(F, B, F + B - W), and its timelines show W apart from B."""
    record = pipeline("zero-bubble", p, m, 1, lambda i: 1.0, lambda i: b, weights=lambda i: w)
    assert record.step_time == pytest.approx(m * (1 + b + w) + (p - 1) * max(1, b, 1 + b - w))
    for timeline in record.timelines:
        computing = timeline.category == CATEGORIES.index("compute")
        took = {
            kind: float((timeline.end - timeline.start)[computing & (timeline.direction == way)].sum())
            for kind, way in DIRECTION.items()
        }
        assert took == pytest.approx({"F": m, "B": m * b, "W": m * w})


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_slower_last_stage_sets_the_pace(schedule):
    """m max(F + B) + sum - max over the stages: 6 x 5 + 3 x 3."""
    record = pipeline(schedule, 4, 6, 1, lambda i: 2.0 if i == 3 else 1.0, lambda i: 3.0 if i == 3 else 2.0)
    assert record.step_time == pytest.approx(6 * 5.0 + 3 * 3.0)


def test_sends_cost_1f1b_in_the_steady_state_though_nothing_blocks():
    """p - i micro-batches in flight leave no slack: each further micro-batch costs F + B + 2 x (p - 1)/p."""
    p, x = 4, 0.25
    times = [pipeline("1f1b", p, m, 1, lambda i: 1.0, lambda i: 2.0, transfer=x).step_time for m in (40, 80)]
    assert (times[1] - times[0]) / 40 == pytest.approx(3.0 + 2 * x * (p - 1) / p)


def test_a_transfer_beside_kernels_holds_them_back_by_a_share_of_its_time():
    """gpipe, 2 stages, m = 4: the last one, with the head, sets the pace, and is held behind each gradient that it sends but
    the last: m - 1 times a transfer's own time x."""

    def time(share, blocking="true"):
        changes = [
            "job.parallelism.tensor=8", "job.parallelism.pipeline=2", "job.parallelism.schedule=gpipe",
            "job.parallelism.virtual_pipeline=1", "job.parallelism.data=auto", "job.model.tied=false",
            f"job.software.boundary_overlap={share} %", f"job.overlap.pipeline={blocking}",
        ]  # fmt: skip
        scenario = load_scenario("two-pods", set=changes)
        plan = derive(scenario)
        batch = 4 * plan.data * scenario.job.micro_batch
        return simulate(load_scenario("two-pods", set=[*changes, f"job.global_batch={batch}"])).step_time_s

    none, half, whole = time(100), time(50), time(0)
    x = (whole - none) / 3
    assert (half - none) / 3 == pytest.approx(x / 2, rel=1e-6)
    plan, job = derive(load_scenario("two-pods")), load_scenario("two-pods").job
    moved = 2 * plan.tokens * job.model.hidden / 8
    assert 0.9 * moved / 50e9 < x < 1.5 * moved / 50e9 + 20e-6
    assert time(0, "false") == time(100, "false"), "what blocks is paid for already"


def test_breakdown_of_a_pipeline():
    """Stage 3 of 4 waits 3 F for its first micro-batch and 3 B for the others' last: 9 of the 27 s are bubble."""
    record = pipeline("1f1b", 4, 6, 1, lambda i: 1.0, lambda i: 2.0)
    for timeline in record.timelines:
        spent = dict(zip(CATEGORIES, timeline.seconds(), strict=True))
        assert spent["compute"] == pytest.approx(18.0)
        assert spent["pipeline_bubble"] == pytest.approx(9.0)


# -- collectives -----------------------------------------------------------------------------------------------------
def node_with(bandwidth, half_size, base, hop):
    node = load_scenario("two-pods").cluster.nodes[0].type
    ring = node.nvlink_ring.model_copy(
        update={"bandwidth": bandwidth, "half_size": half_size, "base": base, "hop": hop}
    )
    return node.model_copy(update={"nvlink_ring": ring})


def test_ring_all_reduce_in_a_node():
    """n = 4, S = 80 B at 10 B/s, 1 s a hop: 2 (n-1)/n S/B = 12 s and 2 (n-1) = 6 hops; a reduce-scatter half of both."""
    node = node_with(10.0, 0.0, 0.5, 1.0)
    library = Library((node,), 1.0, protocol="simple")
    t = library.timing("all_reduce", 80.0, [ring_of(4)])
    assert t.latency + t.bytes / t.cap == pytest.approx(0.5 + 6 + 12)
    t = library.timing("reduce_scatter", 80.0, [ring_of(4)])
    assert t.latency + t.bytes / t.cap == pytest.approx(0.5 + 3 + 6)


@pytest.mark.parametrize("style", ["all-gather", "ulysses"])
def test_seconds_of_a_context_group(style):
    """Eight ranks on one NVSwitch of B bytes/s, S bytes each, base b and hop a: rings take b + 7 a + 7/8 S/B (1 + (S0/S)^g),
    all-to-alls b + a + 7/8 S/B. A micro-batch's layer has 4 gathers of keys or values and 2 scatters, or the two
    all-to-alls of queries and of outputs and two of keys and of values, twice; all of it is exposed."""
    changes = (
        *("cluster.nodes.0.count=1", "job.global_batch=2", "job.model={base: llama3-8b, layers: 3}"),
        *(f"job.parallelism={{context: 8, context_style: {style}}}", "job.overlap.data=false"),
        *("job.collectives_algorithm=ring", "job.collectives_protocol=simple"),
    )
    setup = prepare(load_scenario("two-pods", set=changes), must_fit=False)
    node, model = setup.laid.cluster.node_types[0], setup.laid.scenario.job.model
    ring, tokens = node.nvlink_ring, 8192 / 8

    def gather(size):
        ramp = 1 + (ring.half_size / size) ** ring.exponent
        return ring.base + 7 * ring.hop + 7 / 8 * size / ring.bandwidth * ramp

    def exchange(size):
        return ring.base + ring.hop + 7 / 8 * size / ring.bandwidth

    query, kv = (2 * tokens * heads * model.head_size for heads in (model.heads, model.kv_heads))
    layer = {"all-gather": 6 * gather(8 * kv), "ulysses": 4 * exchange(query) + 4 * exchange(kv)}[style]
    record = play_step(setup)
    assert record.timelines[0].seconds()[CATEGORIES.index("context_comm")] == pytest.approx(2 * 3 * layer)


def test_the_ramp_doubles_the_time_of_a_small_ring():
    """Of S = S0 n/8 the ramp costs as much as the transfer."""
    node = node_with(10.0, 160.0, 0.0, 0.0)
    t = Library((node,), 1.0, protocol="simple").timing("all_reduce", 80.0, [ring_of(4)])
    assert t.bytes / t.cap == pytest.approx(2 * 12.0)


def test_two_groups_share_what_they_cross():
    """Two all-reduces of 10 B an edge on one link of 2 B/s that each crosses once: 1 B/s each, 10 s; alone 5 s."""
    call = Blocking(0, Timing(10.0, 0.0, float("inf")), 6, 1.0)
    for count, expected in ((2, 10.0), (1, 5.0)):
        groups = tuple(group(0, [i], [(0, 1.0)]) for i in range(count))
        ranks = [rank(0, [(i,)]) for i in range(count)]
        record = play(
            quotient(ranks, ["data"], [groups], [2.0]), [(Leg(2, -1, -1, (call,)),)] * count, ("toy",), (0.0, 0.0)
        )
        assert record.step_time == pytest.approx(expected)


def test_a_collective_waits_for_its_last_member():
    """Members compute 1 and 3 s, then reduce for 2 s: 5 s, of which the first waits 2 s for a straggler."""
    call = Blocking(0, Timing(4.0, 0.0, float("inf")), 6, 1.0)
    legs = [(Leg(2, -1, -1, (seconds(s), call)),) for s in (1.0, 3.0)]
    ranks = [RankClass(0, kind, 1, kind, ((0,),)) for kind in (0, 1)]
    record = play(
        quotient(ranks, ["data"], [(group(0, [0, 1], [(0, 1.0)]),)], [2.0]), legs, ("fast", "slow"), (0.0, 0.0)
    )
    assert record.step_time == pytest.approx(5.0)
    spent = dict(zip(CATEGORIES, record.timelines[0].seconds(), strict=True))
    assert (spent["compute"], spent["straggler"], spent["data_comm"]) == pytest.approx((1.0, 2.0, 2.0))


def test_a_meeting_takes_the_slowest_of_each_part():
    """Arrivals 0 and 1; parts 2 | 1 and 1 | 4 around a collective of 3 s, tails 5 and 1: T = max(2, 2) + 3, + max(1, 4) + 3."""
    own = [[2.0, 1.0, 5.0], [1.0, 4.0, 1.0]]
    legs = []
    for arrival, parts in zip((0.0, 1.0), own, strict=True):
        first, second, tail = parts
        segment = Segment.of(
            [Part(first, 0), Part(3.0, 1, 0, 6.0), Part(second, 0), Part(3.0, 1, 0, 6.0), Part(tail, 0)]
        )
        legs.append((Leg(2, -1, -1, ((seconds(arrival),) if arrival else ()) + (Meeting(segment, 0),)),))
    ranks = [RankClass(0, kind, 1, kind, ((0,),)) for kind in (0, 1)]
    folded = quotient(ranks, ["tensor"], [(group(0, [0, 1], [(0, 1.0)]),)], [2.0])
    record = play(folded, legs, ("a", "b"), (0.0, 0.0))
    met = max(0 + 2, 1 + 1) + 3 + max(1, 4) + 3
    assert record.rank_end.tolist() == pytest.approx([met + 5, met + 1])
    assert record.links[0].bytes == pytest.approx(12.0)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.35, 0.35)])
def test_overlap_slows_both(x, y):
    """6 s of kernel beside a transfer of 2 s alone: while both run the kernel goes at 1/(1+x), the transfer at 1/(1+y),
    so the transfer ends at 2 (1+y) and the kernel has lost 2 (1+y) x/(1+x)."""
    call = Start(0, Timing(4.0, 0.0, float("inf")), 6, "bucket")
    legs = [(Leg(1, 0, 0, (call, Slowed(6.0, 0), Until("bucket"))),)]
    folded = quotient([rank(0, [(0,)])], ["data"], [(group(0, [0], [(0, 1.0)]),)], [2.0])
    record = play(folded, legs, ("toy",), (x, y))
    assert record.step_time == pytest.approx(6 + 2 * (1 + y) * x / (1 + x))


def test_an_exposed_transfer_is_not_slowed():
    """1 s of kernel beside a transfer of 2 s alone, x = 0, y = 1: half speed for 1 s, then the other 1.5 s of it: 2.5 s."""
    call = Start(0, Timing(4.0, 0.0, float("inf")), 6, "bucket")
    legs = [(Leg(1, 0, 0, (call, Slowed(1.0, 0), Until("bucket"))),)]
    folded = quotient([rank(0, [(0,)])], ["data"], [(group(0, [0], [(0, 1.0)]),)], [2.0])
    assert play(folded, legs, ("toy",), (0.0, 1.0)).step_time == pytest.approx(2.5)


def test_collectives_of_a_group_queue():
    """Two buckets of 2 s each are one after the other on their communicator: 4 s."""
    calls = tuple(Start(0, Timing(4.0, 0.0, float("inf")), 6, tag) for tag in "ab")
    legs = [(Leg(1, 0, 0, (*calls, Until("a"), Until("b"))),)]
    folded = quotient([rank(0, [(0,)])], ["data"], [(group(0, [0], [(0, 1.0)]),)], [2.0])
    assert play(folded, legs, ("toy",), (0.0, 0.0)).step_time == pytest.approx(4.0)


# -- what must hold of every step ------------------------------------------------------------------------------------
SOME = [
    ("two-pods", []),
    ("two-pods", ["cluster.fabric.oversubscription=[4, 2]", "job.overlap.pipeline=false"]),
    ("two-pods", ["job.parallelism.schedule=zero-bubble", "job.parallelism.virtual_pipeline=1"]),
    ("two-pods", ["job.parallelism.sharding=parameters", "job.parallelism.context=2", "job.recompute=full"]),
    ("two-pods", ["job.model=mixtral-8x22b", "job.parallelism.expert=8", "job.parallelism.tensor=4", "job.recompute=full"]),
    ("colossus-200k", ["cluster.nodes.0.count=48", "cluster.nodes.1.count=16", "job.global_batch=64"]),
    ("korthikanti-2022", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), SOME)
def test_a_step_is_accounted_for(name, changes):
    """Timelines cover the step without gaps; no link is over its capacity, and its throughput adds up to its bytes."""
    shown = "job.software.tensor_overlap=0 %"  # what runs beside products is counted in bytes alone
    record = play_step(prepare(load_scenario(name, set=[*changes, shown])))
    for timeline in record.timelines:
        assert timeline.start[0] == 0
        assert np.all(timeline.start[1:] == timeline.end[:-1])
        assert timeline.end[-1] == pytest.approx(record.step_time, rel=1e-9)
        assert timeline.seconds().sum() == pytest.approx(record.step_time, rel=1e-9)
    for use in record.links:
        assert np.all(use.rate <= use.capacity * (1 + 1e-9)), use.name
        assert np.sum(use.rate * np.diff(use.times)) == pytest.approx(use.bytes, rel=1e-6), use.name


@pytest.mark.parametrize(("name", "changes"), SOME[:6])
def test_segments_change_nothing_but_the_number_of_events(name, changes, monkeypatch):
    """The same job with every collective played on the network."""
    scenario = load_scenario(name, set=changes)
    quick = play_step(prepare(scenario))
    original = Compiler.__post_init__

    def nothing_private(self):
        original(self)
        self._private = frozenset()

    monkeypatch.setattr(Compiler, "__post_init__", nothing_private)
    slow = play_step(prepare(scenario))
    assert slow.step_time == pytest.approx(quick.step_time, rel=1e-9)
    assert slow.rank_end == pytest.approx(quick.rank_end, rel=1e-9)
    assert [u.bytes for u in slow.links] == pytest.approx([u.bytes for u in quick.links])
    assert slow.events > quick.events


def test_programs_that_do_not_match_are_our_bug():
    folded = quotient([rank(0, [(0, 0)])], ["forward"], [(group(0, [0, 0], [(0, 1.0)]),)], [1.0])
    with pytest.raises(RuntimeError, match="deadlock"):
        play(folded, [(Leg(0, 0, 0, (Fetch(0),)),)], ("toy",), (0.0, 0.0))


def test_the_same_bytes_whatever_the_hash_seed():
    code = (
        "import colossim, hashlib\n"
        "r = colossim.simulate(colossim.load_scenario('two-pods', set=['cluster.fabric.oversubscription=[4, 2]']))\n"
        "t = b''.join(x.tobytes() for l in r.record.timelines for x in (l.start, l.end, l.category))\n"
        "u = b''.join(x.tobytes() for l in r.record.links for x in (l.times, l.rate))\n"
        "print(repr(r.step_time_s), r.events, list(r.links), hashlib.sha256(t + u).hexdigest())\n"
    )
    outputs = set()
    for seed in ("0", "1", "424242"):
        run = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1


def test_hierarchical_rings_pay_less_latency():
    """Two levels: q - 1 NVLink hops a pass instead of n - N; the network's bytes are the same."""
    laid = lay_out(load_scenario("two-pods", set=["job.parallelism.tensor=1", "job.parallelism.sequence=false"]))
    other = lay_out(
        load_scenario(
            "two-pods",
            set=[
                "job.parallelism.tensor=1",
                "job.parallelism.sequence=false",
                "job.collectives_algorithm=hierarchical",
            ],
        )
    )
    flat, levels = laid.traffic.channel("data").footprint, other.traffic.channel("data", "hierarchical").footprint
    n, nodes, q = 32, 4, 8
    assert flat.nvlink_steps - levels.nvlink_steps == pytest.approx((n - nodes) - (q - 1))
    np.testing.assert_array_equal(flat.network_steps - levels.network_steps, 1.0)
    assert levels.share == pytest.approx((nodes - 1) / (nodes * q))


def test_segments_and_records_call_the_same_things_by_the_same_number():
    from colossim.legs import CATEGORY

    called = {name: CATEGORIES[index] for name, index in CATEGORY.items()}
    assert called == {
        **{
            "compute": "compute",
            "optimizer": "optimizer",
            "straggler": "straggler",
            "host": "other",
            "bubble": "pipeline_bubble",
        },
        **{"tensor": "tensor_comm", "expert_tensor": "tensor_comm", "context": "context_comm"},
        **{"expert": "expert_comm", "data": "data_comm"},
        **{"data_shards": "data_comm", "data_replicas": "data_comm", "expert_data": "data_comm"},
        **{"embedding": "data_comm", "forward": "pipeline_comm", "backward": "pipeline_comm", "amax": "tensor_comm"},
    }


def test_hidden_collectives_put_no_more_on_links_than_they_carry():
    """What overlap hides of a tensor collective is counted in bytes, but is not squeezed into the time that shows."""
    for changes in ([], ["job.parallelism.sharding=parameters"]):
        record = play_step(prepare(load_scenario("two-pods", set=["job.overlap.tensor=true", *changes])))
        for use in record.links:
            assert np.all(use.rate <= use.capacity * (1 + 1e-9)), (use.name, np.max(use.rate) / use.capacity)
            assert np.sum(use.rate * np.diff(use.times)) <= use.bytes * (1 + 1e-6), use.name


def test_throughput_has_no_slivers():
    """One transfer ends at 0.1 + 0.2, the next begins at 0.3, 5.6e-17 s earlier: at no time do both flow."""
    first = tuple(np.array([x]) for x in (0.0, 0.1 + 0.2, 1.0))
    second = tuple(np.array([x]) for x in (0.3, 1.0, 1.0))
    _, rate = _step_function([(first, 1.0), (second, 1.0)], 1.0)
    assert rate.max() == 1.0


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 60))])
def test_segments_change_nothing_in_random_jobs(seed, monkeypatch):
    """To 1e-12, with everything that may split a segment: slow links, overlap, experts, contexts, orders of axes."""
    quick = play_step(prepare(random_scenario(seed)))
    original = Compiler.__post_init__

    def nothing_private(self):
        original(self)
        self._private = frozenset()

    monkeypatch.setattr(Compiler, "__post_init__", nothing_private)
    slow = play_step(prepare(random_scenario(seed)))
    np.testing.assert_allclose(slow.rank_end, quick.rank_end, rtol=1e-12)
    np.testing.assert_allclose([u.bytes for u in slow.links], [u.bytes for u in quick.links], rtol=1e-9)


# -- a second simulator ----------------------------------------------------------------------------------------------
def fair_rates(flows, capacity):
    """Max-min rates by bottlenecks. flows: (link -> weight, own cap)."""
    rate, left, running = {}, dict(capacity), set(range(len(flows)))
    while running:
        demand = {}
        for i in running:
            for link, weight in flows[i][0].items():
                demand[link] = demand.get(link, 0.0) + weight
        level = min(flows[i][1] for i in running)
        level = min([level, *(max(left[link], 0.0) / d for link, d in demand.items())])
        full = {link for link, d in demand.items() if left[link] / d <= level * (1 + 1e-12)}
        for i in [i for i in running if flows[i][1] <= level * (1 + 1e-12) or full & set(flows[i][0])]:
            running.discard(i)
            rate[i] = level
            for link, weight in flows[i][0].items():
                left[link] -= weight * level
    return rate


class Flight:
    """A collective or transfer of the second simulator."""

    def __init__(self, name):
        self.name, self.arrived, self.over, self.latency, self.left = name, 0, False, 0.0, 0.0


class Plain:
    """The job rank by rank and operation by operation: no classes, no segments, no SimPy, rates found anew at every change."""

    def __init__(self, laid):
        self.laid, traffic = laid, laid.traffic
        self.x, self.y = laid.scenario.job.software.overlap.compute, laid.scenario.job.software.overlap.transfer
        self.capacity = dict(enumerate(traffic.capacity.tolist()))
        self.last = laid.plan.pipeline - 1
        self.channels, gpus = {}, laid.cluster.gpus
        self.links = {}
        for channel in traffic.channels:
            self.channels.setdefault(channel.name, []).append(channel)
            rows = [{} for _ in range(channel.groups)]
            for role, kind, column in channel.footprint.own:
                for r, g in enumerate(channel.roles[role].tolist()):
                    if g >= 0 and column[r] > 0:
                        rows[g][kind * gpus + r] = rows[g].get(kind * gpus + r, 0.0) + column[r]
            f = channel.footprint
            for g, link, weight in zip(f.group.tolist(), f.link.tolist(), f.weight.tolist(), strict=True):
                rows[g][link] = rows[g].get(link, 0.0) + weight
            self.links.setdefault(channel.name, []).append(rows)
        self.flights, self.queues, self.bytes, self.now = {}, {}, np.zeros(laid.cluster.links), 0.0
        #: (a flight, what arrives as soon as it is over)
        self.followers = []

    def timing(self, name, g, operation, size):
        ways = self.channels[name]
        types = tuple(sorted({int(self.laid.traffic.hardware[m]) for m in ways[0].members[g]}))
        shapes = [way.footprint.shape(g, way.algorithm, way.size, types) for way in ways]
        return self.laid.library.timing(operation, size, shapes)

    def exposed(self, call, flight):
        """Part of a blocking call that no product hides, on the slowest type of its members."""
        name, g, _ = flight.name
        if call.beside is None:
            return 1 - call.hidden
        alone = self.timing(name, g, call.operation, call.size).alone
        one = self.timing(name, g, call.operation, call.size / call.beside.calls).alone
        nodes, precision = self.laid.cluster.node_types, self.laid.scenario.job.precision
        types = {int(self.laid.traffic.hardware[m]) for m in self.channels[name][0].members[g]}
        prices = [
            lambda op, gpu=nodes[t].gpu: sum(kernel_time(kernel, gpu, precision) for kernel in op.kernels)
            for t in types
        ]
        return max(call.beside.shown(price, one, alone) for price in prices)

    def flight(self, *name):
        return self.flights.setdefault(name, Flight(name))

    def arrive(self, flight, needed, operation, size, exposed):
        """All members are ready: it takes its turn on its group's communicator."""
        flight.arrived += 1
        if flight.arrived == needed:
            channel, g, _ = flight.name
            t = self.timing(channel, g, operation, size)
            flight.latency, flight.left, flight.cap = t.latency * exposed, t.bytes * exposed, t.cap
            flight.links = self.links[channel][t.which][g]
            for link, weight in flight.links.items():
                self.bytes[link] += weight * t.bytes
            self.queues.setdefault((channel, g), []).append(flight)

    def rank(self, r):
        """A rank's life: yields seconds of kernels, or a flight to wait for."""
        stage, hardware, job = (
            int(self.laid.traffic.stage[r]),
            int(self.laid.traffic.hardware[r]),
            self.laid.scenario.job,
        )
        program, tags, counts = self.laid.shares.kinds[int(self.laid.traffic.kind[r])].programs[stage], {}, {}
        node = self.laid.cluster.node_types[hardware]
        gpu, host = node.gpu, node.host
        todo = [(op, None) for op in program.prologue]
        todo += [(op, (p.micro_batch, p.chunk)) for p in program.passes for op in p.body]
        for op, key in todo + [(op, None) for op in program.epilogue]:
            if isinstance(op, Compute):
                yield sum(kernel_time(kernel, gpu, job.precision) for kernel in op.kernels)
            elif isinstance(op, Collective | Post):
                call = op if isinstance(op, Collective) else op.collective
                channel = self.channels[call.channel][0]
                counts[call.channel] = counts.get(call.channel, 0) + 1
                flight = self.flight(call.channel, int(channel.roles[0][r]), counts[call.channel])
                blocks = isinstance(op, Collective)
                what = (flight, channel.size, call.operation, call.size, self.exposed(call, flight) if blocks else 1.0)
                if not blocks and op.after and not tags[op.after].over:
                    self.followers.append((tags[op.after], what))
                else:
                    self.arrive(*what)
                if blocks:
                    yield flight
                else:
                    tags[op.tag] = flight
            elif isinstance(op, Wait):
                yield tags.pop(op.tag)
            elif isinstance(op, Copy):
                seconds = op.size / (host.from_gpu if op.direction == "out" else host.to_gpu)
                self.alone(("copies", r, op.direction), seconds)
            elif isinstance(op, Copied):
                if self.queues.get(("copies", r, op.direction)):
                    yield self.queues["copies", r, op.direction][-1]
            elif isinstance(op, HostStep):
                times = 4 / host.from_gpu, 34 * min(node.gpus, op.ranks) / host.rate, 2 / host.to_gpu
                yield self.pause(r, op.parameters * (max(times) if op.beside else sum(times)))
            elif isinstance(op, Send):
                turn = int(op.direction == "forward" and stage == self.last) - int(
                    op.direction == "backward" and stage == 0
                )
                g = int(self.channels[op.direction][0].roles[0][r])
                flight = self.flight(op.direction, g, (key[0], key[1] + turn))
                self.arrive(flight, 1, "send", op.size, 1.0)
                if op.blocking:
                    yield flight
                elif op.held:
                    yield self.pause(r, op.held * (flight.latency + flight.left / flight.cap))
            else:
                yield self.flight(op.direction, int(self.channels[op.direction][0].roles[1][r]), key)

    def pause(self, r, seconds):
        """A flight of nothing, which no kernel slows."""
        return self.alone(("pause", r, self.now), seconds)

    def alone(self, name, seconds):
        """A flight of nothing behind those of its name."""
        flight = Flight(name)
        flight.latency, flight.cap, flight.links = seconds, float("inf"), {}
        self.queues.setdefault(name, []).append(flight)
        return flight

    def run(self):
        """(ranks,) seconds at which each has finished."""
        ranks = range(self.laid.traffic.ranks)
        lives = [self.rank(r) for r in ranks]
        waits = [next(life, None) for life in lives]
        ends = [0.0] * len(ranks)
        while True:
            changed = True
            while changed:
                changed = False
                for queue in self.queues.values():
                    while queue and queue[0].latency <= 0 and queue[0].left <= 0:
                        queue.pop(0).over = changed = True
                following = [what for flight, what in self.followers if flight.over]
                self.followers = [pair for pair in self.followers if not pair[0].over]
                for what in following:
                    self.arrive(*what)
                for r in ranks:
                    while waits[r] is not None and (waits[r].over if isinstance(waits[r], Flight) else waits[r] <= 0):
                        waits[r], changed = next(lives[r], None), True
                        if waits[r] is None:
                            ends[r] = self.now
            if all(wait is None for wait in waits):
                return np.array(ends)
            self.advance(waits)

    def advance(self, waits):
        heads = [queue[0] for queue in self.queues.values() if queue]
        moving = [flight for flight in heads if flight.latency <= 0]
        computing = {r for r, wait in enumerate(waits) if isinstance(wait, float)}
        beside = {}
        for flight in moving:
            channel, g, _ = flight.name
            if channel.startswith("data") or channel in ("expert_data", "context", "expert"):
                for r in computing.intersection(self.channels[channel][0].members[g].tolist()):
                    beside.setdefault(r, []).append(flight)
        slowed = {id(flight) for flights in beside.values() for flight in flights}
        flows = []
        for flight in moving:
            stretch = 1 + self.y if id(flight) in slowed else 1.0
            weights = flight.links
            flows.append(({link: weight * stretch for link, weight in weights.items()}, flight.cap / stretch))
        rates = fair_rates(flows, self.capacity)
        pace = {r: 1 / (1 + self.x) if r in beside else 1.0 for r in computing}
        ahead = [waits[r] / pace[r] for r in computing] + [f.latency for f in heads if f.latency > 0]
        step = min(ahead + [f.left / rates[i] for i, f in enumerate(moving)])
        self.now += step
        instant = 1e-12 * self.now
        for r in computing:
            left = waits[r] - step * pace[r]
            waits[r] = left if left > instant else 0.0
        for flight in heads:
            if flight.latency > 0:
                flight.latency = flight.latency - step if flight.latency - step > instant else 0.0
        for i, flight in enumerate(moving):
            left = flight.left - step * rates[i]
            flight.left = left if left > instant * rates[i] else 0.0


#: Jobs small enough to be played one rank at a time.
SMALL = [seed for seed in range(120) if derive(random_scenario(seed)).world <= 20]


def test_the_second_simulator_has_jobs_enough():
    assert len(SMALL) >= 60


@pytest.mark.parametrize("seed", [seed if seed < 35 else pytest.param(seed, marks=pytest.mark.slow) for seed in SMALL])
def test_a_second_simulator_agrees(seed):
    """The end of every rank and the bytes of every link, against `Plain`; launch floors apart, which it doesn't know."""
    scenario = random_scenario(seed)
    software = scenario.job.software.model_copy(update={"host": None})
    scenario = scenario.model_copy(update={"job": scenario.job.model_copy(update={"software": software})})
    laid = lay_out(scenario)
    folded = refine(laid.traffic)
    record = play_step(compile_setup(laid, fold_by(laid.traffic, folded)))
    plain = Plain(laid)
    np.testing.assert_allclose(record.rank_end[folded.rank], plain.run(), rtol=1e-9)
    seen = folded.link >= 0
    carried = np.array([use.bytes for use in record.links])[folded.link[seen]]
    np.testing.assert_allclose(carried, plain.bytes[seen], rtol=1e-9, atol=1e-6)


def test_a_blocking_collective_queues_behind_those_of_its_own_group():
    """Two reduce-scatters of one group over NVLink, the first posted, the second blocking: one after the other, so that
    the step takes twice as long as one of them. A segment may not play the second as if the first were not in flight."""
    node = node_with(10.0, 0.0, 0.5, 1.0)
    ring = GroupClass(0, 1, (0,), ((0, 1.0),), (), ring_of(4))
    folded = quotient([rank(0, [(0,)])], ["data"], [(ring,)], [20.0])
    call = Collective("data", "reduce_scatter", 80.0)
    body = (Post(call, "gradients"), call, Wait("gradients"))
    program = StageProgram(0, (Pass("B", 0, 0, body, (0.0,)),), (), 1.0)
    compiler = Compiler(folded, Library((node,), 1.0, protocol="simple"), lambda op, hardware: 0.0, (0.0, 0.0))
    record = play(folded, [compiler.compile(program, folded.ranks[0])], ("toy",), (0.0, 0.0))
    assert record.step_time == pytest.approx(2 * (0.5 + 3 + 6))


@pytest.mark.parametrize("seed", [375, 382, 449, 495])
def test_segments_change_nothing_where_gradients_are_in_flight(seed, monkeypatch):
    """Sharded parameters of several micro-batches: the next pass gathers while the last one's gradients still move."""
    test_segments_change_nothing_in_random_jobs(seed, monkeypatch)
