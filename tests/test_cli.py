"""The command line: what it prints where, exit codes, files, and that nothing a user does ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from colossim.cli import _run
from colossim.errors import ScenarioError
from colossim.scenario.reader import load_scenario
from colossim.shipped import scenario_path
from colossim.validation import predict, published

RESULT_KEYS = {
    "scenario", "gpus", "gpus_in_job", "nodes", "seed", "version", "step_time_s", "step_time_p99_s", "tokens_per_s",
    "tokens_per_s_per_gpu", "model_flops_per_gpu", "mfu", "hfu", "breakdown_s", "memory_bytes", "links", "power_W",
    "energy_per_step_J", "assumptions", "classes", "processes", "events", "setup_s", "wall_s", "peak_memory_bytes", "fold",
    "fold_rounds", "aligned", "collectives", "routing",
}  # fmt: skip
BREAKDOWN = [
    "compute", "tensor_comm", "context_comm", "expert_comm", "pipeline_comm", "pipeline_bubble", "data_comm", "optimizer",
    "straggler", "other",
]  # fmt: skip


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        code = _run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        return code, out, err

    return run


def process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "colossim", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_run_shows_a_page(cli):
    code, out, err = cli("run", "two-pods")
    assert code == 0
    for words in ("two-pods", "step time", "MFU", "compute", "pipeline bubble", "NIC out", "Bound by", "Assumed"):
        assert words in out
    assert err.startswith("nothing was written")
    assert max(len(line) for line in out.splitlines()) <= 80


def test_json_is_one_object_with_the_contracts_keys(cli):
    code, out, err = cli("run", "two-pods", "--json", "--no-plots", "--set", "job.tokens=1T")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert set(result) >= RESULT_KEYS
    assert list(result["breakdown_s"]) == BREAKDOWN
    assert sum(result["breakdown_s"].values()) == pytest.approx(result["step_time_s"])
    assert set(result["memory_bytes"]) >= {
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "update",
        "workspace",
        "peak",
        "capacity",
    }
    for link in result["links"].values():
        assert set(link) == {"count", "capacity_Bps", "busy_fraction", "bytes_per_step"}
    steps = 1e12 / result["tokens_per_step"]
    assert result["time_to_train_s"] == pytest.approx(steps * result["step_time_s"])


def test_out_holds_numbers_and_pictures(cli, tmp_path):
    out = tmp_path / "run"
    assert cli("run", "two-pods", "--out", out)[0] == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "breakdown.png", "power.png", "steps.csv", "summary.json", "throughput.png", "timeline.png",
    ]  # fmt: skip
    rows = (out / "steps.csv").read_text().splitlines()
    assert rows[0] == "step,start_s,end_s,step_time_s,tokens,tokens_per_s,mfu"
    assert len(rows) == 1 + 20
    assert json.loads((out / "summary.json").read_text())["scenario"] == "two-pods"
    assert (out / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_another_runs_files_are_kept(cli, tmp_path):
    out = tmp_path / "run"
    assert cli("run", "two-pods", "--no-plots", "--out", out)[0] == 0
    before = (out / "summary.json").read_bytes()
    code, printed, err = cli("run", "two-pods", "--no-plots", "--out", out, "--set", "job.micro_batch=2")
    assert code == 2
    assert "--force" in err
    assert printed == ""
    assert (out / "summary.json").read_bytes() == before
    (out / "mine.txt").write_text("kept")
    assert cli("run", "two-pods", "--no-plots", "--out", out, "--force", "--set", "job.micro_batch=2")[0] == 0
    assert (out / "summary.json").read_bytes() != before
    assert (out / "mine.txt").read_text() == "kept"


def test_an_out_that_cannot_be_written_is_told_first(cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = cli("run", "two-pods", "--out", tmp_path / "file" / "run")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "cannot write" in err


def test_a_wrong_scenario_writes_nothing(cli, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(scenario_path("two-pods").read_text().replace("global_batch: 128", "globl_batch: 128"))
    code, out, err = cli("run", wrong, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert any(f"{wrong}:" in line and "did you mean `global_batch`?" in line for line in lines)
    assert all(line.startswith(f"{wrong}:") for line in lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_that_does_not_fit(cli):
    """Exit 1, one line: by how much, on which stage, and changes that do fit."""
    changes = ["--set", "job.model=llama3-405b", "--set", "job.parallelism.virtual_pipeline=1"]
    changes += ["--set", "job.parallelism.schedule=1f1b", "--set", "job.model.layers=128"]
    code, out, err = cli("run", "two-pods", *changes)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "stage 0 of 4 needs" in err
    assert "more than its 85.5 GB" in err
    fixes = err.strip().split("What would fit: ")[1].split("; ")
    assert len(fixes) >= 2
    for fix in fixes[:2]:
        assert cli("run", "two-pods", "--no-plots", *changes, *fix.split())[0] == 0


def test_cases_are_rows_of_one_table(cli):
    code, out, _ = cli("run", "colossus-200k", "--no-plots")
    assert code == 0
    for label in ("mixed", "h100-only", "h100-alone", "h200-alone"):
        assert label in out
    code, out, _ = cli("run", "colossus-200k", "--case", "h200-alone", "--json", "--no-plots")
    assert json.loads(out)["gpus"] == 50_000
    code, _, err = cli("run", "colossus-200k", "--case", "h20-alone")
    assert code == 2
    assert "h200-alone" in err


MEASURED = """
cases:
  - {name: early, set: {job.global_batch: 64}, measured: {step_time: 1 s, source: here}}
  - {name: late, measured: {step_time: 2 s, source: here, flag: doubtful}}
