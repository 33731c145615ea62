"""The scoreboard of published runs: what ships, the arithmetic of errors, the command, the README's table."""

from __future__ import annotations

import json
import os
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from benchmarks.readme_table import BEGIN, END, README, replaced
from colossim import plot, validation
from colossim.errors import ScenarioError, SimulationError
from colossim.result.validation import markdown
from colossim.scenario.variants import load_variants
from colossim.shipped import published_names, scenario_path
from colossim.validation import Prediction, Run, published, scoreboard, validate

#: Step times by source; all that a source prints is there.
SIZES = {
    "dgx-cloud-24.11-bf16": 30, "dgx-cloud-24.11-fp8": 30, "internevo": 18, "korthikanti-2022": 9, "llm-foundry-a100": 18,
    "megatron-bridge-25.09": 5, "megatron-core-h100": 9, "mlperf-v3.1": 8, "sc21-table1": 10, "sc21-table2": 12,
    "torchtitan-a100": 8,
    "torchtitan-h100-memory": 0, "vtrain-multi-node": 61, "vtrain-single-node": 299,
}  # fmt: skip
FAST = "torchtitan-a100"


@pytest.fixture(scope="module")
def runs():
    return published()


@pytest.fixture(scope="module")
def report(runs):
    """Every run with a prediction that is 2 % too slow: the scoreboard without the time that playing takes."""
    made_up = [Prediction(1.02 * (run.measured.step_time or 1.0), 60e9, 80e9, 0) for run in runs]
    found = scoreboard(runs, made_up)
    for row in found["sources"].values():
        row |= {"untuned_mean_pct": None, "left_out_mean_pct": None}
    return found


# -- what ships ----------------------------------------------------------------------------------------------------------
def test_every_row_of_every_source_ships(runs):
    counted = {name: 0 for name in published_names()}
    for run in runs:
        counted[run.source] += run.measured.step_time is not None
    assert counted == SIZES
    assert len({(run.source, run.case) for run in runs}) == len(runs)


def test_a_row_says_where_it_is_from_and_a_flag_says_why(runs):
    for run in runs:
        assert run.measured.source or run.scenario.sources, run
        assert not run.measured.flag or len(run.measured.flag) > 20
    flagged = [run.case for run in runs if run.measured.flag and run.source == "vtrain-multi-node"]
    assert len(flagged) == 6


def test_what_was_converted_follows_from_what_was_printed(runs):
    """Tokens/s (of all GPUs, or of one) over a step's tokens, as printed, are its time; to the digits that were kept."""
    checked = 0
    for run in runs:
        found = re.fullmatch(r"([\d,]+) tokens/s( a GPU)?", run.measured.printed)
        if found is None or run.measured.step_time is None:
            continue
        job = run.scenario.job
        gpus = run.scenario.cluster.gpus if found[2] else 1
        rate = float(found[1].replace(",", "")) * gpus
        assert run.measured.step_time == pytest.approx(job.global_batch * job.sequence_length / rate, rel=1e-4)
        checked += 1
    assert checked == SIZES["internevo"] + SIZES["llm-foundry-a100"] + SIZES["torchtitan-a100"] + 5


@pytest.mark.parametrize(
    ("source", "flops"),
    [
        # SC21: 96 B s L h^2 (1 + s/6h + V/16Lh): recompute and all of attention
        ("sc21-table1", lambda b, s, n, h, v: 96 * b * s * n * h * h * (1 + s / (6 * h) + v / (16 * n * h))),
        ("sc21-table2", lambda b, s, n, h, v: 96 * b * s * n * h * h * (1 + s / (6 * h) + v / (16 * n * h))),
        # Megatron-Core 0.8: 72 B s L h^2 (1 + s/6h + V/12Lh): no recompute
        ("megatron-core-h100", lambda b, s, n, h, v: 72 * b * s * n * h * h * (1 + s / (6 * h) + v / (12 * n * h))),
    ],
)
def test_tflops_printed_are_step_times_by_the_sources_own_formula(runs, source, flops):
    own = [run for run in runs if run.source == source]
    assert len(own) == SIZES[source]
    for run in own:
        job, model = run.scenario.job, run.scenario.job.model
        printed = float(re.match(r"[\d.]+", run.measured.printed)[0]) * 1e12
        total = flops(job.global_batch, job.sequence_length, model.layers, model.hidden, model.vocabulary)
        assert run.measured.step_time == pytest.approx(total / printed / run.scenario.cluster.gpus, rel=1e-4)


