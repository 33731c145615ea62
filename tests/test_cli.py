"""The command line: what it prints where, exit codes, files, and that nothing a user does ends in a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from colossim.cli import _run
from colossim.shipped import scenario_path

RESULT_KEYS = {
    "scenario", "gpus", "gpus_in_job", "nodes", "seed", "version", "step_time_s", "step_time_p99_s", "tokens_per_s",
    "tokens_per_s_per_gpu", "model_flops_per_gpu", "mfu", "hfu", "breakdown_s", "memory_bytes", "links", "power_W",
    "energy_per_step_J", "assumptions", "classes", "processes", "events", "setup_s", "wall_s", "peak_memory_bytes", "fold",
    "fold_rounds", "aligned",
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
        "breakdown.png", "steps.csv", "summary.json", "throughput.png", "timeline.png",
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


def test_measured_cases_show_their_error(cli):
    code, out, _ = cli("run", "korthikanti-2022", "--case", "22B-full", "--no-plots")
    assert code == 0
    code, out, _ = cli("validate", "--source", "korthikanti-2022", "--json")
    report = json.loads(out)
    assert code == 0
    assert {"n", "mean_pct", "median_pct", "worst_pct", "bias_pct"} <= set(report["sources"]["korthikanti-2022"])
    assert {"source", "case", "measured_s", "predicted_s", "error_pct", "flag"} == set(report["cases"][0])
    code, _, err = cli("validate", "--source", "two-pods")
    assert code == 2
    assert "no measured cases" in err


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
        (["run", "two-pods", "--set", "cluster.fabric.routing=ecmp"], "isn't available yet"),
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


def test_ctrl_c_is_one_line_and_130(tmp_path):
    """In the middle of a run that takes long; --out holds nothing."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    run = process("run", "korthikanti-2022", "--case", "1T-full", "--out", str(tmp_path / "run"), env=env)
    time.sleep(1.2)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_reader_that_has_had_enough():
    run = process("catalog", "models")
    run.stdout.close()
    assert "Traceback" not in run.stderr.read()
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


def test_a_single_measured_case_shows_its_error(cli):
    assert "Measured 1.42 s: predicted -1.9 %" in cli("run", "korthikanti-2022", "--case", "22B-full", "--no-plots")[1]
