"""Reading scenarios: what is wrong is told in its place, all of it at once, with what would be right."""

from __future__ import annotations

from itertools import pairwise

import pytest

from colossim.errors import Problem, ScenarioError
from colossim.scenario.json_schema import json_schema
from colossim.scenario.reader import load_scenario
from colossim.scenario.variants import load_variants
from colossim.shipped import published_names, scenario_names, scenario_path
from colossim.yaml12 import read_text

GOOD = """\
name: small
cluster:
  nodes:
    - {type: hgx-h100, count: 16}
  fabric: spectrum-x
job:
  model: llama3-8b
  sequence_length: 8192
  global_batch: 128
  parallelism:
    tensor: 2
    sequence: true
    pipeline: 4
run:
  steps: 3
"""


FAULTY = "faults: {gpu: {mtbf: 79230 h}}\n"
OFTEN = f"{FAULTY}checkpoint: {{interval: "


@pytest.fixture
def write(tmp_path):
    """Writes a scenario: GOOD with one text replaced by another, or the other appended."""

    def scenario(old="", new=""):
        assert old in GOOD
        path = tmp_path / "s.yaml"
        path.write_text(GOOD.replace(old, new, 1) if old else GOOD + new)
        return path

    return scenario


def problems_of(path, **options):
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path, **options)
    return caught.value.problems


