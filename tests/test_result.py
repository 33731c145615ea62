"""Figures of a result from their formulas, power, the page, JSON, frames and steps.csv."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import colossim
from colossim.engine.record import CATEGORIES, LinkUse, StepRecord, Timeline
from colossim.result.ledger import bar
from colossim.result.result import _links
from colossim.result.row import Row
from colossim.result.summary import by_kind, collectives
from colossim.result.write import write
from colossim.workload.transformer import model_flops_per_token

GPUS, BATCH, SEQUENCE = 128, 128, 8192


@pytest.fixture(scope="module")
def scenario():
    return colossim.load_scenario("two-pods", set=["job.tokens=1T", "run.steps=3"])


@pytest.fixture(scope="module")
def result(scenario):
    return colossim.simulate(scenario)


def timeline(seconds, hardware="hgx-h100", count=GPUS, stage=0):
    """A rank class that spends `seconds` ({category: s}), one after the other."""
    ends = np.cumsum(list(seconds.values()))
    n = len(seconds)
    return Timeline(
        stage=stage,
        hardware=hardware,
        count=count,
        rank=0,
        start=np.concatenate(([0.0], ends[:-1])),
        end=ends,
        category=np.array([CATEGORIES.index(name) for name in seconds]),
        direction=np.zeros(n, np.int64),
        micro_batch=np.zeros(n, np.int64),
        chunk=np.zeros(n, np.int64),
    )


def record_of(*timelines, links=()):
    step = float(timelines[0].end[-1])
    return StepRecord(step, timelines, tuple(links), 0, 1, 1, np.array([step]))


def use(name="NIC out", count=1, capacity=10.0, size=5.0, busy=0.5):
    return LinkUse(name, "nic-out", count, capacity, size, busy, np.array([0.0, 1.0]), np.array([size]))


# -- figures -----------------------------------------------------------------------------------------------------------
def test_throughput_follows_from_the_step(result):
    """A step takes B s = 128 x 8,192 tokens; everything a second is that over the step."""
    tokens = BATCH * SEQUENCE
    assert result.tokens_per_step == tokens
    assert result.tokens_per_s == pytest.approx(tokens / result.step_time_s)
    assert result.tokens_per_s_per_gpu == pytest.approx(result.tokens_per_s / GPUS)
    assert result.time_to_train_s == pytest.approx(1e12 / tokens * result.step_time_s)


def test_mfu_is_what_the_model_needs_over_the_datasheet(result):
    """Llama 3 8B: 32 layers of h = 4,096 with 32 query and 8 key/value heads of 128, f = 14,336 gated, V = 128,256.

    Forward, a token: 2 x (q, k, v, output: h (32 + 2 x 8 + 32) 128; MLP: 3 h f) + the causal half of 4 s h in each layer,
    2 h V in the head. Training takes three times that.
    """
    h, f, vocabulary = 4096, 14336, 128256
    layer = 2 * (h * (32 + 2 * 8 + 32) * 128 + 3 * h * f) + 4 * SEQUENCE * h / 2
    forward = 32 * layer + 2 * h * vocabulary
    per_gpu = 3 * forward * BATCH * SEQUENCE / result.step_time_s / GPUS
    assert result.model_flops_per_gpu == pytest.approx(per_gpu)
    assert result.mfu == pytest.approx(per_gpu / 989e12)
    assert result.hfu == result.mfu, "flash attention: nothing that counts is computed again"


def test_hfu_counts_what_full_recompute_adds():
    """The layers' forward pass once more. 3 F(L) is known; F(L) - F(L/2) is half of the layers, without the head:

    hardware = 3 F(L) + 2 (F(L) - F(L/2)).
    """
    scenario = colossim.load_scenario("two-pods", set=["job.recompute=full"])
    result = colossim.simulate(scenario)
    model = scenario.job.model
    whole = model_flops_per_token(model, SEQUENCE)
    half = model_flops_per_token(model.model_copy(update={"layers": model.layers // 2}), SEQUENCE)
    assert result.hfu / result.mfu == pytest.approx((whole + 2 * (whole - half) / 3) / whole)


def test_the_breakdown_is_the_step_of_the_class_that_computes_longest(result):
    assert tuple(result.breakdown_s) == CATEGORIES
    assert sum(result.breakdown_s.values()) == pytest.approx(result.step_time_s, rel=1e-9)
    record = result.record
    computing = [line.seconds()[CATEGORIES.index("compute")] for line in record.timelines]
    assert result.breakdown_s["compute"] == max(computing)
    assert result.bottleneck == {"stage": record.timelines[record.critical].stage, "stages": 4, "hardware": "hgx-h100"}
    assert sum(line.count for line in record.timelines) == GPUS
    for line in record.timelines:
        assert line.start[0] == 0
        assert line.end[-1] == pytest.approx(record.step_time)
        assert line.start[1:] == pytest.approx(line.end[:-1])


def test_links_carry_what_the_record_says(result):
    for link in result.links.values():
        assert 0 <= link["busy_fraction"] <= 1
        load = link["bytes_per_step"] / link["capacity_Bps"] / result.step_time_s
        assert load <= link["busy_fraction"] * (1 + 1e-9), "no link is over its capacity"
    assert by_kind(result.links)["NIC out"]["count"] == GPUS
    total = {
        kind: sum(u.bytes * u.count for u in result.record.links if u.kind == kind)
        for kind in ("nic-out", "nic-in", "leaf-up", "leaf-down", "nvlink-out", "nvlink-in")
    }
    assert total["nic-out"] == pytest.approx(total["nic-in"])
    assert total["leaf-up"] == pytest.approx(total["leaf-down"])
    assert total["nvlink-out"] == pytest.approx(total["nvlink-in"])
    for u in result.record.links:
        moved = float(u.rate @ np.diff(u.times))
        if "nvlink" in u.kind:
            # What products hide while gradients are in flight is in the bytes alone.
            assert 0.9 * u.bytes < moved <= u.bytes * (1 + 1e-9)
        else:
            assert moved == pytest.approx(u.bytes)


def test_bound_names_the_largest_shares_and_the_busiest_link(result):
    share = 100 * result.breakdown_s["compute"] / result.step_time_s
    load = max(link["bytes_per_step"] / link["capacity_Bps"] for link in result.links.values()) / result.step_time_s
    assert result.bound.startswith(f"kernels {share:.0f} %, ")
    assert f"carries {100 * load:.0f} % of what it could" in result.bound


def test_link_classes_of_a_name_are_numbered_until_they_are_many():
    """Two classes: an entry each. 65 (of 1 to 65 links): one entry, the mean of the bytes, the busiest share."""
    line = timeline({"compute": 2.0})
    two = _links(record_of(line, links=[use(count=3), use(count=4), use("leaf up")]))
    assert list(two) == ["NIC out 1", "NIC out 2", "leaf up"]
    assert two["NIC out 1"] == {"count": 3, "capacity_Bps": 10.0, "busy_fraction": 0.5 / 2, "bytes_per_step": 5.0}
    uses = [use(count=i, size=float(i), busy=i / 65, capacity=100.0 + i) for i in range(1, 66)]
    (entry,) = _links(record_of(line, links=uses)).values()
    count = 65 * 66 // 2
    assert entry == pytest.approx(
        {
            "count": count,
            "capacity_Bps": 101.0,
            "busy_fraction": 1.0 / 2,
            "bytes_per_step": sum(i * i for i in range(1, 66)) / count,
        }
    )


def test_a_run_without_tokens_has_no_time_to_train():
    found = colossim.simulate(colossim.load_scenario("two-pods")).to_dict()
    assert "time_to_train_s" not in found
    assert "mix" not in found, "one node type"


def test_a_rows_error_is_predicted_over_measured(result):
    assert Row("a", result, 2.0).error == pytest.approx(result.step_time_s / 2 - 1)
    assert Row("a", result, None).error is None
    assert Row("a", None, 2.0, "why").to_dict() == {"case": "a", "measured_step_time_s": 2.0, "error": "why"}


# -- files and frames --------------------------------------------------------------------------------------------------
def test_json_holds_every_number_to_the_last_bit(result):
    again = json.loads(result.to_json())
    assert again == json.loads(json.dumps(result.to_dict(), default=list))
    for name, value in result.to_dict().items():
        assert again[name] == (list(value) if isinstance(value, tuple) else value)
    assert not {"record", "steps"} & set(again)


def test_frames_have_a_row_a_step(result):
    frame = result.to_pandas()
    assert list(frame.index) == [0, 1, 2]
    assert frame.index.name == "step"
    assert list(frame["end_s"] - frame["start_s"]) == pytest.approx(list(frame["step_time_s"]))
    assert frame["tokens_per_s"].to_numpy() == pytest.approx([result.tokens_per_s] * 3)


def test_steps_csv_holds_the_steps(result, tmp_path):
    made = write(result, tmp_path, plots=False)
    assert [path.name for path in made] == ["summary.json", "steps.csv"]
    with (tmp_path / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "start_s", "end_s", "step_time_s", "tokens", "tokens_per_s", "mfu"]
    assert [{key: float(value) for key, value in row.items()} for row in rows] == list(result.steps)
    for i, row in enumerate(result.steps):
        assert row["step"] == i
        assert row["start_s"] == pytest.approx(i * result.step_time_s)
        assert row["end_s"] == pytest.approx((i + 1) * result.step_time_s)
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["step_time_s"])
        assert row["mfu"] == result.mfu


def test_pictures_of_an_earlier_run_do_not_stay(result, tmp_path):
    (tmp_path / "timeline.png").write_bytes(b"old")
    write(result, tmp_path, plots=False)
    assert not (tmp_path / "timeline.png").exists()


# -- the page ----------------------------------------------------------------------------------------------------------
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
    assert bar(3 / 16, 2) == "▍", "3 of 16 eighths"


def test_links_of_a_kind_are_one_row():
    links = {
        "NIC out 1": {"count": 4, "capacity_Bps": 10.0, "busy_fraction": 0.1, "bytes_per_step": 5.0},
        "NIC out 2": {"count": 6, "capacity_Bps": 10.0, "busy_fraction": 0.3, "bytes_per_step": 7.0},
        "NIC out 3": {"count": 1, "capacity_Bps": 5.0, "busy_fraction": 0.3, "bytes_per_step": 7.0},
    }
    rows = by_kind(links)
    assert [row["count"] for row in rows.values()] == [10, 1]
    assert next(iter(rows.values()))["bytes_per_step"] == 7.0


def test_bars_of_a_terminal_without_blocks():
    assert bar(1.0, 10, ascii_only=True) == "#" * 10
    assert bar(0.46, 10, ascii_only=True) == "#" * 5


def test_many_link_classes_keep_their_capacities_apart():
    """64 classes at 100 B/s and one at half that: two entries, or the slow one would lend the others its capacity."""
    uses = [use(count=2, size=float(i), capacity=100.0) for i in range(1, 65)]
    found = _links(record_of(timeline({"compute": 2.0}), links=[*uses, use(count=1, size=7.0, capacity=50.0)]))
    assert [(link["count"], link["capacity_Bps"]) for link in found.values()] == [(128, 100.0), (1, 50.0)]
    assert [link["bytes_per_step"] for link in found.values()] == pytest.approx([65 / 2, 7.0])


def test_a_figure_that_no_float_holds_is_told(scenario):
    """A site that draws 1e308 times its IT: power is infinite, and JSON knows no infinity."""
    site = scenario.cluster.model_copy(update={"pue": 1e308})
    with pytest.raises(colossim.SimulationError, match="power_W"):
        colossim.simulate(scenario.model_copy(update={"cluster": site}))


# -- collectives and routing -------------------------------------------------------------------------------------------
def test_a_result_lists_the_collectives_that_a_step_runs(result):
    assert {tuple(kind) for kind in result.collectives} == {
        ("channel", "operation", "bytes", "nodes", "algorithm", "protocol")
    }
    assert list(result.collectives) == sorted(result.collectives, key=lambda kind: tuple(kind.values()))
    assert {"tensor", "data"} <= {kind["channel"] for kind in result.collectives}
    kind = {"channel": "data", "operation": "reduce_scatter", "nodes": 4, "algorithm": "pat", "protocol": "simple"}
    words = collectives([{**kind, "bytes": 400e6}, {**kind, "bytes": 412e6}, {**kind, "bytes": 1e6, "protocol": "ll"}])
    assert words == ["data reduce-scatter 400 MB to 412 MB: pat/simple", "data reduce-scatter 1.00 MB: pat/ll"]


def test_adaptive_routing_names_the_busiest_classes(result):
    assert result.routing["policy"] == "adaptive"
    assert "rate_share" not in result.routing
    busy = [entry["busy_fraction"] for entry in result.routing["hottest"]]
    assert busy == sorted(busy, reverse=True)
    assert all(
        entry["busy_fraction"] == result.links[entry["link"]]["busy_fraction"] for entry in result.routing["hottest"]
    )
    assert "Routing adaptive" in str(result)


def test_pinned_flows_collide_where_the_result_says():
    """Two pods, four stages of 32 GPUs: the boundaries between stages 1 and 2 and 3 and 0 cross pods, 64 flows each way.

    A leaf has as many uplinks as NICs. The hottest has m flows, each of which asks for a NIC's rate: m times its capacity;
    the worst flow gets a share 1/m of it at best.
    """
    played = colossim.simulate(colossim.load_scenario("two-pods", set=["cluster.fabric.routing=ecmp"]))
    told = played.routing
    assert (told["policy"], told["queue_pairs"], told["channel"]) == ("ecmp", 1, "forward")
    assert told["flows_per_nic"] == 1
    share, hot = told["rate_share"], told["hottest"]
    assert share["min"] <= share["p1"] <= share["p5"] <= share["median"] <= 0.95
    assert share["min"] <= share["mean"] <= 0.95
    assert [entry["flows"] for entry in hot] == sorted((entry["flows"] for entry in hot), reverse=True)
    assert len(hot) == 10
    assert all(entry["asked_share"] == pytest.approx(entry["flows"]) for entry in hot)
    assert share["min"] <= 0.95 / hot[0]["flows"] * (1 + 1e-9)
    page = " ".join(str(played).split())
    assert f"forward flows move at {share['mean']:.2f} of line rate in the mean, {share['min']:.2f} at worst" in page
    assert f"hottest: {hot[0]['link']}" in page


def test_flows_that_stay_below_a_leaf_meet_nowhere():
    """Both pods behind one switch: nothing is pinned, and nothing is hot."""
    how = ["cluster.fabric.routing=ecmp", "cluster.fabric.type=single-switch", "cluster.fabric.switch_ports=128"]
    played = colossim.simulate(colossim.load_scenario("two-pods", set=how))
    assert played.routing == {
        "policy": "ecmp", "flows": 0, "queue_pairs": 1, "channel": None, "rate_share": None, "hottest": [],
    }  # fmt: skip
    assert "Routing ecmp: no flow leaves its leaf." in str(played)


def test_static_routing_meets_nowhere_on_a_shift():
    """Stage boundaries are shifts: D-mod-K gives each flow a link of its own."""
    played = colossim.simulate(colossim.load_scenario("two-pods", set=["cluster.fabric.routing=static"]))
    assert played.routing["rate_share"]["min"] == pytest.approx(0.95)
    assert {entry["flows"] for entry in played.routing["hottest"]} == {1}
    assert "none meets another" in " ".join(str(played).split())
