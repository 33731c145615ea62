"""Parameters and FLOPs against published totals and formulas, and counts made by hand."""

from __future__ import annotations

import pytest

from colossim import catalog
from colossim.catalog.types import Model
from colossim.workload import transformer

MODELS = catalog.names("models")


def toy(**changes):
    """h 8, 4 heads of 2 over 2 key/value heads, MLP 16 wide, 10 tokens, 3 layers."""
    shape = {"layers": 3, "hidden": 8, "heads": 4, "kv_heads": 2, "ffn": 16, "vocabulary": 10, "norm": "rmsnorm"}
    return Model(**{**shape, **changes})


# -- parameters ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "total"),
    [("grok-2", 269_515_497_472), ("grok-1", 315_684_820_992), ("llama3-405b", 405_853_388_800)],
)
def test_published_parameter_counts(name, total):
    assert transformer.parameters(catalog.load("models", name)) == total


@pytest.mark.parametrize(("name", "count"), [("grok-1", 83.76e9), ("grok-2", 114.9e9), ("gpt3-175b", 174.60e9)])
def test_what_a_token_uses(name, count):
    """Two of eight experts of the Groks (models.md 1, to its four digits); GPT-3 uses all of its 174.60e9 (V 50,257)."""
    assert transformer.active_parameters(catalog.load("models", name)) == pytest.approx(count, rel=5e-4)


def test_a_plain_layer_by_hand():
    """h d (a + 2g) + a d h = 8 x 2 x (4 + 4) + 8 x 8 = 192; two matrices of 8 x 16 = 256; two norms of 8."""
    found = transformer.layer(toy(), 0)
    assert (found.attention, found.mlp, found.expert, found.router, found.norms) == (192, 256, 0, 0, 16)


@pytest.mark.parametrize(("activation", "matrices"), [("gelu", 2), ("squared-relu", 2), ("swiglu", 3), ("geglu", 3)])
def test_gated_mlps_have_three_matrices(activation, matrices):
    assert transformer.layer(toy(activation=activation), 0).mlp == matrices * 8 * 16


def test_biases_follow_the_outputs_of_each_product():
    """QKV puts out 8 + 2 x 4, the projection 8; the MLP 16 (32 gated) and 8: 24 + 24, or 24 + 40 more."""
    for activation, wide in (("gelu", 16), ("swiglu", 32)):
        plain = transformer.layer(toy(activation=activation), 0)
        biased = transformer.layer(toy(activation=activation, biases=True), 0)
        assert (biased.attention - plain.attention, biased.mlp - plain.mlp) == (8 + 2 * 4 + 8, wide + 8)


def test_norms_positions_and_a_tied_head():
    """3 x 2 + 1 norms of h, twice that with the shift of a layernorm; positions are h each; an untied head V h."""
    base = transformer.parameters(toy(tied=True))
    assert base == 3 * (192 + 256) + 10 * 8 + 7 * 8
    assert transformer.parameters(toy(tied=True, norm="layernorm")) - base == 7 * 8
    assert transformer.parameters(toy(tied=True, norms=4)) - base == 3 * 2 * 8
    assert transformer.parameters(toy(tied=True, positions=5)) - base == 5 * 8
    assert transformer.parameters(toy()) - base == 10 * 8


def test_layers_with_experts_by_hand():
    """6 experts of 3 x 8 x 4, a router of 8 x 6 and a shared MLP of 3 x 8 x 2 instead of the dense 3 x 8 x 16.

    A token meets 2 of 6 experts in each of the two layers that have them.
    """
    shape = {"activation": "swiglu", "experts": 6, "experts_per_token": 2, "expert_ffn": 4, "shared_ffn": 2}
    model = toy(**shape, dense_layers=1)
    dense, routed = transformer.layer(model, 0), transformer.layer(model, 1)
    assert (dense.mlp, dense.expert, dense.router) == (384, 0, 0)
    assert (routed.mlp, routed.expert, routed.router) == (48, 96, 48)
    total = 3 * (192 + 16) + 384 + 2 * (48 + 6 * 96 + 48) + 2 * 80 + 8
    assert transformer.parameters(model) == total
    assert transformer.active_parameters(model) == total - 2 * 4 * 96
    assert transformer.active_parameters(toy()) == transformer.parameters(toy())