BAD = [
    # one field: unknown, missing, of the wrong type
    ("", "nam: x\n", "16:1", "nam", "did you mean `name`"),
    ("name: small\n", "", "1:1", "name", "is missing"),
    ("  fabric: spectrum-x\n", "", "2:1", "cluster.fabric", "is missing"),
    ("  global_batch: 128\n", "", "6:1", "job.global_batch", "is missing"),
    ("count: 16", "count: sixteen", "4:31", "cluster.nodes.0.count", "whole number"),
    ("count: 16", "count: 0", "4:31", "cluster.nodes.0.count", "at least 1"),
    ("count: 16", 'count: "16"', "4:31", "cluster.nodes.0.count", "without quotes"),
    ("count: 16", "count: 1_600", "4:31", "cluster.nodes.0.count", "write 1600"),
    ("count: 16", "count: 1e3", "4:31", "cluster.nodes.0.count", "write 1000"),
    ("count: 16", "count: 10000000000000", "4:31", "cluster.nodes.0.count", "too large"),
    ("steps: 3", "seed: -1", "15:9", "run.seed", "at least 0"),
    ("count: 16", "count: 1.5", "4:31", "cluster.nodes.0.count", "whole number"),
    ("count: 16", "count: true", "4:31", "cluster.nodes.0.count", "whole number"),
    ("count: 16", "count: 16, racks: 2", "4:35", "cluster.nodes.0.racks", "known here: count, type"),
    ("sequence: true", "sequence: yes", "12:15", "job.parallelism.sequence", "write true"),
    ("sequence_length: 8192", "sequence_length:", "8:19", "job.sequence_length", "has no value"),
    ("pipeline: 4", "pipelin: 4", "13:5", "job.parallelism.pipelin", "did you mean `pipeline`"),
    ("pipeline: 4", "data: many", "13:11", "job.parallelism.data", "or `auto`"),
    ("pipeline: 4", "data: 0", "13:11", "job.parallelism.data", "or `auto`"),
    ("pipeline: 4", "order: [tensor, data]", "13:12", "job.parallelism.order", "once"),
    ("pipeline: 4", "schedule: 1F1B", "13:15", "job.parallelism.schedule", "did you mean `1f1b`"),
    ("steps: 3", "fold: exat", "15:9", "run.fold", "did you mean `exact`"),
    ("run:\n  steps: 3\n", "run: 3\n", "14:6", "run", "a mapping of its fields"),
    (
        "  nodes:\n    - {type: hgx-h100, count: 16}\n",
        "  nodes: []\n",
        "3:10",
        "cluster.nodes",
        "at least one",
    ),
    ("- {type: hgx-h100, count: 16}", "{type: hgx-h100, count: 16}", "4:5", "cluster.nodes", "a list"),
    ("name: small", "name: 5", "1:7", "name", "should be text"),
    ("name: small", "name: small\nsources: a paper", "2:10", "sources", "a list"),
    # the catalogue
    ("hgx-h100", "hgx-h10", "4:14", "cluster.nodes.0.type", "did you mean `hgx-h100`"),
    ("spectrum-x", "spectrum", "5:11", "cluster.fabric", "did you mean `spectrum-x`"),
    ("llama3-8b", "bert", "7:10", "job.model", "known: gpt3-175b"),
    ("spectrum-x", "[spectrum-x]", "5:11", "cluster.fabric", "a catalogue name"),
    ("spectrum-x", "{base: 3}", "5:11", "cluster.fabric", "`base` is a name"),
    ("spectrum-x", "{base: spectrum-x, tiers: 7}", "5:37", "cluster.fabric.tiers", "at most 4"),
    ("spectrum-x", "{base: spectrum-x, tier: 2}", "5:30", "cluster.fabric.tier", "did you mean `tiers`"),
    (
        "spectrum-x",
        "{base: spectrum-x, oversubscription: 2}",
        "5:48",
        "cluster.fabric.oversubscription",
        "a list",
    ),
    (
        "spectrum-x",
        "{base: spectrum-x, oversubscription: [1, 0.5]}",
        "5:52",
        "cluster.fabric.oversubscription.1",
        "at least 1",
    ),
    ("llama3-8b", "{layers: 8, heads: 8, vocabulary: 99}", "7:3", "job.model.hidden", "is missing"),
    # quantities
    (
        "hgx-h100",
        "{base: hgx-h100, nic: 400}",
        "4:36",
        "cluster.nodes.0.type.nic",
        "write `400 GB/s` or `400 Gb/s`",
    ),
    ("hgx-h100", "{base: hgx-h100, nic: 400 gb/s}", "4:36", "cluster.nodes.0.type.nic", "did you mean"),
    ("hgx-h100", "{base: hgx-h100, nic: 0 Gb/s}", "4:36", "cluster.nodes.0.type.nic", "more than 0"),
    ("hgx-h100", "{base: hgx-h100, nic: [1]}", "4:36", "cluster.nodes.0.type.nic", "such as `400 Gb/s`"),
    ("hgx-h100", "{base: hgx-h100, gpu: {memory: 80}}", "4:45", "cluster.nodes.0.type.gpu.memory", "`80 GB`"),
    (
        "hgx-h100",
        "{base: hgx-h100, gpu: {peak: {bf17: 1 FLOP/s}}}",
        "4:44",
        "cluster.nodes.0.type.gpu.peak.bf17",
        "bf16",
    ),
    (
        "spectrum-x",
        "{base: spectrum-x, efficiency: 120 %}",
        "5:42",
        "cluster.fabric.efficiency",
        "at most 100 %",
    ),
    ("spectrum-x", "{base: spectrum-x, hop_latency: 600}", "5:43", "cluster.fabric.hop_latency", "no unit"),
    ("tensor: 2", "tensor: .inf", "11:13", "job.parallelism.tensor", "whole number"),
    ("run:", "  tokens: .nan\nrun:", "14:11", "job.tokens", "finite"),
    # what isn't there yet
    ("", "jitter: {kernel: 1.5}\n", "16:18", "jitter.kernel", "it must be at most 100 %"),
    ("", "jitter: {slow: {share: 1 %, factor: 0.9}}\n", "16:37", "jitter.slow.factor", "1"),
    ("", "jitter: {slow: {share: 1 %}}\n", "16:10", "jitter.slow.factor", "missing"),
    ("", "jitter: {kernels: 1 %}\n", "16:10", "jitter.kernels", "did you mean `kernel`?"),
    # campaigns
    ("", "faults: {gpu: {mtbf: 79230 h}}\n", "16:9", "faults", "say `checkpoint: {interval, write, restart}`, too"),
    ("", "faults: {gpu: {mtbf: 7 h, effect: slow, mtfb: 3 h}}\n", "16:41", "faults.gpu.mtfb", "did you mean `mtbf`?"),
    ("", "faults: {gpu: {mtbf: 79230}}\n", "16:22", "faults.gpu.mtbf", "no unit"),
    (
        "",
        "faults: {pump: {mtbf: 7 h, effect: slow}}\n",
        "16:16",
        "faults.pump",
        "say `per` (gpu, node, rack, leaf or job)",
    ),
    ("", "faults: {}\n", "16:9", "faults", "has no class of faults"),
    (
        "",
        f"{FAULTY}checkpoint: {{interval: 9 s, write: 9 s, restart: 1 s}}\n",
        "17:36",
        "checkpoint.write",
        "no shorter",
    ),
    (
        "",
        f"{FAULTY}checkpoint: {{interval: often, write: 9 s, restart: 1 s}}\n",
        "17:24",
        "checkpoint.interval",
        "or `optimal`",
    ),
    (
        "",
        f"{FAULTY}checkpoint: {{interval: optimal, write: 0 s, restart: 1 s}}\n",
        "17:24",
        "checkpoint.interval",
        "say how long",
    ),
    (
        "",
        f"{FAULTY}checkpoint: {{interval: 9 s, write: 1 s, restart: 1 s, durable: 5 s}}\n",
        "17:64",
        "checkpoint.durable",
        "leave it",
    ),
    (
        "",
        f"{FAULTY}checkpoint: {{interval: 9 s, write: 1 s, restart: 1 s, asynchronous: true, durable: 11 s}}\n",
        "17:84",
        "checkpoint.durable",
        "would find it unfinished",
    ),
    ("", "spares: 999\n", "16:9", "spares", "the job leaves 0 of"),
    # rules between fields
    (
        "tensor: 2",
        "tensor: 64",
        "11:13",
        "job.parallelism.tensor",
        "does not divide 32 heads: 8, 16, 32 would",
    ),
    (
        "pipeline: 4",
        "pipeline: 5",
        "13:15",
        "job.parallelism.pipeline",
        "do not divide 32 layers: 2, 4, 8 stages would",
    ),
    ("pipeline: 4", "pipeline: 4\n    data: 17", "14:11", "job.parallelism.data", "16 would fit"),
    ("pipeline: 4", "pipeline: 4\n    data: 7", "9:17", "job.global_batch", "126 or 133 would"),
    ("pipeline: 4", "pipeline: 4\n    expert: 2", "14:13", "job.parallelism.expert", "has no experts"),
    ("128\n", "128\n  precision: fp4\n", "10:14", "job.precision", "fp8"),
    ("128\n", "128\n  micro_batch: 3\n", "9:17", "job.global_batch", "126 or 129"),
    # variants
    ("", "cases:\n  - set: {job.modle: grok-1}\n", "17:22", "cases.0.set.job.modle", "did you mean `model`"),
    ("", "cases:\n  - {name: a}\n  - {name: a}\n", "18:12", "cases.1.name", "unique"),
    ("", "cases:\n  - set: 5\n", "17:10", "cases.0.set", "a mapping"),
    ("", "cases: 5\n", "16:8", "cases", "a list"),
    ("", "cases:\n  - measured: {step_time: 20}\n", "17:27", "cases.0.measured.step_time", "write `20 s`"),
    ("", "grid: {job.tokens: []}\n", "16:20", "grid.job.tokens", "at least one"),
    ("", "grid: {job.tokens.x: [1]}\n", "16:22", "grid.job.tokens.x", "`job.tokens` is a value"),
    ("", "grid: {job.tokens: 1T}\n", "16:20", "grid.job.tokens", "a list"),
    ("", "grid: {cases: [1]}\n", "16:15", "grid.cases", "cannot change"),
    ("", "grid: {cluster.nodes.first.count: [1]}\n", "16:35", "grid.cluster.nodes.first.count", "is a list"),
]


