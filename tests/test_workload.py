"""Transformers, kernels, schedules, memory and programs against the arithmetic they come from."""

from __future__ import annotations

import itertools

import pytest

from colossim import catalog
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.workload import transformer
from colossim.workload.build import build_programs
from colossim.workload.kernels import Flash, Gemm, Scores, Stream, kernel_time
from colossim.workload.memory import layer_activations, memory_by_stage, stage_memory, suggestions
from colossim.workload.program import Collective, Compute, Post, Receive, Send, Wait
from colossim.workload.schedule import in_flight, order

SCHEDULES = [
    *[("gpipe", 4, 6, 1), ("1f1b", 4, 6, 1), ("1f1b", 4, 2, 1)],
    *[("interleaved", 4, 8, 3), ("interleaved", 2, 4, 2), ("interleaved", 3, 3, 2)],
]


# -- transformer -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "total"),
    [("grok-2", 269_515_497_472), ("grok-1", 315_684_820_992), ("llama3-405b", 405_853_388_800)],
)
def test_published_parameter_counts(name, total):
    assert transformer.parameters(catalog.load("models", name)) == total


def test_parameters_of_gpt3_and_what_a_token_uses_of_experts():
    assert transformer.parameters(catalog.load("models", "gpt3-175b")) == pytest.approx(174.60e9, rel=1e-4)
    assert transformer.active_parameters(catalog.load("models", "grok-1")) == pytest.approx(83.76e9, rel=1e-3)
    assert transformer.active_parameters(catalog.load("models", "grok-2")) == pytest.approx(114.9e9, rel=2e-3)


@pytest.mark.parametrize("name", ["megatron-22b", "megatron-175b", "megatron-530b", "megatron-1t"])
def test_flops_equal_the_formula_of_megatron(name):
    """SC21 counts 96 B s L h^2 (1 + s/6h + V/16Lh): layers four times (full recompute), the head thrice, no causal half."""
    model, s = catalog.load("models", name), 2048
    layers, h, v = model.layers, model.hidden, model.vocabulary
    megatron = 96 * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))
    head = 2 * s * h * v
    forward = transformer.forward_flops_per_token(model, s, causal=False) * s
    assert 4 * (forward - head) + 3 * head == pytest.approx(megatron, rel=1e-12)


def test_mfu_of_a_published_run_in_our_convention():
    """Grok-1 on 512 H100 (DGX Cloud 24.11): 1,024 x 8,192 tokens in 20.83 s is printed as an MFU of 41.5 %."""
    model = catalog.load("models", "grok-1").model_copy(update={"vocabulary": 128_256})
    per_gpu = transformer.model_flops_per_token(model, 8192) * 1024 * 8192 / 20.83 / 512
    assert per_gpu / 989e12 == pytest.approx(0.415, abs=0.002)


def test_recompute_counts_for_hfu_only():
    """Full: 8 of 6 for the layers, the head once less. Selective: the unfused core's 2 s a d a layer again."""
    model, s = catalog.load("models", "megatron-175b"), 2048
    forward = transformer.forward_flops_per_token(model, s)
    again = transformer.recomputed_flops_per_token(model, s, "full", "unfused")
    assert again == pytest.approx(forward - 2 * model.hidden * model.vocabulary)
    core = transformer.recomputed_flops_per_token(model, s, "selective", "unfused")
    assert core == 2 * s * model.heads * model.head_size * model.layers
    assert transformer.recomputed_flops_per_token(model, s, "selective", "flash") == 0


@pytest.mark.parametrize(
    ("name", "p", "v", "t", "e"), [("grok-1", 8, 8, 4, 8), ("grok-2", 8, 2, 8, 4), ("llama3-70b", 4, 5, 8, 1)]
)
def test_stages_hold_the_whole_model(name, p, v, t, e):
    """Over t and e ranks the stages add up; norms and routers are on every tensor rank, a tied head twice."""
    model = catalog.load("models", name)
    stages = [transformer.stage_parameters(model, p, v, i, t, e) for i in range(p)]
    layers = [transformer.layer(model, i) for i in range(model.layers)]
    repeated = (t - 1) * sum(x.norms + x.router for x in layers) + (t - 1) * model.hidden
    twice = transformer.head(model) if model.tied else 0
    total = sum(t * stage.dense + t * e * stage.experts for stage in stages)
    assert total == pytest.approx(transformer.parameters(model) + repeated + twice)