def test_grok_1_is_314b_by_its_layers_alone():
    """Each of 64 layers: 6144 x 128 (48 + 16) + 6144^2 attention, 8 experts of 3 x 6144 x 32768, a router, four norms."""
    model = catalog.load("models", "grok-1")
    layer = 6144 * 128 * (48 + 2 * 8) + 6144**2 + 8 * 3 * 6144 * 32768 + 8 * 6144 + 4 * 6144
    assert transformer.parameters(model) == 64 * layer + 131_072 * 6144 + 6144
    assert 64 * layer == pytest.approx(314.9e9, rel=1e-3)


# -- FLOPs -----------------------------------------------------------------------------------------------------------
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
    """Full: the layers again, the head not. Selective: the unfused core's 2 s a d a layer; flash's scores don't count."""
    model, s = catalog.load("models", "megatron-175b"), 2048
    forward = transformer.forward_flops_per_token(model, s)
    again = transformer.recomputed_flops_per_token(model, s, "full", "unfused")
    assert again == pytest.approx(forward - 2 * model.hidden * model.vocabulary)
    core = transformer.recomputed_flops_per_token(model, s, "selective", "unfused")
    assert core == 2 * s * model.heads * model.head_size * model.layers
    assert transformer.recomputed_flops_per_token(model, s, "selective", "flash") == 0
    assert transformer.recomputed_flops_per_token(model, s, "none", "unfused") == 0


def test_forward_flops_by_hand():
    """2 (192 + 256) a layer, 2 x 80 of head, and the core's 4 s a d = 4 x 5 x 8 a layer, half of it when causal."""
    whole = 3 * (2 * (192 + 256) + 4 * 5 * 8) + 2 * 80
    assert transformer.forward_flops_per_token(toy(), 5, causal=False) == whole
    assert transformer.forward_flops_per_token(toy(), 5) == whole - 3 * 2 * 5 * 8
    assert transformer.model_flops_per_token(toy(), 5, causal=False) == 3 * whole


def test_flops_of_experts_by_hand():
    """Dense layer 2 x 3 x 8 x 16; the others 2 x (2 x 96 + 48 + 48): two experts, the shared MLP, the router."""
    shape = {"activation": "swiglu", "experts": 6, "experts_per_token": 2, "expert_ffn": 4, "shared_ffn": 2}
    found = transformer.forward_flops_per_token(toy(**shape, dense_layers=1), 5)
    assert found == 3 * (2 * 192 + 2 * 5 * 8) + 2 * 384 + 2 * 2 * (2 * 96 + 48 + 48) + 2 * 80


@pytest.mark.parametrize("name", MODELS)
def test_palm_counts_six_flops_a_weight_and_the_core(name):
    """6 N + 12 L a d s (Chowdhery et al. 2022, appendix B); N: weights that a token meets in a product.

    Those are the active parameters without norms, biases and the looked-up embedding.
    """
    model, s = catalog.load("models", name), 4096
    layers = [transformer.layer(model, i) for i in range(model.layers)]
    bare = [transformer.layer(model.model_copy(update={"biases": False}), i) for i in range(model.layers)]
    biases = sum(x.attention + x.mlp - y.attention - y.mlp for x, y in zip(layers, bare, strict=True))
    norms = sum(x.norms for x in layers) + (2 if model.norm == "layernorm" else 1) * model.hidden
    looked_up = model.positions * model.hidden + (0 if model.tied else model.vocabulary * model.hidden)
    met = transformer.active_parameters(model) - norms - biases - looked_up
    palm = 6 * met + 12 * model.layers * model.heads * model.head_size * s
    assert transformer.model_flops_per_token(model, s, causal=False) == pytest.approx(palm, rel=1e-12)


def test_attention_of_llama_at_8k_is_8_or_4_percent_of_6n():
    """12 L a d s / 6 N = 8.3 % whole, 4.2 % causal (models.md 1)."""
    model = catalog.load("models", "llama3-405b")
    six = 6 * transformer.parameters(model)
    core = [
        transformer.model_flops_per_token(model, 8192, causal=c) - transformer.model_flops_per_token(model, 0, causal=c)
        for c in (False, True)
    ]
    assert core[0] / six == pytest.approx(0.083, abs=5e-4)
    assert core[1] / six == pytest.approx(0.042, abs=5e-4)


