"""Plots, by the data that they draw."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

import colossim
from colossim import plot
from colossim.cluster import build_cluster
from colossim.engine.chunked import pipeline_rows, play_collective
from colossim.engine.record import CATEGORIES, LABEL, LinkUse, Timeline
from colossim.plot.canvas import STYLE
from colossim.plot.throughput import _MOST_LINKS, _POINTS, binned
from colossim.plot.timeline import _COLUMNS, _SHADES, _turns, blurred, raster
from colossim.scenario.schema import ClusterSpec
from colossim.units import format_time

DRAW = (plot.breakdown, plot.timeline, plot.throughput, plot.link_throughput, plot.tokens)


@pytest.fixture(scope="module")
def result():
    return colossim.simulate(colossim.load_scenario("two-pods", set=["run.steps=3"]))


@pytest.fixture(scope="module")
def short():
    """A step of less than a second: its axes are in ms."""
    return colossim.simulate(colossim.load_scenario("two-pods", set=["job.global_batch=64"]))


@pytest.fixture(scope="module")
def mixed():
    changes = ["cluster.nodes.0.count=48", "cluster.nodes.1.count=16", "job.global_batch=64"]
    return colossim.simulate(colossim.load_scenario("colossus-200k", set=changes))


def words(ax):
    return " ".join(text.get_text() for text in ax.texts)


# -- the Axes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_it_draws_where_it_is_told(result, draw):
    """Only there: the figure gets no further Axes, and those beside stay empty."""
    figure = Figure()
    mine, other = figure.subplots(1, 2)
    assert draw(result, ax=mine) is mine
    assert figure.axes == [mine, other]
    assert not other.has_data()
    assert mine.has_data()


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_without_axes_it_makes_a_figure_each_time(result, draw):
    first, second = draw(result), draw(result)
    assert first.get_figure() is not second.get_figure()
    assert first in first.get_figure().axes


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_axes_say_what_and_in_which_unit(result, short, draw):
    assert result.step_time_s > 1 > short.step_time_s
    ax = draw(result)
    assert ax.get_xlabel().startswith("time")
    assert "(s)" in ax.get_xlabel()
    assert ax.get_title(loc="left")
    if draw is not plot.tokens:  # over the run, which takes seconds
        assert "(ms)" in draw(short).get_xlabel()


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_nothing_that_is_written_leaves_the_picture(result, draw):
    """Every text lies inside the figure once it is laid out."""
    ax = draw(result)
    figure = ax.get_figure()
    figure.canvas.draw()
    box = figure.bbox
    low, high = ax.get_xlim()
    ticks = [tick.label1 for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    for text in (*ax.texts, *ticks, *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label):
        if not text.get_text():
            continue
        area = text.get_window_extent()
        assert area.x0 >= box.x0 - 1, text.get_text()
        assert area.x1 <= box.x1 + 1, text.get_text()


# -- breakdown ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ["result", "short"])
def test_bars_are_the_breakdown(request, which):
    """A bar a category of at least 0.05 %, longest first, as wide as its time in the axis' unit."""
    result = request.getfixturevalue(which)
    scale = 1.0 if which == "result" else 1e3
    ax = plot.breakdown(result)
    parts = sorted(
        ((s, name) for name, s in result.breakdown_s.items() if s >= 5e-4 * result.step_time_s), reverse=True
    )
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([s * scale for s, _ in parts])
    assert [bar.get_x() for bar in ax.patches] == [0.0] * len(parts)
    assert [label.get_text() for label in ax.get_yticklabels()] == [LABEL[name] for _, name in parts]
    assert [bar.get_facecolor()[:3] for bar in ax.patches] == [to_rgb(STYLE[name][0]) for _, name in parts]
    for seconds, _ in parts:
        assert f"{format_time(seconds)}  ({100 * seconds / result.step_time_s:.1f} %)" in words(ax)
    assert ax.yaxis_inverted(), "the longest is on top"
    assert ax.get_xlim()[1] > parts[0][0] * scale


def test_every_category_has_a_style_of_its_own():
    assert set(STYLE) == set(CATEGORIES)
    assert len(set(STYLE.values())) == len(STYLE)


