"""Uplinks, switches and rails that are slow or dead: what is left of bundles, which ways messages take, what a step costs."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from test_fold import agree, odd_scenario, random_scenario

from colossim import patterns
from colossim.cli import _run
from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, build_cluster
from colossim.cluster.hashed import Members
from colossim.errors import ScenarioError, SimulationError
from colossim.flows import Pinned
from colossim.layout import lay_out
from colossim.scenario.degraded import Degraded
from colossim.scenario.reader import load_scenario
from colossim.scenario.schema import ClusterSpec
from colossim.simulation import simulate

#: 2 blocks of 2 pods of 2 nodes: leaves have U = 2 uplinks, spines V = 16 ways to the core; a replica a pair of nodes.
SMALL = (
    "cluster.nodes.0.count=8",
    "cluster.fabric.nodes_per_pod=2",
    "cluster.fabric.pods_per_block=2",
    "cluster.fabric.tiers=3",
    "job.parallelism.pipeline=2",
    "job.parallelism.tensor=8",
    "job.parallelism.data=4",
    "job.global_batch=32",
)
NIC = 50e9


def cluster(*degraded, nodes=8, **changes):
    small = {"base": "spectrum-x", "nodes_per_pod": 2, "pods_per_block": 2, "efficiency": "100 %"}
    spec = {"nodes": ({"type": "hgx-h100", "count": nodes},), "fabric": small | changes, "degraded": degraded}
    return build_cluster(ClusterSpec.model_validate(spec))


def scenario(degraded, *changes):
    return load_scenario("two-pods", set=[*SMALL, f"cluster.degraded=[{degraded}]", *changes])


def step(degraded, *changes):
    return simulate(scenario(degraded, *changes)).step_time_s


# -- bundles and their links ---------------------------------------------------------------------------------------------
def test_a_bundle_is_the_sum_of_its_links():
    """Leaf (1, 3) has 2 uplinks of a NIC's rate: at half of one 1.5 NICs are left, without the other also 0.5."""
    half = {"uplink": 1, "pod": 1, "rail": 3, "rate": "50 %"}
    leaf = 1 * 8 + 3
    assert cluster(half).bundle_capacity(1)[leaf] == 1.5 * NIC
    both = cluster(half, {"uplink": 0, "pod": 1, "rail": 3, "rate": "0 %"})
    assert both.bundle_capacity(1)[leaf] == 0.5 * NIC
    assert np.all(np.delete(both.bundle_capacity(1), leaf) == 2 * NIC)
    members = Members.of(both)
    for down in (False, True):
        np.testing.assert_array_equal(members.table(members.capacity(), 1, down)[leaf], [0.0, 0.5 * NIC])


def test_a_dead_spine_takes_a_link_of_every_leaf_of_its_block_and_its_own():
    """1 of 2 uplinks of the block's 16 leaves, V = 16 of the block's U V = 32 links up; the other block keeps all."""
    built = cluster({"switch": "spine", "block": 1, "spine": 0})
    assert built.ways == (2, 16, 64)
    np.testing.assert_array_equal(built.bundle_capacity(1), np.repeat([2.0, 1.0], 16) * NIC)
    np.testing.assert_array_equal(built.bundle_capacity(2), np.array([32.0, 16.0]) * NIC)


def test_a_core_uplink_is_one_link_of_its_block():
    built = cluster({"core_uplink": 5, "block": 0, "spine": 1, "rate": "0 %"})
    np.testing.assert_allclose(built.bundle_capacity(2), np.array([31.0, 32.0]) * NIC)
    assert np.flatnonzero(Members.of(built).capacity() == 0).size == 2, "up and down"


def test_a_slow_leaf_switch_slows_nics_and_uplinks():
    built = cluster({"switch": "leaf", "pod": 0, "rail": 2, "rate": "25 %"})
    assert np.flatnonzero(built.nic == 0.25 * NIC).tolist() == [2, 10]
    assert built.bundle_capacity(1)[2] == 0.5 * NIC


def test_two_tiers_have_one_block_of_spines():
    built = cluster({"switch": "spine", "block": 0, "spine": 1}, tiers=2, oversubscription=(1,))
    assert np.all(built.bundle_capacity(1) == NIC)


