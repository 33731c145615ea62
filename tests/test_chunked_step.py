"""Whole steps played message by message against the fluid step.

For each call of a rank, alone on its links, with L its latency and T = bytes/rate (tests/test_chunked.py):

    ring                 T <= chunked <= T + L            the fluid is T + L
    tree, s slices       T <= chunked <= T + L + (H - 1) T/s, H = 2 (depth + q - 1)
    hierarchical         T <= chunked <= T + s L + min(V, X)/s <= T + s L + T/s
    all-to-all           T <= chunked <= T + L + V/s, V of the relays' NVLinks
    pat, shift, send     T + L

While a transfer pays its latency the chunked step's kernels are slowed from the first message on, the fluid step's are not:
(x + y) L of every call beside kernels (test_kernels_and_messages_slow_each_other_as_transfers_do).

A step is a longest path through calls and kernels, so it moves by no more than the sum of these over the calls of a rank
(of its stage's, and of the epilogue's). Where two channels share links a ring's edge over NVLink moves in bursts, not at its
ring's pace, and who shares it is delayed by at most the bytes of the other's bursts: `shared`, bytes over what NVLink sustains.
"""

from __future__ import annotations

import numpy as np
import pytest

from colossim import cli
from colossim.chunks import ALGORITHMS, collective_messages, default_slices, message_count
from colossim.engine import chunked_step
from colossim.engine.chunked_step import messages_of_step, slices_of
from colossim.errors import ScenarioError, SimulationError
from colossim.layout import prepare
from colossim.legs import Blocking, Ship, Start
from colossim.scenario.reader import load_scenario
from colossim.simulation import play_step, simulate

PAR = "job.parallelism"
ONE_STAGE = (f"{PAR}.pipeline=1", f"{PAR}.virtual_pipeline=1", f"{PAR}.schedule=1f1b")
#: A model small enough for whole steps in seconds: 8 layers of Llama 3 8B.
SMALL = ("job.model={base: llama3-8b, layers: 8}",)


def scenario(nodes, batch, *changes, mode="chunked"):
    changes = [f"cluster.nodes.0.count={nodes}", f"job.global_batch={batch}", *SMALL, *changes]
    return load_scenario("two-pods", set=[*changes, f"run.collectives={mode}", "run.fold=off"])


def calls_of(setup, index):
    """(timing, exposed, group class, whether beside kernels) of every call that one rank takes part in as a sender."""
    rank = setup.quotient.ranks[index]
    for leg in setup.legs[index]:
        for step in leg.steps:
            if isinstance(step, Blocking | Start | Ship):
                kind = setup.quotient.groups[step.channel][rank.groups[step.channel][0]]
                yield step.timing, getattr(step, "exposed", 1.0), kind, isinstance(step, Start)


def slack(setup):
    """(below, above) s by which a chunked step may differ from the fluid one."""
    below = above = 0.0
    nvlink = {}
    most = min(t.nvlink_ring.bandwidth for t in setup.laid.cluster.node_types)
    links = setup.quotient.links
    overlap = setup.laid.scenario.job.software.overlap
    for t, exposed, kind, beside in calls_of(setup, 0):
        shape = kind.shape
        above += beside * (overlap.compute + overlap.transfer) * t.latency
        rate = min([t.cap, *(links[n].capacity / weight for n, weight in kind.links)])
        moving, s = t.bytes / rate, slices_of(t, kind)
        q = shape.size // shape.nodes
        if shape.algorithm in ("ring", "tree", "hierarchical", "direct"):
            below += exposed * t.latency
        if shape.algorithm == "tree":
            above += exposed * (2 * (shape.network_steps + q - 1) - 1) * moving / s
        elif shape.algorithm == "hierarchical":
            above += exposed * ((s - 1) * t.latency + moving / s)
        elif shape.algorithm == "direct":
            above += exposed * moving / s
        on = [weight for n, weight in kind.links if links[n].kind == "nvlink-out"]
        nvlink[kind.channel] = nvlink.get(kind.channel, 0.0) + t.bytes * max(on, default=0.0)
    # Channels that share NVLinks: who is slower is so by the smaller one's bytes, at most, either way.
    shared = sum(sorted(nvlink.values())[:-1]) / most
    # Sends start where others end: each stage's calls are in the chain.
    stages = len({rank.stage for rank in setup.quotient.ranks})
    return stages * (below + shared), stages * (above + shared)


