"""Programs: what each parallelism moves, when gradients leave, and that what is started is waited for.

T tokens of a micro-batch on a rank, h hidden, t tensor ranks; sizes of models.md 3.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest

from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.workload import transformer, whole_weights
from colossim.workload.build import build_programs, recomputed_layers
from colossim.workload.kernels import Flash, Gemm, Scores, Stream
from colossim.workload.program import (
    Collective,
    Compute,
    Launched,
    Post,
    Receive,
    Send,
    Wait,
    launched_apart,
    merged,
)

#: Gradients leave as they come and parameters are all asked for at once, whatever the stack does.
PLAIN = (
    "job.software.gradients_aligned=false",
    "job.software.parameters_ahead=all",
    "job.software.gradient_passes=[]",
)
ONE_CHUNK = ("job.parallelism.schedule=1f1b", "job.parallelism.virtual_pipeline=1")


@lru_cache(maxsize=64)
def programs(name, *changes, case=None):
    scenario = load_scenario(name, set=changes, case=case)
    plan = derive(scenario)
    return plan, scenario.job, build_programs(plan, scenario.job)


def collectives(ops, channel):
    every = [op.collective if isinstance(op, Post) else op for op in ops if isinstance(op, Collective | Post)]
    return [op for op in every if op.channel == channel]


def ops_of(program):
    return [op for ops in program.bodies for op in ops]


def body(program, kind, micro_batch, chunk=0):
    return next(p.body for p in program.passes if (p.kind, p.micro_batch, p.chunk) == (kind, micro_batch, chunk))


# -- tensor ----------------------------------------------------------------------------------------------------------
TENSOR = [
    # (sequence, recompute), operations a layer forward and backward
    (("true", "none"), {"all_gather": 2, "reduce_scatter": 2}, {"all_gather": 4, "reduce_scatter": 2}),
    (("true", "full"), {"all_gather": 2, "reduce_scatter": 2}, {"all_gather": 6, "reduce_scatter": 4}),
    (("false", "none"), {"all_reduce": 2}, {"all_reduce": 2}),
    (("false", "full"), {"all_reduce": 2}, {"all_reduce": 4}),
]


@pytest.mark.parametrize(("how", "forward", "backward"), TENSOR)
def test_tensor_collectives_of_a_layer(how, forward, backward):
    """2 all-reduces of 2 T h forward and 2 backward, or a gather and a scatter each; the weight gradients gather their two
    inputs again; full recompute plays the forward pass again. Without sequence parallelism a boundary is gathered."""
    sequence, recompute = how
    changes = (f"job.parallelism.sequence={sequence}", f"job.recompute={recompute}", *ONE_CHUNK)
    plan, job, found = programs("two-pods", *changes)
    layers = job.model.layers // plan.pipeline
    for kind, expected in (("F", forward), ("B", backward)):
        calls = collectives(body(found[1], kind, 0), "tensor")
        count = Counter({op: layers * n for op, n in expected.items()})
        if sequence == "false":
            count["all_gather"] += 1
        assert Counter(c.operation for c in calls) == count
        assert {c.size for c in calls} == {2.0 * plan.tokens * job.model.hidden}


def test_a_stack_that_sends_whole_boundaries_gathers_none():
    """`boundary: full`: 2 T h a rank without sequence parallelism, and nothing to gather; with it 2 T h/t all the same."""
    for sequence, share in (("false", 1), ("true", 2)):
        changes = ("job.software=fsdp-2025", f"job.parallelism.sequence={sequence}")
        plan, job, found = programs("two-pods", *changes)
        calls = collectives(body(found[1], "F", 0), "tensor")
        assert all(c.operation != "all_gather" for c in calls) == (sequence == "false")
        assert {op.size for op in ops_of(found[1]) if isinstance(op, Send)} == {
            2 * plan.tokens * job.model.hidden / share
        }


def test_the_ends_of_the_model_meet_their_tensor_group():
    """The embedding scatters its sums and its gradient is gathered; the head gathers its input, scatters its gradient, and
    gathers the input again for its weight gradient, as every product with sequence parallelism does. The loss of a shared
    vocabulary takes three small sums."""
    plan, job, found = programs("two-pods", *ONE_CHUNK)

    def ends(stage, kind):
        inner = Counter(c.operation for c in collectives(body(found[1], kind, 0), "tensor"))
        return Counter(c.operation for c in collectives(body(found[stage], kind, 0), "tensor")) - inner

    assert ends(0, "F") == {"reduce_scatter": 1}
    assert ends(0, "B") == {"all_gather": 1}
    assert ends(plan.pipeline - 1, "F") == {"all_gather": 1, "all_reduce": 3}
    assert ends(plan.pipeline - 1, "B") == {"reduce_scatter": 1, "all_gather": 1}
    assert job.parallelism.sequence


def test_overlap_hides_the_stacks_part_of_tensor_collectives():
    """A stack hides its part of the tensor group's collectives beside products of attention and the dense MLP: two gathers and
    two scatters a layer. Those of experts' dispatch, and all others, show."""
    for overlap, hidden in (("true", 0.75), ("false", 0.0)):
        plan, job, found = programs("grok2-15k", f"job.overlap.tensor={overlap}", "job.software.tensor_overlap=75 %")
        ops = body(found[1], "F", 0)
        layers = job.model.layers // plan.pipeline // plan.chunks
        by_part = Counter(c.hidden for c in collectives(ops, "tensor"))
        assert by_part == ({0.75: 4 * layers, 0.0: 2 * layers} if hidden else {0.0: 6 * layers})
        assert {c.hidden for c in collectives(ops, "expert")} == {0.0}
    _, _, found = programs("two-pods", *ONE_CHUNK)
    assert collectives(body(found[0], "F", 0), "tensor")[0].hidden == 0, "the embedding's sum"


def test_groups_of_one_say_nothing():
    """Tensor, context, expert and data 1: no collective at all; no bucket, no gather."""
    shape = ("job.parallelism.tensor=1", "job.parallelism.data=1", "job.global_batch=4")
    for sharding in ("none", "optimizer", "gradients", "parameters"):
        _, _, found = programs("two-pods", *shape, f"job.parallelism.sharding={sharding}")
        assert not [op for p in found for op in ops_of(p) if isinstance(op, Collective | Post | Wait)]


# -- experts and context ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sequence", ["true", "false"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_expert_collectives_of_a_layer(sequence, recompute):
    """k T h x 2 bytes (1/t of it with sequence parallelism), dispatch and combine, once more with full recompute.

    Behind the dispatch the tensor group gathers k T tokens and scatters them (or all-reduces); attention does so with T.
    """
    changes = (f"job.parallelism.sequence={sequence}", f"job.recompute={recompute}")
    plan, job, found = programs("colossus-100k", *changes)
    model, share = job.model, plan.tensor if sequence == "true" else 1
    own = 2 * plan.tokens * model.hidden
    forward, backward = (body(found[3], kind, 0, 4) for kind in "FB")
    for ops, times in ((forward, 1), (backward, 2 if recompute == "full" else 1)):
        sent = collectives(ops, "expert")
        assert [(c.operation, c.size) for c in sent] == [("all_to_all", 2 * own / share)] * (2 * times)
    calls = Counter((c.operation, c.size / own) for c in collectives(forward, "tensor"))
    if sequence == "true":
        both = {(op, size): 1 for op in ("all_gather", "reduce_scatter") for size in (1, model.experts_per_token)}
    else:
        # one more: what the boundary scattered
        both = {("all_reduce", 1): 1, ("all_reduce", model.experts_per_token): 1, ("all_gather", 1): 1}
    assert calls == both