# -- timeline ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("columns", [1, 7, 500])
def test_shares_of_a_column_add_up(result, columns):
    """Each column is spent in full; over the step each shade takes what its categories take."""
    record = result.record
    for line in record.timelines:
        shares = raster(line, record.step_time, columns)
        assert shares.sum(axis=1) == pytest.approx(np.ones(columns))
        assert shares.min() >= -1e-12
        seconds = dict(zip(CATEGORIES, line.seconds(), strict=True))
        spent = shares.mean(axis=0) * record.step_time
        assert spent[0] + spent[1] + spent[2] == pytest.approx(seconds["compute"])
        assert spent[3] == pytest.approx(seconds["optimizer"] + seconds["other"])
        assert spent[4] == pytest.approx(sum(s for name, s in seconds.items() if name.endswith("_comm")))
        assert spent[5] == pytest.approx(seconds["pipeline_bubble"] + seconds["straggler"])


def test_backward_takes_longer_than_forward(result):
    for line in result.record.timelines:
        forward, backward = raster(line, result.record.step_time, 10).mean(axis=0)[:2]
        assert 1.5 * forward < backward < 3 * forward


def test_the_picture_is_the_mix_of_what_a_stage_does(result):
    ax = plot.timeline(result)
    (image,) = ax.get_images()
    colours = np.array([to_rgb(colour) for _, colour in _SHADES])
    drawn = np.asarray(image.get_array())
    assert drawn.shape == (4, _COLUMNS, 3)
    for row, line in zip(drawn, result.record.timelines, strict=True):
        assert row == pytest.approx(raster(line, result.record.step_time, _COLUMNS) @ colours)
    assert image.get_extent() == [0.0, result.step_time_s, 3.5, -0.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    assert ax.get_ylabel() == "pipeline stage"


@pytest.fixture(scope="module")
def parted():
    """Weights' gradients as passes of their own."""
    schedule = ["job.parallelism.schedule=zero-bubble", "job.parallelism.virtual_pipeline=1"]
    return colossim.simulate(colossim.load_scenario("two-pods", set=schedule))


def test_the_legend_names_all_shades_beside_the_data(parted):
    ax = plot.timeline(parted)
    figure = ax.get_figure()
    figure.canvas.draw()
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [label for label, _ in _SHADES]
    assert [patch.get_facecolor()[:3] for patch in legend.get_patches()] == [to_rgb(colour) for _, colour in _SHADES]
    area, data = legend.get_window_extent(), ax.get_window_extent()
    assert area.x0 >= data.x1
    assert area.x1 <= figure.bbox.x1 + 1


def test_weight_gradients_have_a_shade_where_they_have_passes(result, parted):
    """A third of the backward pass at least, and nothing where B makes them."""
    assert "weight gradients" not in [text.get_text() for text in plot.timeline(result).get_legend().get_texts()]
    for line in result.record.timelines:
        assert np.all(raster(line, result.record.step_time, 10)[:, 2] == 0)
    for line in parted.record.timelines:
        _, inputs, weights = raster(line, parted.record.step_time, 10).mean(axis=0)[:3]
        assert inputs / 2 < weights < inputs


def test_node_types_of_a_mixed_job_are_rows_of_their_own(mixed):
    labels = [label.get_text() for label in plot.timeline(mixed).get_yticklabels()]
    assert len(labels) == len(set(labels)) >= 8
    for label in labels:
        assert label.split()[1] in ("hgx-h100", "hgx-h200")


def test_no_more_columns_than_pixels(result):
    """Else the picture, drawn with the nearest column, shows some and leaves others out: stripes that nobody computed."""
    ax = plot.timeline(result)
    (image,) = ax.get_images()
    figure = ax.get_figure()
    figure.set_dpi(130)
    figure.canvas.draw()
    assert image.get_interpolation() != "nearest" or ax.get_window_extent().width >= _COLUMNS


def test_a_hundred_stages_stay_readable(result):
    """At most 64 rows: every second of a hundred stages."""
    first = result.record.timelines[0]
    many = tuple(dataclasses.replace(first, stage=stage) for stage in range(100))
    tall = dataclasses.replace(result, record=dataclasses.replace(result.record, timelines=many))
    labels = [label.get_text() for label in plot.timeline(tall).get_yticklabels()]
    assert labels == [str(stage) for stage in range(0, 100, 2)]


# -- throughput --------------------------------------------------------------------------------------------------------
def use_of(times, rates, capacity=10.0, kind="nic-out"):
    times, rates = np.array(times, float), np.array(rates, float)
    size = float(rates @ np.diff(times))
    return LinkUse("NIC out", kind, 1, capacity, size, float(times[-1]), times, rates)


def test_binning_loses_no_byte():
    """4 B/s for 1 s, nothing for 2 s, 10 B/s for 1 s, on a link of 10 B/s: 14 B."""
    use = use_of([0, 1, 3, 4], [4, 0, 10])
    edges, share, peak = binned(use, 4.0, 8)
    assert share == pytest.approx([0.4, 0.4, 0, 0, 0, 0, 1, 1])
    assert peak == pytest.approx(share)
    for points in (1, 3, 7, 100):
        edges, share, peak = binned(use, 4.0, points)
        assert float(share @ np.diff(edges)) * use.capacity == pytest.approx(14.0)
        assert (peak >= share - 1e-12).all()
        assert peak.max() == 1.0


def test_a_burst_shorter_than_a_bin_shows_as_its_peak():
    """A tenth of a second at 8 of 10 B/s within a bin of 1 s: mean 8 %, peak 80 %."""
    _, share, peak = binned(use_of([0, 1.2, 1.3, 3], [0, 8, 0]), 3.0, 3)
    assert share == pytest.approx([0, 0.08, 0])
    assert peak == pytest.approx([0, 0.8, 0])


def bands(ax):
    """The filled bands: (values, edges, baseline) of each, in the order drawn."""
    return [patch.get_data() for patch in ax.patches if isinstance(patch, StepPatch)]


@pytest.mark.parametrize("which", ["result", "short", "mixed"])
def test_bands_are_the_binned_throughput(request, which):
    """Two a kind of link (peak below, mean above it) over its base line; 0.8 of a row is the link's capacity."""
    result = request.getfixturevalue(which)
    step = result.record.step_time
    scale = 1e3 if step < 1 else 1.0
    best = {}
    for use in result.record.links:
        if use.bytes and (
            use.kind not in best or use.bytes / use.capacity > best[use.kind].bytes / best[use.kind].capacity
        ):
            best[use.kind] = use
    order = sorted(best.values(), key=lambda use: -use.bytes / use.capacity)[:_MOST_LINKS]
    ax = plot.link_throughput(result)
    drawn = bands(ax)
    assert len(drawn) == 2 * len(order)
    loads = [text.get_text() for text in ax.texts if text.get_text().endswith("%")]
    for row, use in enumerate(order):
        edges, share, peak = binned(use, step, _POINTS)
        base = len(order) - 1 - row
        for band, expected in zip(drawn[2 * row : 2 * row + 2], (peak, share), strict=True):
            assert band.baseline == base
            assert band.edges == pytest.approx(edges * scale)
            assert (band.values - base) / 0.8 == pytest.approx(expected)
        assert loads[row] == f"{100 * use.bytes / use.capacity / step:.1f} %"
        # What products hide while gradients are in flight is in the bytes alone.
        assert float(share @ np.diff(edges)) <= use.bytes / use.capacity * (1 + 1e-9)
    names = [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]
    assert names == [use.name for use in order]
    assert all("B/s" in label.get_text() for label in ax.get_yticklabels())


def test_tokens_are_a_level_a_step(result):
    ax = plot.tokens(result)
    (level,) = bands(ax)
    scale = 1e3 if result.tokens_per_s < 1e6 else 1e6
    assert level.values * scale == pytest.approx([step["tokens_per_s"] for step in result.steps])
    assert level.edges == pytest.approx([i * result.step_time_s for i in range(4)])
    assert ("(ktokens/s)" if scale == 1e3 else "(Mtokens/s)") in ax.get_ylabel()
    assert ax.get_ylim()[0] == 0, "a level is read against zero"
    assert ax.get_ylim()[1] * scale > result.tokens_per_s


def test_throughput_stacks_tokens_above_links(result):
    ax = plot.throughput(result)
    top, below = ax.get_figure().axes
    assert below is ax
    assert "tokens/s" in top.get_ylabel()
    assert top.get_position().y0 > below.get_position().y0


def test_a_step_without_traffic_has_no_bands():
    """One GPU: nothing to carry, and still a picture."""
    lonely = [
        "cluster.nodes=[{type: {base: hgx-h100, gpus: 1, rails: 1}, count: 1}]",
        "job.model={base: llama3-8b, layers: 2}",
        "job.parallelism={}",
        "job.global_batch=2",
    ]
    result = colossim.simulate(colossim.load_scenario("two-pods", set=lonely))
    assert result.gpus == 1
    assert bands(plot.link_throughput(result)) == []
    for draw in DRAW:
        draw(result).get_figure().canvas.draw()


# -- topology ----------------------------------------------------------------------------------------------------------
def test_topology_counts_its_parts():
    """Two pods of 8 nodes: a leaf a rail and pod, 128 NICs, a link up a leaf."""
    cluster = colossim.build_cluster(colossim.load_scenario("two-pods").cluster)
    ax = Figure().add_subplot()
    assert plot.topology(cluster, ax=ax) is ax
    for part in ("128 H100 GPUs", "16 leaf switches", "16 hgx-h100 nodes", "2 blocks of spines", "128 x 450 GB/s"):
        assert part in words(ax)
    parts = cluster.graph(quotient=True).number_of_nodes()
    assert sum(" x " not in text.get_text() for text in ax.texts) == parts, "a label a part"


def test_one_of_a_kind_is_singular():
    cluster = colossim.build_cluster(colossim.load_scenario("two-pods").cluster)
    assert "1 zones" not in words(plot.topology(cluster))


# -- files, notebooks, no global state ---------------------------------------------------------------------------------
def test_save_writes_a_png_of_the_whole_figure(result, tmp_path):
    ax = plot.throughput(result)
    plot.save(ax, str(tmp_path / "x.png"))
    head = (tmp_path / "x.png").read_bytes()[:24]
    width, height = ax.get_figure().get_size_inches() * 130
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20]) == int(width)
    assert int.from_bytes(head[20:24]) == int(height)