def both(nodes, batch, *changes):
    """The setups and records of the fluid and the chunked step."""
    setups = [prepare(scenario(nodes, batch, *changes, mode=mode)) for mode in ("fluid", "chunked")]
    return [(setup, play_step(setup)) for setup in setups]


STEPS = {
    "stages of two pods": (16, 128, ()),
    "two stages": (2, 16, (f"{PAR}.pipeline=2",)),
    "replicas on two nodes": (2, 16, ONE_STAGE),
    "replicas on eight nodes": (8, 16, (*ONE_STAGE, f"{PAR}.tensor=8")),
    "shards on two nodes": (2, 16, (*ONE_STAGE, f"{PAR}.sharding=parameters", f"{PAR}.tensor=4")),
    "a narrow spine": (
        4,
        8,
        (*ONE_STAGE, f"{PAR}.tensor=8", "cluster.fabric.nodes_per_pod=1", "cluster.fabric.oversubscription=[4,1]"),
    ),
    "context": (2, 16, (*ONE_STAGE, f"{PAR}.context=4")),
    "context by all-gather": (2, 16, (*ONE_STAGE, f"{PAR}.context=4", f"{PAR}.context_style=all-gather")),
    "context by all-to-all": (2, 16, (*ONE_STAGE, f"{PAR}.context=4", f"{PAR}.context_style=ulysses")),
    "trees": (4, 16, (*ONE_STAGE, f"{PAR}.tensor=8", f"{PAR}.sharding=none", "job.collectives_algorithm=tree")),
    "hierarchies": (2, 16, (*ONE_STAGE, f"{PAR}.tensor=4", "job.collectives_algorithm=hierarchical")),
    "pat": (4, 16, (*ONE_STAGE, f"{PAR}.tensor=8", "job.collectives_algorithm=pat")),
    "experts": (
        2,
        16,
        (*ONE_STAGE, "job.model={base: mixtral-8x22b, layers: 2, ffn: 1024, expert_ffn: 1024}", f"{PAR}.expert=8"),
    ),
    "experts on few nodes": (
        2,
        16,
        (
            *(*ONE_STAGE, f"{PAR}.tensor=1", f"{PAR}.expert=16", "job.experts.limit_nodes=1"),
            "job.model={base: mixtral-8x22b, layers: 2, experts: 16, ffn: 1024, expert_ffn: 1024}",
        ),
    ),
    "hidden tensor traffic, sends that block": (
        2,
        16,
        (f"{PAR}.pipeline=2", "job.overlap.tensor=true", "job.overlap.pipeline=false"),
    ),
    "scattered over a narrow spine": (
        8,
        16,
        (
            *(f"{PAR}.pipeline=2", f"{PAR}.tensor=8", "job.placement=scattered", "cluster.fabric.nodes_per_pod=2"),
            "cluster.fabric.oversubscription=[4,1]",
        ),
    ),
    "a fat tree": (
        4,
        16,
        (*ONE_STAGE, f"{PAR}.tensor=4", "cluster.fabric={base: spectrum-x, type: fat-tree, nodes_per_pod: 2}"),
    ),
    "two kinds of GPU": (
        2,
        16,
        (*ONE_STAGE, "cluster.nodes=[{type: hgx-h100, count: 1}, {type: hgx-h200, count: 1}]", f"{PAR}.tensor=4"),
    ),
}
LONG = {"stages of two pods", "trees", "pat", "a fat tree", "replicas on eight nodes"}
#: Where groups that aren't alike meet on narrow bundles, nothing but their bytes bounds it, which says little. Measured: 0.2 %.
MEASURED = {"scattered over a narrow spine": 0.004}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in STEPS]
)
def test_a_chunked_step_is_the_fluid_step_within_latency_and_pipelining(name):
    """And puts the same bytes on every link, counted from messages here and by footprints there."""
    nodes, batch, changes = STEPS[name]
    (setup, fluid), (other, chunked) = both(nodes, batch, *changes)
    below, above = slack(setup)
    below, above = below + MEASURED.get(name, 0.0) * fluid.step_time, above + MEASURED.get(name, 0.0) * fluid.step_time
    assert fluid.step_time - below - 1e-9 * fluid.step_time <= chunked.step_time <= fluid.step_time * (1 + 1e-9) + above
    assert [(use.kind, use.count) for use in chunked.links] == [(use.kind, use.count) for use in fluid.links]
    for mine, theirs in zip(chunked.links, fluid.links, strict=True):
        assert mine.bytes == pytest.approx(theirs.bytes, rel=1e-9)
        if mine.rate.size > 1:
            # What was seen moving is what was counted, but for what overlap hides.
            assert float(np.sum(mine.rate * np.diff(mine.times))) <= mine.bytes * (1 + 1e-6)
            assert mine.rate.max() <= mine.capacity * (1 + 1e-9)
    assert chunked.processes == len(setup.quotient.ranks) == setup.laid.plan.world
    assert len(other.legs) == len(setup.legs)