# -- ways of messages ----------------------------------------------------------------------------------------------------
def test_a_neighbour_on_the_next_rail_stands_in():
    """Rail 7 of pod 0 is down: GPU 7 leaves by GPU 0; to GPU 7 of another pod it would have left by its own NIC."""
    built = cluster({"switch": "leaf", "pod": 0, "rail": 7})
    routes = built.routes(np.array([7, 7, 39, 32, 7]), np.array([39, 32, 7, 15, 0]))
    assert routes.exit_gpu.tolist() == [0, 0, 32, 32, 7]
    assert routes.entry_gpu.tolist() == [39, 32, 0, 8, 0]
    # To rail 7 it changes rails over the core; what comes back is forwarded to rail 0, which is where it must enter.
    assert routes.level.tolist() == [3, 3, 3, 3, 0]


def test_the_next_rail_that_is_alive():
    built = cluster({"rail": 3}, {"rail": 4})
    assert built.stand_in[:8].tolist() == [0, 1, 2, 5, 5, 5, 6, 7]


def loads_of_routes(built, pairs, links):
    """Messages a link of GPUs, of one message after the other."""
    count = Counter()
    for _, a, b in pairs:
        routes = built.routes(np.array([a]), np.array([b]))
        out, into = int(routes.exit_gpu[0]), int(routes.entry_gpu[0])
        crossed = []
        if routes.level[0]:
            crossed = [(NIC_OUT, out), (NIC_IN, into)]
            crossed += [(NVLINK_OUT, a), (NVLINK_IN, out)] if out != a else []
            crossed += [(NVLINK_OUT, into), (NVLINK_IN, b)] if into != b else []
        elif links:
            crossed = [(NVLINK_OUT, a), (NVLINK_IN, b)]
        for kind, gpu in crossed:
            count[kind * built.gpus + gpu] += 1
    return count


@pytest.mark.parametrize("rails", ["forward", "spine"])
@pytest.mark.parametrize("stride", [1, 2, 8])
@pytest.mark.parametrize("pattern", ["ring", "shift", "all_to_all"])
def test_loads_are_those_of_the_messages(pattern, stride, rails):
    """Groups of stride 1, 2 or 8 over 8 nodes, leaf (0, 3) and rail 6 dead: NICs and NVLinks, message by message."""
    built = cluster({"switch": "leaf", "pod": 0, "rail": 3}, {"rail": 6}, rails=rails)
    members = np.arange(64).reshape(-1, stride).T if stride > 1 else np.arange(64).reshape(1, 64)
    n = members.shape[1]
    pairs = []
    for group, gpus in enumerate(members.tolist()):
        if pattern == "all_to_all":
            pairs += [(group, a, b) for a in gpus for b in gpus if a != b]
        elif pattern == "shift" or stride == 8:
            pairs += [(group, gpus[i], gpus[(i + 1) % n]) for i in range(n)]
        else:
            q = 8 // stride
            pairs += [(group, gpus[k], gpus[(k + q) % n]) for k in range(n)]
    found = getattr(patterns, pattern)(built, members)
    loads = np.zeros(built.links)
    for _, kind, weights in found.own:
        loads[kind * built.gpus : (kind + 1) * built.gpus] += weights
    np.add.at(loads, found.link, found.weight)
    # A ring's lanes inside nodes are not single messages: there NICs alone are compared.
    first = NIC_OUT * built.gpus if pattern == "ring" else 0
    expected = loads_of_routes(built, pairs, pattern != "ring")
    wanted = np.array([expected[link] for link in range(4 * built.gpus)])
    np.testing.assert_allclose(loads[first : 4 * built.gpus], wanted[first:])
    assert np.all(loads[: built.links][built.capacity() == 0] == 0)


# -- steps ---------------------------------------------------------------------------------------------------------------
def test_a_dead_rail_costs_what_half_a_rail_does():
    """A neighbour's NIC that two GPUs share leaves each the half; NVLink to it is no bottleneck."""
    whole = step("")
    assert step("{rail: 3}") == pytest.approx(step("{rail: 3, rate: 50 %}"), rel=1e-3)
    assert step("{rail: 3}") > whole


