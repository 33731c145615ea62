"""Figures of a result from their formulas, power, the page, and plots by the data they draw."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import colossim
from colossim.engine.record import CATEGORIES, LABEL, LinkUse, StepRecord, Timeline
from colossim.plot.throughput import binned
from colossim.plot.timeline import raster
from colossim.result.power import power_of
from colossim.result.summary import bar, by_kind
from colossim.scenario.derive import derive
from colossim.workload.transformer import model_flops_per_token


@pytest.fixture(scope="module")
def scenario():
    return colossim.load_scenario("two-pods", set=["job.tokens=1T", "run.steps=3"])


@pytest.fixture(scope="module")
def result(scenario):
    return colossim.simulate(scenario)


def test_figures_follow_from_the_step(result, scenario):
    tokens = 128 * 8192
    flops = model_flops_per_token(scenario.job.model, 8192) * tokens
    assert result.tokens_per_step == tokens
    assert result.tokens_per_s == pytest.approx(tokens / result.step_time_s)
    assert result.tokens_per_s_per_gpu == pytest.approx(result.tokens_per_s / 128)
    assert result.mfu == pytest.approx(flops / result.step_time_s / 128 / 989e12)
    assert result.hfu == result.mfu, "flash attention, no recompute that counts"
    assert result.time_to_train_s == pytest.approx(1e12 / tokens * result.step_time_s)
    assert result.energy_per_step_J == pytest.approx(result.power_W * result.step_time_s)
    assert [step["end_s"] for step in result.steps] == pytest.approx([result.step_time_s * i for i in (1, 2, 3)])


def test_json_and_frames(result):
    again = json.loads(result.to_json())
    assert again["step_time_s"] == result.step_time_s
    assert "record" not in again
    frame = result.to_pandas()
    assert list(frame.index) == [0, 1, 2]
    assert frame["tokens_per_s"].iloc[0] == pytest.approx(result.tokens_per_s)


def test_a_node_that_computes_draws_what_was_measured(scenario):
    """8 x H100 under GPT-3 draw 6.85 kW (Supermicro, MLPerf v4.0), before switches and the site's PUE."""
    busy = Timeline(0, "hgx-h100", 128, 0, *(np.array([v]) for v in (0.0, 1.0, 0, 0, 0, 0)))
    record = StepRecord(1.0, (busy,), (), 0, 1, 1, np.array([1.0]))
    power = power_of(scenario, derive(scenario), record).power
    nodes, switches = 16, 59_570 / 64
    assert power / scenario.cluster.pue / nodes - switches == pytest.approx(6850, rel=0.05)


def test_a_hundred_thousand_gpus_draw_what_sites_report():
    """107 to 122 MW at PUE 1.1 to 1.25 when all compute."""
    scenario = colossim.load_scenario("colossus-100k")
    busy = Timeline(0, "hgx-h100", 98_304, 0, *(np.array([v]) for v in (0.0, 1.0, 0, 0, 0, 0)))
    record = StepRecord(1.0, (busy,), (), 0, 1, 1, np.array([1.0]))
    assert 107e6 <= power_of(scenario, derive(scenario), record).power <= 122e6


def test_a_mixed_job_says_who_sets_the_pace():
    changes = ["cluster.nodes.0.count=48", "cluster.nodes.1.count=16", "job.global_batch=64"]
    mixed = colossim.simulate(colossim.load_scenario("colossus-200k", set=changes))
    assert mixed.mix["pace"] == "hgx-h100"
    assert set(mixed.mix["types"]) == {"hgx-h100", "hgx-h200"}
    assert "sets the pace" in str(mixed)


def test_the_page_is_made_of_the_numbers(result):
    page = str(result)
    assert f"{100 * result.mfu:.1f} %" in page
    assert "where stage" in page
    assert max(len(line) for line in page.splitlines()) <= 80