def run(code, **environment):
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ, **environment})


def test_plots_need_no_display_and_no_pyplot(tmp_path):
    run(
        "import sys, colossim\n"
        "r = colossim.simulate(colossim.load_scenario('two-pods'))\n"
        "assert 'matplotlib' not in sys.modules, 'imported when a plot is drawn'\n"
        f"colossim.plot.save(colossim.plot.throughput(r), {str(tmp_path / 'x.png')!r})\n"
        "colossim.plot.timeline(r), colossim.plot.breakdown(r), colossim.plot.tokens(r)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n",
        DISPLAY="",
    )
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_topology_needs_no_pyplot():
    """networkx's own drawing functions import it."""
    run(
        "import sys, colossim\n"
        "colossim.plot.topology(colossim.build_cluster(colossim.load_scenario('two-pods').cluster))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n",
        DISPLAY="",
    )


@pytest.mark.slow
def test_plots_draw_into_a_users_subplots():
    """As in a notebook: pyplot makes the grid, each panel gets a plot, nothing is opened beside it."""
    run(
        "import colossim, matplotlib.pyplot as plt\n"
        "r = colossim.simulate(colossim.load_scenario('two-pods'))\n"
        "fig, axes = plt.subplots(2, 2, layout='constrained')\n"
        "for draw, ax in zip((colossim.plot.breakdown, colossim.plot.timeline, colossim.plot.link_throughput,\n"
        "                     colossim.plot.tokens), axes.flat):\n"
        "    assert draw(r, ax=ax) is ax\n"
        "colossim.plot.timeline(r)\n"
        "fig.canvas.draw()\n"
        "assert plt.get_fignums() == [1]\n",
        MPLBACKEND="agg",
    )