def test_a_chunked_step_is_played_alike_twice():
    setups = [prepare(scenario(2, 8, *ONE_STAGE)) for _ in range(2)]
    first, second = (play_step(setup) for setup in setups)
    assert (first.step_time, first.events) == (second.step_time, second.events)
    for a, b in zip(first.timelines, second.timelines, strict=True):
        assert np.array_equal(a.start, b.start)
        assert np.array_equal(a.category, b.category)
    for use, other in zip(first.links, second.links, strict=True):
        assert np.array_equal(use.rate, other.rate)


@pytest.mark.parametrize("slowdown", [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])
def test_kernels_and_messages_slow_each_other_as_transfers_do(slowdown):
    """One node, eight replicas: gradients' rings have equal edges, so that both steps are equal. A transfer slows kernels from
    its first byte on: after all its steps' latency in the fluid, after the first's in the chunked step."""
    x, y = slowdown
    stack = f"job.software={{base: megatron-2024, overlap: {{compute: {x:g}, transfer: {y:g}}}}}"
    (setup, fluid), (_, chunked) = both(1, 8, *ONE_STAGE, f"{PAR}.tensor=1", f"{PAR}.sharding=gradients", stack)
    waits = sum(t.latency for t, *_ in calls_of(setup, 0))
    assert abs(chunked.step_time - fluid.step_time) <= (x + y) * waits + 1e-9 * fluid.step_time
    plain = both(1, 8, *ONE_STAGE, f"{PAR}.tensor=1", f"{PAR}.sharding=gradients", stack.replace(f"{x:g}", "0", 1))
    assert (chunked.step_time > plain[1][1].step_time * (1 + 1e-6)) == bool(x)


def test_two_ranks_a_node_on_an_odd_number_of_nodes_relay():
    """The one place where messages cross more than the fluid counts: the edge that closes a ring goes over NVLink first."""
    (_, fluid), (_, chunked) = both(3, 18, *ONE_STAGE, f"{PAR}.tensor=4")
    for mine, theirs in zip(chunked.links, fluid.links, strict=True):
        if mine.kind.startswith("nvlink"):
            assert mine.bytes >= theirs.bytes * (1 - 1e-9)
        else:
            assert mine.bytes == pytest.approx(theirs.bytes, rel=1e-9)
    assert any(mine.bytes > theirs.bytes * 1.0001 for mine, theirs in zip(chunked.links, fluid.links, strict=True))
    assert chunked.step_time == pytest.approx(fluid.step_time, rel=0.01)


def test_in_switch_reductions_stay_one_transfer_and_say_so():
    small = "job.model={base: llama3-8b, layers: 2}"
    for nodes, name in ((1, "nvls"), (2, "nvls-tree")):
        changes = (*ONE_STAGE, f"{PAR}.tensor=1", f"{PAR}.sharding=none", small, "job.collectives_algorithm=nvls")
        result = simulate(scenario(nodes, 8 * nodes, *changes))
        assert [text for text in result.assumptions if f" {name} " in text and "one transfer" in text]
        (_, fluid), (_, chunked) = both(nodes, 8 * nodes, *changes)
        assert chunked.step_time == pytest.approx(fluid.step_time, rel=1e-9)


def test_a_chunked_run_says_that_it_is_unfolded():
    changes = ["cluster.nodes.0.count=1", "job.global_batch=8", *SMALL, *ONE_STAGE, "run.collectives=chunked"]
    asked = simulate(load_scenario("two-pods", set=[*changes, "run.fold=exact"]))
    assert [note for note in asked.notes if note.startswith("`run.fold` had no effect: chunked")]
    assert asked.fold == "off"
    quiet = simulate(load_scenario("two-pods", set=changes))
    assert not [note for note in quiet.notes if "run.fold" in note]
    assert quiet.step_time_s == asked.step_time_s
    off = simulate(load_scenario("two-pods", set=[*changes, "run.fold=off"]))
    assert not [note for note in off.notes if "run.fold" in note]


