"""The catalogue: every entry is sound, has a source, and its shapes add up to what was published."""

from __future__ import annotations

import datetime

import pytest
from pydantic import ValidationError

from colossim import catalog
from colossim.catalog import load, names
from colossim.catalog.types import Fabric, Gpu

ENTRIES = [(kind, name) for kind in catalog.KINDS for name in names(kind)]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_has_a_source_and_a_date(kind, name):
    entry = load(kind, name)
    assert entry.name == name
    assert len(entry.source) > 10
    assert datetime.date(2020, 1, 1) <= datetime.date.fromisoformat(entry.date)


@pytest.mark.parametrize(("kind", "name"), [item for item in ENTRIES if item[0] != "models"])
def test_measured_and_assumed_is_told(kind, name):
    assert len(load(kind, name).note) > 40


def test_the_kinds_hold_what_they_should():
    assert names("gpus") == [
        "A100-40GB",
        "A100-80GB",
        "B200",
        "B300",
        "GB200",
        "GB300",
        "GH200",
        "H100",
        "H200",
        "H800",
    ]
    assert {"dgx-a100", "hgx-h100", "hgx-h200", "hgx-b200", "gb200-nvl72"} <= set(names("nodes"))
    assert {"spectrum-x", "spectrum-x-4tier", "quantum-2", "meta-roce-24k", "selene-hdr"} <= set(names("fabrics"))
    assert {"megatron-2021", "megatron-2022", "megatron-2024", "deepspeed-2023", "fsdp-2025"} <= set(names("software"))


def parameters(model):
    """Parameters of a decoder, weight by weight.

    Attention: queries and output 2 h a d, keys and values 2 h g d. MLP: 2 or 3 matrices h x f, by expert;
    router h x E. Norms: h a piece, twice with a bias (layer norm). Biases of linear layers, if any.
    """
    h, a, g, d = model.hidden, model.heads, model.kv_heads, model.head_size
    assert model.dense_layers == 0
    attention = 2 * h * a * d + 2 * h * g * d
    dense = model.shared_ffn if model.experts else model.ffn
    mlp = model.mlp_matrices * h * (dense + model.experts * model.expert_ffn) + h * model.experts
    norm = h * (2 if model.norm == "layernorm" else 1)
    biases = (a * d + 2 * g * d + h) + (dense + h) if model.biases else 0
    layer = attention + mlp + biases + model.norms * norm
    embedding = (model.vocabulary * (1 if model.tied else 2) + model.positions) * h
    return model.layers * layer + embedding + norm


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("grok-1", 315_684_820_992),
        ("grok-2", 269_515_497_472),
        ("llama3-405b", 405_853_388_800),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
    ],
)
def test_shapes_add_up_exactly(name, published):
    assert parameters(load("models", name)) == published


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt3-175b", 174.60e9),
        ("megatron-22b", 22e9),
        ("megatron-175b", 175e9),
        ("megatron-530b", 530e9),
        ("megatron-1t", 1008e9),
        ("mixtral-8x22b", 140.6e9),
        ("grok3-assumed", 1.72e12),
    ],
)
def test_shapes_add_up_to_the_published_rounding(name, published):
    tolerance = 5e-5 if name == "gpt3-175b" else 0.03
    assert parameters(load("models", name)) == pytest.approx(published, rel=tolerance)


def test_reported_gpt4_has_the_reported_experts():
    """16 experts of about 111B, about 55B shared by them: 2 h f and 4 h^2 a layer."""
    model = load("models", "gpt4-reported")
    assert model.status == "reported"
    assert 2 * model.hidden * model.expert_ffn * model.layers == pytest.approx(111e9, rel=0.01)
    assert 4 * model.hidden**2 * model.layers == pytest.approx(55e9, rel=0.02)


def ring_seconds(ring, n, size):
    """All-reduce: base + 2(n-1) hop + 2(n-1)/n S/B (1 + (S0 n/8/S)^g)."""
    ramp = 1 + (ring.half_size * n / 8 / size) ** ring.exponent
    return ring.base + 2 * (n - 1) * ring.hop + 2 * (n - 1) / n * size / ring.bandwidth * ramp