# -- kernels ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def toy():
    """100 FLOP/s, half of it sustained; 10 B/s of memory, half of it reached; a kernel costs 1 s to launch."""
    gpu = catalog.load("gpus", "H100")
    curve = gpu.gemm["bf16"].model_copy(update={"sustained": 0.5, "area": 0.0, "depth": 0.0})
    attention = gpu.attention.model_copy(update={"forward": 0.25, "backward": 0.5, "tiles": 10.0})
    return gpu.model_copy(
        update={
            "name": "toy",
            "peak": {"bf16": 100.0, "fp8": 200.0},
            "gemm": {"bf16": curve, "fp8": curve},
            "attention": attention,
            "unfused_attention": 0.8,
            "memory_rate": 10.0,
            "memory_efficiency": 0.5,
            "kernel_overhead": 1.0,
        }
    )


def test_a_stream_moves_bytes(toy):
    """50 B at 10 x 0.5 B/s, and a launch: 11 s."""
    assert kernel_time(Stream(50.0), toy, "bf16") == 11.0


def test_a_product_is_bound_by_arithmetic_or_memory(toy):
    """(10, 10) x 1000: 2e5 FLOPs at 50/s = 4,000 s; 2 (2 x 1e4 + 100) B at 5/s = 8,040 s: memory. Wider: arithmetic."""
    assert kernel_time(Gemm(10, 10, 1000), toy, "bf16") == (2 * 2e4 + 2 * 100) / 5 + 1
    assert kernel_time(Gemm(1000, 1000, 1000), toy, "bf16") == 2e9 / 50 + 1
    assert kernel_time(Gemm(1000, 1000, 1000), toy, "fp8") == 2e9 / 100 + 1
    assert kernel_time(Gemm(1000, 1000, 1000, half=True), toy, "fp8") == 2e9 / 50 + 1


def test_efficiency_of_a_product_falls_with_its_shape(toy):
    """e = e0 mn/(mn + A0) k/(k + K0): area and depth at their constants leave a quarter."""
    curve = toy.gemm["bf16"].model_copy(update={"area": 1e6, "depth": 1e3})
    other = toy.model_copy(update={"gemm": {"bf16": curve}, "name": "toy with a curve"})
    assert kernel_time(Gemm(1000, 1000, 1000), other, "bf16") == pytest.approx(2e9 / (50 / 4) + 1)


def test_an_accumulating_product_is_four_percent_slower(toy):
    assert kernel_time(Gemm(1000, 1000, 1000, accumulate=True), toy, "bf16") == pytest.approx(1.04 * 2e9 / 50 + 1)


def test_attention_kernels(toy):
    """Unfused adds arithmetic (80 of 100/s) and traffic; flash sustains 0.25 x n/(n + 10), half of that backward."""
    assert kernel_time(Scores(800.0, 50.0), toy, "bf16") == 10 + 10 + 1
    assert kernel_time(Flash(1000.0, 10.0), toy, "bf16") == pytest.approx(1000 / (25 / 2) + 1)
    assert kernel_time(Flash(1000.0, 10.0, backward=True), toy, "bf16") == pytest.approx(1000 / (25 / 4) + 1)


# -- schedules -------------------------------------------------------------------------------------------------------
def test_the_worked_example_of_interleaving():
    """p 2, m 4, v 2, device 0 (micro-batch.chunk), as Megatron plays it."""
    text = "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0"
    assert [f"{k}{j}.{c}" for k, j, c in order("interleaved", 0, 2, 4, 2)] == text.split()


def test_1f1b_warms_up_by_its_distance_from_the_end():
    assert "".join(k for k, _, _ in order("1f1b", 0, 4, 5)) == "FFFFBFBBBB"
    assert "".join(k for k, _, _ in order("1f1b", 3, 4, 5)) == "FB" * 5
    assert "".join(k for k, _, _ in order("gpipe", 1, 4, 3)) == "FFFBBB"


