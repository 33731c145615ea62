"""What a kernel takes on a toy GPU, and which kernels a layer has, by their FLOPs, bytes and weights."""

from __future__ import annotations

import pytest

from colossim import catalog
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.workload import transformer
from colossim.workload.kernels import Flash, Gemm, Scores, Stream, kernel_time
from colossim.workload.layers import LayerOps
from colossim.workload.program import Collective, Compute, Post


@pytest.fixture
def toy():
    """100 FLOP/s in 16 bit, 200 in 8; half of it sustained by large products; 5 B/s of memory; 1 s a launch."""
    gpu = catalog.load("gpus", "H100")
    sixteen = gpu.gemm["bf16"].model_copy(update={"sustained": 0.5, "area": 100.0, "depth": 10.0})
    return gpu.model_copy(
        update={
            "name": "toy",
            "peak": {"bf16": 100.0, "fp16": 50.0, "fp8": 200.0},
            "gemm": {"bf16": sixteen, "fp16": sixteen, "fp8": sixteen.model_copy(update={"sustained": 0.25})},
            "attention": gpu.attention.model_copy(update={"forward": 0.4, "backward": 0.5, "tiles": 30.0}),
            "unfused_attention": 0.8,
            "memory_rate": 10.0,
            "memory_efficiency": 0.5,
            "kernel_overhead": 1.0,
        }
    )


# -- one kernel ------------------------------------------------------------------------------------------------------
def test_flops_of_kernels():
    """A product 2 mnk each; streams none."""
    assert Gemm(2, 3, 5, 7).flops == 2 * 2 * 3 * 5 * 7
    assert Stream(5.0).flops == 0


def test_shape_of_a_product(toy):
    """(20, 30) x 90: 108,000 FLOPs; e = 0.5 x 600/700 x 90/100; P e = 38.57/s: 2,800 s. Bytes take 2,040 s."""
    arithmetic = 2 * 20 * 30 * 90 / (100 * 0.5 * 600 / 700 * 90 / 100)
    assert arithmetic > 2 * (20 * 90 + 90 * 30 + 20 * 30) / 5
    assert kernel_time(Gemm(20, 30, 90), toy, "bf16") == pytest.approx(arithmetic + 1)
    assert kernel_time(Gemm(20, 30, 90), toy, "fp16") == pytest.approx(2 * arithmetic + 1)


def test_a_batch_fills_the_area_together(toy):
    """Four (20, 30) x 90 have the area 2,400: e = 0.5 x 2400/2500 x 0.9, for four times the FLOPs."""
    arithmetic = 4 * 2 * 20 * 30 * 90 / (100 * 0.5 * 2400 / 2500 * 90 / 100)
    assert kernel_time(Gemm(20, 30, 90, 4), toy, "bf16") == pytest.approx(arithmetic + 1)


def test_eight_bit_has_its_own_curve_and_half_the_input_bytes(toy):
    """e0 0.25 of 200: the same arithmetic as in 16 bit. A thin product reads 1 byte an element and writes 2.

    (1, 1) x 1e6 in 8 bit: area 1/101 and depth ~1: 2e6/(50/101) = 4.04e6 s beside 2e6/5 B: arithmetic; with no area
    lost the bytes bind: 2 x 1e6 + 2 at 5/s.
    """
    assert kernel_time(Gemm(20, 30, 90), toy, "fp8") == pytest.approx(kernel_time(Gemm(20, 30, 90), toy, "bf16"))
    curve = toy.gemm["fp8"].model_copy(update={"area": 0.0, "depth": 0.0})
    thin = toy.model_copy(update={"name": "thin", "gemm": {"fp8": curve, "bf16": curve}})
    assert kernel_time(Gemm(1, 1, 1e6), thin, "fp8") == pytest.approx((2e6 + 2) / 5 + 1)
    assert kernel_time(Gemm(1, 1, 1e6), thin, "bf16") == pytest.approx((2 * 2e6 + 2) / 5 + 1)


def test_accumulating_reads_and_writes_fp32(toy):
    """(100, 100) x 1 is bound by memory: 2 x 200 B of inputs, and 8 B instead of 2 an element of the gradient.

    With k = 1e4 arithmetic binds, 2e8 FLOPs at 50/s, and is 4 % slower.
    """
    curve = toy.gemm["bf16"].model_copy(update={"area": 0.0, "depth": 0.0})
    flat = toy.model_copy(update={"name": "flat", "gemm": {"bf16": curve}})
    assert kernel_time(Gemm(100, 100, 1), flat, "bf16") == pytest.approx((2 * 200 + 2 * 1e4) / 5 + 1)
    assert kernel_time(Gemm(100, 100, 1, accumulate=True), flat, "bf16") == pytest.approx((2 * 200 + 8 * 1e4) / 5 + 1)
    bound = 2 * 100 * 100 * 1e4 / 50
    assert kernel_time(Gemm(100, 100, 1e4, accumulate=True), flat, "bf16") == pytest.approx(1.04 * bound + 1)