def test_experts_that_are_not_split_send_nothing():
    """expert 1: no all-to-all, and their gradients travel with the others."""
    plan, job, found = programs("colossus-100k", "job.parallelism.expert=1")
    for program in found[1:3]:
        ops = ops_of(program)
        assert not collectives(ops, "expert")
        assert not collectives(ops, "expert_data")
        local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, program.stage, plan.tensor, 1)
        reduced = sum(c.size for c in collectives(ops, "data") if c.operation == "reduce_scatter")
        assert reduced == pytest.approx((local.dense + local.experts) * job.software.reduce_bytes)


@pytest.mark.parametrize("shared", [1, 2, 8])
def test_experts_of_fewer_ranks_than_a_tensor_group(shared):
    """colossus-100k, 8 tensor ranks of which `shared` hold an expert: each sends its T/8 tokens' 2 copies; those that share an
    expert gather theirs, so that grouped products have `shared`/8 of 2 T tokens, f/`shared` wide: the same FLOPs. A rank
    holds as many more parameters as its experts are wider; D t/(e `shared`) ranks hold the same ones."""
    change = f"job.parallelism.expert_tensor={shared}"
    plan, job, found = programs("colossus-100k", change)
    model, t, k = job.model, plan.tensor, job.model.experts_per_token
    assert (plan.expert_tensor, plan.expert_within) == (shared, 8 // shared)
    assert plan.expert_group == plan.data * t // (8 * shared)
    forward = body(found[3], "F", 0, 4)
    sent = 2 * plan.tokens / t * k * model.hidden
    assert [(c.operation, c.size) for c in collectives(forward, "expert")] == [("all_to_all", sent)] * 2
    gathered = collectives(forward, "expert_tensor")
    own = [("all_gather", shared * sent), ("reduce_scatter", shared * sent)]
    assert [(c.operation, c.size) for c in gathered] == (own if 1 < shared < t else [])
    copies = [c for c in collectives(forward, "tensor") if c.size == 2 * plan.tokens * k * model.hidden]
    assert len(copies) == (2 if shared == t else 0)
    up, down = [x for op in forward if isinstance(op, Compute) for x in op.kernels if isinstance(x, Gemm) and x.tokens]
    tokens, width = plan.tokens * k * shared / t, model.expert_ffn / shared
    assert (up.m, up.n, up.k, down.n, down.k) == (tokens, 2 * width, model.hidden, model.hidden, width)
    one = transformer.layer(model, 0).expert
    local = transformer.stage_parameters(model, plan.pipeline, plan.layers, 3, t, 8, shared)
    assert local.experts == pytest.approx(model.layers / plan.pipeline * one / shared)
    reduced = sum(c.size for c in collectives(ops_of(found[3]), "expert_data") if c.operation == "reduce_scatter")
    assert reduced == pytest.approx(local.experts * job.software.reduce_bytes)


def test_experts_that_only_a_tensor_group_shares_still_have_replicas_of_their_own():
    """expert 1, expert_tensor 1 of tensor 2: all experts whole on each rank, whose replicas are twice as many."""
    changes = ("job.model=mixtral-8x22b", "job.parallelism.expert_tensor=1", "job.parallelism.data=4", *ONE_CHUNK)
    plan, job, found = programs("two-pods", *changes)
    assert (plan.replica_group, plan.expert_group, plan.experts_apart) == (4, 8, True)
    ops = ops_of(found[1])
    assert not collectives(ops, "expert")
    reduced = {
        channel: sum(c.size for c in collectives(ops, channel) if c.operation == "reduce_scatter")
        for channel in ("data", "expert_data")
    }
    local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, 1, 2, 1, 1)
    assert reduced == pytest.approx(
        {"data": local.dense * job.software.reduce_bytes, "expert_data": local.experts * job.software.reduce_bytes}
    )


@pytest.mark.parametrize("context", [2, 4])
def test_each_hop_of_the_ring_runs_beside_a_piece_of_attention(context):
    """c pieces, c - 1 hops: post, attend, wait; the last piece has nobody to wait for. Backward moves gradients too."""
    changes = (f"job.parallelism.context={context}", "job.parallelism.data=4", *ONE_CHUNK)
    plan, job, found = programs("two-pods", *changes)
    one = 2 * 2 * plan.tokens * job.model.kv_heads / plan.tensor * job.model.head_size
    layers = job.model.layers // plan.pipeline
    assert plan.tokens == plan.sequence // context
    for kind, factor in (("F", 1), ("B", 2)):
        ops = body(found[1], kind, 0)
        hops = collectives(ops, "context")
        assert [(c.operation, c.size) for c in hops] == [("shift", factor * one)] * ((context - 1) * layers)
        for at, op in enumerate(ops):
            if isinstance(op, Post) and op.collective.channel == "context":
                beside, end = ops[at + 1], ops[at + 2]
                assert isinstance(beside, Compute)
                assert [type(k) for k in beside.kernels] == [Flash]
                assert end == Wait(op.tag)


STYLES = ("all-gather", "ulysses")


@pytest.mark.parametrize("context", [2, 4])
def test_keys_and_values_are_gathered_before_attention(context):
    """2 c T (g/t) d bytes of keys, as many of values, before all kernels of the core; backward again, then both gradients are
    scattered. What is gathered is ordered by one pass, 4 bytes a number; gradients take 3 + 2 passes of 2 bytes."""
    changes = (
        f"job.parallelism.context={context}",
        "job.parallelism.data=4",
        "job.parallelism.context_style=all-gather",
    )
    plan, job, found = programs("two-pods", *changes, *ONE_CHUNK)
    numbers = context * plan.tokens * job.model.kv_heads / plan.tensor * job.model.head_size
    layers = job.model.layers // plan.pipeline
    for kind, operations in (("F", ["all_gather"] * 2), ("B", ["all_gather"] * 2 + ["reduce_scatter"] * 2)):
        ops = body(found[1], kind, 0)
        assert not [op for op in ops if isinstance(op, Post) and op.collective.channel == "context"]
        assert [(c.operation, c.size) for c in collectives(ops, "context")] == [
            (o, 2 * numbers) for o in operations
        ] * layers
        cores = [op for op in ops if isinstance(op, Compute) and any(isinstance(k, Flash) for k in op.kernels)]
        assert len(cores) == layers
        for core in cores:
            at = next(i for i, op in enumerate(ops) if op is core)
            assert [ops[at - i] for i in (1, 2)] == [Collective("context", "all_gather", 2 * numbers)] * 2
            first = next(i for i, k in enumerate(core.kernels) if isinstance(k, Flash))
            assert core.kernels[first - 1] == Stream(4 * 2 * numbers)
            if kind == "B":
                assert core.kernels[-1] == Stream((3 + 2) * 2 * 2 * numbers)


@pytest.mark.parametrize(("context", "repeated"), [(2, 1), (4, 1), (8, 2)])
def test_all_to_alls_around_attention(context, repeated):
    """2 T (a/t) d bytes of queries, then 2 T (g/t) d of keys and of values, before the core, 2 T (a/t) d of outputs after it;
    backward the other way round. 8 key/value heads of 2 tensor ranks are too few for 8 contexts: each is sent twice."""
    changes = (f"job.parallelism.context={context}", "job.parallelism.data=2", "job.parallelism.context_style=ulysses")
    plan, job, found = programs("two-pods", *changes, "job.global_batch=16", *ONE_CHUNK)
    model = job.model
    assert (model.heads, model.kv_heads, plan.tensor) == (32, 8, 2)
    query, kv = (2 * plan.tokens * n / plan.tensor * model.head_size for n in (32, 8 * repeated))
    layers = model.layers // plan.pipeline
    for kind, sizes in (("F", [query, kv, kv, query]), ("B", [query, query, kv, kv])):
        ops = body(found[1], kind, 0)
        assert [(c.operation, c.size) for c in collectives(ops, "context")] == [
            ("all_to_all", n) for n in sizes
        ] * layers
        order = [
            "core" if isinstance(op, Compute) else "all-to-all"
            for op in ops
            if (isinstance(op, Compute) and any(isinstance(k, Flash) for k in op.kernels))
            or (isinstance(op, Collective) and op.channel == "context")
        ]
        before = 3 if kind == "F" else 1
        assert order == [*["all-to-all"] * before, "core", *["all-to-all"] * (4 - before)] * layers
        moved = []
        for at, op in enumerate(ops):
            if isinstance(op, Collective) and op.channel == "context":
                before, behind = ops[at - 1], ops[at + 1]
                assert isinstance(before, Compute)
                assert isinstance(behind, Compute)
                assert before.kernels[-1] == behind.kernels[0] == Stream(2 * op.size), "read and written"
                moved.append(op.size)
        assert moved == sizes * layers