"""


def test_measured_cases_are_columns(cli, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(scenario_path("two-pods").read_text() + MEASURED)
    code, out, _ = cli("run", path, "--no-plots")
    head, early, late = out.splitlines()
    assert code == 0
    assert head.split()[-2:] == ["measured", "error"]
    assert "1.00 s" in early
    assert "2.00 s" in late
    cases = json.loads(cli("run", path, "--no-plots", "--json")[1])["cases"]
    assert [case["measured_step_time_s"] for case in cases] == [1.0, 2.0]


def test_check_explains_and_plays_nothing(cli):
    code, out, err = cli("check", "colossus-100k")
    assert (code, err) == (0, "")
    for words in ("is sound", "98,304 ranks", "verdict", "fits", "tensor", "12,288 groups of 8 over NVLink"):
        assert words in out
    assert json.loads(cli("check", "two-pods", "--json")[1])["job"]["world"].startswith("128 ranks")


def test_what_had_no_effect_is_told(cli):
    out = cli("run", "two-pods", "--no-plots", "--set", "job.overlap.expert=true")[1]
    assert "`job.overlap.expert` had no effect: the model has no experts" in " ".join(out.split())


def test_schema_and_catalogue(cli):
    schema = json.loads(cli("schema")[1])
    assert schema["title"] == "colossim scenario"
    assert "gpus" in cli("catalog")[1]
    assert "spectrum-x" in cli("catalog", "fabrics")[1]
    out = cli("catalog", "gpus", "H100")[1]
    assert "989 TFLOP/s" in out
    assert "source" in out
    assert "colossus-100k" in cli("catalog", "scenarios")[1]
    assert json.loads(cli("catalog", "nodes", "hgx-h100", "--json")[1])["gpu"] == "H100"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "colosus-100k"], "colossus-100k"),
        (["run", "nowhere/x.yaml"], "no such file"),
        (["run", "two-pods", "--set", "job.micro_batch"], "path=value"),
        (["run", "two-pods", "--set", "job.micro_bach=2"], "micro_batch"),
        (["run", "two-pods", "--set", "cluster.nodes.7.count=2"], "no index"),
        (
            ["run", "two-pods", "--set", "job.parallelism.schedule=zero-bubble"],
            "zero-bubble has one chunk a stage: set 1",
        ),
        (["catalog", "gpu"], "gpus"),
        (["catalog", "gpus", "H10"], "H100"),
        (["frobnicate"], "No such command"),
        (["run"], "Missing argument"),
        (["run", "two-pods", "--jsn"], "--json"),
    ],
)
def test_bad_usage_is_two_and_says_what_would_be_right(cli, arguments, words):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_cluster_that_cannot_be_wired_is_located(cli):
    code, _, err = cli("run", "two-pods", "--set", "cluster.fabric.nodes_per_pod=100")
    assert code == 2
    assert err.startswith("--set cluster.fabric.nodes_per_pod: a leaf needs")


#: Plays for half a minute and more: a process a GPU, a hundred micro-batches a replica.
LONG = ["run", "two-pods", "--set", "run.fold=off", "--set", "job.global_batch=12800"]


def test_ctrl_c_is_one_line_and_130(tmp_path):
    """In the middle of a run that takes long (its folder is made before the first event); --out holds nothing."""
    out = tmp_path / "run"
    run = process(*LONG, "--out", str(out))
    while not out.exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    printed, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert (printed, err.strip()) == ("", "interrupted")
    assert not out.exists()


def test_ctrl_c_while_a_file_is_written_leaves_no_half_file(cli, tmp_path, monkeypatch):
    def interrupted(axes, file):
        file.write(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr("colossim.plot.save", interrupted)
    code, out, err = cli("run", "two-pods", "--out", tmp_path)
    assert (code, out, err.strip()) == (130, "", "interrupted")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["steps.csv", "summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text())["scenario"] == "two-pods"


def test_a_single_measured_case_shows_its_error(cli):
    page = cli("run", "korthikanti-2022", "--case", "22B-full", "--no-plots")[1]
    (run,) = [run for run in published("korthikanti-2022") if run.case == "22B-full"]
    error = predict(run.scenario).step_time / run.measured.step_time - 1
    assert f"Measured 1.42 s: predicted {100 * error:+.1f} %" in page


@pytest.mark.parametrize("words", ["run two-pods --no-plots", "run two-pods --json --no-plots", "schema", "--help"])
def test_a_reader_that_has_had_enough(words):
    """`| head -1`: what comes after the first line has nowhere to go, and that is no error."""
    run = process(*words.split())
    assert run.stdout.readline()
    run.stdout.close()
    err = run.stderr.read()
    assert run.wait(60) == 0
    assert "rror" not in err
    run.stderr.close()


def test_a_reader_that_never_was():
    run = process("catalog", "models")
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait(60) == 0
    run.stderr.close()


def test_the_version():
    run = process("--version")
    assert run.communicate()[0].startswith("colossim 0.")


GRID = """
name: g
cluster: {nodes: [{type: hgx-h100, count: 4}], fabric: spectrum-x}
job:
  model: llama3-8b
  sequence_length: 8192
  global_batch: 32
  recompute: none
  parallelism: {tensor: 8, sharding: optimizer}