def test_adaptive_spreads_and_ecmp_does_not():
    """Half of one of two uplinks: adaptive loses a quarter of the leaf's bundle, ecmp flows on that link half."""
    weak = "{uplink: 0, pod: 0, rail: 0, rate: 50 %}"
    built = lay_out(scenario(weak)).cluster
    assert built.bundle_capacity(1)[0] == pytest.approx(0.75 * built.bundle_capacity(1)[1])
    hashed = {what: Pinned.of(lay_out(scenario(what, "cluster.fabric.routing=ecmp")).traffic, 0) for what in ("", weak)}
    np.testing.assert_array_equal(hashed[weak].where, hashed[""].where), "degraded links keep their share of flows"
    number = next(i for i, c in enumerate(hashed[""].traffic.channels) if c.name == "data" and c.algorithm == "ring")
    slow, whole = (hashed[what].alone(number) for what in (weak, ""))
    assert np.all(slow <= whole * (1 + 1e-12))
    own = np.flatnonzero(hashed[weak].where == 0)
    assert own.size, "some flow is hashed to the slow link"


def test_a_dead_link_is_routed_around():
    dead = "{uplink: 0, pod: 0, rail: 0, rate: 0 %}, {switch: spine, block: 1, spine: 0}"
    traffic = lay_out(scenario(dead, "cluster.fabric.routing=ecmp")).traffic
    flows = Pinned.of(traffic, 0)
    assert flows.where.size
    assert np.all(flows.members.capacity()[flows.where] > 0)
    assert step(dead, "cluster.fabric.routing=ecmp") >= step("") * (1 - 1e-3)


def test_a_dead_spine_moves_traffic():
    before, after = (
        Pinned.of(lay_out(scenario(what, "cluster.fabric.routing=ecmp")).traffic, 0)
        for what in ("", "{switch: spine, block: 0, spine: 0}")
    )
    members = before.members
    spine = np.concatenate([members.number(1, down, np.arange(16), 0) for down in (False, True)])
    assert np.isin(before.where, spine).any()
    assert not np.isin(after.where, spine).any()
    assert after.where.size == before.where.size


PARTS = {
    "uplink": "{uplink: 1, pod: 1, rail: 2, rate: 30 %}",
    "dead uplink": "{uplink: 1, pod: 1, rail: 2, rate: 0 %}",
    "core uplink": "{core_uplink: 3, block: 0, spine: 1, rate: 0 %}",
    "leaf": "{switch: leaf, pod: 2, rail: 5}",
    "slow leaf": "{switch: leaf, pod: 2, rail: 5, rate: 40 %}",
    "spine": "{switch: spine, block: 0, spine: 1}",
    "rail": "{rail: 4}",
    "rail of a pod": "{rail: 4, pod: 3}, {node: 0, gpu: 1, rate: 50 %}",
}
OVERSUBSCRIBED = "cluster.fabric.oversubscription=[1, 2]"


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in ("uplink", "leaf") else pytest.mark.slow) for what in PARTS]
)
def test_folded_equals_unfolded(what):
    for change in ((), (OVERSUBSCRIBED, "cluster.fabric.rails=spine"), ("job.parallelism.tensor=4", OVERSUBSCRIBED)):
        agree(scenario(PARTS[what], *change))