def test_attention_stays_in_16_bit(toy):
    """Unfused: 800/(0.8 x 100) + 50/5; flash: 600/(0.4 x 30/60 x 100), twice that backward."""
    for precision in ("bf16", "fp8"):
        assert kernel_time(Scores(800.0, 50.0), toy, precision) == pytest.approx(10 + 10 + 1)
        assert kernel_time(Flash(600.0, 30.0), toy, precision) == pytest.approx(600 / 20 + 1)
        assert kernel_time(Flash(600.0, 30.0, backward=True), toy, precision) == pytest.approx(600 / 10 + 1)
    assert kernel_time(Scores(800.0, 50.0), toy, "fp16") == pytest.approx(20 + 10 + 1)


def test_times_belong_to_the_facts_and_not_to_the_name(toy):
    """Two GPUs of one name, the second with twice the memory rate: 21 s and 11 s, whichever is asked first."""
    faster = toy.model_copy(update={"memory_rate": 20.0})
    assert kernel_time(Stream(100.0), toy, "bf16") == 21
    assert kernel_time(Stream(100.0), faster, "bf16") == 11
    assert kernel_time(Stream(100.0), toy, "bf16") == 21


def test_a_gpu_without_a_curve_is_a_key_error(toy):
    bare = toy.model_copy(update={"name": "bare", "gemm": {"bf16": toy.gemm["bf16"]}})
    with pytest.raises(KeyError):
        kernel_time(Gemm(1, 1, 1), bare, "fp8")


def test_what_the_fits_say_of_an_a100_and_an_h100():
    """The table of models.md 2: e0 268 and 697 TFLOP/s of 312 and 989, for a product without edges."""
    for name, rate in (("A100-80GB", 268e12), ("H100", 697e12)):
        gpu = catalog.load("gpus", name)
        endless = Gemm(1e7, 1e7, 1e7)
        assert endless.flops / kernel_time(endless, gpu, "bf16") == pytest.approx(rate, rel=3e-3)


# -- the kernels of a layer ------------------------------------------------------------------------------------------
def layer_ops(name, *changes, case=None, **model):
    scenario = load_scenario(name, set=changes, case=case)
    job = scenario.job
    if model:
        job = job.model_copy(update={"model": job.model.model_copy(update=model)})
    return derive(scenario), job, LayerOps(derive(scenario), job)


def kernels(ops, kind):
    return [k for op in ops if isinstance(op, Compute) for k in op.kernels if isinstance(k, kind)]


def moved(ops):
    return sum(k.bytes for k in kernels(ops, Stream))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "swiglu", "squared-relu"])
@pytest.mark.parametrize("software", ["megatron-2024", "fsdp-2025"])
@pytest.mark.parametrize("sequence", ["true", "false"])
def test_element_wise_bytes_of_a_layer(dropout, activation, software, sequence):
    """Norms, residual and dropout: 2 (4 + 7) T h forward, 2 (8 + 5) T h backward, one pass of each less without dropout.

    An activation reads n = 1 or 2 (gated) tensors of T f/t and writes one; backward it reads those and a gradient and
    writes n: 2 (n + 1) and 2 (2n + 1) bytes an element; a squared ReLU 4 and 8 more. Times the stack's passes w.
    """
    changes = (f"job.software={software}", f"job.parallelism.sequence={sequence}")
    plan, job, ops = layer_ops("two-pods", *changes, dropout=dropout, activation=activation)
    t, h, f = plan.tensor, job.model.hidden, job.model.ffn
    rows = plan.tokens / (t if sequence == "true" else 1)
    n = 2 if activation == "swiglu" else 1
    unfused = (4, 8) if activation == "squared-relu" else (0, 0)
    forward = 2 * (11 if dropout else 10) * rows * h + (2 * (n + 1) + unfused[0]) * plan.tokens * f / t
    backward = 2 * (13 if dropout else 12) * rows * h + (2 * (2 * n + 1) + unfused[1]) * plan.tokens * f / t
    w = job.software.elementwise
    assert moved(ops.forward(False)) == pytest.approx(w * forward)
    assert moved(ops.backward(False)) == pytest.approx(w * backward)