grid:
  job.parallelism.tensor: [1, 8]
"""


def test_a_variant_that_does_not_fit_is_a_row(cli, tmp_path):
    """The others are played; the reason stands below the table; only the played ones leave files."""
    (tmp_path / "g.yaml").write_text(GRID)
    code, out, _ = cli("run", tmp_path / "g.yaml", "--no-plots", "--out", tmp_path / "out")
    assert code == 0
    assert "tensor=1 the model doesn't fit" in " ".join(out.split())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tensor=8"]
    cases = json.loads(cli("run", tmp_path / "g.yaml", "--no-plots", "--json")[1])["cases"]
    assert ["error" in case for case in cases] == [True, False]


def test_a_failed_run_leaves_no_folder(cli, tmp_path):
    code, _, _ = cli(
        "run", "two-pods", "--out", tmp_path / "x", "--set", "job.model=llama3-405b", "--set", "job.model.layers=128"
    )
    assert code == 1
    assert not (tmp_path / "x").exists()


# -- mistakes: where they stand, one line each -------------------------------------------------------------------------
WRONG = """\
name: wrong
cluster:
  nodes:
    - {type: hgx-h10, count: 0}
  fabric: spectrum-x
job:
  model: llama3-8b
  sequence_length: 8 GiB
  global_batch: 32
  global_batch: 64
  micro: 1
run:
  fold: none