@pytest.mark.parametrize("style", STYLES)
def test_scores_computed_again_need_nothing_sent_again(style):
    """Unfused attention with selective recompute: what is sent is what is sent without; the kernels are forward's too."""
    sent, products = [], []
    for recompute in ("none", "selective"):
        changes = ("job.parallelism.context=2", f"job.parallelism.context_style={style}", f"job.recompute={recompute}")
        _, _, found = programs("two-pods", "job.software=megatron-2022", "job.parallelism.data=4", *changes, *ONE_CHUNK)
        ops = body(found[1], "B", 0)
        sent.append(collectives(ops, "context"))
        products.append(sum(isinstance(k, Scores) for op in ops if isinstance(op, Compute) for k in op.kernels))
    assert sent[0] == sent[1]
    assert products[1] == products[0] * 6 / 4


# -- gradients and parameters ----------------------------------------------------------------------------------------
LEVELS = {
    "none": "all_reduce",
    "optimizer": "reduce_scatter",
    "gradients": "reduce_scatter",
    "parameters": "reduce_scatter",
}
SPLIT = ["two-pods", "colossus-100k", "grok2-15k"]


@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("sharding", LEVELS)
@pytest.mark.parametrize("name", SPLIT)
def test_gradients_reduced_in_a_step(name, sharding, overlap):
    """ZeRO-0 and -1 reduce every gradient once a step; ZeRO-2 and -3, which keep shards only, once a micro-batch.

    Whether that runs beside the backward pass or not changes when, never how much.
    """
    plan, job, found = programs(name, f"job.parallelism.sharding={sharding}", f"job.overlap.data={overlap}")
    times = plan.micro_batches if sharding in ("gradients", "parameters") else 1
    for stage in {0, 1, plan.pipeline - 1}:
        ops = ops_of(found[stage])
        local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert)
        for channel, parameters in (("data", local.dense), ("expert_data", local.experts)):
            reduced = [c for c in collectives(ops, channel) if c.operation != "all_gather"]
            assert {c.operation for c in reduced} <= {LEVELS[sharding]}
            expected = times * parameters * job.software.reduce_bytes
            assert sum(c.size for c in reduced) == pytest.approx(expected)


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_gradients_that_add_up_are_scattered_once(overlap):
    """`scatters_last`: as much as ZeRO-1 reduces, behind the chunk's last micro-batch or, without overlap, all passes."""
    changes = ("job.software.scatters_last=true", f"job.overlap.data={overlap}", *PLAIN)
    plan, job, found = programs("two-pods", "job.parallelism.sharding=gradients", *changes)
    for stage, program in enumerate(found):
        local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert)
        reduced = [c for c in collectives(ops_of(program), "data") if c.operation == "reduce_scatter"]
        assert sum(c.size for c in reduced) == pytest.approx(local.dense * job.software.reduce_bytes)
        last = {p.micro_batch for p in program.passes if p.kind == "B" and any(isinstance(op, Post) for op in p.body)}
        assert last == ({plan.micro_batches - 1} if overlap == "true" else set())


@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("sharding", LEVELS)
def test_two_replicas_are_a_group_and_one_rank_with_its_experts_is_none(sharding, overlap):
    """D 2, e 2: the dense gradients of a stage meet in pairs, each expert is on one rank alone (D c/e = 1) and meets nobody.

    D 2, e 1: experts are replicated like everything else, and travel with it.
    """
    for expert in (2, 1):
        plan, job, found = programs(
            "colossus-100k", "job.parallelism.data=2", "job.global_batch=16", f"job.parallelism.expert={expert}",
            f"job.parallelism.sharding={sharding}", f"job.overlap.data={overlap}",
        )  # fmt: skip
        assert (plan.replica_group, plan.expert_group) == (2, 2 // expert)
        times = plan.micro_batches if sharding in ("gradients", "parameters") else 1
        for stage in (0, 1, plan.pipeline - 1):
            local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert)
            ops = ops_of(found[stage])
            assert not collectives(ops, "expert_data")
            reduced = [c for c in collectives(ops, "data") if c.operation != "all_gather"]
            parameters = local.dense + (local.experts if expert == 1 else 0.0)
            assert {c.operation for c in reduced} == {LEVELS[sharding]}
            assert sum(c.size for c in reduced) == pytest.approx(times * parameters * job.software.reduce_bytes)


@pytest.mark.parametrize("sharding", LEVELS)
@pytest.mark.parametrize("name", SPLIT)
def test_parameters_gathered_in_a_step(name, sharding):
    """A middle stage: nothing (ZeRO-0); 2 bytes a parameter after the optimizer (1, 2); before each use (3), forward and
    backward of every micro-batch."""
    plan, job, found = programs(name, f"job.parallelism.sharding={sharding}")
    times = {"none": 0, "optimizer": 1, "gradients": 1, "parameters": 2 * plan.micro_batches}[sharding]
    local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, 1, plan.tensor, plan.expert)
    for channel, parameters in (("data", local.dense), ("expert_data", local.experts)):
        gathered = sum(c.size for c in collectives(ops_of(found[1]), channel) if c.operation == "all_gather")
        assert gathered == pytest.approx(times * 2 * parameters)


@pytest.mark.parametrize("sharding", ["optimizer", "gradients", "parameters"])
@pytest.mark.parametrize("name", SPLIT)
def test_embedding_and_head_are_gathered_like_the_rest(name, sharding):
    """They are sharded, so somebody must gather them: once after the optimizer (ZeRO-1, -2), at least once a micro-batch
    (ZeRO-3, which keeps shards only), beside what a middle stage gathers."""
    plan, job, found = programs(name, f"job.parallelism.sharding={sharding}")
    middle, *ends = (
        sum(c.size for c in collectives(ops_of(found[stage]), "data") if c.operation == "all_gather")
        for stage in (1, 0, plan.pipeline - 1)
    )
    times = plan.micro_batches if sharding == "parameters" else 1
    for gathered, first in zip(ends, (True, False), strict=True):
        own = transformer.local_ends(job.model, plan.tensor, first=first, last=not first, pipeline=plan.pipeline)
        assert gathered - middle >= times * 2 * own * (1 - 1e-9)


@pytest.mark.parametrize("name", ["two-pods", "colossus-100k"])
def test_what_an_optimizer_has_updated_is_gathered_beside_the_next_forward_pass(name):
    """The same bytes as after the optimizer, all asked for at the step's beginning in the order of chunks, each waited for
    once: in the first micro-batch's forward pass of the chunk that needs it, before the first kernel of its first layer."""
    plan, _, found = programs(name, *PLAIN)
    _, _, exposed = programs(name, *PLAIN, "job.overlap.parameters=false")
    for program, other in zip(found, exposed, strict=True):
        posts = list(program.prologue)
        assert all(isinstance(op, Post) and op.collective.operation == "all_gather" for op in posts)
        at_end = sum(c.size for c in other.epilogue if isinstance(c, Collective) and c.operation == "all_gather")
        assert sum(op.collective.size for op in posts) == pytest.approx(at_end)
        assert not other.prologue
        waits = [
            (p.micro_batch, p.chunk, op.tag)
            for p in program.passes if p.kind == "F"
            for op in p.body if isinstance(op, Wait)
        ]  # fmt: skip
        assert [tag for _, _, tag in waits] == [op.tag for op in posts]
        assert [chunk for _, chunk, _ in waits] == sorted(chunk for _, chunk, _ in waits)
        assert {micro_batch for micro_batch, _, _ in waits} == {0}
        assert {chunk for _, chunk, _ in waits} == set(range(plan.chunks))


