"""Tokens that come to experts: what capacity leaves of them, and how uneven a draw is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from colossim.errors import ScenarioError
from colossim.explain import explain
from colossim.layout import lay_out
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.shipped import scenarios_folder
from colossim.simulation import simulate
from colossim.workload.build import build_programs
from colossim.workload.loads import Load, _shares, layer_loads
from colossim.workload.program import Collective


def loads(experts, *changes):
    """Of colossus-100k: 8 experts, one a rank, 2 a token; 8,192 tokens a micro-batch, 1,024 of them on each tensor rank."""
    scenario = load_scenario("colossus-100k", set=[f"job.experts={{{experts}}}", *changes])
    plan = derive(scenario)
    return layer_loads(plan, scenario.job)


@pytest.mark.parametrize(
    ("experts", "load"),
    [
        ("", Load(1.0, 1.0)),
        ("capacity_factor: 1.25", Load(1.0, 1.0)),
        ("capacity_factor: 1.25, pad: true", Load(1.25, 1.25)),
        ("capacity_factor: 0.5", Load(0.5, 0.5)),
        ("fullest: 1.5", Load(1.0, 1.5)),
        ("fullest: 1.5, capacity_factor: 1.25", Load(1.0, 1.25)),
    ],
)
def test_what_capacity_leaves(experts, load):
    """A rank's 1,024 tokens make 2,048 copies, 256 an expert on average; 256 x 1.25 = 320 and 256 x 0.5 = 128 are whole."""
    assert set(loads(experts)) == {load}


def test_capacity_is_a_whole_number_of_tokens():
    """256 x 1.001 = 256.256: 257 tokens, padded (get_capacity rounds up)."""
    assert set(loads("capacity_factor: 1.001, pad: true")) == {Load(257 / 256, 257 / 256)}


@pytest.mark.parametrize(("experts", "per_token", "imbalance"), [(8, 2, 0.2), (64, 6, 0.5), (256, 8, 1.0)])
def test_a_draw_has_the_mean_and_the_deviation_that_it_says(experts, per_token, imbalance):
    """Means of 1 exactly. Over 4,000 layers the deviation is known within some percent, and what is cut at E/k is rare."""
    drawn = _shares(0, 4000, experts, per_token, imbalance)
    assert drawn.shape == (4000, experts)
    assert drawn.mean(axis=1) == pytest.approx(1.0)
    assert math.sqrt(np.mean((drawn - 1) ** 2)) == pytest.approx(imbalance, rel=0.03)
    assert drawn.max() <= experts / per_token * (1 + 1e-9)
    assert drawn.min() >= 0


def test_no_expert_gets_a_token_twice():
    """4 experts, 3 a token: at most 4/3 of the mean; what a draw has above goes to the others."""
    drawn = _shares(0, 500, 4, 3, 0.5)
    assert drawn.max() == pytest.approx(4 / 3)
    assert drawn.mean(axis=1) == pytest.approx(1.0)


def test_the_fullest_rank_of_a_draw():
    """The group waits for the largest mean of a rank's neighbouring experts; capacity cuts each expert, not the rank."""
    drawn = _shares(7, 64, 8, 2, 0.4)
    for expert in (8, 4, 2):
        shape = (f"job.parallelism.expert={expert}", "run.seed=7")
        plain = loads("imbalance: 40 %", *shape)
        assert [load.fullest for load in plain] == pytest.approx(drawn.reshape(64, expert, -1).mean(axis=2).max(axis=1))
        assert [load.sent for load in plain] == pytest.approx([1.0] * 64)
        cut = np.minimum(drawn, 1.25)
        limited = loads("imbalance: 40 %, capacity_factor: 1.25", *shape)
        assert [load.fullest for load in limited] == pytest.approx(cut.reshape(64, expert, -1).mean(axis=2).max(axis=1))
        assert [load.sent for load in limited] == pytest.approx(cut.mean(axis=1))