# -- how it falls on stages ------------------------------------------------------------------------------------------
def test_chunk_c_on_stage_i_is_slot_i_plus_p_c():
    """12 layers in 2 stages x 3 chunks: slots of 2 layers, stage 1 has slots 1, 3 and 5."""
    slots = (2,) * 6
    assert [list(transformer.chunk_layers(2, slots, 1, c)) for c in range(3)] == [[2, 3], [6, 7], [10, 11]]
    every = [i for s in range(2) for c in range(3) for i in transformer.chunk_layers(2, slots, s, c)]
    assert sorted(every) == list(range(12))


def test_uneven_chunks_take_layers_in_the_order_of_the_model():
    """0, 3, 1, 2 layers in 2 stages x 2 chunks: stage 0 has slots 0 and 2, which is layer 3 alone."""
    found = [[list(transformer.chunk_layers(2, (0, 3, 1, 2), s, c)) for c in range(2)] for s in range(2)]
    assert found == [[[], [3]], [[0, 1, 2], [4, 5]]]


def test_ends_of_a_tied_and_of_an_untied_model():
    """Tensor 2: half an embedding (40) first; final norm (8) and half a head (40) last, a tied head only on a stage apart."""

    def ends(model, pipeline):
        return [
            transformer.local_ends(model, 2, first=s == 0, last=s == pipeline - 1, pipeline=pipeline)
            for s in range(pipeline)
        ]

    assert ends(toy(), 3) == [40, 0, 48]
    assert ends(toy(tied=True), 3) == [40, 0, 48]
    assert ends(toy(), 1) == [88]
    assert ends(toy(tied=True), 1) == [48]


def test_a_layer_on_one_rank():
    """Tensor 2 halves attention, MLP and experts, expert 3 leaves 2 of 6; router and norms are on every rank."""
    model = toy(activation="swiglu", experts=6, experts_per_token=2, expert_ffn=4, shared_ffn=2)
    local = transformer.local_layer(model, 0, 2, 3)
    assert local.dense == (192 + 48) / 2 + 48 + 16
    assert local.experts == 2 * 96 / 2


@pytest.mark.parametrize(
    ("name", "p", "slots", "t", "e"),
    [
        ("grok-1", 8, (1,) * 64, 4, 8),
        ("grok-2", 8, (4,) * 16, 8, 4),
        ("llama3-70b", 4, (4,) * 20, 8, 1),
        ("llama3-405b", 16, (7, *(8,) * 14, 7), 8, 1),
        ("llama3-405b", 16, (0, *(1,) * 126, 0), 8, 1),
    ],
)
def test_stages_hold_the_whole_model(name, p, slots, t, e):
    """Over t and e ranks the stages add up; norms and routers are on every tensor rank, a tied head twice."""
    model = catalog.load("models", name)
    stages = [transformer.stage_parameters(model, p, slots, i, t, e) for i in range(p)]
    layers = [transformer.layer(model, i) for i in range(model.layers)]
    repeated = (t - 1) * sum(x.norms + x.router for x in layers) + (t - 1) * model.hidden
    twice = transformer.head(model) if model.tied else 0
    total = sum(t * stage.dense + t * e * stage.experts for stage in stages)
    assert total == pytest.approx(transformer.parameters(model) + repeated + twice)


def test_more_tensor_ranks_than_key_value_heads_repeat_them():
    """4 ranks share 2 key/value heads: each has one query head and a whole key/value head: 8 x 2 x 3 + 2 x 8 of attention.

    The products are that wide (kernels), so the weights must be, too.
    """
    local = transformer.local_layer(toy(), 0, 4, 1)
    assert local.dense == 8 * 2 * (1 + 2) + 2 * 8 + 256 / 4 + 16


@pytest.mark.parametrize("fusions", [(), ("qkv", "gate_up")])
@pytest.mark.parametrize("name", ["llama3-70b", "gpt3-175b", "mixtral-8x22b", "grok-1"])
def test_weights_of_a_layer_are_its_parameters(name, fusions):
    """Q, K, V, the output, two norms, gate, up, down: 9 tensors of a Llama's layer, 6 with what is fused; experts 3 each."""
    model = catalog.load("models", name)
    for tensor, index in ((1, 0), (8, model.layers - 1)):
        dense, experts = transformer.local_tensors(model, index, tensor, 4, None, fusions)
        local = transformer.local_layer(model, index, tensor, 4)
        assert (sum(dense), sum(experts)) == pytest.approx((local.dense, local.experts))
    if name == "llama3-70b":
        assert len(dense) == (6 if fusions else 9)
    if name == "mixtral-8x22b":
        assert len(experts) == 3 * 8 // 4
