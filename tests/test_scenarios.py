"""Every scenario that ships runs, is argued, and takes the step time that it took yesterday.

`pytest --update-golden tests/test_scenarios.py` writes golden.json anew; review the diff.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from colossim.scenario.reader import load_scenario
from colossim.scenario.variants import load_variants
from colossim.shipped import published_names, scenario_names
from colossim.simulation import simulate

GOLDEN = Path(__file__).parent / "golden.json"
#: Scenarios of the seed, whose MFU is to be argued.
SEED = (
    "colossus-100k",
    "colossus-200k",
    "meta-350k",
    "openai-gpt4-25k",
    "grok2-15k",
    "grok3-colossus",
    "million-gpus",
    "quickstart",
)


def label(name, variant):
    return name if variant.label == name else f"{name}: {variant.label}"


#: Of the published runs one source has golden times: all of them are played by `colossim validate`.
SHIPPED = (*scenario_names(), "korthikanti-2022")
ALL = {label(name, variant): (name, variant) for name in SHIPPED for variant in load_variants(name)}
#: Those that play one job's step; several are in test_jobs.py, `traffic` in test_claim.py.
VARIANTS = {key: item for key, item in ALL.items() if not item[1].scenario.jobs and item[1].scenario.traffic is None}


@functools.cache
def played(key):
    return simulate(VARIANTS[key][1].scenario)


@pytest.fixture(scope="module", autouse=True)
def forget():
    """What was played holds a record each: it goes with this module's last test."""
    yield
    played.cache_clear()


#: Those that take several seconds.
LONG = {
    "spectrum-x-claim: step, ecmp, 16 queue pairs",
    "spectrum-x-claim: step, ecmp",
    "spectrum-x-claim: step, static",
    "meta-350k",
    "colossus-200k: mixed",
    "colossus-200k: h100-only",
    *(f"colossus-200k-long: {case}" for case in ("equal", "speed", "settings")),
    "million-gpus",
    "stragglers-12k: and kernels that vary",
    "stragglers-12k: and each GPU by 0.5 %",
    *(key for key in VARIANTS if key.startswith(("korthikanti-2022: 530B", "korthikanti-2022: 1T"))),
    *(key for key in VARIANTS if key.startswith("colossus-expansion")),
}


@pytest.mark.parametrize("key", [pytest.param(k, marks=[pytest.mark.slow] if k in LONG else []) for k in VARIANTS])
def test_a_scenario_that_ships(key, update_golden):
    name, variant = VARIANTS[key]
    result = played(key)
    assert sum(result.breakdown_s.values()) == pytest.approx(result.step_time_s, rel=1e-9)
    assert min(result.breakdown_s.values()) >= 0
    assert result.memory_bytes["peak"] <= result.memory_bytes["capacity"]
    assert all(link["busy_fraction"] <= 1 + 1e-9 for link in result.links.values())
    if name in SEED:
        assert 0.25 <= result.mfu <= 0.60
        assert result.assumptions, "what isn't published is marked"
        assert variant.scenario.description
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if update_golden:
        golden[key] = result.step_time_s
        GOLDEN.write_text(json.dumps({key: golden[key] for key in sorted(golden) if key in VARIANTS}, indent=1) + "\n")
    assert result.step_time_s == pytest.approx(golden[key], rel=1e-9)


def test_golden_holds_what_ships():
    assert sorted(json.loads(GOLDEN.read_text())) == sorted(VARIANTS)


def test_the_systems_of_the_story_are_there():
    assert {*SEED, "two-pods"} <= set(scenario_names())
    assert "korthikanti-2022" in published_names()
    assert not set(scenario_names()) & set(published_names())


@pytest.mark.parametrize("ratios", ["[1, 1]", "[2, 2]"])
def test_two_pods_folded_are_two_pods_unfolded(ratios):
    """A process a class, or a process a GPU: one step, one answer; off is the identity partition (design, point 5)."""
    folded, unfolded = (
        simulate(
            load_scenario("two-pods", set=[f"cluster.fabric.oversubscription={ratios}", f"run.fold={fold}"]),
        )
        for fold in ("exact", "off")
    )
    assert unfolded.processes == unfolded.gpus_in_job == 128
    assert folded.processes < 128
    assert folded.step_time_s == pytest.approx(unfolded.step_time_s, rel=1e-9)
    for figure in ("mfu", "power_W", "energy_per_step_J"):
        assert getattr(folded, figure) == pytest.approx(getattr(unfolded, figure), rel=1e-9)
    assert folded.breakdown_s == pytest.approx(unfolded.breakdown_s, rel=1e-9, abs=1e-12)
    assert carried(folded) == pytest.approx(carried(unfolded), rel=1e-9)


def carried(result):
    """{kind of link: bytes that all its links carry in a step}."""
    total = {}
    for use in result.record.links:
        total[use.kind] = total.get(use.kind, 0.0) + use.bytes * use.count
    return {kind: size for kind, size in total.items() if size}


def test_a_narrower_spine_costs_time_and_carries_the_same():
    """Both pods meet above the leaves; half the ports there slow what crosses, and only that."""
    full, half = (
        simulate(load_scenario("two-pods", set=[f"cluster.fabric.oversubscription={ratios}"]))
        for ratios in ("[1, 1]", "[2, 2]")
    )
    assert half.step_time_s > full.step_time_s * (1 + 1e-6)
    assert carried(half) == pytest.approx(carried(full), rel=1e-9)
    (wide,), (narrow,) = ({use.capacity for use in r.record.links if use.kind == "leaf-up"} for r in (full, half))
    assert narrow == pytest.approx(wide / 2)


def test_the_same_twice():
    once, twice = (simulate(load_scenario("two-pods")) for _ in range(2))
    cost = {"setup_s", "wall_s", "peak_memory_bytes"}
    assert {k: v for k, v in once.to_dict().items() if k not in cost} == {
        k: v for k, v in twice.to_dict().items() if k not in cost
    }


@pytest.mark.slow
def test_events_do_not_grow_with_identical_gpus():
    million = played("million-gpus")
    thousand = simulate(load_scenario("million-gpus", set=["cluster.nodes.0.count=128", "job.global_batch=128"]))
    assert (million.gpus, thousand.gpus) == (1_024_000, 1_024)
    # A million GPUs are four classes a stage, by where they stand in the fabric; a thousand are one.
    assert million.events / million.processes <= 1.5 * thousand.events / thousand.processes


def test_colossus_names_its_spares():
    result = played("colossus-100k")
    assert (result.gpus, result.gpus_in_job, result.spares) == (100_000, 98_304, {"hgx-h100": 212})
    assert result.processes == result.classes["ranks"] == 8