def test_a_variant_is_its_case_and_has_none_itself():
    (first, *_) = load_variants(FAST)
    assert first.scenario.cases == ()
    assert first.measured is not None


# -- the arithmetic ------------------------------------------------------------------------------------------------------
def test_flagged_rows_are_counted_apart_and_sources_weigh_the_same(runs):
    """Errors of +10 and -2 % count in one source, one of 40 % is flagged; the other source has one of +4 %.

    Pooled: mean of 10, 2, 4. Equal weight: (6 + 4)/2 = 5; sorted 2 (weight 1/4), 4 (1/2), 10 (1/4): half is reached at 4.
    """
    measured = type(runs[0].measured)
    rows = [("a", 1.10, ""), ("a", 0.98, ""), ("a", 1.40, "doubtful"), ("b", 1.04, "")]
    made_up = [
        Run(name, str(i), runs[0].scenario, measured(step_time="1 s", flag=f)) for i, (name, _, f) in enumerate(rows)
    ]
    board = scoreboard(made_up, [Prediction(time, 1e9, 80e9, 0) for _, time, _ in rows])
    a, overall = board["sources"]["a"], board["overall"]
    assert (a["n"], a["flagged_n"], a["all_n"]) == (2, 1, 3)
    for key, value in {
        "mean_pct": 6, "median_pct": 6, "worst_pct": 10, "bias_pct": 4, "flagged_mean_pct": 40, "all_mean_pct": 52 / 3,
        "all_median_pct": 10,
    }.items():  # fmt: skip
        assert a[key] == pytest.approx(value), key
    assert (overall["n"], overall["mean_pct"]) == (3, pytest.approx(16 / 3))
    assert overall["equal_weight_mean_pct"] == pytest.approx(5)
    assert overall["equal_weight_median_pct"] == pytest.approx(4)


def test_a_run_that_does_not_fit_is_played_and_listed():
    """MPT-1B takes more than 40 GB by our model, and ran: a finding, and a prediction all the same."""
    report = validate("llm-foundry-a100")
    (tight,) = [case for case in report["does_not_fit"] if case["case"] == "1b-40gb-64"]
    assert tight["predicted_bytes"] > tight["capacity_bytes"] == 40960 * 2**20
    assert len(report["cases"]) == 18
    for case in report["cases"]:
        assert case["error_pct"] == pytest.approx(100 * (case["predicted_s"] / case["measured_s"] - 1))
    errors = [case["error_pct"] for case in report["cases"] if not case["flag"]]
    row = report["sources"]["llm-foundry-a100"]
    assert row["mean_pct"] == pytest.approx(statistics.fmean(map(abs, errors)))
    assert row["left_out_mean_pct"] < row["untuned_mean_pct"]


def test_workers_change_nothing():
    assert json.dumps(validate(FAST, workers=2)) == json.dumps(validate(FAST))


def _die(scenario):
    os._exit(9)


def test_a_worker_that_is_killed_is_told(monkeypatch):
    monkeypatch.setattr(validation, "predict", _die)
    with pytest.raises(SimulationError, match="fewer --workers"):
        validate(FAST, workers=2)


def test_the_calibration_leaves_two_columns(tmp_path, monkeypatch):
    path = tmp_path / "validation.yaml"
    path.write_text(f"sources:\n  {FAST}: {{untuned_mean_pct: 9.5, left_out_mean_pct: 1.25}}\n")
    monkeypatch.setattr(validation, "SCORES", path)
    report = validate(FAST)
    assert report["sources"][FAST]["untuned_mean_pct"] == 9.5
    head, _, row, *_ = markdown(report).splitlines()
    assert "| before any fit | left-out configurations |" in head
    assert "| 9.5 % | 1.2 % |" in row


# -- the command ---------------------------------------------------------------------------------------------------------
MEASURED = """
cases:
  - {name: early, set: {job.global_batch: 64}, measured: {step_time: 1 s, memory: 50 GB, source: here}}
  - {name: late, measured: {step_time: 2 s, source: here, flag: doubtful}}
"""


