"""Every scenario that ships runs, is argued, and takes the step time that it took yesterday.

`pytest --update-golden tests/test_scenarios.py` writes golden.json anew; review the diff.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colossim.scenario.variants import load_variants
from colossim.shipped import scenario_names
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
VARIANTS = [(name, i) for name in scenario_names() for i in range(len(load_variants(name)))]


def label(name, index):
    variants = load_variants(name)
    return name if len(variants) == 1 else f"{name}: {variants[index].label}"


@pytest.mark.parametrize(("name", "index"), VARIANTS, ids=lambda value: str(value))
def test_a_scenario_that_ships(name, index, update_golden):
    variant = load_variants(name)[index]
    result = simulate(variant.scenario)
    assert sum(result.breakdown_s.values()) == pytest.approx(result.step_time_s, rel=1e-9)
    assert result.memory_bytes["peak"] <= result.memory_bytes["capacity"]
    if name in SEED:
        assert 0.25 <= result.mfu <= 0.60
        assert result.assumptions, "what isn't published is marked"
        assert variant.scenario.description
    key = label(name, index)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if update_golden:
        golden[key] = result.step_time_s
        GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
    assert result.step_time_s == pytest.approx(golden[key], rel=1e-9)


def test_golden_holds_what_ships():
    assert sorted(json.loads(GOLDEN.read_text())) == sorted(label(*variant) for variant in VARIANTS)


def test_the_systems_of_the_story_are_there():
    assert {*SEED, "two-pods", "korthikanti-2022"} <= set(scenario_names())


def test_events_do_not_grow_with_identical_gpus():
    (full,), (cut,) = (
        load_variants("million-gpus", set=changes)
        for changes in ([], ["cluster.nodes.0.count=128", "job.global_batch=128"])
    )
    million, thousand = simulate(full.scenario), simulate(cut.scenario)
    assert (million.gpus, thousand.gpus) == (1_024_000, 1_024)
    assert million.events <= 1.5 * thousand.events


def test_colossus_names_its_spares():
    (variant,) = load_variants("colossus-100k")
    result = simulate(variant.scenario)
    assert (result.gpus, result.gpus_in_job, result.spares) == (100_000, 98_304, {"hgx-h100": 212})
    assert result.processes == result.classes["ranks"] == 8


def test_predictions_of_published_runs():
    """Untuned, the nine runs come out within 3 % on average, and none is further off than its flag explains."""
    from colossim.validation import validate

    report = validate("korthikanti-2022")
    row = report["sources"]["korthikanti-2022"]
    assert row["n"] == 9
    assert row["mean_pct"] <= 3.0
    assert all(abs(case["error_pct"]) <= 5.0 or case["flag"] for case in report["cases"])