@pytest.mark.parametrize(("schedule", "p", "m", "v"), SCHEDULES)
def test_every_pass_is_played_once_and_forward_first(schedule, p, m, v):
    for stage in range(p):
        slots = order(schedule, stage, p, m, v)
        assert sorted(slots) == sorted(itertools.product("FB", range(m), range(v)))
        for j, c in itertools.product(range(m), range(v)):
            assert slots.index(("F", j, c)) < slots.index(("B", j, c))


@pytest.mark.parametrize(("schedule", "p", "m", "v"), SCHEDULES)
def test_in_flight_is_what_walking_the_order_holds(schedule, p, m, v):
    for stage in range(p):
        held = peak = 0
        for kind, _, _ in order(schedule, stage, p, m, v):
            held += 1 if kind == "F" else -1
            peak = max(peak, held)
        assert in_flight(schedule, stage, p, m, v) == peak


def test_impossible_schedules():
    with pytest.raises(ValueError, match="multiples of the stages"):
        order("interleaved", 0, 4, 6, 2)
    with pytest.raises(ValueError, match="one chunk"):
        order("1f1b", 0, 4, 6, 2)
    with pytest.raises(ValueError, match="no schedule"):
        order("dapple", 0, 4, 6)


# -- memory ----------------------------------------------------------------------------------------------------------
def job_of(name, *changes, case=None):
    scenario = load_scenario(name, set=changes, case=case)
    return derive(scenario), scenario.job


def test_activations_of_a_layer_equal_korthikanti():
    """s b h (34 + 5 a s/h) whole; sequence parallelism divides all by t; without it 10 stay whole: 10 + 24/t + 5 a s/(h t)."""
    t = 8
    for case, sequence in (("175B-full", "false"), ("175B-selective", "true")):
        change = "job.parallelism.sequence=" + sequence
        plan, job = job_of("korthikanti-2022", change, "job.recompute=none", case=case)
        h, a, s, b = job.model.hidden, job.model.heads, plan.sequence, plan.micro_batch
        scores = 5 * a * s / h
        factor = (34 + scores) / t if sequence == "true" else 10 + 24 / t + scores / t
        assert layer_activations(plan, job, False) == pytest.approx(s * b * h * factor)
        kept = job.model_copy(update={"recompute": "selective"})
        assert layer_activations(plan, kept, False) == pytest.approx(s * b * h * (factor - scores / t))
        full = job.model_copy(update={"recompute": "full"})
        assert layer_activations(plan, full, False) == pytest.approx(2 * s * b * h / (t if sequence == "true" else 1))


@pytest.mark.parametrize(
    ("sharding", "bytes_of"),
    [
        ("none", lambda d: 18),
        ("optimizer", lambda d: 6 + 12 / d),
        ("gradients", lambda d: 2 + 16 / d),
    ],
)
def test_states_by_zero_level(sharding, bytes_of):
    """2 of weights, 4 of gradients, 12 of optimizer: 18, 6 + 12/D, 2 + 16/D bytes a parameter."""
    plan, job = job_of("two-pods", f"job.parallelism.sharding={sharding}")
    memory = stage_memory(plan, job, 1)
    local = transformer.stage_parameters(job.model, plan.pipeline, plan.chunks, 1, plan.tensor, plan.expert).dense
    states = memory.parameters + memory.gradients + memory.optimizer
    assert states == pytest.approx(bytes_of(plan.replica_group) * local)


