"""`colossim collectives` and `colossim validate --collectives`: tables, JSON, errors, plots."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from colossim import measured, plot
from colossim.benchmark_table import tabulate, time_ratios
from colossim.cli import _run
from colossim.cluster import build_cluster
from colossim.errors import ScenarioError
from colossim.options import TYPES, doubling, parse_operations, pick
from colossim.scenario.reader import load_scenario

ROW = ["operation", "size", "count", "type", "redop", "time_us", "algbw_GBps", "busbw_GBps", "algorithm", "protocol"]


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        code = _run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        return code, out, err

    return run


@pytest.fixture(scope="module")
def two_pods():
    return load_scenario("two-pods")


# -- the table ---------------------------------------------------------------------------------------------------------
def test_the_table_of_nccl_tests(cli):
    """Every line that is no comment is one size with nccl-tests' seven columns, then algorithm and protocol."""
    code, out, err = cli("collectives", "two-pods", "--group", "node", "--from", "8", "--to", "16GiB")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("# two-pods: 128 GPUs, 16 x hgx-h100")
    assert lines[0].endswith("group node: 8 ranks on 1 node")
    heads = [line.lstrip("# ").split() for line in lines if "busbw" in line or "(us)" in line]
    assert heads == [
        ["size", "count", "type", "redop", "time", "algbw", "busbw", "algorithm", "protocol"],
        ["(B)", "(elements)", "(us)", "(GB/s)", "(GB/s)"],
    ]
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [int(row[0]) for row in rows] == [2**power for power in range(3, 35)]
    for size, count, kind, redop, time, algbw, busbw, algorithm, protocol in rows:
        assert int(count) * 4 == int(size)
        assert (kind, redop) == ("float", "sum")
        assert float(algbw) == pytest.approx(int(size) / float(time) / 1e3, rel=0.01, abs=0.01)
        assert float(busbw) == pytest.approx(float(algbw) * 7 / 4, rel=0.01, abs=0.02)
        assert algorithm in ("ring", "nvls")
        assert protocol in ("ll", "ll128", "simple")
    assert lines[-1].startswith("# Avg bus bandwidth    : ")
    mean = np.mean([float(row[6]) for row in rows])
    assert float(lines[-1].split(":")[1]) == pytest.approx(mean, rel=0.01)


def test_a_table_an_operation(cli):
    code, out, _ = cli("collectives", "two-pods", "--operation", "all_reduce,all-to-all", "--to", "1MiB")
    assert code == 0
    assert out.count("# Avg bus bandwidth") == 2
    assert [line for line in out.splitlines() if line in ("# all_reduce", "# all_to_all")] == [
        "# all_reduce",
        "# all_to_all",
    ]
    # 128 ranks with 16 B each are 2 KiB: 8, 16, ... 1024 B are less.
    assert "# two-pods: all_to_all: 8 sizes that leave less than 16 B for a rank are left out" in out


def test_json(cli):
    found = json.loads(cli("collectives", "two-pods", "--group", "rail", "--type", "half", "--json")[1])
    assert (found["scenario"], found["group"], found["ranks"], found["nodes"]) == ("two-pods", "rail", 16, 16)
    assert all(list(row) == ROW for row in found["rows"])
    assert [row["count"] for row in found["rows"]] == [2**power // 2 for power in range(3, 35)]
    busbw = [row["busbw_GBps"] for row in found["rows"]]
    assert found["avg_busbw_GBps"] == {"all_reduce": pytest.approx(np.mean(busbw))}
    assert "against" not in found


def test_two_clusters_side_by_side(cli):
    """The ratio is the second's time over the first's, size by size; --set changes the first only."""
    words = ["collectives", "two-pods", "--set", "cluster.nodes.0.count=8", "--set", "job.global_batch=64"]
    words += ["--operation", "all_gather", "--to", "64MiB", "--against", "two-pods"]
    found = json.loads(cli(*words, "--json")[1])
    assert (found["ranks"], found["against"]["ranks"]) == (64, 128)
    theirs = {row["size"]: row["time_us"] for row in found["against"]["rows"]}
    assert [row["size"] for row in found["rows"]] == [2**power for power in range(10, 27)]
    assert [ratio["size"] for ratio in found["time_ratios"]] == sorted(theirs)
    for row in found["rows"]:
        if row["size"] in theirs:
            ratio = next(r["time_ratio"] for r in found["time_ratios"] if r["size"] == row["size"])
            assert ratio == pytest.approx(theirs[row["size"]] / row["time_us"])
    code, out, _ = cli(*words)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if not line.startswith("#")]
    assert [len(row) for row in rows] == [9] + [15] * 16
    assert "# against two-pods: 128 GPUs" in out
    # Twice the ranks, twice the steps.
    assert float(rows[1][-1]) == pytest.approx(2, rel=0.05)


