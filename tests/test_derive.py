"""The layout of a job: what follows from the counts, and every rule that joins them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossim.errors import ScenarioError
from colossim.scenario.derive import advice, derive, no_effects
from colossim.scenario.reader import load_scenario
from colossim.scenario.rules import near_divisors
from colossim.scenario.schema import Scenario

DENSE = {"layers": 24, "hidden": 1024, "heads": 16, "kv_heads": 8, "vocabulary": 32000}
EXPERTS = {**DENSE, "experts": 8, "experts_per_token": 2, "expert_ffn": 2048}


def scenario(*, nodes=16, fabric="spectrum-x", types=("hgx-h100",), **job):
    """A scenario of `nodes` nodes of each type; `job` overrides a plain job, parallelism included."""
    parallelism = job.pop("parallelism", {})
    plain = {"model": DENSE, "sequence_length": 4096, "global_batch": 128, "parallelism": parallelism}
    groups = tuple({"type": kind, "count": nodes} for kind in types)
    return Scenario.model_validate(
        {"name": "x", "cluster": {"nodes": groups, "fabric": fabric}, "job": {**plain, **job}}
    )


def problems(**job):
    with pytest.raises(ScenarioError) as caught:
        derive(scenario(**job))
    return {problem.field: problem.message for problem in caught.value.problems}


def test_the_layout_of_colossus():
    """12,500 nodes x 8 = 100,000 GPUs; a replica takes 8 x 8 = 64, so at most 1,562 replicas.

    D | 12,288 and 8 | D: 1,536 = 12,288 / 8. World 1,536 x 64 = 98,304; (100,000 - 98,304)/8 = 212 spares.
    """
    plan = derive(load_scenario("colossus-100k"))
    assert (plan.gpus, plan.data, plan.micro_batches, plan.world) == (100_000, 1536, 8, 98_304)
    assert plan.spares == (("hgx-h100", 212),)
    assert plan.axes == {"tensor": 8, "context": 1, "expert": 8, "data": 192, "pipeline": 8}
    assert (plan.expert_context, plan.replica_group, plan.expert_group) == (1, 1536, 192)
    assert (plan.tokens, plan.chunks) == (8192, 8)


def test_llama_3s_own_stages():
    """126 layers, embedding and loss on 16 stages: 128/16 = 8, 7 on the first and the last. With 8 chunks a stage one each,
    and the first has the embedding alone, the last the loss (Llama 3, section 3.3.2)."""
    shape = {"tensor": 8, "pipeline": 16, "account_for_embedding": True, "account_for_loss": True}
    plain = derive(scenario(model="llama3-405b", parallelism=shape))
    assert plain.layers == (7, *(8,) * 14, 7)
    shape |= {"schedule": "interleaved", "virtual_pipeline": 8}
    assert derive(scenario(model="llama3-405b", parallelism=shape)).layers == (0, *(1,) * 126, 0)


def test_layers_of_stages_are_equal_as_given_or_make_room_for_the_ends():
    assert derive(scenario(parallelism={"pipeline": 4})).layers == (6, 6, 6, 6)
    assert derive(scenario(parallelism={"pipeline": 4, "stage_layers": (5, 7, 7, 5)})).layers == (5, 7, 7, 5)
    model = {**DENSE, "layers": 23}
    first = {"pipeline": 4, "account_for_embedding": True}
    assert derive(scenario(model=model, parallelism=first)).layers == (5, 6, 6, 6)
    assert derive(scenario(model=model, parallelism={"pipeline": 4, "account_for_loss": True})).layers == (6, 6, 6, 5)


@pytest.mark.parametrize(
    ("parallelism", "field", "says"),
    [
        ({"stage_layers": (8, 8, 8)}, "stage_layers", "has 3 numbers: 4 stages take 4"),
        ({"stage_layers": (6, 6, 6, 7)}, "stage_layers", "adds up to 25 layers: the model has 24"),
        ({"stage_layers": (8, 0, 8, 8)}, "stage_layers.1", "only the first, with the embedding, and the last"),
        ({"stage_layers": (6,) * 4, "account_for_loss": True}, "account_for_loss", "leave it out, or stage_layers"),
        ({"pipeline": 13}, "pipeline", "6, 8, 12 stages would; with account_for_embedding and account_for_loss"),
        ({"pipeline": 6, "account_for_loss": True}, "pipeline", "24 layers with loss as a layer = 25: 1, 5, 25 stages"),
        (
            {"pipeline": 2, "virtual_pipeline": 2, "schedule": "interleaved", "stage_layers": (12, 12)},
            "stage_layers", "has 2 numbers: 2 stages x 2 chunks take 4",
        ),
    ],
)  # fmt: skip
def test_stages_that_cannot_be(parallelism, field, says):
    found = problems(parallelism={"pipeline": 4, **parallelism})
    assert says in found[f"job.parallelism.{field}"]


def test_layers_of_full_recompute_are_of_full_recompute():
    found = problems(recompute="selective", recompute_layers=2)
    assert found == {"job.recompute_layers": "is of full recompute: leave it out with recompute: selective"}
    assert derive(scenario(recompute="full", recompute_layers=2)).data == 128


def test_auto_takes_the_largest_number_of_replicas_that_divides_the_batch():
    """128 GPUs / (2 x 2) = 32 replicas at most; 120 sequences are 60 micro-batches of 2: 30 replicas x 2."""
    plan = derive(scenario(global_batch=120, micro_batch=2, parallelism={"tensor": 2, "pipeline": 2}))
    assert (plan.data, plan.micro_batches, plan.world) == (30, 2, 120)
    assert plan.spares == (("hgx-h100", 1),)


def test_auto_is_a_multiple_of_the_experts():
    """At most 16 replicas; 90 sequences divide by 15, 10, 9, ..., but 2 must divide D: 10."""
    plan = derive(scenario(model=EXPERTS, global_batch=90, parallelism={"tensor": 8, "expert": 2}))
    assert (plan.data, plan.axes["expert"], plan.axes["data"]) == (10, 2, 5)


def test_experts_may_span_contexts():
    """e = 4, D = 2, c = 4: the expert axis takes gcd(2, 4) = 2 replicas, the group 4/2 = 2 contexts."""
    parallelism = {"tensor": 4, "context": 4, "expert": 4, "data": 2}
    plan = derive(scenario(model=EXPERTS, parallelism=parallelism))
    assert (plan.axes["expert"], plan.axes["data"], plan.expert_context) == (2, 1, 2)
    assert (plan.tokens, plan.replica_group, plan.expert_group) == (1024, 8, 2)


def test_spares_are_told_by_node_type():
    """24 H100 nodes and 24 H200 ones, a world of 25 nodes: 23 H200 nodes are left over."""
    plan = derive(
        scenario(nodes=24, types=("hgx-h100", "hgx-h200"), global_batch=25, parallelism={"tensor": 8, "data": 25})
    )
    assert plan.spares == (("hgx-h200", 23),)


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 40),
    st.integers(1, 300),
)
def test_a_layout_keeps_its_promises(tensor, context, pipeline, expert, nodes, batch):
    """What the contract of `data: auto` says, against trying every number of replicas."""
    parallelism = {"tensor": tensor, "context": context, "pipeline": pipeline, "expert": expert}
    job = scenario(nodes=nodes, model=EXPERTS, global_batch=batch, parallelism=parallelism)
    most = 8 * nodes // (tensor * context * pipeline)
    fitting = [d for d in range(1, most + 1) if batch % d == 0 and d * context % expert == 0]
    if not fitting:
        with pytest.raises(ScenarioError):
            derive(job)
        return
    plan = derive(job)
    assert plan.data == max(fitting)
    assert plan.world == tensor * context * pipeline * plan.data <= plan.gpus
    assert plan.data * plan.micro_batches * plan.micro_batch == batch
    assert plan.axes["expert"] * plan.expert_context == expert
    assert context % plan.expert_context == 0
    left = plan.gpus - plan.world
    assert sum(count for _, count in plan.spares) == left // 8


RULES = [
    (
        {"parallelism": {"tensor": 4, "data": 6, "sharding_group": 4}, "global_batch": 24},
        "job.parallelism.sharding_group",
        "4 does not divide the 6 ranks that hold the same parameters: 2, 3, 6 would",
    ),
    (
        {"model": EXPERTS, "parallelism": {"tensor": 4, "data": 4, "expert": 4, "sharding_group": 2}},
        "job.parallelism.sharding_group",
        "use all",
    ),
    (
        {"parallelism": {"pipeline": 2, "defer_head": 4, "schedule": "zero-bubble"}},
        "job.parallelism.defer_head",
        "leave it out",
    ),
    (
        {"parallelism": {"pipeline": 2, "defer_head": 4, "sharding": "gradients"}},
        "job.parallelism.defer_head",
        "use sharding: optimizer",
    ),
    (
        {"precision": "fp8", "balance": "speed", "software": {"base": "megatron-2024", "amax_reduction": "replicas"}},
        "job.balance",
        "amax_reduction: tensor",
    ),
    ({"parallelism": {"tensor": 3}}, "job.parallelism.tensor", "does not divide"),
    ({"parallelism": {"tensor": 32}}, "job.parallelism.tensor", "does not divide 16 heads: 4, 8, 16 would"),
    ({"model": {**DENSE, "kv_heads": 3}}, "job.model.kv_heads", "does not divide 16 heads: 1, 2, 4 would"),
    (
        {"model": {**DENSE, "heads": 24, "head_size": 64, "kv_heads": 6}, "parallelism": {"tensor": 4}},
        "job.parallelism.tensor",
        "one must divide the other",
    ),
    (
        {"model": {**DENSE, "ffn": 4098}, "parallelism": {"tensor": 4}},
        "job.parallelism.tensor",
        "does not divide the ffn",
    ),
    (
        {"parallelism": {"pipeline": 5}},
        "job.parallelism.pipeline",
        "do not divide 24 layers: 3, 4, 6 stages would",
    ),
    (
        {"parallelism": {"pipeline": 4, "schedule": "interleaved", "virtual_pipeline": 4}},
        "job.parallelism.pipeline",
        "4 stages x 4 chunks do not divide 24 layers: 8, 12, 24 stages x chunks would",
    ),
    (
        {"parallelism": {"pipeline": 4, "virtual_pipeline": 2}},
        "job.parallelism.virtual_pipeline",
        "one chunk",
    ),
    (
        {"parallelism": {"pipeline": 4, "schedule": "interleaved"}},
        "job.parallelism.virtual_pipeline",
        "at least 2",
    ),
    (
        {"parallelism": {"schedule": "interleaved", "virtual_pipeline": 2}},
        "job.parallelism.schedule",
        "at least 2 stages",
    ),
    ({"parallelism": {"expert": 2}}, "job.parallelism.expert", "no experts"),
    (
        {"model": EXPERTS, "parallelism": {"expert": 3}},
        "job.parallelism.expert",
        "does not divide 8 experts: 1, 2, 4",
    ),
    ({"model": {**EXPERTS, "experts_per_token": 9}}, "job.model.experts_per_token", "between 1 and 8"),
    (
        {"model": EXPERTS, "parallelism": {"tensor": 4, "sequence": True, "expert_tensor": 3}},
        "job.parallelism.expert_tensor",
        "3 does not divide tensor 4: 1, 2, 4 would",
    ),
    (
        {"model": EXPERTS, "parallelism": {"tensor": 4, "expert_tensor": 2}},
        "job.parallelism.expert_tensor",
        "each routes tokens of its own; set sequence: true",
    ),
    (
        {"model": {**EXPERTS, "expert_ffn": 2049}, "parallelism": {"tensor": 2, "sequence": True, "expert_tensor": 2}},
        "job.parallelism.expert_tensor",
        "2 does not divide the expert_ffn of 2,049: 1, 3, 683 would",
    ),
    (
        {
            "model": EXPERTS,
            "parallelism": {"tensor": 2, "sequence": True, "expert_tensor": 1, "expert": 8, "data": 6},
        },
        "job.parallelism.data",
        "6 replicas x context 1 are no multiple of expert 8 / 2 within a tensor group",
    ),
    (
        {
            "model": EXPERTS,
            "parallelism": {"tensor": 2, "sequence": True, "expert_tensor": 1, "data": 4, "sharding_group": 2},
        },
        "job.parallelism.sharding_group",
        "can't share the states of experts yet",
    ),
    ({"model": EXPERTS, "experts": {"pad": True}}, "job.experts.pad", "say capacity_factor"),
    ({"model": EXPERTS, "experts": {"fullest": 1.5, "imbalance": "10 %"}}, "job.experts.fullest", "or imbalance"),
    (
        {"model": EXPERTS, "experts": {"fullest": 4.5}, "parallelism": {"expert": 4}},
        "job.experts.fullest",
        "more than all tokens on one of 4 ranks: at most 4",
    ),
    (
        {"model": {**EXPERTS, "experts_per_token": 7}, "experts": {"imbalance": "40 %"}},
        "job.experts.imbalance",
        "with all tokens on 7 of 8 experts it is 0.378: less would do",
    ),
    ({"model": {**EXPERTS, "expert_ffn": 0}}, "job.model.expert_ffn", "how wide"),
    ({"model": {**EXPERTS, "dense_layers": 24}}, "job.model.dense_layers", "leave none"),
    ({"model": {**EXPERTS, "dense_layers": 2, "ffn": 0}}, "job.model.ffn", "how wide"),
    ({"model": {**DENSE, "ffn": 0}}, "job.model.ffn", "how wide"),
    ({"model": {**DENSE, "positions": 2048}}, "job.sequence_length", "2,048 learned positions"),
    ({"sequence_length": 4098, "parallelism": {"context": 2}}, "job.sequence_length", "4,096 would"),
    (
        {"parallelism": {"tensor": 8, "context": 4, "context_style": "ulysses"}},
        "job.parallelism.context",
        "4 x tensor 8 = 32 ranks heads of their own; 32 does not divide 16: context 1, 2 would",
    ),
    (
        {"model": {**DENSE, "kv_heads": 2}, "parallelism": {"tensor": 1, "context": 3, "context_style": "ulysses"}},
        "job.parallelism.context",
        "3 does not divide 16: context 1, 2, 4 would",
    ),
    (
        {
            "model": {**DENSE, "heads": 12, "kv_heads": 6, "head_size": 64},
            "parallelism": {"context": 4, "context_style": "ulysses"},
        },
        "job.parallelism.context",
        "4 and 6 key/value heads: one must divide the other, or context_style: all-gather",
    ),
    (
        {"sequence_length": 4098, "parallelism": {"tensor": 4, "sequence": True}},
        "job.sequence_length",
        "4,096 would",
    ),
    ({"parallelism": {"tensor": 8, "pipeline": 24}}, "job.parallelism", "= 192 GPUs; the cluster has 128"),
    ({"parallelism": {"tensor": 8, "data": 17}}, "job.parallelism.data", "16 would fit"),
    (
        {"model": EXPERTS, "parallelism": {"expert": 4, "data": 6}},
        "job.parallelism.data",
        "no multiple of expert 4",
    ),
    ({"parallelism": {"tensor": 8, "data": 12}}, "job.global_batch", "120 or 132 would"),
    (
        {"model": EXPERTS, "global_batch": 7, "parallelism": {"expert": 8}},
        "job.global_batch",
        "8 sequences would",
    ),
    (
        {"precision": "fp8", "types": ("dgx-a100",)},
        "job.precision",
        "A100-80GB of cluster.nodes.0 has bf16, fp16",
    ),
    ({"nodes": 2_000_000}, "cluster.nodes", "at most 10,000,000"),
]


@pytest.mark.parametrize(("job", "field", "word"), RULES)
def test_a_broken_rule_is_told_with_what_would_be_right(job, field, word):
    found = problems(**job)
    assert field in found
    assert word in found[field]


def test_interleaved_needs_micro_batches_in_multiples_of_the_stages():
    """16 replicas of 4 stages x 2, 96 sequences: 6 micro-batches. 64 or 128 sequences would do, or D = 12."""
    parallelism = {"tensor": 2, "pipeline": 4, "virtual_pipeline": 2, "schedule": "interleaved"}
    found = problems(global_batch=96, parallelism=parallelism)["job.global_batch"]
    assert "micro-batches (6) in multiples of the stages (4)" in found
    assert "64 or 128 sequences would, or data: 12" in found
    for change in ({"global_batch": 64}, {"global_batch": 128}):
        assert derive(scenario(parallelism=parallelism, **change)).micro_batches % 4 == 0
    assert derive(scenario(global_batch=96, parallelism={**parallelism, "data": 12})).micro_batches == 8


def test_rules_speak_all_at_once():
    found = problems(parallelism={"tensor": 3, "pipeline": 5, "expert": 2, "data": 1000})
    assert {
        "job.parallelism.tensor",
        "job.parallelism.pipeline",
        "job.parallelism.expert",
        "job.parallelism.data",
    } <= set(found)


@pytest.mark.parametrize("field", ["layers", "ffn"])
def test_the_largest_counts_are_answered(field):
    """999,999,999,989 is prime: looking for divisors takes the square root, a million tries; 10^12 would never end."""
    assert problems(model={**DENSE, field: 999_999_999_989}, global_batch=999_999_999_989, parallelism={"pipeline": 7})


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_near_divisors_are_the_nearest(number, near):
    every = sorted((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - near), d))
    assert near_divisors(number, near) == ", ".join(str(d) for d in sorted(every[:3]))


WRITTEN = """\
name: x
cluster:
  nodes: [{type: hgx-h100, count: 1}]
  fabric: FABRIC