def bytes_between(ops):
    """(bytes of kernels that end in a Stream just before a post, bytes posted) of each gradients' post."""
    return [
        (before.kernels[-1].bytes, op.collective.size)
        for before, op in pairwise(ops)
        if isinstance(op, Post) and "gradients" in op.tag and isinstance(before, Compute)
    ]


def test_gradients_are_cleared_looked_at_and_scaled():
    """Of n bytes each: n written before the step; n read for the norm and 2 n scaled, right before each bucket's reduction."""
    passes = "job.software.gradient_passes=[zero, norm, scale]"
    for overlap in ("true", "false"):
        plan, job, found = programs("two-pods", passes, f"job.overlap.data={overlap}")
        n = job.software.gradient_bytes
        assert n == job.software.reduce_bytes == 4
        for stage, program in enumerate(found):
            local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, stage, plan.tensor, 1).dense
            assert program.prologue[0] == Compute((Stream(n * local),))
            if overlap == "true":
                pairs = bytes_between(ops_of(program))
                assert sum(size for _, size in pairs) == pytest.approx(n * local)
                assert all(before == pytest.approx(3 * size) for before, size in pairs)
            else:
                assert program.epilogue[0] == Compute((Stream(3 * n * local),))


def test_a_head_that_fills_a_bucket_leaves_at_once():
    """Before the last layer's backward pass; its parameters are waited for behind the last layer's forward pass."""
    plan, job, found = programs("two-pods", "job.bucket=20 MB", *ONE_CHUNK, *PLAIN)
    head = transformer.local_ends(job.model, plan.tensor, first=False, last=True, pipeline=plan.pipeline)
    assert head * job.software.reduce_bytes > 20e6
    ops = body(found[-1], "B", plan.micro_batches - 1)
    post = next(i for i, op in enumerate(ops) if isinstance(op, Post))
    assert ops[post].collective.size == pytest.approx(head * job.software.reduce_bytes)
    flash = next(
        i for i, op in enumerate(ops) if isinstance(op, Compute) and any(isinstance(k, Flash) for k in op.kernels)
    )
    assert post < flash
    ops = body(found[-1], "F", 0)
    wait = max(i for i, op in enumerate(ops) if isinstance(op, Wait))
    assert not any(isinstance(k, Flash) for op in ops[wait:] if isinstance(op, Compute) for k in op.kernels)


def test_each_gather_of_parameters_may_start_when_the_one_before_is_there():
    """`next`: one post of a channel at the step's beginning, then one right behind each wait but the last, in order."""
    _, _, every = programs("two-pods", *PLAIN)
    _, _, found = programs("two-pods", *PLAIN, "job.software.parameters_ahead=next")
    for program, other in zip(found, every, strict=True):
        ops = [op for op in ops_of(program) if isinstance(op, Post | Wait) and "parameters" in op.tag]
        tags = [op.tag for op in other.prologue]
        assert [op.tag for op in ops] == [tags[0], *(tag for pair in pairwise(tags) for tag in pair), tags[-1]]
        assert [isinstance(op, Post) for op in ops] == [True, *[False, True] * (len(tags) - 1), False]
        assert len(program.prologue) == 1


def test_stages_ask_for_parameters_together():
    """`aligned`: chunks 0 and 1 at the beginning; stage r asks for chunk c + 1 r passes before its first one of chunk c >= 1,
    which is when the first stage does."""
    changes = ("job.parallelism.schedule=interleaved", "job.parallelism.virtual_pipeline=4")
    plan, _, found = programs("two-pods", *PLAIN, *changes, "job.software.parameters_ahead=aligned")
    asked = []
    for stage, program in enumerate(found):
        forward = [p for p in program.passes if p.kind == "F"]
        posts = {k: p for k, p in enumerate(forward) if any(isinstance(op, Post) for op in p.body)}
        assert sorted(posts) == [plan.pipeline * chunk - stage for chunk in (1, 2)]
        asked.append(sum(isinstance(op, Post) for op in program.prologue))
        tags = [op.tag for op in ops_of(program) if isinstance(op, Post) and "parameters" in op.tag]
        assert tags == [op.tag for op in ops_of(program) if isinstance(op, Wait) and "parameters" in op.tag]
    assert min(asked) >= 2


@pytest.mark.parametrize("chunks", [1, 4])
def test_stages_reduce_gradients_together(chunks):
    """Stage r sends a chunk's gradients off behind the r-th pass after the chunk's last one, or behind its last pass of all;
    the first stage of a pipeline without chunks as its layers are done. A pass sends to its neighbour after that."""
    schedule = "interleaved" if chunks > 1 else "1f1b"
    changes = (f"job.parallelism.schedule={schedule}", f"job.parallelism.virtual_pipeline={chunks}")
    aligned = (*PLAIN[1:], "job.software.gradients_aligned=true")
    plan, _, found = programs("two-pods", *changes, *aligned, "job.bucket=20 MB")
    _, _, plain = programs("two-pods", *changes, *PLAIN, "job.bucket=20 MB")
    for stage, (program, other) in enumerate(zip(found, plain, strict=True)):
        backward, before = ([p for p in each.passes if p.kind == "B"] for each in (program, other))
        released = {k for k, p in enumerate(backward) if any(isinstance(op, Post) for op in p.body)}
        done = [k for k, p in enumerate(before) if p.micro_batch == plan.micro_batches - 1]
        assert released == {min(k + stage, len(backward) - 1) for k in done}
        posts = [
            [op for op in ops_of(each) if isinstance(op, Post) and "gradients" in op.tag] for each in (program, other)
        ]
        assert posts[0] == posts[1]
        if chunks == 1 and stage == 0:
            assert [p.body for p in backward] == [p.body for p in before]
        elif chunks > 1 or stage:
            last = backward[max(released)].body
            tail = last[next(i for i, op in enumerate(last) if isinstance(op, Post)) :]
            assert {type(op) for op in tail} <= {Post, Send}


@pytest.mark.parametrize("group", [1, 4, 16])
def test_hybrid_sharding_scatters_near_and_reduces_far(group):
    """16 replicas in shards of z: a reduce-scatter of S over z neighbours, then an all-reduce of S/z over 16/z, each once a
    bucket and one after the other; gathers over z alone. z = 16 is plain sharding; with z = 1 nothing is scattered."""
    plan, job, found = programs(
        "two-pods", "job.parallelism.sharding=optimizer", f"job.parallelism.sharding_group={group}"
    )
    assert plan.replica_group == 16
    whole = group == 16
    local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, 1, plan.tensor, 1).dense
    ops = ops_of(found[1])
    near = collectives(ops, "data" if whole else "data_shards")
    far = collectives(ops, "data_replicas")
    size = local * job.software.reduce_bytes
    sums = {kind: sum(c.size for c in near if c.operation == kind) for kind in ("reduce_scatter", "all_gather")}
    assert sums == pytest.approx(
        {"reduce_scatter": size if group > 1 else 0.0, "all_gather": 2 * local if group > 1 else 0.0}
    )
    assert {c.operation for c in far} == (set() if whole else {"all_reduce"})
    assert sum(c.size for c in far) == pytest.approx(0.0 if whole else size / group)
    posts = [op for op in ops if isinstance(op, Post) and op.collective.channel == "data_replicas"]
    scatters = {op.tag for op in ops if isinstance(op, Post) and op.collective.operation == "reduce_scatter"}
    assert all((op.after in scatters) == (group > 1) for op in posts)