def faulty_scenario(seed):
    """A random scenario of test_fold with one to three faults of its fabric; None where it has none, or names one twice."""
    draw = random.Random(seed)
    base = random_scenario(seed) if seed % 3 else odd_scenario(seed)
    built = build_cluster(base.cluster)
    fabric, (up, middle, _) = built.fabric, built.ways
    if fabric.type == "single-switch":
        return None
    pods, blocks = built.groups[0] // built.rails, built.groups[1]
    optimized = fabric.type == "rail-optimized"
    parts = []
    for _ in range(draw.randint(1, 3)):
        rail = {"rail": draw.randrange(built.rails)} if optimized else {}
        leaf, spine = (
            {"pod": draw.randrange(pods), **rail},
            {"block": draw.randrange(blocks), "spine": draw.randrange(up)},
        )
        rate = {"rate": draw.choice(["0 %", "30 %", "50 %"])}
        choices = [{"uplink": draw.randrange(up), **leaf, **rate}, {"switch": "spine", **spine}]
        choices.append({"switch": "leaf", **leaf, "rate": "40 %"})
        if optimized:
            choices += [{"switch": "leaf", **leaf}, rail]
        if built.tiers > 2:
            choices.append({"core_uplink": draw.randrange(middle), **spine, **rate})
        parts.append(Degraded.model_validate(draw.choice(choices)))
    degraded = (*base.cluster.degraded, *parts)
    return base.model_copy(update={"cluster": base.cluster.model_copy(update={"degraded": degraded})})


def agreed(seeds):
    """How many of these scenarios agree; the others cut messages off, or name a part twice."""
    found = Counter()
    for seed in seeds:
        drawn = faulty_scenario(seed)
        try:
            if drawn is not None:
                agree(drawn)
                found["agree"] += 1
        except SimulationError as error:
            found["cut off" if "is dead" in str(error) or "is cut off" in str(error) else "wrong"] += 1
        except ScenarioError as error:
            found["twice" if "names a part" in str(error) else "wrong"] += 1
    assert not found["wrong"]
    return found


@pytest.mark.parametrize("first", range(0, 30, 10))
def test_folded_equals_unfolded_in_random_cases(first):
    assert agreed(range(first, first + 10))["agree"] >= 4


@pytest.mark.slow
@pytest.mark.parametrize("first", range(30, 360, 10))
def test_folded_equals_unfolded_in_more_random_cases(first):
    assert agreed(range(first, first + 10))["agree"] >= 3


def test_colossus_stays_foldable():
    """One uplink of 100,352 at half rate: 32 classes, as the leaf's own stages part from the other seven pods' of theirs."""
    weak = ["cluster.degraded=[{uplink: 5, pod: 0, rail: 3, rate: 50 %}]"]
    result, whole = (simulate(load_scenario("colossus-100k", set=changes)) for changes in (weak, []))
    assert result.classes["ranks"] == 32
    assert whole.step_time_s < result.step_time_s < 1.001 * whole.step_time_s


# -- what can't be ---------------------------------------------------------------------------------------------------------
def test_a_node_without_nics_is_cut_off(capsys, tmp_path):
    rails = ", ".join(f"{{rail: {r}, pod: 2}}" for r in range(8))
    with pytest.raises(SimulationError, match=r"node 4 is cut off: .* messages to or from node"):
        simulate(scenario(rails))
    changes = [word for change in SMALL for word in ("--set", change)]
    words = ["run", "two-pods", *changes, "--set", f"cluster.degraded=[{rails}]", "--out", str(tmp_path / "out")]
    assert _run(words) == 1
    assert "is cut off" in capsys.readouterr().err


@pytest.mark.parametrize("routing", ["adaptive", "ecmp"])
def test_a_leaf_without_uplinks(routing):
    dead = ", ".join(f"{{uplink: {i}, pod: 1, rail: 3, rate: 0 %}}" for i in range(2))
    with pytest.raises(SimulationError, match=r"every uplink of leaf 11 \(pod 1, rail 3\) is dead, and \w+ messages"):
        simulate(scenario(dead, f"cluster.fabric.routing={routing}"))
    alone = ("cluster.nodes.0.count=4", "job.parallelism.data=1", "job.global_batch=8")
    assert simulate(scenario(dead, *alone)).step_time_s > 0, "one replica in one pod needs no uplink"


GOOD = """\
name: small
cluster:
  nodes:
    - {type: hgx-h100, count: 16}
  fabric:
    base: spectrum-x
    nodes_per_pod: 4
    FABRIC
  degraded:
    - {node: 3, gpu: 1, rate: 50 %}
    - PART
job: {model: llama3-8b, sequence_length: 8192, global_batch: 128, parallelism: {tensor: 2, sequence: true, pipeline: 4}}
"""