def test_a_draw_is_the_seeds_and_each_layers():
    first, again, other = (loads("imbalance: 20 %", f"run.seed={seed}") for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(set(first)) == len(first)


def test_layers_without_experts_have_no_load():
    every = loads("imbalance: 20 %", "job.model={base: grok-1, dense_layers: 2, ffn: 8192}")
    assert every[:2] == (Load(), Load())
    assert every[2:] == loads("imbalance: 20 %")[2:]


def test_each_layers_load_is_in_its_programs():
    """Eight stages of eight chunks, a layer each: its all-to-alls move its own fullest rank's tokens."""
    scenario = load_scenario("colossus-100k", set=["job.experts={imbalance: 20 %}"])
    plan = derive(scenario)
    every, model = layer_loads(plan, scenario.job), scenario.job.model
    for program in build_programs(plan, scenario.job):
        for each in program.passes:
            sizes = {op.size for op in each.body if isinstance(op, Collective) and op.channel == "expert"}
            fullest = every[program.stage + 8 * each.chunk].fullest
            assert sizes == {2 * plan.tokens / plan.tensor * 2 * fullest * model.hidden}


def test_padding_takes_the_time_of_its_bytes():
    """Eight ranks of one node, an expert each, all-to-alls of S bytes: base + hop + 7/8 S/B, four a layer and micro-batch, of
    k T h x 2 bytes; padded to twice the mean, of twice as many."""
    model = "{base: mixtral-8x22b, layers: 2, ffn: 1024, expert_ffn: 1024}"
    shape = ("cluster.nodes.0.count=1", "job.global_batch=16", "job.parallelism={expert: 8}", f"job.model={model}")
    for factor in (1, 2):
        changes = (*shape, f"job.experts={{capacity_factor: {factor}, pad: true}}", "job.overlap.data=false")
        result = simulate(load_scenario("two-pods", set=changes))
        node = load_scenario("two-pods").cluster.nodes[0].type
        ring, size = node.nvlink_ring, factor * 2 * 8192 * 6144 * 2
        seconds = ring.base + ring.hop + 7 / 8 * size / ring.bandwidth
        assert result.breakdown_s["expert_comm"] == pytest.approx(2 * 2 * 4 * seconds)


def test_a_limit_of_nodes_takes_the_time_of_what_is_left():
    """Two nodes of 8, 16 ranks with an expert each, 2 a token. Of S bytes each sends 1/2 to the other node, one copy each; on
    one node of two a token's copies share the way: 1/4. NVLink has 14/16 S beside it; latency is base, a network hop over a
    leaf and one of NVLink."""
    model = "{base: mixtral-8x22b, layers: 2, experts: 16, ffn: 1024, expert_ffn: 1024}"
    shape = ("cluster.nodes.0.count=2", "job.global_batch=16", "job.parallelism={expert: 16}", f"job.model={model}")
    found = {}
    for limit in ("{}", "{limit_nodes: 1}"):
        scenario = load_scenario("two-pods", set=[*shape, f"job.experts={limit}", "job.overlap.data=false"])
        found[limit] = simulate(scenario).breakdown_s["expert_comm"]
    node, fabric = scenario.cluster.nodes[0].type, scenario.cluster.fabric
    size, network = 2 * 8192 * 6144 * 2, node.network
    rate = min(network.efficiency, fabric.efficiency) * min(node.nic, fabric.link)
    for limit, part, inside in (("{}", 1 / 2, 0.0), ("{limit_nodes: 1}", 1 / 4, node.nvlink_ring.hop)):
        moved = size * max(part / rate, 14 / 16 / node.nvlink_ring.bandwidth)
        seconds = network.base + network.hop + inside + fabric.hop_latency + moved
        assert found[limit] == pytest.approx(2 * 4 * seconds)


@pytest.mark.parametrize("say", [lay_out, explain])
def test_nodes_with_too_few_experts_are_refused_in_their_place(say, tmp_path):
    """Expert groups of colossus-100k are on eight nodes, an expert on each, and a token visits two."""
    path = tmp_path / "limited.yaml"
    text = (scenarios_folder() / "colossus-100k.yaml").read_text()
    path.write_text(text.replace("\njob:\n", "\njob:\n  experts: {limit_nodes: 1}\n"))
    with pytest.raises(ScenarioError) as caught:
        say(load_scenario(path))
    (problem,) = caught.value.problems
    assert problem.message == "1 of the 8 nodes of a group have 1 experts, a token visits 2: 2 would do"
    assert text.splitlines()[problem.line - 2] == "job:"
    assert (problem.field, problem.column) == ("job.experts.limit_nodes", len("  experts: {limit_nodes: ") + 1)
    assert say(load_scenario("colossus-100k", set=["job.experts={limit_nodes: 2}"]))