def test_a_plots_figure_shows_itself_as_the_last_line_of_a_cell(result):
    """`plot.timeline(result).figure` ends a cell in the notebooks: a Figure, which IPython shows."""
    assert isinstance(plot.timeline(result).figure, Figure)


# -- what is dense, what is chosen, what is written ----------------------------------------------------------------------
def test_passes_too_short_to_see_are_a_mean_without_waves():
    """1,024 passes on 1,000 columns: a third forward, two thirds backward, cut by columns that beat with the passes."""
    passes = 1024
    share = np.tile([1 / 3, 2 / 3], passes // 2)
    bounds = np.concatenate(([0.0], np.cumsum(share))) / share.sum()
    zeros = np.zeros(passes, int)
    line = Timeline(
        0, "hgx-h100", 1, 0, bounds[:-1], bounds[1:], zeros, np.tile([0, 1], passes // 2), np.arange(passes) // 2, zeros
    )
    sharp = raster(line, 1.0, 1000)
    smooth = blurred(sharp, _turns(line))
    assert _turns(line) == passes // 2
    assert sharp[:, 0].std() > 0.1
    assert smooth[10:-10, 0].std() < 0.02
    assert smooth[10:-10, 0].mean() == pytest.approx(1 / 3, rel=0.01)
    assert smooth.sum(axis=1) == pytest.approx(np.ones(1000))


def test_passes_long_enough_to_see_stay_sharp(result):
    line = result.record.timelines[0]
    sharp = raster(line, result.record.step_time, 1000)
    assert blurred(sharp, _turns(line)) is sharp


def test_a_stage_shows_its_class_that_computes_longest(result):
    """As the breakdown does. The first class of stage 0 is made to wait all the time; the second is as it was."""
    busy = result.record.timelines[0]
    bubble = np.full_like(busy.category, CATEGORIES.index("pipeline_bubble"))
    lines = (dataclasses.replace(busy, category=bubble), busy)
    odd = dataclasses.replace(result, record=dataclasses.replace(result.record, timelines=lines))
    (image,) = plot.timeline(odd).get_images()
    colours = np.array([to_rgb(colour) for _, colour in _SHADES])
    (row,) = np.asarray(image.get_array())
    assert row == pytest.approx(raster(busy, result.record.step_time, _COLUMNS) @ colours)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [r"cost $\bad$", "日本"])
def test_a_name_is_no_formula_and_no_reason_to_warn(result, name, tmp_path):
    named = dataclasses.replace(result, scenario=name)
    for draw in (plot.breakdown, plot.timeline, plot.throughput):
        ax = draw(named)
        plot.save(ax, str(tmp_path / "x.png"))
        assert any(name in each.get_title(loc="left") for each in ax.get_figure().axes)


# -- pipeline_fill -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two_nodes():
    return build_cluster(
        ClusterSpec.model_validate({"nodes": ({"type": "hgx-h100", "count": 2},), "fabric": "spectrum-x"})
    )


def test_a_pipeline_has_a_row_an_edge_and_a_bar_a_message(two_nodes):
    run = play_collective(two_nodes, np.arange(8), "broadcast", 8e6, algorithm="ring", slices=4, overlap=True)
    ax = plot.pipeline_fill(run)
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{i} to {i + 1}" for i in range(7)]
    rows = pipeline_rows(run)
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width(), round(bar.get_y() + 0.39)) for bar in ax.patches)
    assert np.array(bars) == pytest.approx(
        np.array(sorted((row.start * 1e6, row.end * 1e6, row.edge[0]) for row in rows))
    )
    colours = {row.slice: set() for row in rows}
    for bar in ax.patches:
        row = min(rows, key=lambda r, b=bar: abs(r.start * 1e6 - b.get_x()) + abs(r.edge[0] - b.get_y() - 0.39))
        colours[row.slice].add(bar.get_facecolor())
    assert all(len(shades) == 1 for shades in colours.values())
    assert len(set.union(*colours.values())) == 4
    # A line of latency ends where its bar begins.
    assert {round(line.get_xdata()[1], 6) for line in ax.lines} == {round(row.start * 1e6, 6) for row in rows}