def test_casts_of_eight_bit():
    """4 bytes an input of each product: T (h + a d/t + h + f/t); backward an output's gradient: T (h + qkv/t + h + 2 f/t)."""
    _, _, sixteen = layer_ops("two-pods")
    plan, job, eight = layer_ops("two-pods", "job.precision=fp8")
    model, t = job.model, plan.tensor
    inner, qkv = model.heads * model.head_size, (model.heads + 2 * model.kv_heads) * model.head_size
    forward = 4 * plan.tokens * (2 * model.hidden + (inner + model.ffn) / t)
    backward = 4 * plan.tokens * (2 * model.hidden + (qkv + 2 * model.ffn) / t)
    assert moved(eight.forward(False)) - moved(sixteen.forward(False)) == pytest.approx(forward)
    assert moved(eight.backward(False)) - moved(sixteen.backward(False)) == pytest.approx(backward)


def test_casts_of_eight_bit_experts():
    """Of k T routed tokens: 4 bytes each of h + f/t inputs; backward the output's gradients, h + 2 f/t (the up product is
    gated); beside them attention's as without experts. The router stays in 16 bit."""
    _, _, sixteen = layer_ops("colossus-100k")
    plan, job, eight = layer_ops("colossus-100k", "job.precision=fp8")
    model, t = job.model, plan.tensor
    inner, qkv = model.heads * model.head_size, (model.heads + 2 * model.kv_heads) * model.head_size
    h, width, k = model.hidden, model.expert_ffn / t, model.experts_per_token
    forward = 4 * plan.tokens * (h + inner / t + k * (h + width))
    backward = 4 * plan.tokens * (h + qkv / t + k * (h + 2 * width))
    assert moved(eight.forward(True)) - moved(sixteen.forward(True)) == pytest.approx(forward)
    assert moved(eight.backward(True)) - moved(sixteen.backward(True)) == pytest.approx(backward)


@pytest.mark.parametrize("context", [1, 2, 4])
def test_flash_attention_of_a_rank(context):
    """2 b s^2 (a/t) d causal over all c ranks, 2.5 x that backward, in c pieces of b (a/t) (s/c)/128 query tiles."""
    changes = (f"job.parallelism.context={context}", "job.parallelism.data=4", "job.micro_batch=2")
    plan, job, ops = layer_ops("two-pods", *changes)
    heads = 2 * job.model.heads / plan.tensor
    whole = 2 * plan.sequence**2 * heads * job.model.head_size / context
    forward, backward = kernels(ops.core_forward(), Flash), kernels(ops.core_backward(), Flash)
    assert len(forward) == len(backward) == context
    assert sum(k.flops for k in forward) == pytest.approx(whole)
    assert sum(k.flops for k in backward) == pytest.approx(2.5 * whole)
    assert {k.tiles for k in [*forward, *backward]} == {heads * plan.sequence / context / 128}
    assert [k.backward for k in [*forward, *backward]] == [False] * context + [True] * context


@pytest.mark.parametrize("dropout", [True, False])
def test_unfused_attention_of_a_rank(dropout):
    """S2 = b (a/t) s^2: two products of 2 S2 d FLOPs and 2 S2 bytes, softmax 4 S2, dropout 5 S2; backward four, 11 S2.

    Without dropout backward has the softmax's 6 S2 only.
    """
    plan, job, ops = layer_ops("korthikanti-2022", case="22B-full", dropout=dropout)
    scores = plan.micro_batch * job.model.heads / plan.tensor * plan.sequence**2
    product = Scores(2 * scores * job.model.head_size, 2 * scores)
    forward, backward = ops.core_forward(), ops.core_backward()
    assert kernels(forward, Scores) == [product] * 2
    assert kernels(backward, Scores) == [product] * 4
    assert moved(forward) == (9 if dropout else 4) * scores
    assert moved(backward) == (11 if dropout else 6) * scores


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("two-pods", ()),
        ("two-pods", ("job.parallelism.sequence=false", "job.precision=fp8")),
        ("two-pods", ("job.parallelism.context=2", "job.parallelism.data=8")),
        ("colossus-100k", ()),
        ("grok2-15k", ()),
    ],
)
def test_weight_gradients_are_as_many_as_weights(name, changes):
    """Backward, the accumulating products (n, k, m) have n k = the rank's weights in products, router and experts included.

    Each has an input gradient (m, k, n) of as many FLOPs, and the forward product (m, n, k) had as many.
    """
    plan, job, ops = layer_ops(name, *changes)
    index = job.model.layers - 1
    routed = transformer.is_moe(job.model, index)
    local = transformer.local_layer(job.model.model_copy(update={"biases": False}), index, plan.tensor, plan.expert)
    backward, forward = kernels(ops.backward(routed), Gemm), kernels(ops.forward(routed), Gemm)
    into = [k for k in backward if k.accumulate]
    norms = transformer.layer(job.model, index).norms
    assert sum(k.m * k.n * k.batch for k in into) == pytest.approx(local.dense - norms + local.experts)
    assert sum(k.flops for k in into) == pytest.approx(sum(k.flops for k in forward))
    assert sum(k.flops for k in backward if not k.accumulate) == pytest.approx(sum(k.flops for k in forward))
    assert not any(k.accumulate for k in forward)
    assert sum(k.half for k in backward) == (2 if routed else 0)