@pytest.mark.parametrize(("old", "new", "place", "field", "word"), BAD)
def test_a_wrong_field_is_told_in_its_place(write, old, new, place, field, word):
    path = write(old, new)
    found = {str(problem.field): problem for problem in problems_of(path)}
    assert field in found
    problem = found[field]
    assert f"{problem.line}:{problem.column}" == place
    assert word in problem.message
    assert str(problem).startswith(f"{path}:{place}: {field}: ")


#: Nine aliases to nine aliases to ...: 9^8 values in eight lines.
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{inner}'] * 9)}]\n" for inner, name in pairwise("abcdefgh")
)

NOT_YAML = [
    ("", "1:1", "is empty"),
    ("# nothing\n", "1:1", "is empty"),
    ("- a\n- b\n", "1:1", "a mapping with `cluster:` and `job:`"),
    ("just text\n", "1:1", "a mapping with"),
    ("name: a\n\tjob: 3\n", "2:1", "use spaces"),
    ("name: a: b\n", "1:8", "needs quotes"),
    ("name: @a\n", "1:7", "cannot start with `@`"),
    ("name: a\n---\nname: b\n", "2:1", "several documents"),
    ("name: a\nname: b\n", "2:1", "given twice"),
    ("job: {model: a, model: b}\n", "1:17", "given twice"),
    ("name: !!python/object:os.system a\n", "1:7", "without tags"),
    ("name: *nobody\n", "1:7", "anchor"),
    ("name: &a [*a]\n", "1:7", "aliases expand"),
    ("? [a]\n: b\n", "1:3", "a key is a word"),
    ("name: [a\n", "2:1", "is not YAML here"),
    ("name: a\x01b\n", "1:8", "U+0001"),
    ("[" * 100, "1:41", "nested more than 40 deep"),
    (BOMB, None, "aliases expand"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "word"), NOT_YAML, ids=[word for *_, word in NOT_YAML])