@pytest.mark.parametrize(
    ("part", "column", "field", "word", "fabric"),
    [
        ("{}", 7, "", "names no part. What would: a GPU's link: node, gpu, rate; a leaf's uplink", ""),
        ("{rate: 50 %}", 7, "", "names no part", ""),
        ("{node: 0, rate: 50 %}", 7, "gpu", "is missing: index of the GPU", ""),
        ("{node: 0, gpu: 0}", 7, "rate", "is missing", ""),
        ("{node: 0, gpu: 0, rate: 0 %}", 31, "rate", "keeps more than 0 %", ""),
        ("{node: 0, gpu: 0, rate: 50 %, pod: 1}", 42, "pod", "doesn't belong to a GPU's link", ""),
        ("{uplink: 0, pod: 0, rail: 0, rate: 101 %}", 42, "rate", "100 %", ""),
        ("{uplink: 0, pod: 0, rail: 0}", 7, "rate", "is missing", ""),
        ("{uplink: 0, pod: 0, rail: 0, rate: 5 %, link: nic}", 53, "link", "doesn't belong to a leaf's uplink", ""),
        ("{uplink: 0, spine: 0, pod: 0, rail: 0, rate: 5 %}", 26, "spine", "whose keys are uplink, pod, rate", ""),
        ("{uplink: 0, pod: 0, rate: 50 %}", 16, "uplink", "`rail` is missing: which of the 8 leaves", ""),
        (
            "{uplink: 4, pod: 0, rail: 0, rate: 50 %}",
            16,
            "uplink",
            "4 is no uplink of the leaf: they are numbered 0 to 3",
            "",
        ),
        ("{uplink: 0, pod: 4, rail: 0, rate: 50 %}", 24, "pod", "4 is no pod: they are numbered 0 to 3", ""),
        ("{uplink: 0, pod: 0, rail: 8, rate: 50 %}", 33, "rail", "8 is no rail", ""),
        ("{uplink: 0, pod: 0, rail: 1, rate: 50 %}", 33, "rail", "a fat-tree has no rails", "type: fat-tree"),
        ("{rail: 1}", 14, "rail", "a fat-tree has no rails", "type: fat-tree"),
        ("{core_uplink: 64, block: 0, spine: 0, rate: 5 %}", 21, "core_uplink", "64 is no uplink of the spine", ""),
        ("{core_uplink: 0, block: 1, spine: 0, rate: 5 %}", 31, "block", "1 is no block: it has one, 0", ""),
        ("{core_uplink: 0, block: 0, spine: 0, rate: 5 %}", 21, "core_uplink", "it takes 3 tiers", "tiers: 2"),
        ("{switch: spine, block: 0, spine: 4}", 40, "spine", "4 is no spine of the block", ""),
        ("{switch: spine, pod: 0, rail: 0}", 28, "pod", "doesn't belong to a spine switch", ""),
        ("{switch: core, block: 0}", 16, "switch", "none of leaf, spine", ""),
        ("{node: 3, gpu: 1, rate: 20 %}", 7, "", "names a part that cluster.degraded.0 names, too", ""),
    ],
)
def test_what_is_wrong_is_told_in_its_place(tmp_path, part, column, field, word, fabric):
    path = tmp_path / "s.yaml"
    path.write_text(GOOD.replace("PART", part).replace("FABRIC", fabric or "tiers: 3"))
    with pytest.raises(ScenarioError) as caught:
        lay_out(load_scenario(path))
    found = next(p for p in caught.value.problems if p.field == ("cluster.degraded.1." + field).rstrip("."))
    assert word in found.message
    assert (found.file, found.line, found.column) == (str(path), 11, column)


def test_a_rail_and_its_leaf_are_the_same_part():
    with pytest.raises(ScenarioError, match=r"cluster\.degraded\.1: names a part that cluster\.degraded\.0 names, too"):
        cluster({"rail": 3}, {"switch": "leaf", "pod": 1, "rail": 3})


def test_a_single_switch_has_no_parts():
    with pytest.raises(ScenarioError, match="a single-switch fabric has one switch"):
        cluster({"switch": "leaf", "pod": 0}, nodes=2, type="single-switch", tiers=1)