@pytest.fixture
def cli(capsys):
    from colossim.cli import _run

    def call(*words):
        code = _run([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_validate_a_file_of_ones_own(cli, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(scenario_path("two-pods").read_text() + MEASURED)
    code, out, err = cli("validate", "--source", path, "--json", "--plot", tmp_path / "x.png")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [(c["case"], c["measured_s"], c["flag"]) for c in report["cases"]] == [
        ("early", 1.0, ""),
        ("late", 2.0, "doubtful"),
    ]
    assert all(set(c) == {"source", "case", "measured_s", "predicted_s", "error_pct", "flag"} for c in report["cases"])
    (row,) = report["sources"].values()
    assert (row["n"], row["flagged_n"]) == (1, 1)
    assert set(row) >= {"mean_pct", "median_pct", "worst_pct", "bias_pct", "untuned_mean_pct", "left_out_mean_pct"}
    (memory,) = report["memory"]["cases"]
    assert memory["error_pct"] == pytest.approx(100 * (memory["predicted_bytes"] / 50e9 - 1))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = cli("validate", "--source", path)
    assert code == 0
    for words in ("two-pods early", "two-pods late", "doubtful", "bias", "memory of the fullest GPU"):
        assert words in out


@pytest.mark.parametrize("name", ["two-pods", "korthikanti-2023", "million-gpus"])
def test_a_source_without_runs_is_told_those_that_have_some(cli, name):
    code, out, err = cli("validate", "--source", name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "korthikanti-2022" in err


def test_a_measurement_without_any_source_is_told_where_it_stands(tmp_path):
    """A measurement's source may be the scenario's; one of them has to be there."""
    path = tmp_path / "own.yaml"
    text = re.sub(r"^sources:.*?(?=^\w)", "", scenario_path("two-pods").read_text(), flags=re.M | re.S)
    path.write_text(text + "\ncases:\n  - {name: x, measured: {step_time: 1 s}}\n")
    with pytest.raises(ScenarioError) as caught:
        load_variants(path)
    (problem,) = caught.value.problems
    assert problem.field == "cases.0.measured.source"
    assert problem.line == text.count("\n") + 3
    assert "`sources`" in problem.message


# -- the picture ---------------------------------------------------------------------------------------------------------
def test_every_run_is_a_point_and_flagged_ones_are_hollow(report):
    ax = plot.published(report)
    (beside,) = (other for other in ax.get_figure().axes if other is not ax)
    for axes, cases, measured, unit in (
        (ax, report["cases"], "measured_s", 1.0),
        (beside, report["memory"]["cases"], "measured_bytes", 1e9),
    ):
        marks = [line for line in axes.lines if line.get_linestyle() == "None"]
        drawn = np.sort(np.concatenate([line.get_xdata() for line in marks]))
        assert drawn == pytest.approx(np.sort([case[measured] / unit for case in cases]))
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        looks = [(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in marks]
        assert len(set(looks)) == len(looks)
        assert {"within 5 %", "within 10 %"} <= {text.get_text() for text in axes.get_legend().get_texts()}
    hollow = sum(
        len(line.get_xdata())
        for line in ax.lines
        if line.get_linestyle() == "None" and line.get_markerfacecolor() == "none"
    )
    assert hollow == sum(bool(case["flag"]) for case in report["cases"])


# -- the README's table --------------------------------------------------------------------------------------------------
def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


def test_the_readme_lists_what_ships(report):
    shown = cells(README.read_text().split(BEGIN)[1].split(END)[0])
    ships = cells(markdown(report))
    assert [row[:2] for row in shown] == [row[:2] for row in ships]
    assert all(len(row) == len(table[0]) for table in (shown, ships) for row in table)
    for row in shown[2:-2]:
        assert (README.parent / re.search(r"\((.*?)\)", row[0])[1]).exists()


def test_a_new_table_stands_between_the_markers():
    text = f"a\n{BEGIN}\nold\n{END}\nb\n"
    assert replaced(text, "new") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
    with pytest.raises(ValueError, match="once each"):
        replaced("no markers", "new")


@pytest.mark.slow
def test_the_readme_says_the_errors_of_all_runs():
    """Every run, on two processes: each number of the README's table to its last digit."""
    report = validate(workers=2)
    assert replaced(README.read_text(), markdown(report)) == Path(README).read_text()
    assert len(report["cases"]) == sum(SIZES.values())