"""


def test_every_mistake_is_a_line_with_its_place(cli, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG.replace("  global_batch: 64\n", ""))
    code, out, err = cli("run", path, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert not (tmp_path / "run").exists()
    places = []
    for line in err.splitlines():
        found = re.fullmatch(re.escape(str(path)) + r":(\d+):(\d+): ([\w.]+): \S.*", line)
        assert found, line
        places.append((int(found[1]), int(found[2]), found[3]))
    lines = path.read_text().splitlines()
    expected = [
        (4, "hgx-h10", "cluster.nodes.0.type"),
        (4, "0}", "cluster.nodes.0.count"),
        (8, "8 GiB", "job.sequence_length"),
        (10, "micro", "job.micro"),
        (12, "none", "run.fold"),
    ]
    assert places == [(line, lines[line - 1].index(text) + 1, field) for line, text, field in expected]


def test_a_key_written_twice(cli, tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text(WRONG)
    code, out, err = cli("check", path)
    assert (code, out) == (2, "")
    assert f"{path}:10:3: job.global_batch: " in err


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        (b"", ":1:1", "is empty"),
        (b"# nothing\n", ":1:1", "is empty"),
        (b"[1, 2]\n", ":1:1", "mapping"),
        (b"words\n", ":1:1", "mapping"),
        (b"\xff\xfe", "", "UTF-8"),
        (b"name: x\n\tjob: 1\n", ":2:1", "tab"),
        (b"---\na: 1\n---\nb: 2\n", ":3:1", "several documents"),
        (b"a: !!python/object/apply:os.getcwd []\n", ":1:4", "tag"),
        (b"a: &a [*a]\n", ":1:4", "aliases"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, ":1:", "nested"),
        (b"? [1, 2]\n: 3\n", ":1:3", "key"),
        (b"name: {", ":2:1", "YAML"),
    ],
    ids=lambda value: value[:12].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_a_file_that_is_no_scenario(cli, tmp_path, content, place, words):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    code, out, err = cli("run", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"{path}{place}")
    assert words in err
    assert err.count("\n") == 1


def test_a_folder_is_no_scenario(cli, tmp_path):
    code, out, err = cli("run", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"{tmp_path}: is a directory: name the scenario file in it\n"


def test_a_scenario_from_a_pipe():
    """`colossim check <(sed ... two-pods.yaml)`."""
    run = process("check", "/dev/stdin", stdin=subprocess.PIPE)
    out, err = run.communicate(scenario_path("two-pods").read_text())
    assert (run.returncode, err) == (0, "")
    assert out.startswith("two-pods is sound.")


@pytest.mark.parametrize(
    "change",
    [
        "",
        "=",
        "=1",
        "job",
        "job=",
        "cluster.nodes=[]",
        "cluster.nodes.0.count=0",
        "cluster.nodes.0.count=-1",
        "cluster.nodes.0.count=1.5",
        "cluster.nodes.0.count=1000000000000",
        "cluster.nodes.x.count=1",
        "cluster.fabric.link=400",
        "cluster.fabric.link=0 Gb/s",
        "cluster.fabric.link=1e300 GB/s",
        "cluster.fabric.hop_latency=-1 s",
        "cluster.fabric.oversubscription=[0, 0]",
        "cluster.pue=0",
        "job.model={",
        "job.model=Modèle-日本",
        "job.micro_batch=1e400",
        "job.micro_batch=.nan",
        "job.global_batch=1000000000000000000000",
        "job.parallelism.tensor=3",
        "job.parallelism.order=[tensor, tensor]",
        "job.tokens=0",
        "jöb.x=1",
        "grid={job.micro_batch: []}",
        "run.steps=0",
        "run.seed=-1",
        "name=",
        "name=[a, b]",
        "faults={}",
    ],
)
def test_odd_changes_are_told(cli, change):
    code, out, err = cli("run", "two-pods", "--no-plots", "--set", change)
    assert (code, out) == (2, "")
    path = change.partition("=")[0]
    assert err, "it says why"
    for line in err.splitlines():
        assert line.startswith((f"--set {path}: ", f"--set `{change}`: ", str(scenario_path("two-pods")) + ":")), line


def test_seeds_are_a_campaigns(cli):
    code, _, err = cli("run", "two-pods", "--no-plots", "--replicas", "3")
    assert (code, err.startswith("--replicas: seeds are a campaign")) == (2, True)


def test_the_last_change_of_a_field_counts(cli):
    changes = ["--set", "job.micro_batch=2", "--set", "job.micro_batch=1"]
    assert "job.micro_batch" not in cli("run", "two-pods", "--no-plots", *changes)[2]
    batch = json.loads(cli("check", "two-pods", "--json", *changes)[1])["job"]["micro-batches"]
    assert ", 1 sequence(s) each" in batch


def test_names_in_any_script(cli):
    code, out, _ = cli("run", "two-pods", "--json", "--no-plots", "--set", "name=日本 été")
    assert code == 0
    assert json.loads(out)["scenario"] == "日本 été"


def test_progress_and_notes_stay_out_of_the_result(tmp_path):
    """stdout can be piped into a parser while a long run tells how far it is."""
    run = process("run", "colossus-100k", "--json", "--out", str(tmp_path / "run"))
    out, err = run.communicate()
    assert json.loads(out)["gpus"] == 100_000
    assert err.splitlines()[-1] == f"written to {tmp_path / 'run'}"


@pytest.mark.slow
def test_many_cases_write_a_folder_each_with_the_numbers_of_the_table(cli, tmp_path):
    code, out, _ = cli("run", "colossus-200k", "--no-plots", "--json", "--out", tmp_path / "out")
    assert code == 0
    cases = {case["case"]: case["step_time_s"] for case in json.loads(out)["cases"]}
    found = {
        folder.name: json.loads((folder / "summary.json").read_text())["step_time_s"]
        for folder in (tmp_path / "out").iterdir()
    }
    assert found == cases


# -- found by impatience -----------------------------------------------------------------------------------------------
def two_pods_with(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(scenario_path("two-pods").read_text() + text)
    return path


def test_a_case_never_writes_outside_its_folder(cli, tmp_path):
    """A case may be called `..`; its files still belong below --out."""
    path = two_pods_with(tmp_path, 'cases: [{name: "..", set: {run.steps: 1}}, {name: ".", set: {run.steps: 2}}]\n')
    cli("run", path, "--no-plots", "--out", tmp_path / "a" / "out")
    assert not [p.name for p in (tmp_path / "a").glob("*.*")]
    assert not [p.name for p in (tmp_path / "a" / "out").glob("*.*")]


def test_two_cases_never_share_a_folder(cli, tmp_path):
    path = two_pods_with(tmp_path, 'cases: [{name: a/b, set: {run.steps: 1}}, {name: "a b", set: {run.steps: 2}}]\n')
    code, _, _ = cli("run", path, "--no-plots", "--out", tmp_path / "out")
    assert code == 2 or len(list((tmp_path / "out").iterdir())) == 2


def test_a_refused_out_leaves_no_folder(cli, tmp_path):
    """The second case's folder holds a run: exit 2, and the first case's folder isn't left empty."""
    path = two_pods_with(tmp_path, "cases: [{name: a, set: {run.steps: 1}}, {name: b, set: {run.steps: 2}}]\n")
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "steps.csv").write_text("")
    assert cli("run", path, "--no-plots", "--out", tmp_path / "out")[0] == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b"]