@pytest.mark.parametrize("beside", ["true", "false"])
def test_whole_weights_get_round_by_a_broadcast_a_rank(beside):
    """Each of z ranks that has some of the w weights sends all of it to the others: min(z, w) broadcasts without overlap, of 2
    bytes a parameter. Beside the forward pass they start in the order of the model, and the layer that needs a first weight
    waits. The rank with most sets the time of the optimizer's step, 26 + 2n bytes a parameter."""
    stack = "job.software={base: megatron-2024, parameter_gather: broadcasts, parameters_ahead: all}"
    plan, job, found = programs("two-pods", stack, f"job.overlap.parameters={beside}")
    program, n = found[1], transformer.stage_parameters(job.model, plan.pipeline, plan.layers, 1, plan.tensor, 1).dense
    shares = whole_weights.shares(plan, job, 1)
    assert sum(share.parameters for share in shares) == pytest.approx(n)
    posts = [op for op in program.prologue if isinstance(op, Post)]
    sent = [op.collective for op in posts] or [op for op in program.epilogue if isinstance(op, Collective)]
    assert [(op.operation, op.size) for op in sent] == [("broadcast", 2 * share.parameters) for share in shares]
    step = [kernel.bytes for op in program.epilogue if isinstance(op, Compute) for kernel in op.kernels]
    assert step == [job.software.optimizer_traffic * max(share.parameters for share in shares)]
    if beside == "false":
        assert len(sent) == plan.replica_group
        assert not posts
        return
    firsts = [share.first for share in shares]
    assert firsts == sorted(firsts)
    waits = [
        op.tag for p in program.passes if p.kind == "F" and p.micro_batch == 0 for op in p.body if isinstance(op, Wait)
    ]
    assert [tag for tag in waits if "parameters" in tag] == [op.tag for op in posts]


def test_weights_by_the_rank_that_updates_them():
    """Six weights, 18 in all, on three ranks: 6 each. In order up to 1.01 x 6: 4; the next 4 would make 8, goes to the next
    rank and isn't counted there, so that 1 + 1 + 4 join it; the last 4 goes on. Largest first to who has least: 4 4 4, 4 1 1.
    A weight above the average leaves the first rank without any."""
    sizes = [4, 4, 1, 1, 4, 4]
    assert whole_weights.in_order(sizes, 3) == [[0], [1, 2, 3, 4], [5]]
    assert whole_weights.balanced(sizes, 3) == [[0, 5], [1, 2], [4, 3]]
    assert whole_weights.in_order([3, 1], 4) == [[0, 1]]
    assert whole_weights.balanced([3, 1], 4) == [[0], [1]]


def test_a_stack_that_keeps_what_was_gathered_gathers_no_input_again():
    """Of a layer's gathers in a micro-batch (two forward; two of gradients and two of inputs backward) the last two go."""

    def inputs(keeps):
        stack = f"job.software={{base: megatron-2024, keeps_gathered: {keeps}}}"
        plan, job, found = programs("two-pods", stack, "job.parallelism.sequence=true")
        ops = [op for p in found[1].passes if p.micro_batch == 0 for op in p.body if isinstance(op, Collective)]
        gathers = [op for op in ops if (op.channel, op.operation) == ("tensor", "all_gather")]
        return len(gathers) / (job.model.layers / plan.pipeline), sum(op.for_weights for op in gathers)

    assert inputs("true") == (4, 0)
    assert inputs("false")[0] == 6


def test_shards_that_are_not_freed_are_gathered_once():
    """reshard: false keeps a micro-batch's parameters for its backward pass."""
    for reshard, times in (("true", 2), ("false", 1)):
        plan, job, found = programs(
            "two-pods", "job.parallelism.sharding=parameters", f"job.parallelism.reshard={reshard}"
        )
        local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, 1, plan.tensor, 1).dense
        gathered = sum(c.size for c in collectives(ops_of(found[1]), "data") if c.operation == "all_gather")
        assert gathered == pytest.approx(times * plan.micro_batches * 2 * local)


@pytest.mark.parametrize("bucket", ["20 MB", "200 MB", "4 GB"])
@pytest.mark.parametrize("name", SPLIT)
def test_a_bucket_leaves_when_it_is_full_and_its_layers_are_done(name, bucket):
    """In the last micro-batch's backward passes: a bucket holds its size at least (but the last of a channel and chunk), less
    than a layer more, and never more than what the layers and the head behind it have put in."""
    plan, job, found = programs(name, f"job.bucket={bucket}", *PLAIN)
    size = {"20 MB": 20e6, "200 MB": 200e6, "4 GB": 4e9}[bucket]
    width = job.software.reduce_bytes
    for stage in (1, plan.pipeline - 1):
        local = transformer.local_layer(job.model, job.model.layers - 1, plan.tensor, plan.expert)
        head = transformer.local_ends(
            job.model, plan.tensor, first=False, last=stage == plan.pipeline - 1, pipeline=plan.pipeline
        )
        ready = {"data": head, "expert_data": 0.0}
        sizes: dict[str, list[float]] = {"data": [], "expert_data": []}
        lasts: dict[str, list[float]] = {"data": [], "expert_data": []}
        layers_done = 0
        for p in found[stage].passes:
            if p.kind == "F" or p.micro_batch < plan.micro_batches - 1:
                assert not any(isinstance(op, Post) and "gradients" in op.tag for op in p.body)
                continue
            products = 0
            for op in p.body:
                if isinstance(op, Compute):
                    products += sum(isinstance(k, Flash) and k.backward for k in op.kernels)
                elif isinstance(op, Post) and op.collective.channel in ready:
                    sizes[op.collective.channel].append(op.collective.size)
                    behind = layers_done + products
                    share = {"data": local.dense, "expert_data": local.experts}[op.collective.channel]
                    limit = ready[op.collective.channel] + behind * share
                    assert sum(sizes[op.collective.channel]) <= limit * width * (1 + 1e-12)
            layers_done += products
            for channel in lasts:
                lasts[channel] += sizes[channel][-1:]
        for channel, each in (("data", local.dense), ("expert_data", local.experts)):
            assert sum(s < size * (1 - 1e-9) for s in sizes[channel]) <= len(lasts[channel])
            assert all(s >= size * (1 - 1e-9) or s in lasts[channel] for s in sizes[channel])
            assert all(s <= size + (each + ready[channel]) * width for s in sizes[channel])


def test_the_default_bucket_grows_with_the_group():
    """megatron-2024: 40M parameters, or 1M a rank: 1,536 ranks of dense parameters and 192 of experts fill 1,536M and 192M."""
    plan, job, found = programs("colossus-100k", *ONE_CHUNK)
    stack = job.software
    assert (stack.bucket_parameters, stack.bucket_parameters_per_rank) == (40e6, 1e6)
    for channel, group in (("data", plan.replica_group), ("expert_data", plan.expert_group)):
        for chunk in range(plan.chunks):
            ops = body(found[1], "B", plan.micro_batches - 1, chunk)
            sizes = [c.size for c in collectives(ops, channel) if c.operation == "reduce_scatter"]
            assert len(sizes) == {"data": 1, "expert_data": 3}[channel]
            assert all(s >= max(40e6, 1e6 * group) * stack.reduce_bytes for s in sizes[:-1])


def test_zero_3_asks_one_layer_ahead():
    """Forward of a stage of 8 layers: two asked for, one waited for, and so on: never more than two at a time, each waited
    for before its products."""
    plan, job, found = programs("two-pods", "job.parallelism.sharding=parameters", *ONE_CHUNK)
    layers = job.model.layers // plan.pipeline
    for kind in "FB":
        story = ""
        for op in body(found[1], kind, 0):
            if isinstance(op, Post) and "parameters" in op.tag:
                story += "P"
            elif isinstance(op, Wait) and "parameters" in op.tag:
                story += "W"
            elif isinstance(op, Compute) and any(isinstance(k, Flash) for k in op.kernels):
                story += "a"
        assert story == "P" + "PWa" * (layers - 1) + "Wa"