# -- limits ------------------------------------------------------------------------------------------------------------
def counted(cluster, members, operation, algorithm, slices):
    return collective_messages(cluster, members, operation, 1.0, algorithm=algorithm, slices=slices).count


@pytest.mark.parametrize("algorithm", sorted({way for ways in ALGORITHMS.values() for way in ways} - {"nvls"}))
@pytest.mark.parametrize(("nodes", "q"), [(1, 8), (2, 8), (4, 2), (4, 1)])
def test_messages_are_counted_before_they_are_made(algorithm, nodes, q):
    """Exactly, but for messages to one's own rail, which an all-to-all needn't relay."""
    cluster = prepare(scenario(4, 16, *ONE_STAGE)).laid.cluster
    members = np.array([8 * node + i for node in range(nodes) for i in range(q)])
    for operation, ways in ALGORITHMS.items():
        if algorithm not in ways or operation == "broadcast":
            continue
        for slices in (1, 3):
            made = counted(cluster, members, operation, algorithm, slices)
            count = message_count(algorithm, operation, members.size, nodes, slices)
            count = count if algorithm not in ("shift", "send") else count * slices
            assert made <= count
            assert made == count or (algorithm == "direct" and made >= count / 2)


def test_slices_are_of_an_eighth_of_a_megabyte_where_something_follows():
    assert default_slices("ring", 1e9, 16, 2) == 1
    assert default_slices("tree", 2 * 8 * 3 * 2**17, 16, 2) == 3
    assert [default_slices("hierarchical", 16 * size, 16, 2) for size in (0.0, 2**17, 2**18, 1e12)] == [1, 1, 2, 4]
    assert [default_slices("direct", 1e9, n, nodes) for n, nodes in ((8, 1), (8, 8), (16, 2))] == [1, 1, 4]


def test_a_step_of_too_many_messages_says_what_would_fit(monkeypatch):
    setup = prepare(scenario(2, 32, *ONE_STAGE))
    by_micro_batch = messages_of_step(setup.quotient, setup.legs)
    total = sum(by_micro_batch.values())
    limit = total - by_micro_batch[1] * 2 + 1  # two passes in the middle fewer
    monkeypatch.setattr(chunked_step, "MOST_MESSAGES", limit)
    with pytest.raises(SimulationError, match=f"about {total:,} messages; at most {limit:,} would do") as error:
        prepare(scenario(2, 32, *ONE_STAGE))
    assert "job.global_batch: 16 (2 micro-batches a replica)" in str(error.value)
    assert "run.collectives: fluid" in str(error.value)
    prepare(scenario(2, 16, *ONE_STAGE))
    # An interleaved schedule takes as many micro-batches as there are stages, or a multiple.
    monkeypatch.setattr(chunked_step, "MOST_MESSAGES", 10 * total)
    setup = prepare(scenario(2, 64, f"{PAR}.pipeline=2"))
    assert setup.laid.plan.micro_batches == 16
    total = sum(messages_of_step(setup.quotient, setup.legs).values())
    monkeypatch.setattr(chunked_step, "MOST_MESSAGES", int(total * 0.6))
    with pytest.raises(SimulationError) as error:
        prepare(scenario(2, 64, f"{PAR}.pipeline=2"))
    batch = int(str(error.value).split("job.global_batch: ")[1].split()[0])
    assert batch % (2 * 4) == 0
    prepare(scenario(2, batch, f"{PAR}.pipeline=2"))
    monkeypatch.setattr(chunked_step, "MOST_MESSAGES", 10)
    with pytest.raises(SimulationError, match="What would fit: fewer layers or GPUs"):
        prepare(scenario(2, 64, f"{PAR}.pipeline=2"))


def test_pinned_paths_are_refused_where_the_scenario_asks_for_chunks():
    with pytest.raises(ScenarioError, match=r"run\.collectives: chunked plays adaptive routing, not ecmp"):
        prepare(scenario(2, 8, *ONE_STAGE, "cluster.fabric.routing=ecmp"))


def test_more_gpus_than_can_be_unfolded_are_refused_in_the_terminal(capsys):
    assert cli._run(["run", "million-gpus", "--set", "run.collectives=chunked"]) == 1
    said = capsys.readouterr().err
    assert "1,024" in said
    assert "run.collectives: fluid" in said