def test_nothing_is_said_to_be_written_when_nothing_was(cli, tmp_path):
    path = two_pods_with(tmp_path, "grid: {job.model.layers: [1280, 2560]}\n")
    code, _, err = cli("run", path, "--no-plots", "--out", tmp_path / "out")
    assert code == 1
    assert not (tmp_path / "out").exists()
    assert "written" not in err


@pytest.mark.parametrize("change", ["name='[/red]'", "name='[bold]x[/bold]'", "assumptions=['see [/b]']"])
def test_brackets_are_shown_as_written(cli, change):
    """Text of the user's is no markup."""
    code, out, _ = cli("run", "two-pods", "--no-plots", "--set", change)
    assert code == 0
    assert change.partition("'")[2].partition("'")[0] in out


def test_brackets_in_the_name_of_a_case(cli, tmp_path):
    path = two_pods_with(tmp_path, 'cases: [{name: "[/x]"}, {name: b}]\n')
    code, out, _ = cli("run", path, "--no-plots")
    assert code == 0
    assert "[/x]" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_block_characters(encoding):
    """Bars may be drawn otherwise; the page is printed."""
    run = process("run", "two-pods", "--no-plots", env={**os.environ, "PYTHONIOENCODING": encoding})
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert "step time" in out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["run two-pods --no-plots", "run two-pods --no-plots --json", "schema"])
def test_a_full_disk_is_one_line(words):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "colossim", *words.split()], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "No space left" in run.stderr


