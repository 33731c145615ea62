"""What a kernel takes on a toy GPU, and which kernels a layer has, by their FLOPs, bytes and weights."""

from __future__ import annotations

import pytest

from colossim import catalog
from colossim.catalog.gpu import AttentionCurve, Gpu
from colossim.errors import ScenarioError
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.workload import elementwise, transformer
from colossim.workload.kernels import Flash, Gemm, Scores, Stream, flash_share, kernel_time
from colossim.workload.layers import LayerOps
from colossim.workload.loads import Load
from colossim.workload.program import Collective, Compute, Post

ATTENTION = AttentionCurve(
    head_sizes=(64, 128),
    forward=(0.3, 0.4),
    backward=(0.1, 0.2),
    keys=100,
    keys_backward=0,
    tiles=30,
    tiles_backward=10,
)


@pytest.fixture
def toy():
    """100 FLOP/s in 16 bit, 200 in 8; half of it sustained by large products; 5 B/s of memory; 1 s a launch."""
    gpu = catalog.load("gpus", "H100")
    sixteen = gpu.gemm["bf16"].model_copy(update={"sustained": 0.5, "benchmark": None, "area": 100.0, "depth": 10.0})
    return gpu.model_copy(
        update={
            "name": "toy",
            "peak": {"bf16": 100.0, "fp16": 50.0, "fp8": 200.0},
            "gemm": {"bf16": sixteen, "fp16": sixteen, "fp8": sixteen.model_copy(update={"sustained": 0.25})},
            "attention": {"flash-2": ATTENTION},
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


def test_product_beside_a_transfers_kernel(toy):
    """64 of 80 SMs: of the power of all they draw a quarter more each, f ~ P^(1/3): 0.8 x 1.25^(1/3) of the pace; never more
    than a short benchmark's, here 51 % instead of the 50 that steps sustain. One SM is always left."""
    gpu = toy.model_copy(update={"sms": 80})
    whole = kernel_time(Gemm(20, 30, 90), gpu, "bf16") - 1
    assert kernel_time(Gemm(20, 30, 90, spared=16), gpu, "bf16") - 1 == pytest.approx(whole / (0.8 * 1.25 ** (1 / 3)))
    cool = gpu.model_copy(
        update={"gemm": {"bf16": gpu.gemm["bf16"].model_copy(update={"benchmark": 0.51})}, "name": "cool"}
    )
    assert kernel_time(Gemm(20, 30, 90, spared=16), cool, "bf16") - 1 == pytest.approx(whole / (0.8 * 1.02))
    two = gpu.model_copy(update={"sms": 2, "name": "two"})
    assert kernel_time(Gemm(20, 30, 90, spared=32), two, "bf16") == kernel_time(Gemm(20, 30, 90, spared=1), two, "bf16")


def test_a_slow_gpu(toy):
    """Arithmetic goes with the clock, of products and of attention; streams don't."""
    slow = toy.model_copy(update={"name": "slow", "pace": 0.8})
    for kernel in (Gemm(20, 30, 90), Flash("flash-2", 2, 2, 128, 128, 64, True)):
        assert kernel_time(kernel, slow, "bf16") - 1 == pytest.approx((kernel_time(kernel, toy, "bf16") - 1) / 0.8)
    assert kernel_time(Stream(50.0), slow, "bf16") == kernel_time(Stream(50.0), toy, "bf16")
    assert kernel_time(Scores(800.0, 50.0), slow, "bf16") == pytest.approx(10 / 0.8 + 10 + 1)


def test_waves_beside_a_transfers_kernel(toy):
    """Nine tiles of 128 x 256 on eight of nine SMs: two waves, 9/16 full, instead of one full one."""
    curve = toy.gemm["bf16"].model_copy(update={"area": 0.0, "waves": 1.0, "benchmark": 0.5})
    gpu = toy.model_copy(update={"sms": 9, "gemm": {"bf16": curve}, "name": "nine"})
    full, spared = (kernel_time(Gemm(9 * 128, 256, 90, spared=n), gpu, "bf16") - 1 for n in (0, 1))
    assert spared == pytest.approx(full / (8 / 9 * 9 / 16))


def test_shape_of_a_product(toy):
    """(20, 30) x 90: 108,000 FLOPs; e = 0.5 x 600/700 x 90/100; P e = 38.57/s: 2,800 s. Bytes take 2,040 s."""
    arithmetic = 2 * 20 * 30 * 90 / (100 * 0.5 * 600 / 700 * 90 / 100)
    assert arithmetic > 2 * (20 * 90 + 90 * 30 + 20 * 30) / 5
    assert kernel_time(Gemm(20, 30, 90), toy, "bf16") == pytest.approx(arithmetic + 1)
    assert kernel_time(Gemm(20, 30, 90), toy, "fp16") == pytest.approx(2 * arithmetic + 1)


def test_rows_that_do_not_begin_at_16_bytes(toy):
    """cuBLAS's kernels for any other address reach a part of it, here a quarter. What counts are the rows in memory, which are
    features: 30 and 90 wide here, in the products for input gradients too, but not the 20 tokens, not even where a weight's
    gradient sums over them."""
    curve = toy.gemm["bf16"].model_copy(update={"unaligned": 0.25, "area": 0.0, "depth": 0.0, "accumulate": 1.0})
    gpu = toy.model_copy(update={"name": "picky", "gemm": {"bf16": curve}, "memory_rate": 1e9})

    def share(m, n, k, **how):
        return 2 * m * n * k / (kernel_time(Gemm(m, n, k, **how), gpu, "bf16") - 1) / 100

    assert share(21, 32, 96) == pytest.approx(0.5)
    assert [share(21, 30, 96), share(24, 32, 90)] == pytest.approx([0.5 / 4] * 2)
    assert share(32, 96, 21, accumulate=True) == pytest.approx(0.5)
    assert [share(30, 96, 24, accumulate=True), share(32, 90, 24, accumulate=True)] == pytest.approx([0.5 / 4] * 2)


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


def test_unfused_attention_stays_in_16_bit(toy):
    """800/(0.8 x 100) + 50/5."""
    for precision in ("bf16", "fp8"):
        assert kernel_time(Scores(800.0, 50.0), toy, precision) == pytest.approx(10 + 10 + 1)
    assert kernel_time(Scores(800.0, 50.0), toy, "fp16") == pytest.approx(20 + 10 + 1)


def test_fused_attention(toy):
    """10 heads, 256 queries and keys of 128: 4 x 10 x 256^2 x 128 = 335.5 MFLOP, of which a causal mask leaves half.

    Forward 0.4 x 256/(256 + 100) x 20 tiles/(20 + 30); causal: 128 keys met, and of 3 tiles computed 2 count: x 2/3. Backward
    2.5 times the FLOPs at 0.2 x 20/30. Head size 96 is half way between 0.3 and 0.4; 32 as 64.
    """
    full = 4 * 10 * 256**2 * 128

    def of(size=128, **changes):
        return Flash(**{"kind": "flash-2", "heads": 10, "kv_heads": 10, "queries": 256, "keys": 256, "causal": False,
                        "size": size, **changes})  # fmt: skip

    assert of().flops == full
    assert of(causal=True).flops == full / 2
    assert of(backward=True).flops == 2.5 * full
    fill = 256 / 356 * 20 / 50
    assert kernel_time(of(), toy, "fp8") == pytest.approx(full / (100 * 0.4 * fill) + 1)
    causal = 0.4 * 128 / 228 * 20 / 50 * 2 / 3
    assert kernel_time(of(causal=True), toy, "bf16") == pytest.approx(full / 2 / (100 * causal) + 1)
    assert kernel_time(of(backward=True), toy, "bf16") == pytest.approx(2.5 * full / (100 * 0.2 * 20 / 30) + 1)
    assert kernel_time(of(96), toy, "bf16") == pytest.approx(full * 96 / 128 / (100 * 0.35 * fill) + 1)
    assert kernel_time(of(32), toy, "bf16") == pytest.approx(full * 32 / 128 / (100 * 0.3 * fill) + 1)


def test_attention_in_a_step_is_slower_than_in_a_benchmark_as_products_are(toy):
    """Products sustain 0.5 where a benchmark reached 0.8: fused attention too has 5/8 of its benchmark's share."""
    curve = toy.gemm["bf16"].model_copy(update={"benchmark": 0.8})
    warm = toy.model_copy(update={"name": "warm", "gemm": {"bf16": curve}})
    kernel = Flash("flash-2", 10, 10, 256, 256, 128, False)
    cool = kernel_time(kernel, toy, "bf16") - 1
    assert kernel_time(kernel, warm, "bf16") - 1 == pytest.approx(cool * 8 / 5)


def test_attention_of_few_queries_is_bound_by_keys_and_values(toy):
    """One query of 8 heads meets 1e6 keys: q, o: 2 x 2 B x 8 x 128; k, v: 2 x 2 B x 1e6 x 128 x heads of keys, at 5 B/s."""
    curve = ATTENTION.model_copy(update={"forward": (1.0, 1.0), "keys": 0.0, "tiles": 0.0})
    fast = toy.model_copy(update={"name": "fast", "peak": {"bf16": 1e9}, "attention": {"flash-2": curve}})
    for kv in (8, 1):
        moved = 2 * 2 * 128 * (8 + kv * 1e6)
        assert kernel_time(Flash("flash-2", 8, kv, 1, 1e6, 128, False), fast, "bf16") == pytest.approx(moved / 5 + 1)


def test_waves_of_tiles(toy):
    """132 SMs, tiles of 128 x 256: 1,280 x 3,584 are 10 x 14 = 140 tiles in two waves of 132: 140/264, to the power 0.5."""
    curve = toy.gemm["bf16"].model_copy(update={"area": 0.0, "depth": 0.0, "waves": 0.5})
    waves = toy.model_copy(update={"name": "waves", "gemm": {"bf16": curve}})
    for m, n, fill in ((1280, 3584, 140 / 264), (132 * 128, 256, 1.0), (100, 256, 100 / 128 / 132)):
        product = Gemm(m, n, 1000)
        assert kernel_time(product, waves, "bf16") == pytest.approx(product.flops / (50 * fill**0.5) + 1)


def test_grouped_products_lose_by_the_tokens_of_an_expert(toy):
    """50 tokens each with half lost at 150: a quarter of the efficiency; the batch fills the area together."""
    curve = toy.gemm["bf16"].model_copy(update={"depth": 0.0, "group_rows": 150.0})
    grouped = toy.model_copy(update={"name": "grouped", "gemm": {"bf16": curve}})
    product = Gemm(50, 400, 1000, 4, tokens=50)
    share = 0.5 * 80_000 / 80_100 / 4
    assert kernel_time(product, grouped, "bf16") == pytest.approx(product.flops / (100 * share) + 1)


@pytest.mark.parametrize(("limit", "share"), [(None, 0.5), ("350 W", 0.5 * 0.5 ** (1 / 3)), ("1400 W", 0.6)])
def test_a_power_limit_moves_the_ceiling(toy, limit, share):
    """f ~ P^(1/3) of 700 W: half of the power leaves 0.794 of 0.5; twice would give 0.63, but a benchmark reached no more than
    0.6."""
    power = catalog.based("gpus", {"base": "H100", **({"power_limit": limit} if limit else {})})
    curve = toy.gemm["bf16"].model_copy(update={"area": 0.0, "depth": 0.0, "benchmark": 0.6})
    changes = {"name": "limited", "gemm": {"bf16": curve}, "power_limit": Gpu.model_validate(power).power_limit}
    product = Gemm(1000, 1000, 1000)
    seconds = kernel_time(product, toy.model_copy(update=changes), "bf16")
    assert seconds == pytest.approx(product.flops / (100 * share) + 1)


def test_the_cube_root_is_what_a_300_w_a100_shows():
    """The PCIe part's products reach 78.0 % of the peak when nothing is lost to shape; the 400 W part sustains 85.9 %."""
    fields = catalog.based("gpus", {"base": "A100-80GB", "power_limit": "300 W"}, calibrated=False)
    part = Gpu.model_validate(fields)
    assert part.gemm["bf16"].sustained * part.clock == pytest.approx(0.780, rel=0.01)


def test_a_kind_of_attention_that_a_gpu_lacks_is_told():
    with pytest.raises(ScenarioError, match=r"flash-3: the A100-80GB of cluster\.nodes\.0 has cudnn, flash-1, flash-2"):
        load_scenario("korthikanti-2022", case="22B-full", set=("job.software.attention=flash-3",))


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
    """The table of models.md 2: e0 268 and 697 TFLOP/s of 312 and 989, for a product without edges, before any fit of ours."""
    for name, rate in (("A100-80GB", 268e12), ("H100", 697e12)):
        gpu = catalog.load("gpus", name, calibrated=False)
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
@pytest.mark.parametrize("norms", [2, 4])
@pytest.mark.parametrize("sequence", ["true", "false"])
def test_element_wise_bytes_of_a_fused_layer(dropout, activation, norms, sequence):
    """An element: norm 4 forward, 6 backward; residual 6 and 6, a dropout's mask 1 and its gradient 5 more; GELU 4, 6, gated 6,
    10, squared ReLU (not fused) 8, 20; rotary embedding 4 and 4 of queries and keys."""
    changes = ("job.software=megatron-2024", f"job.parallelism.sequence={sequence}")
    plan, job, ops = layer_ops("two-pods", *changes, dropout=dropout, activation=activation, norms=norms)
    model, t = job.model, plan.tensor
    rows = plan.tokens / (t if sequence == "true" else 1) * model.hidden
    wide, rotated = plan.tokens * model.ffn / t, plan.tokens * (model.heads + model.kv_heads) / t * model.head_size
    forward, backward = {"gelu": (4, 6), "swiglu": (6, 10), "squared-relu": (8, 20)}[activation]
    assert moved(ops.forward(False)) == pytest.approx(
        (4 * norms + 2 * (7 if dropout else 6)) * rows + forward * wide + 4 * rotated
    )
    assert moved(ops.backward(False)) == pytest.approx(
        (6 * norms + 2 * (11 if dropout else 6)) * rows + backward * wide + 4 * rotated
    )


def test_element_wise_bytes_of_an_eager_layer():
    """torchtitan: RMS norm in fp32 36 and 92, residual 6 and 6, gated activation 10 and 18, rotary embedding 20 and 20; keys
    and values read once and written for each query head, 2 B; sums of the inputs' gradients of q, k, v and of both up
    products, 6 each. 4.4 (+- 6 %) times the bytes of fused kernels fitted its published runs."""
    plan, job, ops = layer_ops("two-pods", "job.software=fsdp-2025")
    model, t, T = job.model, plan.tensor, plan.tokens
    rows, vectors, wide = T / t * model.hidden, T * model.head_size / t, T * model.ffn / t
    copies = 2 * 2 * vectors * (model.heads + model.kv_heads)
    rotated = 20 * vectors * (model.heads + model.kv_heads)
    assert moved(ops.forward(False)) == pytest.approx((2 * 36 + 2 * 6) * rows + 10 * wide + rotated + copies)
    sums = 6 * 3 * T * model.hidden
    assert moved(ops.backward(False)) == pytest.approx((2 * 92 + 2 * 6) * rows + 18 * wide + rotated + copies + sums)
    alone = (
        "job.software=fsdp-2025",
        "job.parallelism.tensor=1",
        "job.parallelism.sequence=false",
        "job.parallelism.data=8",
    )
    plan, job, ops = layer_ops("two-pods", *alone)
    fused = 2 * (10 + 12) * plan.tokens * model.hidden + 2 * (3 + 5) * plan.tokens * model.ffn
    assert (moved(ops.forward(False)) + moved(ops.backward(False))) / fused == pytest.approx(4.4, rel=0.06)


@pytest.mark.parametrize(
    ("fusions", "precision", "norm", "passes"),
    [
        (("norm", "norm_gradient"), "16", "rmsnorm", (4, 6)),
        (("norm",), "16", "layernorm", (5.7, 13.4)),
        (("norm",), "fp32", "rmsnorm", (6 + 6, 10 + 6 + 6)),
        ((), "16", "layernorm", (5, 15)),
        ((), "fp32", "layernorm", (6 + 8 + 6, 6 + 12 + 8 + 6)),
        ((), "16", "rmsnorm", (4 + 2 + 4 + 4, 4 + 8 + 4 + 8 + 2 + 14 + 6)),
        ((), "fp32", "rmsnorm", (6 + 8 + 4 + 8 + 6 + 4, 12 + 6 + 8 + 16 + 4 + 28 + 12 + 6)),
    ],
)
def test_passes_of_norms(fusions, precision, norm, passes):
    stack = catalog.load("software", "megatron-2024").model_copy(
        update={"fusions": fusions, "norm_precision": precision}
    )
    model = catalog.load("models", "llama3-8b").model_copy(update={"norm": norm})
    assert elementwise.norm(stack, model) == passes


def test_passes_that_one_kernel_saves():
    """The sum with a residual in the norm's kernel: its 6 become 4, backward 2; dropout with the sum 7, alone 5 + 6."""
    stack = catalog.load("software", "megatron-2024")
    model = catalog.load("models", "llama3-8b")
    wet = model.model_copy(update={"dropout": True})
    for fusions, dry, dropped in (
        ((), (6, 6), (11, 11)),
        (("dropout_add",), (6, 6), (7, 11)),
        (("residual",), (4, 2), (9, 7)),
    ):
        changed = stack.model_copy(update={"fusions": fusions})
        assert elementwise.residual(changed, model) == dry
        assert elementwise.residual(changed, wet) == dropped
    eager = stack.model_copy(update={"fusions": ()})
    assert elementwise.softmax(eager) == (4 + 5 + 6 + 8 + 6, 6 + 12 + 6 + 5 + 4)
    assert elementwise.combine(eager) == 8
    assert elementwise.combine(stack) == 4


def test_a_stack_whose_passes_are_not_listed_has_a_factor():
    _, _, once = layer_ops("two-pods")
    _, _, thrice = layer_ops("two-pods", "job.software.elementwise=3")
    assert moved(thrice.forward(False)) == pytest.approx(3 * moved(once.forward(False)))


@pytest.mark.parametrize("sequence", ["true", "false"])
def test_biases_take_passes_of_their_own(sequence):
    """Of queries, keys and values the sum with the product, r2 w2; backward a column sum of each output's gradient, r2: of qkv
    and f whole, of the two h where the tensor group holds them. All but qkv's are of biases that later kernels add."""
    changes = (f"job.parallelism.sequence={sequence}", "job.software.fusions=[norm, norm_gradient, qkv, gate_up, {}]")
    fused = (changes[0], changes[1].format("bias, bias_gradient, late_bias_gradient"))
    plan, job, without = layer_ops("two-pods", *fused, biases=True)
    _, _, alone = layer_ops("two-pods", changes[0], changes[1].format("softmax"), biases=True)
    _, _, late = layer_ops("two-pods", changes[0], changes[1].format("bias, bias_gradient"), biases=True)
    _, _, none = layer_ops("two-pods", changes[0], changes[1].format("softmax"))
    model, t, T = job.model, plan.tensor, plan.tokens
    qkv = (model.heads + 2 * model.kv_heads) * model.head_size / t
    summed = T * (qkv + 2 * model.ffn / t + 2 * model.hidden / (t if sequence == "true" else 1))
    assert moved(alone.forward(False)) - moved(without.forward(False)) == pytest.approx(4 * T * qkv)
    assert moved(alone.backward(False)) - moved(without.backward(False)) == pytest.approx(2 * summed)
    assert moved(late.backward(False)) - moved(without.backward(False)) == pytest.approx(2 * (summed - T * qkv))
    assert moved(none.forward(False)) == pytest.approx(moved(without.forward(False)))
    assert moved(none.backward(False)) == pytest.approx(moved(without.backward(False)))


@pytest.mark.parametrize(("adam", "bytes_"), [(True, 24 + 2 + 2 * 4), (False, 72 + 2 + 5 * 4)])
def test_what_the_optimizer_moves(adam, bytes_):
    stack = catalog.load("software", "megatron-2024").model_copy(update={"fusions": ("adam",) if adam else ()})
    assert stack.optimizer_traffic == bytes_


def test_products_of_one_input_are_one_or_several():
    """q, k, v: one product of (a + 2g) d/t columns, or three; gate and up: one of 2 f/t, or two. As many FLOPs."""
    plan, job, one = layer_ops("two-pods")
    model, t, T, h = job.model, plan.tensor, plan.tokens, job.model.hidden
    _, _, many = layer_ops("two-pods", "job.software.fusions=[norm]")
    q, kv, f = model.heads * model.head_size / t, model.kv_heads * model.head_size / t, model.ffn / t
    assert kernels(one.forward(False), Gemm)[0] == Gemm(T, q + 2 * kv, h)
    assert Gemm(T, 2 * f, h) in kernels(one.forward(False), Gemm)
    found = kernels(many.forward(False), Gemm)
    assert found[:3] == [Gemm(T, q, h), Gemm(T, kv, h), Gemm(T, kv, h)]
    assert found.count(Gemm(T, f, h)) == 2
    for a, b in ((one.forward(False), many.forward(False)), (one.backward(False), many.backward(False))):
        assert sum(k.flops for k in kernels(a, Gemm)) == sum(k.flops for k in kernels(b, Gemm))


FUSED = "job.software.fusions=[norm, dropout_add, gated, rope, gqa, softmax, qkv, gate_up, permute, adam]"


def test_casts_of_eight_bit():
    """8.4 bytes for an input of each column-parallel product, 2 T h; 3 for one of a row-parallel product, T (a d/t + f/t), and
    4.2 backward; and 8.4 for an output's gradient: T (h + qkv/t + h + 2 f/t)."""
    _, _, sixteen = layer_ops("two-pods", FUSED)
    plan, job, eight = layer_ops("two-pods", "job.precision=fp8", FUSED)
    model, t = job.model, plan.tensor
    inner, qkv = model.heads * model.head_size, (model.heads + 2 * model.kv_heads) * model.head_size
    rows = (inner + model.ffn) / t
    forward = plan.tokens * (8.4 * 2 * model.hidden + 3 * rows)
    backward = plan.tokens * (8.4 * (2 * model.hidden + (qkv + 2 * model.ffn) / t) + 4.2 * rows)
    assert moved(eight.forward(False)) - moved(sixteen.forward(False)) == pytest.approx(forward)
    assert moved(eight.backward(False)) - moved(sixteen.backward(False)) == pytest.approx(backward)


def test_without_sequence_parallelism_all_casts_transpose():
    """TransformerEngine's row-parallel products cast and transpose at once: 8.4 bytes of T (a d/t + f/t) forward, none back."""
    found = []
    for precision in ("fp8", "bf16"):
        changes = (f"job.precision={precision}", "job.parallelism.sequence=false", FUSED)
        plan, job, ops = layer_ops("two-pods", *changes)
        found.append([moved(ops.forward(False)), moved(ops.backward(False))])
    model, t = job.model, plan.tensor
    inner, qkv = model.heads * model.head_size, (model.heads + 2 * model.kv_heads) * model.head_size
    forward = 8.4 * plan.tokens * (2 * model.hidden + (inner + model.ffn) / t)
    backward = 8.4 * plan.tokens * (2 * model.hidden + (qkv + 2 * model.ffn) / t)
    assert found[0][0] - found[1][0] == pytest.approx(forward)
    assert found[0][1] - found[1][1] == pytest.approx(backward)


def test_a_cast_and_transposition_takes_what_was_measured():
    """4096 x 4096 elements: 51.5 us on an H100, as 8.4 bytes an element at 82 % of 3.35 TB/s."""
    seconds = elementwise.CAST_TRANSPOSE * 4096**2 / (0.82 * 3.35e12)
    assert seconds == pytest.approx(51.5e-6, rel=0.01)
    assert elementwise.TRANSPOSE / elementwise.CAST_TRANSPOSE == 2 / 4


def test_norms_that_write_eight_bit():
    """Each of the two norms writes a byte less of T h/t, and backward transposes what is gathered, 4.2 T h; the gradients of
    both row-parallel products are cast before the gather, 3 T h/t, and transposed behind it, 4.2 T h. Gathers move a byte an
    element."""
    _, _, sixteen = layer_ops("two-pods")
    plan, job, eight = layer_ops("two-pods", "job.precision=fp8")
    model, t, T = job.model, plan.tensor, plan.tokens
    inner, qkv = model.heads * model.head_size, (model.heads + 2 * model.kv_heads) * model.head_size
    rows = (inner + model.ffn) / t
    forward = T * (-2 * model.hidden / t + 3 * rows)
    backward = T * (
        2 * 4.2 * model.hidden + 2 * (3 / t + 4.2) * model.hidden + 8.4 * (qkv + 2 * model.ffn) / t + 4.2 * rows
    )
    assert moved(eight.forward(False)) - moved(sixteen.forward(False)) == pytest.approx(forward)
    assert moved(eight.backward(False)) - moved(sixteen.backward(False)) == pytest.approx(backward)
    for ops, width in ((sixteen, 2), (eight, 1)):
        gathers = [op.size for op in [*ops.forward(False), *ops.backward(False)]
                   if isinstance(op, Collective) and op.operation == "all_gather"]  # fmt: skip
        assert gathers == [width * T * model.hidden] * (2 + 4)


def test_maxima_of_delayed_scaling_meet_once_a_pass():
    """3 maxima (input, weight, gradient) of 4 products a layer in fp32, over the tensor group or all ranks of the stage."""
    for group, channel in (("tensor", "tensor"), ("replicas", "amax")):
        _, _, eight = layer_ops("two-pods", "job.precision=fp8", f"job.software.amax_reduction={group}")
        assert eight.scaling(5) == [Collective(channel, "all_reduce", 4 * 3 * 4 * 5)]
    _, _, sixteen = layer_ops("two-pods")
    assert sixteen.scaling(5) == []


def test_casts_of_eight_bit_experts():
    """Of k T routed tokens: 8.4 bytes each of h + f/t inputs; backward the output's gradients, h + 2 f/t (the up product is
    gated); beside them attention's as without experts. The router stays in 16 bit."""
    _, _, sixteen = layer_ops("colossus-100k", FUSED)
    plan, job, eight = layer_ops("colossus-100k", "job.precision=fp8", FUSED)
    model, t = job.model, plan.tensor
    inner, qkv = model.heads * model.head_size, (model.heads + 2 * model.kv_heads) * model.head_size
    h, width, k = model.hidden, model.expert_ffn / t, model.experts_per_token
    forward = plan.tokens * (8.4 * (h + k * (h + width)) + 3 * inner / t)
    backward = plan.tokens * (8.4 * (h + qkv / t + k * (h + 2 * width)) + 4.2 * inner / t)
    assert moved(eight.forward(True)) - moved(sixteen.forward(True)) == pytest.approx(forward)
    assert moved(eight.backward(True)) - moved(sixteen.backward(True)) == pytest.approx(backward)


@pytest.mark.parametrize("context", [1, 2, 4])
def test_flash_attention_of_a_rank(context):
    """2 b s^2 (a/t) d causal over all c ranks, 2.5 x that backward, in c pieces of b (a/t) (s/c) queries: a triangle of the own
    keys and values, half of the others'."""
    changes = (f"job.parallelism.context={context}", "job.parallelism.data=4", "job.micro_batch=2")
    plan, job, ops = layer_ops("two-pods", *changes)
    heads = 2 * job.model.heads / plan.tensor
    whole = 2 * plan.sequence**2 * heads * job.model.head_size / context
    forward, backward = kernels(ops.core_forward(), Flash), kernels(ops.core_backward(), Flash)
    assert len(forward) == len(backward) == context
    assert sum(k.flops for k in forward) == pytest.approx(whole)
    assert sum(k.flops for k in backward) == pytest.approx(2.5 * whole)
    for i, k in enumerate([*forward, *backward]):
        own = i % context == 0
        keys = plan.sequence / context / (1 if own else 2)
        assert (k.kind, k.heads, k.queries, k.keys, k.causal) == ("cudnn", heads, plan.sequence / context, keys, own)
        assert k.kv_heads == 2 * job.model.kv_heads / plan.tensor
    assert [k.backward for k in [*forward, *backward]] == [False] * context + [True] * context


@pytest.mark.parametrize("context", [2, 4])
@pytest.mark.parametrize("software", ["megatron-2024", "{base: megatron-2024, causal_skip: false}", "megatron-2022"])
def test_attention_is_the_same_work_however_its_sequence_is_shared(context, software):
    """All styles perform the same FLOPs. all-gather: two pieces of s/2c queries each, up to (c + 1)/2 and (3c + 1)/2 pieces of
    keys, which is what ranks have on average, r + 1 and 2c - r. ulysses: s queries and keys of 1/c of the heads."""
    work = {}
    for style in ("ring", "all-gather", "ulysses"):
        shape = (
            f"job.parallelism.context={context}",
            "job.parallelism.data=4",
            f"job.parallelism.context_style={style}",
        )
        plan, job, ops = layer_ops("two-pods", *shape, f"job.software={software}", "job.recompute=none")
        cores = [kernels(core, (Flash, Scores)) for core in (ops.core_forward(), ops.core_backward())]
        work[style] = [sum(k.flops for k in core) for core in cores]
        if software == "megatron-2024":
            piece, heads = plan.sequence / (2 * context), job.model.heads / plan.tensor
            shapes = [(k.heads, k.kv_heads, k.queries, k.keys, k.causal) for k in cores[0]]
            if style == "all-gather":
                ends = [sum(r + 1 for r in range(context)), sum(2 * context - r for r in range(context))]
                kv = job.model.kv_heads / plan.tensor
                assert shapes == [(heads, kv, piece, end / context * piece, True) for end in ends]
            if style == "ulysses":
                kv = job.model.kv_heads / plan.tensor / context
                assert shapes == [(heads / context, kv, plan.sequence, plan.sequence, True)]
    assert work["all-gather"] == pytest.approx(work["ring"])
    assert work["ulysses"] == pytest.approx(work["ring"])


def test_a_causal_piece_wastes_half_a_tile_a_row():
    """128 queries whose last meets 512 keys: 4 tiles a row, the last half masked: 3.5 met of 4 computed."""
    gpu = catalog.load("gpus", "H100")
    square, piece = (Flash("flash-2", 8, 8, q, 512, 128, True) for q in (512, 128))
    assert [k.met for k in (square, piece)] == [256, 448]
    plain = Flash("flash-2", 8, 8, 128, 448, 128, False)
    assert flash_share(piece, gpu) == pytest.approx(flash_share(plain, gpu) * 3.5 / 4)


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
    how = "full" if full else "none"
    backward = t * sum(op.flops for op in ops.backward(routed, how) if isinstance(op, Compute))
    assert backward == pytest.approx(2 * (whole - core) + 2.5 * core + (whole if full else 0))


def test_selective_recompute_repeats_the_unfused_core_only():
    _, _, kept = layer_ops("korthikanti-2022", "job.recompute=none", case="22B-selective")
    _, _, again = layer_ops("korthikanti-2022", case="22B-selective")
    twice = kernels(again.backward(False), Scores)
    assert len(twice) == len(kernels(kept.backward(False), Scores)) + 2
    assert kernels(again.backward(False), Gemm) == kernels(kept.backward(False), Gemm)
    assert moved(again.backward(False)) - moved(kept.backward(False)) == moved(kept.core_forward())


def test_recompute_by_operator_keeps_every_other_product():
    """Of q, k, v, out, gate, up, down it keeps q, v, gate and needs no down: k, out, up are there again, and all element-wise
    kernels of the forward pass, but neither fused attention nor the tensor group's reductions."""
    plan, job, ops = layer_ops("two-pods", "job.software=fsdp-2025", "job.recompute=selective-op")
    again = ops.backward(False, "selective-op")[: -len(ops.backward(False))]
    forward = ops.forward(False)
    assert kernels(again, Gemm) == kernels(forward, Gemm)[1:-1:2]
    assert len(kernels(again, Gemm)) == 3
    assert moved(again) == moved(forward)
    assert not kernels(again, Flash)
    assert not [op for op in again if isinstance(op, Collective) and op.operation != "all_gather"]
    per_token = transformer.recomputed_flops_per_token(
        job.model, plan.sequence, "selective-op", "flash-2", fusions=job.software.fusions
    )
    flops = plan.tensor * sum(k.flops for k in kernels(again, Gemm)) * job.model.layers
    assert per_token * plan.tokens == pytest.approx(flops)


@pytest.mark.parametrize("shared", [0, 8192])
def test_recompute_by_operator_repeats_products_of_experts(shared):
    """Grouped products are none of those that count: all are there again, but for the one that ends the layer."""
    plan, job, ops = layer_ops("grok2-15k", "job.recompute=selective-op", shared_ffn=shared)
    again = ops.backward(True, "selective-op")[: -len(ops.backward(True))]
    grouped = [k for k in kernels(ops.forward(True), Gemm) if k.tokens]
    assert [k for k in kernels(again, Gemm) if k.tokens] == (grouped if shared else grouped[:-1])
    per_token = transformer.recomputed_flops_per_token(
        job.model, plan.sequence, "selective-op", "flash-2", fusions=job.software.fusions
    )
    flops = plan.tensor * sum(k.flops for k in kernels(again, Gemm)) * job.model.layers
    assert per_token * plan.tokens == pytest.approx(flops)


def test_the_head_and_its_loss():
    """Three products of (T, V/t, h) in 16 bit whatever the precision, and the stack's bytes a logit in two halves; the final
    norm; maximum, label's logit and sum of each token over the tensor group, in fp32."""
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
        assert moved(both) == pytest.approx(50 * T * share + (4 + 6) * T / plan.tensor * h)
        small = [op.size for op in both if isinstance(op, Collective) and op.operation == "all_reduce"]
        assert small == [4 * T] * 3


def test_the_embedding_moves_each_token_in_and_out():
    """Forward reads and writes a 16-bit vector a token, 2 x 2 T h bytes; backward reads one and adds it to another, in a
    gradient of the rank's whole table: 2 bytes an element to clear it, and 2 + 4 + 4 to add it to the fp32 one."""
    plan, job, ops = layer_ops("two-pods")
    assert job.software.gradient_bytes == 4
    for ends, each in ((ops.embedding_forward(), 0), (ops.embedding_backward(), 2 + 10)):
        table = job.model.vocabulary / plan.tensor * job.model.hidden
        assert moved(ends) == 4 * plan.tokens * job.model.hidden + each * table
        assert not kernels(ends, Gemm)


@pytest.mark.parametrize("sequence", ["true", "false"])
def test_routed_tokens_are_permuted_and_shared_evenly(sequence):
    """Each of the local experts gets its part of k T tokens of the group; twice 4 bytes put the rank's in order, and if it has
    several experts twice 4 those that it got. The router's softmax and choice take 23 and 22 bytes a logit."""
    plan, job, ops = layer_ops("colossus-100k", f"job.parallelism.sequence={sequence}")
    model = job.model
    local = model.experts // plan.expert
    forward = ops.forward(True)
    grouped = [k for k in kernels(forward, Gemm) if not k.half][-2:]
    m, width = plan.tokens * model.experts_per_token / local, model.expert_ffn / plan.tensor
    assert grouped == [
        Gemm(m, 2 * width, model.hidden, local, tokens=m),
        Gemm(m, model.hidden, width, local, tokens=m),
    ]
    rows = plan.tokens / (plan.tensor if sequence == "true" else 1)
    k = model.experts_per_token
    permuted = 2 * 4 * rows * k * model.hidden
    sorted_ = 2 * 4 * plan.tokens * k * model.hidden if local > 1 else 0
    activated, logits = plan.tokens * k * width, rows * model.experts
    rotated = 4 * plan.tokens * (model.heads + max(plan.tensor, model.kv_heads)) / plan.tensor * model.head_size
    both = permuted + sorted_ + rotated
    add = 2 * 6 * rows * model.hidden
    norms = model.norms * rows * model.hidden
    assert moved(forward) == pytest.approx(add + 4 * norms + both + 6 * activated + 23 * logits)
    assert moved(ops.backward(True)) == pytest.approx(add + 6 * norms + both + 10 * activated + 22 * logits)


def test_tokens_of_the_fullest_experts():
    """1.5 times the mean: the grouped products have as many tokens more, and all-to-alls wait for as many bytes more; of what
    the rank sends itself 3/4 are kept, and put in order."""
    plan, job, even = layer_ops("colossus-100k")
    full = LayerOps(plan, job, Load(0.75, 1.5))
    one, other = (kernels(ops.forward(True), Gemm) for ops in (even, full))
    assert [k.m / j.m for j, k in zip(one, other, strict=True)] == [1.5 if k.tokens else 1.0 for k in other]
    sent = [
        [op.size for op in ops.forward(True) if isinstance(op, Collective) and op.channel == "expert"]
        for ops in (even, full)
    ]
    assert sent[1] == [1.5 * size for size in sent[0]]
    rows, k, h = plan.tokens / plan.tensor, job.model.experts_per_token, job.model.hidden
    activated = 6 * plan.tokens * k * job.model.expert_ffn / plan.tensor
    more = -0.25 * 2 * 4 * rows * k * h + 0.5 * activated
    assert moved(full.forward(True)) - moved(even.forward(True)) == pytest.approx(more)


def test_a_shared_mlp_hides_the_dispatch_only_if_asked():
    for overlap, kind in (("true", Post), ("false", Collective)):
        _, _, ops = layer_ops("grok2-15k", f"job.overlap.expert={overlap}")
        for body in (ops.forward(True), ops.backward(True)):
            sent = [op for op in body if isinstance(op, Post | Collective)]
            sent = [op for op in sent if (op.collective if isinstance(op, Post) else op).channel == "expert"]
            assert [type(op) for op in sent] == [kind, Collective]