def test_rounded_sizes_are_paired_by_what_was_asked(two_pods):
    """72 ranks hold other bytes than 64 of the same 1 MiB; both are its row."""
    sizes = (2**20,)
    small = tabulate(two_pods, ("all_gather",), "gpus:64", sizes)
    large = tabulate(two_pods, ("all_gather",), "gpus:72", sizes)
    assert (small.rows[0].size, large.rows[0].size) == (2**20, 2**20 // 72 // 16 * 16 * 72)
    (ratio,) = time_ratios(small, large)
    assert ratio["time_ratio"] == pytest.approx(large.rows[0].time / small.rows[0].time)


def test_what_is_forced_is_obeyed_or_told(cli):
    words = ["collectives", "two-pods", "--from", "1MiB", "--to", "1GiB"]
    found = json.loads(cli(*words, "--algorithm", "tree", "--protocol", "simple", "--json")[1])
    assert {(row["algorithm"], row["protocol"]) for row in found["rows"]} == {("tree", "simple")}
    assert found["notes"] == []
    found = json.loads(cli(*words, "--operation", "all_gather", "--algorithm", "tree", "--json")[1])
    assert {row["algorithm"] for row in found["rows"]} == {"ring"}
    assert found["notes"] == ["all_gather: tree can't run everywhere here, NCCL takes ring"]
    found = json.loads(cli(*words, "--algorithm", "nvls", "--json")[1])
    assert {row["algorithm"] for row in found["rows"]} == {"nvls-tree"}
    assert found["notes"] == []


def test_types_that_the_switch_cannot_reduce(two_pods):
    assert [tabulate(two_pods, (), "node", (2**33,), type=t).rows[0].algorithm for t in ("bfloat16", "fp8_e4m3")] == [
        "nvls",
        "ring",
    ]


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_has_its_width(two_pods, kind):
    (row,) = tabulate(two_pods, (), "node", (2**20,), type=kind).rows
    assert (row.type, row.count * TYPES[kind]) == (kind, 2**20)


def test_a_job_that_does_not_fit_has_collectives_all_the_same(cli):
    """Only the cluster matters, and of the job how it is cut."""
    code, out, _ = cli("collectives", "two-pods", "--set", "job.model=llama3-405b", "--set", "job.model.layers=128")
    assert code == 0
    assert "Avg bus bandwidth" in out


# -- groups ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("all", range(128)),
        ("node", range(8)),
        ("node:5", range(40, 48)),
        ("rail", range(0, 128, 8)),
        ("rail:3", range(3, 128, 8)),
        ("gpus:20", range(20)),
        ("pod:1", range(64, 128)),
        ("tensor", range(2)),
        ("tensor:2", range(4, 6)),
        # Tensor 2 and 16 replicas: the data group strides over tensor, a stage ends after 32 GPUs.
        ("data", range(0, 32, 2)),
        ("pipeline", (0, 32)),
    ],
)
def test_groups_by_their_words(two_pods, group, expected):
    cluster = build_cluster(two_pods.cluster)
    assert cluster.fabric.nodes_per_pod == 8 or "pod" not in group
    assert pick(two_pods, cluster, group).tolist() == list(expected)


def test_a_rail_of_a_rack_has_several_gpus_a_node():
    """GB200: GPU i of 72 is on rail i % 4."""
    changes = ["cluster.nodes=[{type: gb200-nvl72, count: 2}]", "cluster.fabric.nodes_per_pod=2"]
    scenario = load_scenario("two-pods", set=changes)
    assert pick(scenario, build_cluster(scenario.cluster), "rail").tolist() == list(range(0, 144, 4))