def test_a_closed_stdout_is_no_traceback():
    line = f"{sys.executable} -m colossim run two-pods --no-plots >&-"
    run = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".yaml"], ids=["name", "path"])
def test_a_name_too_long_for_the_file_system(cli, name):
    code, out, err = cli("run", name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_an_out_too_long_for_the_file_system(cli, tmp_path):
    code, out, err = cli("run", "two-pods", "--no-plots", "--out", tmp_path / ("x" * 300))
    assert (code, out) == (2, "")
    assert "cannot write into" in err


@pytest.mark.parametrize(
    "changes",
    [
        ["cluster.pue=1e308"],
        ["cluster.fabric.hop_latency=1e308 s"],
        ["cluster.fabric.link=1e-320 Gb/s"],
        ["job.tokens=1e308", "cluster.fabric.hop_latency=1000 d"],
    ],
)
def test_numbers_beyond_all_measure(cli, changes):
    """Finite as written, infinite once multiplied: told as a mistake, not a traceback and no `Infinity` in JSON."""
    code, out, err = cli(
        "run", "two-pods", "--no-plots", "--json", *(word for change in changes for word in ("--set", change))
    )
    assert code in (1, 2)
    assert out == ""
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "change", ["run.steps=1000000000", "job.global_batch=1600000000", "job.model.layers=1000000000"]
)
def test_counts_that_no_memory_holds_are_refused(change):
    """A billion steps are a billion rows, a billion layers a billion programs: reading finds it before the machine does."""
    with pytest.raises(ScenarioError, match=change.partition("=")[0].replace(".", r"\.")):
        load_scenario("two-pods", set=[change])


# -- words, files and streams ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run"], "colossim run: Missing argument 'SCENARIO'. (`colossim run --help`)\n"),
        (["frobnicate"], "colossim: No such command 'frobnicate'. (`colossim --help`)\n"),
    ],
)
def test_bad_usage_is_one_line(cli, arguments, line):
    assert cli(*arguments) == (2, "", line)


def test_without_words_it_shows_its_help(cli):
    code, out, err = cli()
    assert code == 2
    assert all(command in out + err for command in ("run", "check", "catalog", "validate"))


def test_a_disk_that_fills_up_names_the_file(cli, tmp_path, monkeypatch):
    """The numbers are there, whole; the picture that didn't fit leaves nothing."""

    def full(axes, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("colossim.plot.save", full)
    line = f"`{tmp_path / 'throughput.png'}` cannot be written: No space left on device\n"
    code, _, err = cli("run", "two-pods", "--out", tmp_path)
    assert (code, err) == (1, line)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["steps.csv", "summary.json"]


def test_pictures_of_another_run_never_stand_beside_new_numbers(cli, tmp_path, monkeypatch):
    """Also when the new run is interrupted before it has drawn its own."""
    (tmp_path / "timeline.png").write_bytes(b"of another run")

    def interrupted(axes, file):
        raise KeyboardInterrupt

    monkeypatch.setattr("colossim.plot.save", interrupted)
    assert cli("run", "two-pods", "--out", tmp_path, "--force")[0] == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["steps.csv", "summary.json"]


def test_closed_streams_are_no_traceback():
    """No stderr to complain on, and no stdout either: exit codes still tell."""
    for words, streams, code in (("run nowhere", "2>&-", 2), ("run two-pods --no-plots", ">&- 2>&-", 0)):
        run = subprocess.run(["sh", "-c", f"{sys.executable} -m colossim {words} {streams}"], stdout=subprocess.PIPE)
        assert (run.returncode, run.stdout) == (code, b"")