job:
  model: MODEL
  sequence_length: 2048
  global_batch: 8
  parallelism: {PARALLELISM}
  OTHER
run: {steps: 1}
"""


@pytest.fixture
def notes(tmp_path):
    """Notes on a scenario in which these texts stand."""

    def read(*, parallelism="", other="micro_batch: 1", fabric="spectrum-x", model="llama3-8b"):
        path = tmp_path / "s.yaml"
        text = WRITTEN.replace("PARALLELISM", parallelism).replace("OTHER", other)
        path.write_text(text.replace("FABRIC", fabric).replace("MODEL", model))
        job = load_scenario(path)
        return no_effects(job, derive(job))

    return read


@pytest.mark.parametrize(
    ("texts", "note"),
    [
        (
            {"other": "overlap: {expert: true}"},
            "`job.overlap.expert` had no effect: the model has no experts",
        ),
        (
            {"other": "overlap: {expert: true}", "model": "grok-1"},
            "`job.overlap.expert` had no effect: each rank holds",
        ),
        (
            {"other": "overlap: {expert: true}", "model": "grok-1", "parallelism": "expert: 8"},
            "`job.overlap.expert` had no effect: no shared MLP",
        ),
        (
            {"parallelism": "expert_tensor: 1"},
            "`job.parallelism.expert_tensor` had no effect: the model has no experts",
        ),
        (
            {"other": "experts: {capacity_factor: 1.25}"},
            "`job.experts.capacity_factor` had no effect: the model has no experts",
        ),
        (
            {"other": "experts: {limit_nodes: 1}", "model": "grok-1"},
            "`job.experts.limit_nodes` had no effect: each rank holds all experts",
        ),
        (
            {"other": "experts: {capacity_factor: 1.25}", "model": "grok-1"},
            "`job.experts.capacity_factor` had no effect: no expert gets more",
        ),
        (
            {"other": "experts: {imbalance: 20 %}", "model": "grok-1"},
            "`job.experts.imbalance` had no effect: each rank holds all experts",
        ),
        (
            {
                "other": "experts: {imbalance: 20 %, capacity_factor: 1, pad: true}",
                "model": "grok-1",
                "parallelism": "expert: 8",
            },
            "`job.experts.imbalance` had no effect: each expert's input is padded",
        ),
        ({"other": "overlap: {tensor: true}"}, "`job.overlap.tensor` had no effect: tensor parallelism is 1"),
        ({"other": "overlap: {pipeline: false}"}, "`job.overlap.pipeline` had no effect: there is one stage"),
        ({"parallelism": "defer_head: 4"}, "`job.parallelism.defer_head` had no effect: there is one stage"),
        (
            {"other": "bucket: 40 MB", "parallelism": "tensor: 8"},
            "`job.bucket` had no effect: there is one replica",
        ),
        (
            {"other": "bucket: 40 MB\n  overlap: {data: false}"},
            "`job.bucket`",
        ),
        (
            {"parallelism": "context_style: ulysses"},
            "`job.parallelism.context_style` had no effect: context parallelism is 1",
        ),
        ({"parallelism": "sequence: true"}, "`job.parallelism.sequence` had no effect"),
        ({"parallelism": "tensor: 8, sharding: optimizer"}, "`job.parallelism.sharding` had no effect"),
        ({"other": "recompute: selective"}, "`job.recompute` had no effect: fused attention"),
        ({"other": "collectives_algorithm: hierarchical"}, "`job.collectives_algorithm` had no effect"),
        (
            {"fabric": "{base: spectrum-x, paths_per_flow: 4}"},
            "`cluster.fabric.paths_per_flow` had no effect",
        ),
        (
            {"fabric": "{base: spectrum-x, blocks_per_zone: 4}"},
            "`cluster.fabric.blocks_per_zone` had no effect",
        ),
        (
            {"fabric": "{base: spectrum-x, tiers: 2, oversubscription: [1, 7]}"},
            "`cluster.fabric.oversubscription.1` had no effect: a fabric of 2 tiers",
        ),
    ],
)
def test_what_had_no_effect_is_told(notes, texts, note):
    assert [line for line in notes(**texts) if line.startswith(note)]


def test_a_vocabulary_off_16_bytes_is_told():
    """50,257 / 2 numbers of 16 bit a row: the next multiple of 8 x 2 is 50,272. On two ranks 50,256 is one of 8 x 2, on four it
    isn't one of 8 x 4. Only of a GPU whose products are known to mind."""

    def told(vocabulary, tensor, node="a100-4x200"):
        scenario = load_scenario(
            "quickstart",
            set=[
                f"job.model.vocabulary={vocabulary}",
                f"job.parallelism.tensor={tensor}",
                "job.precision=bf16",
                f"cluster.nodes.0.type={node}",
            ],
        )
        return advice(scenario, derive(scenario))

    (note,) = told(50257, 2)
    assert "50,257 on 2 tensor ranks" in note
    assert "50,272 would not" in note
    assert told(50256, 2) == []
    assert "50,272 would not" in told(50256, 4)[0]
    assert told(50257, 2, "hgx-h100") == []


def test_what_was_not_written_is_not_told(notes):
    """Defaults, and switches that are off, are nobody's expectation."""
    assert notes(other="overlap: {expert: false, tensor: false}") == []


@pytest.mark.parametrize(("experts", "told"), [("{}", 1), ("{imbalance: 20 %}", 0)])
def test_a_seed_has_an_effect_where_loads_are_drawn(experts, told):
    drawn = load_scenario("colossus-100k", set=["run.seed=1", f"job.experts={experts}"])
    assert sum(note.startswith("`run.seed` had no effect") for note in no_effects(drawn, derive(drawn))) == told