def test_a_stage_boundary_sends(cli):
    found = json.loads(cli("collectives", "two-pods", "--group", "pipeline", "--json")[1])
    assert {row["operation"] for row in found["rows"]} == {"send_receive"}
    assert (found["ranks"], found["nodes"]) == (2, 2)
    best = found["rows"][-1]
    assert best["busbw_GBps"] == pytest.approx(best["algbw_GBps"])
    assert 40 < best["busbw_GBps"] <= 50


# -- errors ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--group", "raill"], "--group: `raill` is no group: did you mean `rail`?"),
        (["--group", "rail:8"], "--group: `rail:8`: rails are numbered 0 to 7"),
        (["--group", "node:x"], "--group: `node:x`: write it as `node:8`"),
        (["--group", "gpus"], "--group: `gpus`: write it as `gpus:8`"),
        (["--group", "gpus:999"], "--group: `gpus:999`: the cluster has 128 GPUs"),
        (["--group", "gpus:1"], "--group: `gpus:1` has 1 GPU: a collective needs two"),
        (["--group", "expert"], "--group: the job has no expert group of two GPUs: `job.parallelism.expert`"),
        (["--operation", "all_redcue"], "--operation: `all_redcue` is no operation: did you mean `all_reduce`?"),
        (["--operation", "gather_all"], "--operation: `gather_all` is no operation: "),
        (["--type", "floot"], "--type: `floot` is no type of nccl-tests: did you mean `float`?"),
        (["--from", "0"], "--from: `0` is no size of a message"),
        (["--to", "9.5 B"], "--to: `9.5 B` is no size of a message"),
        (["--to", "12 parsec"], "--to: `12 parsec`: `parsec` is not a unit of size"),
        (["--from", "1G", "--to", "1M"], "--from: `1G` is more than --to `1M`"),
        (["--operation", "all_gather", "--to", "64"], "no size is large enough for all_gather of 128 ranks: 2,048 B"),
        (["--algorithm", "star"], "'star' is not one of 'auto', 'ring'"),
        (["--against", "three-pods"], "did you mean `two-pods`?"),
        (["--set", "job.micro_bach=2"], "micro_batch"),
    ],
)
def test_mistakes_are_one_line_and_nothing_else(cli, words, said):
    code, out, err = cli("collectives", "two-pods", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


def test_a_cluster_that_cannot_be_wired_is_located(cli):
    code, out, err = cli("collectives", "two-pods", "--set", "cluster.fabric.nodes_per_pod=100")
    assert (code, out) == (2, "")
    assert err.startswith("--set cluster.fabric.nodes_per_pod: a leaf needs")


RACKS = """
name: racks
cluster: {nodes: [{type: gb200-nvl72, count: 60}], fabric: {base: spectrum-x, nodes_per_pod: 3}}
job: {model: llama3-8b, sequence_length: 8192, global_batch: 4320}
"""


def test_what_cannot_be_timed_is_one_line(cli, tmp_path):
    code, out, err = cli("collectives", "two-pods", "--set", "cluster.fabric.link=1e-300 B/s")
    assert (code, out) == (1, "")
    assert err == "a quantity of the scenario is too large or too small to reckon with\n"
    (tmp_path / "racks.yaml").write_text(RACKS)
    code, out, err = cli("collectives", tmp_path / "racks.yaml", "--operation", "all_to_all")
    assert (code, out) == (1, "")
    assert "4,320 GPUs" in err
    assert "--group gpus:4096" in err
    assert cli("collectives", tmp_path / "racks.yaml", "--operation", "all_to_all", "--group", "gpus:144")[0] == 0


def test_sizes():
    assert doubling("8", "64") == (8, 16, 32, 64)
    assert doubling("3", "13") == (3, 6, 12)
    assert doubling("1k", "4 KiB") == (1024, 2048, 4096)
    assert doubling("1MB", "1MB") == (1_000_000,)
    assert parse_operations("all-reduce, all_gather,all_reduce") == ("all_reduce", "all_gather")
    with pytest.raises(ScenarioError, match="whole bytes"):
        doubling("1.5 B", "8")


# -- plots -------------------------------------------------------------------------------------------------------------
def test_a_plot_of_one_cluster_and_of_two(cli, tmp_path):
    for words in ([], ["--against", "colossus-100k"]):
        path = tmp_path / f"{len(words)}.png"
        code, out, err = cli("collectives", "two-pods", "--group", "node", "--plot", path, *words)
        assert (code, err) == (0, "")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert "busbw" in out


def test_a_plot_that_cannot_be_written_prints_nothing(cli, tmp_path):
    path = tmp_path / "nowhere" / "x.png"
    code, out, err = cli("collectives", "two-pods", "--plot", path)
    assert (code, out) == (1, "")
    assert err == f"`{path}` cannot be written: No such file or directory\n"


def test_the_curve_is_the_bus_bandwidth(two_pods):
    """A grey line an operation through all sizes; over it marks, each in the colour of its algorithm."""
    rows = tabulate(two_pods, ("all_reduce", "all_gather"), "node", doubling("8", "16GiB")).rows
    figure = Figure()
    ax = figure.add_subplot()
    assert plot.collectives(rows, ax=ax) is ax
    lines = [line for line in ax.lines if line.get_linestyle() != "None"]
    for operation, line in zip(("all_reduce", "all_gather"), lines, strict=True):
        own = [row for row in rows if row.operation == operation]
        assert list(line.get_xdata()) == [row.size for row in own]
        assert list(line.get_ydata()) == pytest.approx([row.busbw / 1e9 for row in own])
    marks = sum(len(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "None")
    assert marks == len(rows)
    assert ax.get_xscale() == "log"
    assert "(GB/s)" in ax.get_ylabel()
    assert {"nvls, Simple", "ring, LL"} <= {text.get_text() for text in ax.get_legend().get_texts()}
    assert [text.get_text() for text in ax.texts] == ["all-gather", "all-reduce"]


def test_two_clusters_are_two_dashes(two_pods):
    rows = tabulate(two_pods, (), "node", doubling("1M", "1G")).rows
    ax = plot.collectives({"here": rows, "there": [replace(row, busbw=row.busbw / 2) for row in rows]})
    lines = [line for line in ax.lines if line.get_linestyle() != "None"]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert {"here", "there"} <= {text.get_text() for text in ax.get_legend().get_texts()}


def test_predictions_over_measurements():
    """Every counted row is a point; both axes in GB/s, both logarithmic; the bands are 10 and 20 %."""
    points = measured.points()
    ax = plot.predicted(points)
    marks = [line for line in ax.lines if line.get_linestyle() == "None"]
    drawn = sorted(zip(*(np.concatenate([line.get_data()[i] for line in marks]) for i in (0, 1)), strict=True))
    assert np.array(drawn) == pytest.approx(np.array(sorted((p.measured / 1e9, p.predicted / 1e9) for p in points)))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ("GB/s" in ax.get_xlabel(), "GB/s" in ax.get_ylabel()) == (True, True)
    assert {"within 10 %", "within 20 %"} <= {text.get_text() for text in ax.get_legend().get_texts()}
    beside = next(other for other in ax.get_figure().axes if other is not ax)
    sized = [p for p in points if p.row.bytes]
    assert sum(len(line.get_xdata()) for line in beside.lines if line.get_linestyle() == "None") == len(sized)
    low, high = beside.get_ylim()
    assert all(low < 1 + p.error < high for p in sized)


# -- the scoreboard ----------------------------------------------------------------------------------------------------
def test_the_scoreboard_of_collectives(cli, tmp_path):
    code, out, err = cli("validate", "--collectives", "--plot", tmp_path / "x.png")
    assert (code, err) == (0, "")
    report = measured.report()
    assert f"worst group: {report['worst_group']}" in out
    assert f"from 1 MiB on: median {report['overall']['median_pct_large']:.1f} %" in out
    assert f"{report['flagged']} rows are flagged" in out
    for name in report["groups"]:
        assert name in out
    for reason in report["flags"]:
        assert reason in out
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_scoreboard_as_json_is_the_report(cli):
    code, out, err = cli("validate", "--collectives", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found == measured.report()
    assert set(found["overall"]) == {"n", "median_pct_large", "median_pct_small"}
    for group in found["groups"].values():
        assert set(group) >= {"n", "median_pct", "worst_pct"}


def test_options_that_do_not_go_together(cli):
    code, out, err = cli("validate", "--collectives", "--source", "two-pods")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