def test_zero_3_shards_everything_but_two_gathered_layers():
    plan, job = job_of("two-pods", "job.parallelism.sharding=parameters")
    memory = stage_memory(plan, job, 1)
    local = transformer.stage_parameters(job.model, 4, 2, 1, 2, 1).dense
    gathered = 2 * 2 * local / (job.model.layers // 4)
    assert memory.parameters + memory.gradients + memory.optimizer == pytest.approx(18 * local / 16 + gathered)


def test_memory_of_grok_1_in_two_layouts():
    """models.md 6: t 4, p 8, e 8: 9.6 GB of states (sharded) and 68 of activations; t 8, v 8, m 8: 4.8 + 34."""
    plan, job = job_of("colossus-100k")
    memory = stage_memory(plan, job, 0)
    assert memory.parameters + memory.gradients == pytest.approx(4.8e9, rel=0.05)
    assert memory.activations == pytest.approx(34e9, rel=0.02)
    changes = ("job.parallelism.tensor=4", "job.global_batch=24576")
    wide = stage_memory(*job_of("colossus-100k", *changes), 0)
    assert wide.parameters + wide.gradients == pytest.approx(9.6e9, rel=0.05)
    assert wide.activations == pytest.approx(68e9, rel=0.02)


def test_suggestions_fit():
    changes = ["job.parallelism.tensor=2", "job.parallelism.pipeline=4", "job.parallelism.virtual_pipeline=5"]
    scenario = load_scenario("quickstart", set=changes)
    capacity = scenario.cluster.nodes[0].type.gpu.memory
    assert max(m.peak for m in memory_by_stage(derive(scenario), scenario.job)) > capacity
    found = suggestions(scenario, capacity)
    assert len(found) >= 2
    for line in found:
        fixed = load_scenario("quickstart", set=[*changes, *(part.strip() for part in line.split("--set ")[1:])])
        assert max(m.peak for m in memory_by_stage(derive(fixed), fixed.job)) <= capacity, line


# -- programs --------------------------------------------------------------------------------------------------------
def programs(name, *changes, case=None):
    plan, job = job_of(name, *changes, case=case)
    return plan, job, build_programs(plan, job)


def ops(program):
    return [op for p in program.passes for op in p.body] + list(program.epilogue)


def collectives(program, channel):
    every = [op.collective if isinstance(op, Post) else op for op in ops(program) if isinstance(op, Collective | Post)]
    return [op for op in every if op.channel == channel]


@pytest.mark.parametrize(("schedule", "chunks"), [("1f1b", 1), ("gpipe", 1), ("interleaved", 2), ("interleaved", 4)])
def test_every_send_has_its_receive(schedule, chunks):
    """Chunk c of the last stage sends forward to chunk c + 1 of the first, and back again."""
    changes = (f"job.parallelism.schedule={schedule}", f"job.parallelism.virtual_pipeline={chunks}")
    plan, _, found = programs("two-pods", *changes)
    sent, received = set(), set()
    for program in found:
        for p in program.passes:
            for op in p.body:
                if isinstance(op, Receive):
                    received.add((op.direction, program.stage, p.micro_batch, p.chunk))
                elif isinstance(op, Send):
                    step = 1 if op.direction == "forward" else -1
                    to = (program.stage + step) % plan.pipeline
                    wraps = step if (program.stage + step) != to else 0
                    sent.add((op.direction, to, p.micro_batch, p.chunk + wraps))
    assert sent == received
    assert len(sent) == 2 * plan.micro_batches * (plan.pipeline * chunks - 1)


def test_bytes_of_a_dense_layer_with_sequence_parallelism():
    """A layer gathers and scatters 2 T h twice forward; backward the same, and gathers its two inputs again: 4 + 6 of 2 T h."""
    plan, job, found = programs("korthikanti-2022", case="22B-selective")
    size = 2 * plan.tokens * job.model.hidden
    tensor = collectives(found[0], "tensor")
    assert all(c.size == size for c in tensor)
    # The embedding scatters, and its gradient is gathered; the head gathers, gathers again, and scatters back.
    assert len(tensor) == 10 * job.model.layers + 5


def test_bytes_of_a_dense_layer_without_sequence_parallelism():
    """Two all-reduces forward, two backward, two more recomputed: 6 a layer of 2 T h; embedding one, head backward one."""
    plan, job, found = programs("korthikanti-2022", case="22B-full")
    tensor = collectives(found[0], "tensor")
    assert {(c.operation, c.size) for c in tensor} == {("all_reduce", 2 * plan.tokens * job.model.hidden)}
    assert len(tensor) == 6 * job.model.layers + 2


def test_an_expert_layer_sends_its_routed_tokens_twice_each_way():
    """k T/t h x 2 bytes, dispatch and combine, forward and backward."""
    plan, job, found = programs("colossus-100k")
    sent = collectives(found[3], "expert")
    size = 2 * job.model.experts_per_token * plan.tokens / plan.tensor * job.model.hidden
    assert {(c.operation, c.size) for c in sent} == {("all_to_all", size)}
    assert len(sent) == 4 * plan.micro_batches * job.model.layers // plan.pipeline


def test_a_boundary_moves_its_share_of_2_t_h():
    plan, job, found = programs("colossus-100k")
    sizes = {op.size for op in ops(found[2]) if isinstance(op, Send)}
    assert sizes == {2 * plan.tokens * job.model.hidden / plan.tensor}


def test_keys_and_values_go_round_the_context_ring():
    """c - 1 hops a layer forward of 2 x 2 T (g/t) d bytes, and as many of twice that backward."""
    changes = ("job.parallelism.context=2", "job.parallelism.data=8")
    plan, job, found = programs("two-pods", *changes)
    hops = collectives(found[1], "context")
    one = 2 * 2 * plan.tokens * job.model.kv_heads / plan.tensor * job.model.head_size
    layers = job.model.layers // plan.pipeline
    assert sorted({c.size for c in hops}) == [one, 2 * one]
    assert len(hops) == 2 * layers * plan.micro_batches


@pytest.mark.parametrize("name", ["two-pods", "colossus-100k", "grok2-15k"])
@pytest.mark.parametrize("sharding", ["none", "optimizer"])
def test_buckets_hold_every_parameter_once(name, sharding):
    """Gradients of a stage: all its parameters, in the stack's bytes, in the last micro-batch's backward passes only."""
    plan, job, found = programs(name, f"job.parallelism.sharding={sharding}")
    for program in (found[0], found[1], found[-1]):
        local = transformer.stage_parameters(
            job.model, plan.pipeline, plan.chunks, program.stage, plan.tensor, plan.expert
        )
        for channel, parameters in (("data", local.dense), ("expert_data", local.experts)):
            operation = "all_reduce" if sharding == "none" else "reduce_scatter"
            reduced = [c for c in collectives(program, channel) if c.operation == operation]
            assert sum(c.size for c in reduced) == pytest.approx(parameters * job.software.reduce_bytes)
        posting = {p.micro_batch for p in program.passes if any(isinstance(op, Post) for op in p.body)}
        assert posting == {plan.micro_batches - 1}
        gathered = [c for c in collectives(program, "data") if c.operation == "all_gather"]
        assert sum(c.size for c in gathered) == pytest.approx(2 * local.dense if sharding == "optimizer" else 0)


def test_small_buckets_leave_early():
    _, _, few = programs("two-pods", "job.bucket=5 GB")
    _, _, many = programs("two-pods", "job.bucket=50 MB")
    assert len(collectives(many[1], "data")) > len(collectives(few[1], "data")) > 1


@pytest.mark.parametrize("sharding", ["none", "optimizer", "gradients", "parameters"])
def test_every_post_is_waited_for(sharding):
    _, _, found = programs("two-pods", f"job.parallelism.sharding={sharding}", "job.parallelism.context=2")
    for program in found:
        open_ = set()
        for op in ops(program):
            if isinstance(op, Post):
                open_.add(op.tag)
            elif isinstance(op, Wait):
                open_.remove(op.tag)
        assert not open_


def test_zero_3_gathers_each_layer_both_ways():
    """2 bytes a parameter of every layer, forward and backward, every micro-batch; gradients are scattered every time."""
    plan, job, found = programs("two-pods", "job.parallelism.sharding=parameters")
    layer = transformer.local_layer(job.model, 0, plan.tensor, 1).dense
    gathers = [c for c in collectives(found[1], "data") if c.operation == "all_gather"]
    assert {c.size for c in gathers} == {2 * layer}
    assert len(gathers) == 2 * plan.micro_batches * job.model.layers // plan.pipeline
    scattered = sum(c.size for c in collectives(found[1], "data") if c.operation == "reduce_scatter")
    assert scattered == pytest.approx(plan.micro_batches * 4 * layer * job.model.layers / plan.pipeline)


def test_micro_batches_share_their_bodies():
    _, _, found = programs("korthikanti-2022", case="1T-full")
    bodies = {id(p.body) for program in found for p in program.passes}
    assert len(bodies) <= 8
    assert sum(len(program.passes) for program in found) == 2 * 64 * 512


def test_without_overlap_gradients_wait_for_the_end():
    _, _, found = programs("two-pods", "job.overlap.data=false")
    assert not any(isinstance(op, Post) for p in found[0].passes for op in p.body)
    assert [op.operation for op in found[0].epilogue if isinstance(op, Collective)] == ["reduce_scatter", "all_gather"]
    assert sum(isinstance(op, Compute) and op.category == "optimizer" for op in found[0].epilogue) == 1