@pytest.mark.parametrize(("routed_name", "full"), [("two-pods", False), ("two-pods", True), ("grok2-15k", False)])
def test_flops_of_a_layer_over_all_its_ranks(routed_name, full):
    """T tokens: t ranks together do T x the forward FLOPs a token that the model counts; backward 2 x the products and
    2.5 x flash's core; with full recompute the forward pass again."""
    plan, job, ops = layer_ops(routed_name, *(["job.recompute=full"] if full else []))
    model, t = job.model, plan.tensor
    routed = model.experts > 0
    one = model.model_copy(update={"layers": 1})
    head = 2.0 * model.hidden * model.vocabulary
    whole = plan.tokens * (transformer.forward_flops_per_token(one, plan.sequence) - head)
    core = plan.tokens * 2 * plan.sequence * model.heads * model.head_size
    assert t * sum(op.flops for op in ops.forward(routed) if isinstance(op, Compute)) == pytest.approx(whole)
    backward = t * sum(op.flops for op in ops.backward(routed, again=full) if isinstance(op, Compute))
    assert backward == pytest.approx(2 * (whole - core) + 2.5 * core + (whole if full else 0))


def test_selective_recompute_repeats_the_unfused_core_only():
    _, _, kept = layer_ops("korthikanti-2022", "job.recompute=none", case="22B-selective")
    _, _, again = layer_ops("korthikanti-2022", case="22B-selective")
    twice = kernels(again.backward(False), Scores)
    assert len(twice) == len(kernels(kept.backward(False), Scores)) + 2
    assert kernels(again.backward(False), Gemm) == kernels(kept.backward(False), Gemm)
    assert moved(again.backward(False)) - moved(kept.backward(False)) == moved(kept.core_forward())


def test_the_head_and_its_loss():
    """Three products of (T, V/t, h) in 16 bit whatever the precision, and the stack's bytes a logit in two halves."""
    for precision in ("bf16", "fp8"):
        plan, job, ops = layer_ops("two-pods", f"job.precision={precision}")
        share, h, T = job.model.vocabulary / plan.tensor, job.model.hidden, plan.tokens
        both = [*ops.head_forward(), *ops.head_backward()]
        expected = [
            Gemm(T, share, h, half=True),
            Gemm(T, h, share, half=True),
            Gemm(share, h, T, accumulate=True, half=True),
        ]
        assert kernels(both, Gemm) == expected
        norms = 2 * (10 + 12) / 2 * T / plan.tensor * h
        assert moved(both) == pytest.approx(50 * T * share + norms)


def test_the_embedding_moves_each_token_in_and_out():
    """Forward reads and writes a 16-bit vector a token, 2 x 2 T h bytes; backward reads one and adds it to another."""
    plan, job, ops = layer_ops("two-pods")
    for ends in (ops.embedding_forward(), ops.embedding_backward()):
        assert moved(ends) == 4 * plan.tokens * job.model.hidden
        assert not kernels(ends, Gemm)


@pytest.mark.parametrize("sequence", ["true", "false"])
def test_routed_tokens_are_permuted_and_shared_evenly(sequence):
    """Each of the local experts gets its part of k T tokens of the group; twice 4 bytes put the rank's in order."""
    plan, job, ops = layer_ops("colossus-100k", f"job.parallelism.sequence={sequence}")
    model = job.model
    local = model.experts // plan.expert
    forward = ops.forward(True)
    grouped = [k for k in kernels(forward, Gemm) if not k.half][-2:]
    m, width = plan.tokens * model.experts_per_token / local, model.expert_ffn / plan.tensor
    assert grouped == [Gemm(m, 2 * width, model.hidden, local), Gemm(m, model.hidden, width, local)]
    rows = plan.tokens / (plan.tensor if sequence == "true" else 1)
    permuted = 2 * 4 * rows * model.experts_per_token * model.hidden
    activated = plan.tokens * model.experts_per_token * width
    assert moved(forward) == pytest.approx(2 * 10 * rows * model.hidden + permuted + 6 * activated)
    assert moved(ops.backward(True)) == pytest.approx(2 * 12 * rows * model.hidden + permuted + 10 * activated)


def test_a_shared_mlp_hides_the_dispatch_only_if_asked():
    for overlap, kind in (("true", Post), ("false", Collective)):
        _, _, ops = layer_ops("grok2-15k", f"job.overlap.expert={overlap}")
        for body in (ops.forward(True), ops.backward(True)):
            sent = [op for op in body if isinstance(op, Post | Collective)]
            sent = [op for op in sent if (op.collective if isinstance(op, Post) else op).channel == "expert"]
            assert [type(op) for op in sent] == [kind, Collective]