def test_what_is_not_clean_yaml_is_told_in_its_place(tmp_path, text, place, word):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    problem = problems_of(path)[0]
    assert word in problem.message
    assert place in (None, f"{problem.line}:{problem.column}")


def test_what_is_no_file_is_told(tmp_path):
    assert "no such file" in problems_of(tmp_path / "none.yaml")[0].message
    assert "is a directory" in problems_of(tmp_path)[0].message
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: Zürich".encode("latin-1"))
    assert "not UTF-8" in problems_of(latin)[0].message
    assert "did you mean `colossus-100k`" in problems_of("colosus-100k")[0].message


def test_scalars_are_those_of_yaml_1_2(write):
    """`no` is text, `1e9` a number, `010` ten, dates and sexagesimals are text."""
    path = write("name: small", "name: no\nsources: [no, 12:30, 2024-09-01, ~x]\ndescription: |\n  yes\n")
    scenario = load_scenario(path, set=["job.tokens=1e9", "job.parallelism.data=010", "job.global_batch=0xA0"])
    assert scenario.name == "no"
    assert scenario.sources == ("no", "12:30", "2024-09-01", "~x")
    assert (scenario.job.tokens, scenario.job.parallelism.data, scenario.job.global_batch) == (
        1e9,
        10,
        160,
    )


def test_all_problems_at_once_in_the_order_of_the_file(write):
    path = write(
        GOOD[6:],
        GOOD[6:].replace("count: 16", "count: x").replace("spectrum-x", "ethernet").replace("tensor: 2", "tensor: two"),
    )
    assert [(p.line, p.field) for p in problems_of(path)] == [
        (4, "cluster.nodes.0.count"),
        (5, "cluster.fabric"),
        (11, "job.parallelism.tensor"),
    ]


def test_rules_are_checked_beside_fields_that_no_rule_reads(write):
    """An unknown top-level key, a wrong fabric and a wrong run don't hide that stages don't divide layers."""
    path = write(
        GOOD[12:],
        GOOD[12:]
        .replace("spectrum-x", "ethernet")
        .replace("pipeline: 4", "pipeline: 5")
        .replace("steps: 3", "steps: x")
        + "job2: 3\n",
    )
    assert [p.field for p in problems_of(path)] == [
        "cluster.fabric",
        "job.parallelism.pipeline",
        "run.steps",
        "job2",
    ]


def test_rules_are_silent_beside_fields_that_they_read(write):
    """With `tensr: 2` nobody knows the tensor size: only the typo is told."""
    path = write("tensor: 2", "tensr: 2\n    data: 64")
    assert [p.field for p in problems_of(path)] == ["job.parallelism.tensr"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("cluster.nodes.0.count=x", "--set cluster.nodes.0.count: `x` should be a whole number"),
        (
            "cluster.nodes.3.count=4",
            "--set cluster.nodes.3.count: `3` is no index of `cluster.nodes`: its last is 0",
        ),
        ("cluster.nodes.a=4", "--set cluster.nodes.a: no field `cluster.nodes.a`"),
        ("foo=1", "--set foo: no field `foo`"),
        ("job.modle=grok-1", "--set job.modle: no field `job.modle`: did you mean `model`?"),
        ("job.sequence_length.x=3", "--set job.sequence_length.x: `job.sequence_length` is a value"),
        ("run", "--set `run`: write it as path=value"),
        ("=3", "--set `=3`: write it as path=value"),
        ("run.steps=[", "--set run.steps: is not YAML here"),
        ("run.seed=", "--set run.seed: has no value"),
        ("faults.gpu.mtbf=3", "--set faults.gpu.mtbf: `3` has no unit"),
        ("faults.gpu.mtbf.x=3", "--set faults.gpu.mtbf.x: `faults.gpu.mtbf` is a value"),
        ("faults.gpu.mtfb=3 h", "--set faults.gpu.mtfb: no field `faults.gpu.mtfb`: did you mean `mtbf`?"),
        ("events=4", "--set events: `4` should be a list"),
        ("cluster.fabric.link=400", "--set cluster.fabric.link: `400` has no unit"),
    ],
)
def test_a_wrong_change_is_told_by_its_name(write, change, says):
    assert str(problems_of(write(), set=[change])[0]).startswith(says)


