"""Fits of constants, on rows whose times are known: what a constant is, what counts, and what is left out."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import colossim.calibrate
from colossim import catalog, cli, load_scenario
from colossim.calibrate import Row, catalogue_text, entries, fit, rows_of, scores
from colossim.constants import Constant, shipped_constants, touches, value_of, with_values
from colossim.result.confidence import error_band, said
from colossim.scenario.derive import derive
from colossim.scenario.schema import Measured
from colossim.validation import Run, published

MEMORY = Constant("gpus", "H100", ("memory_efficiency",), 0.5, 0.95, 0.2)
OVERLAP = Constant("software", "megatron-2024", ("overlap.compute", "overlap.transfer"), 0.01, 2.0, 0.5)


def small(*changes):
    return load_scenario("two-pods", set=["cluster.nodes.0.count=4", *changes])


def test_a_constant_is_its_entrys_and_of_those_based_on_it():
    """H200 is based on H100, nemo-2024 on megatron-2024; one value may stand in several fields."""
    assert touches(MEMORY, small())
    assert touches(MEMORY, small("cluster.nodes.0.type=hgx-h200"))
    assert not touches(MEMORY, small("cluster.nodes.0.type=dgx-a100", "job.precision=bf16"))
    assert touches(OVERLAP, small("job.software=nemo-2024"))
    assert not touches(OVERLAP, small("job.software=fsdp2-2025"))
    changed = with_values(small(), {MEMORY: 0.5, OVERLAP: 0.125})
    assert changed.cluster.nodes[0].type.gpu.memory_efficiency == 0.5
    assert (changed.job.software.overlap.compute, changed.job.software.overlap.transfer) == (0.125, 0.125)
    assert small().cluster.nodes[0].type.gpu.memory_efficiency != 0.5
    assert value_of(MEMORY) == small().cluster.nodes[0].type.gpu.memory_efficiency


def test_a_constant_of_a_node_type():
    """It is the type's and of those based on it, not of what these are based on."""
    crossing = Constant("nodes", "a100-4x200", ("network.crossing",), 0.1, 1.0, 0.5)
    scenario = small("cluster.nodes.0.type=a100-4x200")
    assert touches(crossing, scenario)
    assert not touches(crossing, small("cluster.nodes.0.type=dgx-a100"))
    changed = with_values(scenario, {crossing: 0.5})
    assert changed.cluster.nodes[0].type.network.crossing == 0.5
    assert changed.cluster.nodes[0].type.gpu == scenario.cluster.nodes[0].type.gpu


def test_the_constants_that_ship_are_few_and_hold_their_entries():
    """At most 8 a GPU, one a node type and 5 a stack, each within its bounds before and after the fit."""
    constants = shipped_constants()
    for kind, most in (("gpus", 8), ("nodes", 1), ("software", 5)):
        for entry in {c.entry for c in constants if c.kind == kind}:
            assert sum(c.entry == entry for c in constants) <= most
    for constant in constants:
        for calibrated in (False, True):
            assert constant.low <= value_of(constant, calibrated=calibrated) <= constant.high, constant.name


def of(scenario, measured, hidden=1):
    return Row("here", "case", scenario, measured, ("here", hidden))


def hidden(size):
    return small(f"job.model={{base: llama3-8b, hidden: {size}, head_size: 128}}")


@pytest.fixture
def line(monkeypatch):
    """A world in which a step takes 1/memory_efficiency times its hidden width, so that what is right is known."""

    def predicted(task):
        scenario, values = task
        changed = with_values(scenario, values)
        return changed.job.model.hidden / changed.cluster.nodes[0].type.gpu.memory_efficiency

    monkeypatch.setattr(colossim.calibrate, "predict", predicted)


def test_a_fit_finds_what_the_rows_say(line):
    """Times of an efficiency of 0.7: log(time) is a line of log(efficiency), and many rows outweigh what was believed."""
    rows = [of(hidden(size), size / 0.7, size) for size in range(1024, 1024 * 21, 1024)]
    found = fit(rows, [MEMORY])
    assert found.value[0] == pytest.approx(0.7, rel=2e-3)
    assert np.abs(found.after).max() < 2e-3
    assert found.before == pytest.approx(0.7 / found.start[0] - 1)
    # A cell that is left out is predicted as well by the others.
    assert np.abs(found.left_out).max() < 3e-3


def test_an_outlier_counts_less_than_its_square(line):
    """One of 20 rows is twice too slow: least squares would move the constant by log(2)/20 = 3.5 %."""
    rows = [of(hidden(size), size / 0.7, size) for size in range(1024, 1024 * 20, 1024)]
    rows.append(of(hidden(1024 * 30), 2 * 1024 * 30 / 0.7, 30))
    assert fit(rows, [MEMORY]).value[0] == pytest.approx(0.7, rel=1e-2)


def test_rows_that_are_partly_assumed_are_predicted_only(line):
    """A row of which a fit may not learn moves nothing, and has its errors before, after and while left out like the others."""
    wide = Constant("gpus", "H100", ("memory_efficiency",), 0.5, 0.95, 100.0)
    told = [of(hidden(size), size / 0.6, size) for size in (1024, 2048)]
    other = dataclasses.replace(of(hidden(4096), 4096 / 0.9, 3), fits=False)
    alone, both = fit(told, [wide]), fit([*told, other], [wide])
    assert both.value == pytest.approx(alone.value)
    assert both.after[2] == pytest.approx(0.9 / 0.6 - 1, rel=1e-2)
    assert both.left_out[2] == pytest.approx(both.after[2], rel=1e-2)
    with pytest.raises(ValueError, match=r"learn from none of 1 rows"):
        fit([other], [wide])