def test_bars_are_as_long_as_their_share():
    assert bar(1.0, 10) == "█" * 10
    assert bar(0.5, 4) == "██"
    assert bar(0.0) == ""


def test_links_of_a_kind_are_one_row():
    links = {
        "NIC out 1": {"count": 4, "capacity_Bps": 10.0, "busy_fraction": 0.1, "bytes_per_step": 5.0},
        "NIC out 2": {"count": 6, "capacity_Bps": 10.0, "busy_fraction": 0.3, "bytes_per_step": 7.0},
        "NIC out 3": {"count": 1, "capacity_Bps": 5.0, "busy_fraction": 0.3, "bytes_per_step": 7.0},
    }
    rows = by_kind(links)
    assert [row["count"] for row in rows.values()] == [10, 1]
    assert next(iter(rows.values()))["bytes_per_step"] == 7.0


# -- plots -----------------------------------------------------------------------------------------------------------
def test_breakdown_draws_the_breakdown(result):
    ax = colossim.plot.breakdown(result)
    widths = [bar.get_width() for bar in ax.patches]
    expected = sorted((s for s in result.breakdown_s.values() if s >= 5e-4 * result.step_time_s), reverse=True)
    assert widths == pytest.approx(expected)
    assert ax.get_yticklabels()[0].get_text() == LABEL["compute"]
    assert "(s)" in ax.get_xlabel()


def test_timeline_shares_add_up(result):
    for line in result.record.timelines:
        shares = raster(line, result.record.step_time, 50)
        assert shares.sum(axis=1) == pytest.approx(np.ones(50))
        waiting = line.seconds()[[CATEGORIES.index("pipeline_bubble"), CATEGORIES.index("straggler")]].sum()
        assert shares[:, 4].mean() * result.record.step_time == pytest.approx(waiting)
    ax = colossim.plot.timeline(result)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    box = ax.get_legend().get_bbox_to_anchor().transformed(ax.transAxes.inverted())
    assert box.x0 >= 1.0, "the legend is outside the data"


def test_throughput_is_binned_without_loss():
    use = LinkUse("NIC out", "nic-out", 1, 10.0, 14.0, 3.0, np.array([0.0, 1.0, 3.0, 4.0]), np.array([4.0, 0.0, 10.0]))
    edges, share, peak = binned(use, 4.0, 8)
    assert share == pytest.approx([0.4, 0.4, 0, 0, 0, 0, 1, 1])
    assert peak == pytest.approx(share)
    assert binned(use, 4.0, 1)[2] == [1.0]
    assert np.sum(share * np.diff(edges)) * use.capacity == pytest.approx(use.bytes)


def test_throughput_shows_tokens_and_links(result):
    ax = colossim.plot.throughput(result)
    top, links = ax.get_figure().axes
    assert links is ax
    assert "tokens/s" in top.get_ylabel()
    assert (
        len(links.get_yticks()) == len({use.kind for use in result.record.links if use.bytes})
        or len(links.get_yticks()) == 6
    )


def test_plots_draw_where_they_are_told(result):
    from matplotlib.figure import Figure

    for draw in (colossim.plot.breakdown, colossim.plot.timeline, colossim.plot.throughput, colossim.plot.tokens):
        ax = Figure().add_subplot()
        assert draw(result, ax=ax) is ax


def test_topology_counts_its_parts(scenario):
    ax = colossim.plot.topology(colossim.build_cluster(scenario.cluster))
    words = " ".join(text.get_text() for text in ax.texts)
    assert "128 H100 GPUs" in words
    assert "16 leaf switches" in words


def test_plots_need_no_display_and_no_pyplot(tmp_path):
    code = (
        "import sys, colossim\n"
        "r = colossim.simulate(colossim.load_scenario('two-pods'))\n"
        f"colossim.plot.save(colossim.plot.timeline(r), {str(tmp_path / 'x.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "x.png").stat().st_size > 10_000