@pytest.mark.parametrize(
    ("node", "n", "measured"),
    [("hgx-b200", 4, 19122.74e-6), ("hgx-b200", 8, 22035.16e-6), ("gb200-nvl72", 4, 19424.0e-6)],
)
def test_rings_of_blackwell_are_the_measured_ones(node, n, measured):
    """All-reduce of 8 GiB without NVLS (stas00/ml-engineering; OCI GPU quickstarts)."""
    assert ring_seconds(load("nodes", node).nvlink_ring, n, 2**33) == pytest.approx(measured, rel=0.02)


def test_quantities_are_si_floats():
    gpu = load("gpus", "H100")
    assert gpu.memory == 81559 * 2**20
    assert gpu.peak["bf16"] == 989e12
    assert load("fabrics", "spectrum-x").link == 50e9
    assert load("nodes", "hgx-h200").gpu.memory_rate / gpu.memory_rate == pytest.approx(4.8 / 3.35)


def test_the_overlap_of_megatron_costs_what_was_measured():
    """A stand-alone second of traffic costs (1+y) x/(1+x) seconds of compute: 0.35 on H100, before any fit of ours."""
    overlap = load("software", "megatron-2024", calibrated=False).overlap
    assert (1 + overlap.transfer) * overlap.compute / (1 + overlap.compute) == pytest.approx(0.35)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean `hgx-h100`"):
        load("nodes", "hgx-h10")


def test_facts_are_frozen_and_strict():
    gpu = load("gpus", "H100")
    with pytest.raises(ValidationError):
        gpu.sms = 3
    with pytest.raises(ValidationError):
        Gpu.model_validate({**catalog.entry("gpus", "H100"), "cores": 5})


@pytest.mark.parametrize(
    ("tiers", "given", "stored"),
    [
        (1, (), ()),
        (3, (), (1.0, 1.0)),
        (3, (2,), (2.0, 1.0)),
        (4, (1, 7), (1.0, 7.0, 1.0)),
        (2, (1, 7), (1.0,)),
    ],
)
def test_oversubscription_has_one_number_a_boundary(tiers, given, stored):
    fabric = Fabric(type="rail-optimized", tiers=tiers, link="400 Gb/s", switch_ports=64, oversubscription=given)
    assert fabric.oversubscription == stored
    assert [fabric.ratio(i) for i in range(len(stored))] == list(stored)


def test_an_inline_model_has_sensible_defaults():
    model = catalog.Model.model_validate({"layers": 4, "hidden": 512, "heads": 8, "vocabulary": 1000})
    assert (model.kv_heads, model.head_size, model.ffn, model.activation) == (8, 64, 2048, "gelu")
    assert (model.tied, model.experts, model.positions) == (False, 0, 0)


def test_own_entries_may_change_those_that_ship():
    extra = {
        "gpus": {"H100": {"base": "H100", "tdp": "500 W"}},
        "nodes": {"mine": {"base": "hgx-h100", "gpus": 4}},
    }
    mine = load("nodes", "mine", extra)
    assert (mine.name, mine.gpus, mine.gpu.tdp) == ("mine", 4, 500.0)
    assert load("nodes", "hgx-h100").gpu.tdp == 700.0
    assert "mine" in names("nodes", extra)


def test_changes_reach_into_nested_fields():
    """`gpu` of hgx-h100 is a name, `host` of megatron-2024 a mapping: both are changed field by field."""
    node = catalog.NodeType.model_validate(catalog.based("nodes", {"base": "hgx-h100", "gpu": {"memory": "60 GB"}}))
    assert (node.gpu.memory, node.gpu.sms) == (60e9, 132)
    software = catalog.based("software", {"base": "megatron-2024", "host": {"forward": "1 ms"}})
    host = catalog.Software.model_validate(software).host
    assert (host.forward, host.exponent) == (1e-3, 3.85)