def test_zero_3_gathers_dense_layers_and_layers_with_experts_for_what_they_are():
    """Stage 0 holds slots 0, 8, 16, ... of 64; with 9 dense layers slots 0 and 8 have no experts to gather."""
    changes = ("job.parallelism.sharding=parameters", "job.model.dense_layers=9", "job.model.ffn=4096")
    plan, job, found = programs("colossus-100k", *changes)
    for chunk in range(plan.chunks):
        (index,) = transformer.chunk_layers(plan.pipeline, plan.layers, 0, chunk)
        local = transformer.local_layer(job.model, index, plan.tensor, plan.expert)
        assert (local.experts > 0) == (index >= 9)
        ends = transformer.local_ends(job.model, plan.tensor, first=index == 0, last=False, pipeline=plan.pipeline)
        ops = body(found[0], "F", 0, chunk)
        gathered = {
            channel: [c.size for c in collectives(ops, channel) if c.operation == "all_gather"]
            for channel in ("data", "expert_data")
        }
        assert gathered["data"] == ([2 * ends] if index == 0 else []) + [2 * local.dense]
        assert gathered["expert_data"] == ([2 * local.experts] if index >= 9 else [])


# -- the step's end --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sharding", LEVELS)
@pytest.mark.parametrize(("software", "gradient"), [("megatron-2024", 4), ("deepspeed-2023", 2)])
def test_optimizer_traffic(sharding, software, gradient):
    """26 + 2 x gradient bytes a local parameter, over its shards: D c of dense parameters, D c/e of experts."""
    changes = (f"job.parallelism.sharding={sharding}", f"job.software={software}")
    plan, job, found = programs("grok2-15k", *changes)
    local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, 1, plan.tensor, plan.expert)
    dense, experts = (1, 1) if sharding == "none" else (plan.replica_group, plan.expert_group)
    steps = [op for op in found[1].epilogue if isinstance(op, Compute)]
    assert [op.category for op in steps] == ["optimizer"]
    (kernel,) = steps[0].kernels
    assert isinstance(kernel, Stream)
    assert kernel.bytes == pytest.approx((26 + 2 * gradient) * (local.dense / dense + local.experts / experts))


def test_a_step_ends_gradients_then_optimizer_then_parameters():
    plan, _, found = programs("colossus-100k", "job.overlap.parameters=false")
    for program in found:
        # Grok-1's embedding is tied: its two copies meet once their own replicas have.
        tied = [Collective] * (program.stage in (0, plan.pipeline - 1))
        waits = [Wait] * (len(program.epilogue) - len(tied) - 3)
        assert [type(op) for op in program.epilogue] == [*waits, *tied, Compute, Collective, Collective]
    _, _, without = programs("colossus-100k", "job.optimizer=false")
    assert not any(isinstance(op, Compute) for p in without for op in p.epilogue)


ZERO_BUBBLE = ("job.parallelism.schedule=zero-bubble", "job.parallelism.virtual_pipeline=1")


def together(ops):
    """How often each kernel and each other operation comes, in whatever order, and whatever stands beside it."""
    kernels = [kernel for op in ops if isinstance(op, Compute) for kernel in op.kernels]
    calls = [replace(op, beside=None) for op in ops if isinstance(op, Collective)]
    others = [op for op in ops if not isinstance(op, Compute | Collective | Launched)]
    return Counter(kernels), Counter([*calls, *others])


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", ["two-pods", "grok2-15k"])
def test_zero_bubble_parts_the_backward_pass(name, recompute):
    """B and W do together what the backward pass does. W holds the products that accumulate and gathers their inputs again;
    nothing that another stage waits for. The host takes as long for both as for one."""
    changes = (f"job.recompute={recompute}", "job.parallelism.sharding=none")
    plan, job, whole = programs(name, *changes, *ONE_CHUNK)
    _, _, parted = programs(name, *changes, *ZERO_BUBBLE)
    for one, two in zip(whole, parted, strict=True):
        b, w = body(two, "B", 0), body(two, "W", 0)
        assert together(body(one, "B", 0)) == together([*b, *w])
        assert body(one, "F", 0) == body(two, "F", 0)
        kernels = {True: [], False: []}
        for late, ops in ((True, w), (False, b)):
            kernels[late] = [k for op in ops if isinstance(op, Compute) for k in op.kernels]
        assert all(isinstance(k, Gemm) and k.accumulate for k in kernels[True])
        assert not any(isinstance(k, Gemm) and k.accumulate for k in kernels[False])
        assert all(op.channel == "tensor" and op.operation == "all_gather" for op in w if isinstance(op, Collective))
        assert all(isinstance(op, Compute | Collective | Launched) for op in w)
        hosts = [{p.kind: np.array(p.host) for p in program.passes} for program in (one, two)]
        assert hosts[1]["B"] + hosts[1]["W"] == pytest.approx(hosts[0]["B"])
        assert 0 < hosts[1]["W"].sum() < hosts[1]["B"].sum()
    assert job.parallelism.tensor > 1
    assert plan.pipeline > 1


@pytest.mark.parametrize("limit", [0, 3, 10_000])
@pytest.mark.parametrize("chunks", [1, 2])
def test_deferred_weight_gradients_of_the_head(limit, chunks):
    """Of the last stage's first `limit` micro-batches the head's weight gradient, (V/t, T, h) in 16 bit, leaves the backward
    pass and comes behind the passes, each with a gather of its input; its bucket travels behind the last of them. The stage
    does as many FLOPs, other stages know nothing of it."""
    interleaved = ("job.parallelism.virtual_pipeline=2", "job.parallelism.schedule=interleaved")
    cut = interleaved if chunks == 2 else ONE_CHUNK
    plan, job, plain = programs("two-pods", *cut)
    _, _, found = programs("two-pods", *cut, f"job.parallelism.defer_head={limit}")
    model, t, m = job.model, plan.tensor, plan.micro_batches
    deferred = min(limit, m)
    for one, two in zip(plain[:-1], found[:-1], strict=True):
        assert [p.body for p in one.passes] == [p.body for p in two.passes]
    one, two = plain[-1], found[-1]
    assert [(p.kind, p.micro_batch) for p in two.passes[len(one.passes) :]] == [("W", j) for j in range(deferred)]
    head = Gemm(model.vocabulary / t, model.hidden, plan.tokens, accumulate=True, half=True)
    for j in range(m):
        kernels = [k for op in body(two, "B", j, chunks - 1) if isinstance(op, Compute) for k in op.kernels]
        assert kernels.count(head) == (j >= deferred)
    for p in two.passes[len(one.passes) :]:
        # What is done to accumulated gradients stands before the bucket's reduction.
        ends = any(isinstance(op, Post) for op in p.body)
        kernels = [k for op in p.body if isinstance(op, Compute) for k in op.kernels]
        assert kernels[0] == head
        assert len(kernels) == 1 + (ends and job.software.reduction_traffic > 0)
        gathers = [op for op in p.body if isinstance(op, Collective)]
        assert [(g.operation, g.size) for g in gathers] == [("all_gather", 2 * plan.tokens * model.hidden)]
    sums = [sum(op.flops for op in ops_of(program) if isinstance(op, Compute)) for program in (one, two)]
    assert sums[0] == pytest.approx(sums[1])
    posts = [[op for op in ops_of(program) if isinstance(op, Post) and "gradients" in op.tag] for program in (one, two)]
    assert Counter(posts[0]) == Counter(posts[1])
    assert bool(deferred) == any(isinstance(op, Post) for op in two.passes[-1].body if two.passes[-1].kind == "W")