def test_changes_reach_into_catalogue_names(write):
    scenario = load_scenario(
        write(),
        set=[
            "cluster.fabric.oversubscription=[2, 4]",
            "job.model.layers=16",
            "cluster.nodes.0.type.gpu.memory=60 GB",
            "job.overlap.tensor=true",
            "job.micro_batch = 2",
        ],
    )
    assert scenario.cluster.fabric.oversubscription == (2.0, 4.0)
    assert scenario.cluster.fabric.link == 50e9
    assert (scenario.job.model.layers, scenario.job.model.hidden) == (16, 4096)
    assert (scenario.cluster.nodes[0].type.gpu.memory, scenario.cluster.nodes[0].type.gpus) == (60e9, 8)
    assert (scenario.job.overlap.tensor, scenario.job.overlap.data, scenario.job.micro_batch) == (
        True,
        True,
        2,
    )


def test_the_last_change_wins(write):
    assert load_scenario(write(), set=["run.steps=5", "run.steps=7"]).run.steps == 7


def test_defaults(write):
    scenario = load_scenario(write("run:\n  steps: 3\n", ""))
    assert (scenario.run.steps, scenario.run.seed, scenario.run.fold) == (20, 0, "exact")
    assert (scenario.job.software.name, scenario.job.precision, scenario.job.recompute) == (
        "megatron-2024",
        "bf16",
        "selective",
    )
    assert scenario.job.parallelism.order == ("tensor", "context", "expert", "data", "pipeline")
    assert scenario.cluster.pue == 1.2


def test_what_the_user_wrote_is_remembered(write):
    scenario = load_scenario(write(), set=["job.recompute=full"])
    assert scenario.written("job.parallelism.tensor")
    assert scenario.written("job.recompute")
    assert not scenario.written("job.micro_batch")
    later = scenario.located(
        ScenarioError([Problem("cluster.fabric.tiers", "four would"), Problem("job.recompute", "no")])
    )
    assert [(p.line, p.column) for p in later.problems] == [(None, None), (5, 11)]
    assert str(later.problems[0]) == "--set job.recompute: no"


def test_own_catalogue(write, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "gpus:\n  slow: {base: H100, tdp: 500 W}\nnodes:\n  slow-node: {base: hgx-h100, gpu: slow}\n"
        "models:\n  tiny: {layers: 8, hidden: 512, heads: 8, vocabulary: 100}\n"
    )
    path = write(
        GOOD[12:],
        GOOD[12:].replace("hgx-h100", "slow-node").replace("llama3-8b", "tiny") + "catalog: mine.yaml\n",
    )
    scenario = load_scenario(path)
    assert (scenario.cluster.nodes[0].type.gpu.tdp, scenario.job.model.name) == (500.0, "tiny")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "models:\n  tiny: {layers: 8, hidden: 5.5}\n",
            "mine.yaml:2:29: models.tiny.hidden: `5.5` should be a whole number",
        ),
        (
            "models:\n  tiny: {layer: 8}\n",
            "mine.yaml:2:10: models.tiny.layer: is no field here: did you mean `layers`?",
        ),
        ("modles: {}\n", "mine.yaml:1:1: modles: is no kind of the catalogue: did you mean `models`?"),
        ("gpus: 3\n", "mine.yaml:1:7: gpus: should be a mapping of names to fields"),
        (
            "fabrics:\n  f: {base: nobody}\n",
            "mine.yaml:2:6: fabrics.f: `nobody` is not in the catalogue of fabrics",
        ),
        ("fabrics:\n  f: {base: f}\n", "mine.yaml:2:6: fabrics.f: `f` is not in the catalogue of fabrics"),
    ],
)
def test_a_wrong_entry_is_told_in_its_own_file(write, tmp_path, text, says):
    (tmp_path / "mine.yaml").write_text(text)
    assert any(says in str(p) for p in problems_of(write("", "catalog: mine.yaml\n")))


def test_a_missing_catalogue_is_told_where_it_is_named(write):
    problem = problems_of(write("", "catalog: none.yaml\n"))[0]
    assert (problem.line, problem.column, problem.field) == (16, 10, "catalog")
    assert "no such file" in problem.message


VARIANTS = """\
cases:
  - name: small
    set: {cluster.nodes.0.count: 8}
    measured: {step_time: 20.7 s, source: a paper}
  - set: {job.recompute: full}
grid:
  job.micro_batch: [1, 2]
  job.overlap.tensor: [true]
"""