@pytest.mark.parametrize(("operation", "algorithm", "lanes"), [("all_reduce", "ring", 8), ("all_reduce", "tree", 16)])
def test_a_pipeline_of_one_lane_of_several(two_nodes, operation, algorithm, lanes):
    run = play_collective(two_nodes, np.arange(16), operation, 64e6, algorithm=algorithm, overlap=True)
    ax = plot.pipeline_fill(run, lane=lanes - 1)
    assert f"lane {lanes - 1} of {lanes}" in ax.get_title(loc="left")
    assert len(ax.patches) == sum(row.lane == lanes - 1 for row in pipeline_rows(run))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    if algorithm == "ring":
        assert len(labels) == 16
        for here, following in zip(labels, labels[1:] + labels[:1], strict=True):
            assert here.split(" to ")[1] == following.split(" to ")[0]
    with pytest.raises(ValueError, match=f"no lane {lanes}"):
        plot.pipeline_fill(run, lane=lanes)


def test_a_pipeline_is_drawn_where_it_is_told_and_knows_the_switch(two_nodes):
    run = play_collective(two_nodes, np.arange(8), "all_reduce", 64e6, algorithm="nvls", slices=2, overlap=True)
    ax = Figure().add_subplot()
    assert plot.pipeline_fill(run, ax) is ax
    assert "0 to the switch" in [label.get_text() for label in ax.get_yticklabels()]