@pytest.mark.parametrize("sharding", LEVELS)
def test_zero_bubble_releases_gradients_behind_w(sharding):
    """B posts nothing of gradients; the W passes post what the backward passes would, each bucket behind its last layer."""
    changes = (f"job.parallelism.sharding={sharding}", "job.bucket=200 MB")
    plan, _, whole = programs("two-pods", *changes, *ONE_CHUNK)
    _, _, parted = programs("two-pods", *changes, *ZERO_BUBBLE)
    last = plan.micro_batches - 1

    def posted(program, kind):
        return [op for op in body(program, kind, last) if isinstance(op, Post) and "gradients" in op.tag]

    for one, two in zip(whole, parted, strict=True):
        assert posted(two, "B") == []
        assert posted(two, "W") == posted(one, "B") != []
        assert [op for op in body(two, "W", 0) if isinstance(op, Wait)] == []


@pytest.mark.parametrize("sharding", LEVELS)
def test_copies_of_a_tied_embedding_are_added_once_a_step(sharding):
    """V h/t gradients of 4 bytes on the first and the last stage, a shard of them if gradients are sharded; of a model of one
    stage, or with a head of its own, nothing."""
    changes = (f"job.parallelism.sharding={sharding}", "job.model=grok-1", "job.parallelism.expert=1")
    plan, job, found = programs("colossus-100k", *changes)
    shards = plan.replica_group if sharding in ("gradients", "parameters") else 1
    size = 4 * job.model.vocabulary * job.model.hidden / plan.tensor / shards
    for stage, program in enumerate(found):
        ends = stage in (0, plan.pipeline - 1)
        assert collectives(ops_of(program), "embedding") == [Collective("embedding", "all_reduce", size)] * ends
        assert collectives(program.epilogue, "embedding") == collectives(ops_of(program), "embedding")
    one = ("job.parallelism.pipeline=1", *ONE_CHUNK, "job.parallelism.data=16")
    for others in (("job.model.tied=false",), one):
        _, _, found = programs("two-pods", "job.model.tied=true", *others)
        assert not any(collectives(ops_of(program), "embedding") for program in found)