def test_rows_may_tell_of_some_constants_alone(line):
    """A row that says nothing of memory moves nothing of it, though its GPU has it; it is no reason for a fit of it either."""
    wide = Constant("gpus", "H100", ("memory_efficiency",), 0.5, 0.95, 100.0)
    told = [of(hidden(size), size / 0.6, size) for size in (1024, 2048)]
    other = of(hidden(4096), 4096 / 0.9, 3)
    of_host, of_memory = (dataclasses.replace(other, fits=fits) for fits in (("host", "gemm"), ("host", "memory")))
    assert fit([*told, of_host], [wide]).value == pytest.approx(fit(told, [wide]).value)
    assert fit([*told, of_memory], [wide]).value == pytest.approx(fit([*told, other], [wide]).value)
    assert fit([of_host], [wide]).constants == ()


def test_near_duplicates_count_once(line):
    """Ten rows of one configuration say 0.6, one of another 0.8: half way between their logs, not ten to one."""
    rows = [of(hidden(1024), 1024 / 0.6, 0) for _ in range(10)] + [of(hidden(2048), 2048 / 0.8, 1)]
    found = fit(rows, [Constant("gpus", "H100", ("memory_efficiency",), 0.5, 0.95, 100.0)])
    assert math.log(found.value[0]) == pytest.approx((math.log(0.6) + math.log(0.8)) / 2, abs=2e-2)


def test_bounds_hold(line):
    rows = [of(hidden(size), size / 0.3, size) for size in range(1024, 1024 * 9, 1024)]
    assert fit(rows, [MEMORY]).value[0] == pytest.approx(0.5, rel=1e-6)


def test_fewer_configurations_than_constants_are_refused_with_the_numbers(line):
    with pytest.raises(ValueError, match="3 rows of 1 configurations can't tell 2 constants"):
        fit([of(small(), 1.0)] * 3, [MEMORY, OVERLAP])


def test_a_fit_looks_at_the_smallest_and_the_largest_row_of_a_configuration():
    runs = [
        Run("here", str(nodes), small(f"cluster.nodes.0.count={nodes}"), Measured(step_time="1 s", flag=flag))
        for nodes, flag in ((8, ""), (4, ""), (16, ""), (32, "doubtful"))
    ]
    assert [row.case for row in rows_of(runs)] == ["4", "16"]


def test_what_is_written_is_a_catalogue_file(line, tmp_path):
    """Of the format of `catalog:`: a scenario that names it has the fitted value."""
    rows = [of(hidden(size), size / 0.7, size) for size in range(1024, 1024 * 9, 1024)]
    found = fit(rows, [MEMORY])
    file = tmp_path / "mine.yaml"
    file.write_text(catalogue_text(found), encoding="utf-8")
    path = tmp_path / "scenario.yaml"
    cluster = "{nodes: [{type: {base: hgx-h100, gpu: H100}, count: 1}], fabric: quantum-2}"
    job = "{model: llama3-8b, sequence_length: 8192, global_batch: 8}"
    path.write_text(f"catalog: {file}\nname: mine\ncluster: {cluster}\njob: {job}\n", encoding="utf-8")
    read = load_scenario(path).cluster.nodes[0].type.gpu.memory_efficiency
    assert read == pytest.approx(found.value[0], rel=1e-3)
    assert set(entries(found)) == {"gpus"}
    assert set(scores(found)) == {"here"}


def test_the_command_refuses_what_cannot_be_fitted(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    text = "name: mine\nsources: [me]\ncluster: {nodes: [{type: hgx-h100, count: 1}], fabric: quantum-2}\n"
    text += "job: {model: llama3-8b, sequence_length: 8192, global_batch: 8}\n"
    path.write_text(text + "cases: [{name: one, measured: {step_time: 1 s}}]\n", encoding="utf-8")
    assert cli._run(["calibrate", "--source", str(path), "--quiet", "--workers", "1"]) == 2
    assert "1 rows of 1 configurations can't tell" in capsys.readouterr().err


# -- the band beside every answer -------------------------------------------------------------------------------------
def band_of(*changes):
    scenario = load_scenario("two-pods", set=changes)
    return error_band(scenario, derive(scenario))


def test_a_band_is_that_of_the_runs_most_like_it():
    band = band_of("job.software=nemo-2024")
    assert band["runs"] > 0
    assert band["within_pct"] > 0
    assert not band["beyond"]
    assert json.loads(json.dumps(band)) == band
    assert f"{band['within_pct']:.0f} %" in said(band)


def test_beyond_what_was_published_it_says_so():
    assert any("B200" in line for line in band_of("cluster.nodes.0.type=hgx-b200")["beyond"])
    many = band_of("cluster.nodes.0.count=8192", "job.global_batch=65536")
    assert any("GPUs" in line for line in many["beyond"])


def test_lineage_ends():
    assert catalog.lineage("gpus", "H200") == ("H200", "H100")
    assert catalog.lineage("gpus", "of my own") == ("of my own",)


@pytest.mark.slow
def test_what_ships_is_what_the_fit_finds():
    """With all else as it ships, a fit that begins at the entries finds the constants of three stacks again; that of all
    constants together (`python -m calibration.steps`) takes minutes."""
    stacks = {"fsdp-2025": "torchtitan-a100", "internevo": "internevo", "mosaic-llm-foundry": "llm-foundry-a100"}
    constants = [c for c in shipped_constants() if c.entry in stacks]
    found = fit(rows_of([run for source in stacks.values() for run in published(source)]), constants)
    assert len(found.constants) == 3
    for constant, value in zip(found.constants, found.value, strict=True):
        assert value == pytest.approx(value_of(constant), rel=0.02), constant.name
        assert value_of(constant) != value_of(constant, calibrated=False)
