"""Writes to storage beside a step: they take what their NICs leave, and what they take others lack."""

from __future__ import annotations

import pytest

from colossim.scenario.reader import load_scenario
from colossim.simulation import simulate


def run(*changes):
    return simulate(load_scenario("two-pods", set=[*changes]))


def carried(result, kind):
    return sum(use.bytes * use.count for use in result.record.links if use.kind == kind)


def test_slow_writes_move_all_that_is_asked_for():
    """1 GB/s of 47.5: 128 ranks write 1 GB/s each through their NICs, and up to the cores, for as long as the step takes."""
    plain, writing = run(), run("cluster.storage={write: 1 GB/s}")
    written = 128 * 1e9 * writing.step_time_s
    for kind in ("nic-out", "leaf-up", "block-up"):
        assert carried(writing, kind) - carried(plain, kind) == pytest.approx(written, rel=1e-6)
    for kind in ("nic-in", "leaf-down", "block-down"):
        assert carried(writing, kind) == pytest.approx(carried(plain, kind))
    assert plain.step_time_s < writing.step_time_s < 1.01 * plain.step_time_s


def test_faster_writes_cost_more_until_they_have_their_share():
    """Max-min: above half of a NIC what is asked for makes no difference to a transfer that shares it."""
    steps = [run(f"cluster.storage={{write: {rate} GB/s}}").step_time_s for rate in (2, 20, 40, 400)]
    assert steps[0] < steps[1] < steps[2]
    assert steps[3] == pytest.approx(steps[2], rel=2e-3)


@pytest.mark.parametrize(("tier", "used"), [("leaf", []), ("spine", ["leaf-up"]), ("core", ["leaf-up", "block-up"])])
def test_writes_climb_as_far_as_the_storage_hangs(tier, used):
    plain, writing = run(), run(f"cluster.storage={{write: 1 GB/s, tier: {tier}}}")
    grew = [kind for kind in ("leaf-up", "block-up") if carried(writing, kind) > 1.01 * carried(plain, kind)]
    assert grew == used


@pytest.mark.parametrize("ratios", ["[1, 1]", "[4, 2]"])
def test_folded_is_unfolded(ratios):
    changes = ("cluster.storage={write: 20 GB/s}", f"cluster.fabric.oversubscription={ratios}")
    folded, unfolded = (run(*changes, f"run.fold={how}").step_time_s for how in ("exact", "off"))
    assert folded == pytest.approx(unfolded, rel=1e-9)