def test_variants_are_cases_times_grid(write):
    variants = load_variants(write("", VARIANTS), set=["run.seed=5"])
    assert [v.label for v in variants] == [
        "small, micro_batch=1, tensor=true",
        "small, micro_batch=2, tensor=true",
        "1, micro_batch=1, tensor=true",
        "1, micro_batch=2, tensor=true",
    ]
    _, scenario, measured = variants[1]
    assert (scenario.cluster.gpus, scenario.job.micro_batch, scenario.run.seed) == (64, 2, 5)
    assert measured is not None
    assert (measured.step_time, measured.source) == (20.7, "a paper")
    assert variants[2].scenario.job.recompute == "full"
    assert variants[2].measured is None


def test_one_case(write):
    path = write("", VARIANTS)
    assert load_scenario(path, case="small").cluster.gpus == 64
    assert load_scenario(path, case="small", set=["cluster.nodes.0.count=4"]).cluster.gpus == 32
    assert load_scenario(path).cluster.gpus == 128
    assert [v.scenario.cluster.gpus for v in load_variants(path, case="small")] == [64, 64]
    assert "did you mean `small`" in problems_of(path, case="smal")[0].message
    assert "the scenario has none" in problems_of(write(), case="smal")[0].message


def test_without_variants_there_is_the_scenario_itself(write):
    (variant,) = load_variants(write())
    assert (variant.label, variant.measured) == ("small", None)


def test_a_variant_that_cannot_be_is_told_at_its_line(write):
    path = write("", "cases:\n  - name: odd\n    set: {job.parallelism.pipeline: 5}\n")
    load_scenario(path)
    with pytest.raises(ScenarioError) as caught:
        load_variants(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (18, 37)
    assert "do not divide 32 layers" in problem.message
    assert "(in the variant `odd`)" in problem.message


def test_a_grid_without_end_is_refused(write):
    values = ", ".join(map(str, range(1, 102)))
    path = write("", f"grid:\n  run.seed: [{values}]\n  run.steps: [{values}]\n")
    with pytest.raises(ScenarioError, match="10,201 variants"):
        load_variants(path)


@pytest.mark.parametrize("name", [*scenario_names(), *published_names()])
def test_every_scenario_that_ships_is_sound_and_says_what_it_is(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert len(scenario.description) > 40
    assert scenario.sources or scenario.assumptions
    assert load_variants(name)


@pytest.fixture(scope="module")
def by_json_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", [*scenario_names(), *published_names()])
def test_json_schema_takes_what_the_reader_takes(name, by_json_schema):
    from colossim import yaml12

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    by_json_schema.validate(plain(yaml12.read_file(scenario_path(name)).value))


@pytest.mark.parametrize(
    "wrong",
    [
        {"nam": "x"},
        {"run": {"steps": 0}},
        {"run": {"collectives": "sliced"}},
        {"cluster": {"nodes": [], "fabric": "spectrum-x"}},
        {
            "cluster": {
                "nodes": [{"type": "hgx-h100", "count": 1}],
                "fabric": {"base": "spectrum-x", "link": "400"},
            }
        },
        {
            "cluster": {
                "nodes": [{"type": "hgx-h100", "count": 1}],
                "fabric": {"base": "spectrum-x", "lnk": "4 Gb/s"},
            }
        },
    ],
)
def test_json_schema_refuses_what_the_reader_refuses(wrong):
    jsonschema = pytest.importorskip("jsonschema")
    good = {
        "name": "a",
        "cluster": {"nodes": [{"type": "hgx-h100", "count": 1}], "fabric": "spectrum-x"},
        "job": {
            "model": "llama3-8b",
            "sequence_length": 8,
            "global_batch": 1,
            "bucket": "40 MB",
            "tokens": "6T",
        },
    }
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, **wrong})


def test_json_schema_describes_every_field():
    def fields(node):
        if isinstance(node, dict):
            properties = node.get("properties")
            if isinstance(properties, dict):
                yield from properties.items()
            for item in node.values():
                yield from fields(item)
        elif isinstance(node, list):
            for item in node:
                yield from fields(item)

    bare = {name for name, field in fields(json_schema()) if name != "base" and not field.get("description")}
    assert bare == set()


def test_an_abyss_is_no_crash():
    """Where libyaml gives up by itself depends on its version, what is said doesn't."""
    with pytest.raises(ScenarioError, match="nested more than 40 deep"):
        read_text("[" * 100_000, "abyss.yaml")
