"""Several jobs on one fabric: alone they are what they are, together they cost each other what they share."""

from __future__ import annotations

import json

import pytest

from colossim.errors import ScenarioError
from colossim.jobs import simulate_jobs
from colossim.scenario.reader import load_scenario
from colossim.scenario.variants import load_variants
from colossim.simulation import simulate

JOB = """\
  - name: {name}
    model: llama3-8b
    sequence_length: 8192
    global_batch: {batch}
    nodes: 8
    placement: {placement}
    parallelism: {{tensor: 8, sequence: true, pipeline: {pipeline}, sharding: optimizer}}
"""


def text(*, placements=("packed", "packed"), ratios="[4, 1]", extra="", names=("first", "second"), nodes=16):
    jobs = "".join(
        JOB.format(name=name, batch=batch, placement=where, pipeline=pipeline)
        for name, batch, where, pipeline in zip(names, (32, 64), placements, (2, 1), strict=True)
    )
    return f"""\
name: shared
cluster:
  nodes: [{{type: hgx-h100, count: {nodes}}}]
  fabric: {{base: spectrum-x, nodes_per_pod: 4, pods_per_block: 2, oversubscription: {ratios}}}
jobs:
{jobs}{extra}"""


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "shared.yaml"
        path.write_text(text(**changes))
        return path

    return write


def test_packed_jobs_on_pods_of_their_own_do_not_meet(write):
    result = simulate_jobs(load_scenario(write()))
    assert [job.slowdown for job in result.jobs] == pytest.approx([1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("extra", ["", "run: {fold: bundles}"])
def test_a_job_that_meets_nobody_plays_each_step_alike(write, monkeypatch, extra):
    """One step stands for all: the same as three and more, played."""
    scenario = load_scenario(write(extra=extra))
    once = simulate_jobs(scenario)
    monkeypatch.setattr("colossim.jobs._meeting", lambda _: {0, 1})
    again = simulate_jobs(scenario)
    assert [job.together_s for job in once.jobs] == pytest.approx([job.together_s for job in again.jobs], rel=1e-13)


def test_scattered_jobs_meet_on_a_narrow_fabric(write):
    result = simulate_jobs(load_scenario(write(placements=("scattered", "scattered"), ratios="[8, 1]")))
    assert max(job.slowdown for job in result.jobs) > 1.001
    assert min(job.slowdown for job in result.jobs) > 1 - 1e-9


def test_scattered_jobs_on_a_full_fabric_do_not_meet(write):
    result = simulate_jobs(load_scenario(write(placements=("scattered", "scattered"), ratios="[1, 1]")))
    assert [job.slowdown for job in result.jobs] == pytest.approx([1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("placement", ["packed", "scattered", "[9, 3, 12, 1, 0, 8, 15, 4]"])
def test_alone_a_job_is_the_single_job_of_the_same_place(write, placement):
    scenario = load_scenario(write(placements=(placement, "packed")))
    result = simulate_jobs(scenario)
    assert result.jobs[0].alone.step_time_s == pytest.approx(simulate(scenario.alone(0)).step_time_s, rel=1e-9)


@pytest.mark.parametrize("placement", ["packed", pytest.param("scattered", marks=pytest.mark.slow)])
def test_folded_jobs_are_unfolded_jobs(write, placement):
    """Together as alone: one process a class gives the times of one process a GPU."""
    times = {}
    for how in ("exact", "off"):
        path = write(placements=(placement, placement), ratios="[8, 1]")
        result = simulate_jobs(load_scenario(path, set=[f"run.fold={how}"]))
        times[how] = [time for job in result.jobs for time in (job.together_s, job.alone.step_time_s)]
    assert times["exact"] == pytest.approx(times["off"], rel=1e-9)


def test_two_like_jobs_lose_alike(write):
    """Interleaved node by node, two equal jobs share every bundle half and half."""
    even, odd = ([start + 2 * i for i in range(8)] for start in (0, 1))
    path = write(placements=(even, odd), ratios="[8, 1]")
    changes = ["jobs.1.global_batch=32", "jobs.1.parallelism.pipeline=2"]
    first, second = simulate_jobs(load_scenario(path, set=changes)).jobs
    assert first.together_s == pytest.approx(second.together_s, rel=1e-9)
    assert first.slowdown > 1.001


def test_hashed_routing_of_two_jobs(write):
    path = write(placements=("scattered", "scattered"), ratios="[1, 1]")
    result = simulate_jobs(load_scenario(path, set=["cluster.fabric.routing=ecmp"]))
    assert all(job.slowdown > 1 - 1e-3 for job in result.jobs)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (
            {"placements": ("[0, 1, 2, 3, 4, 5, 6, 7]", "[7, 8, 9, 10, 11, 12, 13, 14]")},
            "jobs.1.placement.0",
            "taken by job",
        ),
        ({"placements": ("[0, 1, 2, 3, 4, 5, 6, 6]", "packed")}, "jobs.0.placement.7", "named twice"),
        ({"placements": ("[0, 1, 2, 3, 4, 5, 6, 99]", "packed")}, "jobs.0.placement.7", "is no node"),
        ({"nodes": 12}, "jobs", "ask for 128 GPUs, the cluster has 96"),
        ({"names": ("same", "same")}, "jobs.1.name", "is taken"),
    ],
)
def test_what_cannot_be_placed_is_told_in_its_place(write, changes, field, message):
    path = write(**changes)
    with pytest.raises(ScenarioError) as error:
        simulate_jobs(load_scenario(path))
    (problem,) = error.value.problems
    assert problem.field == field
    assert message in problem.message
    assert problem.file == str(path)
    assert problem.line


def test_a_wrong_field_of_a_job_is_told_where_it_stands(write):
    path = write()
    path.write_text(path.read_text().replace("global_batch: 64", "global_batch: sixty"))
    with pytest.raises(ScenarioError) as error:
        load_scenario(path)
    assert [problem.field for problem in error.value.problems] == ["jobs.1.global_batch"]
    path.write_text(text().replace("global_batch: 32", "global_batch: sixty"))
    with pytest.raises(ScenarioError) as error:
        load_scenario(path)
    assert [problem.field for problem in error.value.problems] == ["jobs.0.global_batch"]


def test_job_or_jobs(write):
    path = write(extra="job: {model: llama3-8b, sequence_length: 8192, global_batch: 8}\n")
    with pytest.raises(ScenarioError, match="has one of them"):
        load_scenario(path)


def test_a_single_play_of_several_jobs_is_refused(write):
    with pytest.raises(ScenarioError, match="simulate_jobs"):
        simulate(load_scenario(write()))


def test_the_result_is_plain_json(write):
    found = json.loads(simulate_jobs(load_scenario(write())).to_json())
    assert [job["name"] for job in found["jobs"]] == ["first", "second"]
    assert found["jobs"][0]["slowdown"] == pytest.approx(
        found["jobs"][0]["step_time_s"] / found["jobs"][0]["alone_step_time_s"]
    )


@pytest.mark.slow
def test_the_jobs_that_ship():
    """Packed, 49,152 GPUs each have pods of their own; scattered over a 4:1 fabric they lose some per cent; over a full
    one nothing."""
    results = {v.label: simulate_jobs(v.scenario) for v in load_variants("two-jobs")}
    for label, result in results.items():
        assert [job.gpus for job in result.jobs] == [49_152, 49_152]
        lost = [job.slowdown - 1 for job in result.jobs]
        if label == "scattered":
            assert all(0.02 < loss < 0.5 for loss in lost)
        else:
            assert lost == pytest.approx([0, 0], abs=1e-3)