VARIANTS = [
    ("two-pods", ("job.parallelism.sharding=parameters", "job.parallelism.stage_layers=[0, 16, 16, 0]", *ONE_CHUNK)),
    ("two-pods", ("job.parallelism.sharding=parameters", *ZERO_BUBBLE)),
    ("two-pods", ("job.parallelism.sharding=gradients", "job.overlap.data=false", *ZERO_BUBBLE)),
    ("two-pods", ()),
    ("two-pods", ("job.parallelism.sharding=parameters", "job.parallelism.context=2", "job.parallelism.data=8")),
    ("two-pods", ("job.parallelism.sharding=gradients", *ONE_CHUNK)),
    ("two-pods", ("job.parallelism.schedule=gpipe", "job.parallelism.virtual_pipeline=1", "job.recompute=full")),
    ("colossus-100k", ("job.parallelism.sharding=parameters",)),
    ("grok2-15k", ("job.overlap.expert=true", "job.recompute=full")),
    ("grok2-15k", ("job.parallelism.sharding=gradients", "job.overlap.data=false")),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_what_is_posted_is_waited_for_and_nothing_else_is(name, changes):
    """A Wait has a Post before it, every tag is waited for after its last post, and a collective that is no gradient's and not
    of a sharded optimizer's parameters is waited for in its own pass, before its tag is posted again."""
    _, job, found = programs(name, *changes)
    for program in found:
        posted, waited = set(), set()
        for ops in program.bodies:
            inside = set()
            for op in ops:
                if isinstance(op, Post):
                    assert op.tag not in inside or "gradients" in op.tag
                    inside.add(op.tag)
                    posted.add(op.tag)
                    waited.discard(op.tag)
                elif isinstance(op, Wait):
                    assert op.tag in posted
                    inside.discard(op.tag)
                    waited.add(op.tag)
            ahead = "parameters" if job.parallelism.sharding != "parameters" else "gradients"
            assert all("gradients" in tag or ahead in tag for tag in inside)
        assert waited == posted


# -- stage boundaries ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("blocking", ["true", "false"])
@pytest.mark.parametrize(
    ("schedule", "chunks"),
    [("gpipe", 1), ("1f1b", 1), ("zero-bubble", 1), ("interleaved", 2), ("interleaved", 4), ("interleaved", 8)],
)
def test_messages_pair_up(schedule, chunks, blocking):
    """Chunk c of stage i is slot i + p c of p v: it sends ahead to slot + 1 and back to slot - 1, the last stage to the first
    one's next chunk. Slot 0 receives no activations and sends no gradients; the last slot the other way round."""
    changes = (f"job.parallelism.schedule={schedule}", f"job.parallelism.virtual_pipeline={chunks}")
    plan, _, found = programs("two-pods", *changes, f"job.overlap.pipeline={'false' if blocking == 'true' else 'true'}")
    p, last = plan.pipeline, plan.pipeline * chunks - 1
    sent, received = Counter(), Counter()
    for program in found:
        for one in program.passes:
            slot = program.stage + p * one.chunk
            way = "forward" if one.kind == "F" else "backward"
            for at, op in enumerate(one.body):
                if isinstance(op, Receive):
                    assert (op.direction, at) == (way, 0)
                    received[way, one.micro_batch, slot] += 1
                elif isinstance(op, Send):
                    assert op.direction == way
                    assert op.blocking == (blocking == "true")
                    sent[way, one.micro_batch, slot + (1 if way == "forward" else -1)] += 1
    expected = Counter(
        (way, j, slot)
        for j in range(plan.micro_batches)
        for way, slots in (("forward", range(1, last + 1)), ("backward", range(last)))
        for slot in slots
    )
    assert sent == received == expected


@pytest.mark.parametrize("sharding", LEVELS)
def test_a_pass_sends_when_its_products_are_done(sharding):
    """Nothing but gradients' posts comes behind a Send."""
    _, _, found = programs("two-pods", f"job.parallelism.sharding={sharding}")
    for program in found:
        for one in program.passes:
            kinds = [type(op) for op in one.body]
            if Send in kinds:
                assert set(kinds[kinds.index(Send) + 1 :]) <= {Post}


# -- bodies ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sharding", LEVELS)
def test_micro_batches_share_bodies_but_for_gather_and_release(sharding):
    """All passes of a kind and chunk `is` the same body; the last micro-batch's backward differs where it releases once, the
    first one's forward where it waits for what the last step's optimizer has updated."""
    plan, _, found = programs("two-pods", f"job.parallelism.sharding={sharding}", *PLAIN)
    last = plan.micro_batches - 1
    for program in found:
        for chunk in range(plan.chunks):
            second = {kind: body(program, kind, 1, chunk) for kind in "FB"}
            for one in program.passes:
                if one.chunk == chunk and (one.kind == "F" or one.micro_batch < last) and one.micro_batch > 0:
                    assert one.body is second[one.kind]
            assert (body(program, "B", last, chunk) is second["B"]) == (sharding in ("gradients", "parameters"))
            assert (body(program, "F", 0, chunk) is second["F"]) == (sharding in ("none", "parameters"))


def test_the_largest_job_has_eight_bodies():
    """Korthikanti's 1T, p 64, m 512: F and B of the first, middle and last stages, and where they release: 65,536 passes."""
    plan, _, found = programs("korthikanti-2022", case="1T-full")
    passes = [one for program in found for one in program.passes]
    assert (plan.pipeline, plan.micro_batches, len(passes)) == (64, 512, 2 * 64 * 512)
    assert len({id(one.body) for one in passes}) <= 8


UNEVEN = [
    ("stage_layers=[3, 9, 13, 7]", *ONE_CHUNK),
    ("stage_layers=[0, 16, 16, 0]", *ONE_CHUNK),
    ("stage_layers=[0, 16, 16, 0]", *ZERO_BUBBLE),
    ("stage_layers=[0, 5, 5, 5, 5, 6, 6, 0]", "job.parallelism.virtual_pipeline=2"),
]


@pytest.mark.parametrize("sharding", LEVELS)
@pytest.mark.parametrize("changes", UNEVEN)
def test_uneven_stages_do_the_same_work(changes, sharding):
    """However 32 layers fall on stages: the kernels and collectives of a replica's micro-batch are the same, and the same
    parameters are reduced. A chunk without layers has the embedding or the head alone."""
    layers, *rest = changes
    plan, job, found = programs("two-pods", f"job.parallelism.{layers}", f"job.parallelism.sharding={sharding}", *rest)
    _, _, even = programs("two-pods", f"job.parallelism.sharding={sharding}", *ONE_CHUNK)

    def work(every):
        kernels, others = together([op for p in every for one in p.passes if one.micro_batch == 0 for op in one.body])
        tensor = {op: n for op, n in others.items() if isinstance(op, Collective) and op.channel == "tensor"}
        return kernels, tensor

    assert work(found) == work(even)
    width = job.software.reduce_bytes
    for stage, program in enumerate(found):
        local = transformer.stage_parameters(job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert)
        reduced = [c for c in collectives(ops_of(program), "data") if c.operation != "all_gather"]
        times = plan.micro_batches if sharding in ("gradients", "parameters") else 1
        assert sum(c.size for c in reduced) == pytest.approx(times * local.dense * width)
    if plan.layers[-1] == 0:
        flash = [k for op in body(found[-1], "F", 0, plan.chunks - 1) if isinstance(op, Compute) for k in op.kernels]
        assert not any(isinstance(kernel, Flash) for kernel in flash)


def test_equal_stages_share_bodies():
    """Middle stages of colossus-100k: the same F and the same B of every chunk, all of them."""
    plan, _, found = programs("colossus-100k", *PLAIN)
    for kind in "FB":
        middle = {id(body(found[s], kind, 1, c)) for s in range(1, plan.pipeline - 1) for c in range(plan.chunks)}
        assert len(middle) == 1


def test_merging_joins_kernels_between_collectives():
    """Neighbours of one category become one Compute; empty ones vanish; order stays."""
    a, b, call = Stream(1.0), Gemm(1, 1, 1), Collective("tensor", "all_reduce", 1.0)
    ops = [Compute((a,)), Compute(()), Compute((b, a)), call, Compute((b,)), Compute((a,), "optimizer")]
    assert merged(ops) == (Compute((a, b, a)), call, Compute((b,)), Compute((a,), "optimizer"))
    assert merged([]) == ()


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", ["two-pods", "colossus-100k", "grok2-15k"])
def test_a_step_does_the_models_flops(name, recompute):
    """All ranks of a replica, one micro-batch: 3 x the forward FLOPs, flash's backward core 2.5 x instead of 2 x, and the
    layers again with full recompute: m micro-batches of T c tokens, t x c ranks a stage."""
    plan, job, found = programs(name, f"job.recompute={recompute}")
    ranks = plan.tensor * plan.context
    done = ranks * sum(
        op.flops
        for p in found
        for one in p.passes
        if one.micro_batch == 0
        for op in one.body
        if isinstance(op, Compute)
    )
    model, tokens = job.model, plan.tokens * plan.context
    core = 2 * plan.sequence * model.heads * model.head_size * model.layers
    again = transformer.recomputed_flops_per_token(model, plan.sequence, recompute, "flash")
    expected = transformer.model_flops_per_token(model, plan.sequence) + core / 2 + again
    assert done == pytest.approx(tokens * expected, rel=1e-12)


def test_scores_of_unfused_attention_are_hardware_flops():
    """22B of Korthikanti, selective: 3 x the forward FLOPs of all of attention (no skipping), and the core once more."""
    plan, job, found = programs("korthikanti-2022", case="22B-selective")
    model = job.model
    done = plan.tensor * sum(
        op.flops for op in body(found[0], "F", 0) + body(found[0], "B", 0) if isinstance(op, Compute)
    )
    core = 4 * plan.sequence * model.heads * model.head_size * model.layers
    assert any(isinstance(k, Scores) for op in body(found[0], "F", 0) if isinstance(op, Compute) for k in op.kernels)
    expected = transformer.model_flops_per_token(model, plan.sequence, causal=False) + core
    assert done == pytest.approx(plan.tokens * expected, rel=1e-12)


@pytest.mark.parametrize("chunks", [1, 2])
def test_full_recompute_of_some_layers(chunks):
    """Each chunk's first 3 layers are played again in B, no other, in the order of layers from the last on; the host launches
    them as often, and HFU counts them."""
    changes = ONE_CHUNK if chunks == 1 else (f"job.parallelism.virtual_pipeline={chunks}",)
    plan, job, found = programs("two-pods", "job.recompute=full", "job.recompute_layers=3", *changes)
    layers = job.model.layers // (plan.pipeline * chunks)
    kernels = [
        k for op in body(found[1], "B", 0) if isinstance(op, Compute) for k in op.kernels if isinstance(k, Flash)
    ]
    assert [k.backward for k in kernels] == [True] * (layers - 3) + [False, True] * 3
    (begins,) = {one.host for one in found[1].passes if one.kind == "B" and one.chunk == chunks - 1}
    calls = 6 * (layers - 3) + 10 * 3  # of the tensor group: four in a forward pass, six in a backward one
    assert begins == pytest.approx([0.3e-3 * (1.5 * (layers - 3) + 2.5 * 3 + calls / 16) + 0.1e-3])
    share = 3 * plan.pipeline * chunks / job.model.layers
    again = recomputed_layers(plan, job)
    assert len(again) == share * job.model.layers
    flops = [
        transformer.recomputed_flops_per_token(job.model, plan.sequence, "full", "flash", which)
        for which in (again, None)
    ]
    assert flops[0] == pytest.approx(share * flops[1])


# -- the host --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("recompute", "factor"), [("selective", 1.5), ("full", 2.5)])
@pytest.mark.parametrize("chunks", [1, 2])
def test_launching_a_pass(recompute, factor, chunks):
    """megatron-2024: 0.3 ms a layer forward, x 1.5 backward or x 2.5 with full recompute, a sixteenth of a layer for each
    collective (four of a layer forward, six backward), and 0.1 ms a micro-batch, on the chunk that begins it: the first
    forward, the last backward. The ends have 14/48 and 43/48 of a layer, apart from the layers, and their own collectives."""
    schedule = "interleaved" if chunks > 1 else "1f1b"
    changes = (f"job.parallelism.schedule={schedule}", f"job.parallelism.virtual_pipeline={chunks}")
    plan, job, found = programs("two-pods", *changes, f"job.recompute={recompute}")
    layers = job.model.layers // (plan.pipeline * chunks)
    for stage, program in enumerate(found):
        for one in program.passes:
            forward, edge = one.kind == "F", 0 if one.kind == "F" else chunks - 1
            calls = layers * (4 if forward else 6 if recompute == "selective" else 10)
            each = 0.3e-3 * ((1 if forward else factor) * layers + calls / 16) + (0.1e-3 if one.chunk == edge else 0)
            first, last = stage == 0 and one.chunk == 0, stage == plan.pipeline - 1 and one.chunk == chunks - 1
            inside = [sum(isinstance(op, Collective) for op in part) for part in launched_apart(one.body)]
            ends = {
                "embedding": 0.3e-3 * (14 / 48 * (1 if forward else 1.5) + inside[0 if forward else -1] / 16),
                "head": 0.3e-3 * (43 / 48 * (1 if forward else 1.5) + inside[-1 if forward else 0] / 16),
            }
            parts = [*([ends["embedding"]] if first else []), each, *([ends["head"]] if last else [])]
            assert one.host == pytest.approx(parts if forward else parts[::-1])
    assert found[1].host_exponent == 3.85
