"""Clusters that grow: timetables by hand, jobs laid anew, errors in their places; eras, accounts and paybacks of campaigns."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_campaign import at, setting, source
from test_eras import grown as grown_eras

from colossim.engine.campaign import play_campaign
from colossim.errors import DoesNotFit, ScenarioError, SimulationError
from colossim.explain import explain
from colossim.growth import Grown, Known, rows_of
from colossim.plot import goodput, growth
from colossim.result.growth import caught_up, standstill
from colossim.result.write import write
from colossim.scenario.derive import derive, no_effects
from colossim.scenario.gate import running, site_power
from colossim.scenario.reader import load_scenario
from colossim.scenario.stretch import stretches_of
from colossim.scenario.variants import load_variants
from colossim.simulation import simulate
from colossim.workload.transformer import model_flops_per_token

DAY = 86400.0
#: 16 nodes, a replica a node: 16 replicas of 8 sequences.
TOY = """\
name: toy
cluster:
  nodes: [{type: hgx-h100, count: 16}]
  fabric: spectrum-x
job:
  model: llama3-8b
  sequence_length: 8192
  global_batch: 128
  parallelism: {tensor: 8, sequence: true, sharding: optimizer}
checkpoint: {interval: 10 min, write: 5 s, restart: 3 min}
run: {duration: 10 d}
"""


@pytest.fixture
def load(tmp_path):
    def read(events, text=TOY, **changes):
        path = tmp_path / "toy.yaml"
        path.write_text(text + "events:\n" + "".join(f"  - {event}\n" for event in events))
        return load_scenario(path, set=[f"{key.replace('__', '.')}={value}" for key, value in changes.items()])

    return read


def wrong(load, *events, **changes):
    """(line, column, field, message) of what is wrong; the first event stands on line 13."""
    with pytest.raises(ScenarioError) as error:
        load(events, **changes)
    return [(p.line, p.column, p.field, p.message) for p in error.value.problems]


def days(scenario):
    """(day, what, nodes with power, replicas, global batch, nodes that stand by) of each stretch."""
    return [
        (
            stretch.begins / DAY,
            stretch.what,
            sum(group.count for group in stretch.scenario.cluster.nodes),
            stretch.plan.data,
            stretch.scenario.job.global_batch,
            sum(count for _, count in stretch.plan.spares),
        )
        for stretch in stretches_of(scenario)
    ]


# -- timetables ----------------------------------------------------------------------------------------------------------
def test_waves_join_after_their_tests(load):
    """17 nodes in three waves a day apart, 5, 6 and 6 of them, tested for six hours; 128 sequences are whole among 16 or 32."""
    events = ["{at: 1 d, add: [{type: hgx-h100, count: 17}], waves: 3, every: 1 d, burn_in: 6 h}"]
    assert days(load(events)) == [
        (0.0, "the run starts", 16, 16, 128, 0),
        (1.25, "5 hgx-h100 join", 21, 21, 126, 0),
        (2.25, "6 hgx-h100 join", 27, 25, 125, 2),
        (3.25, "6 hgx-h100 join", 33, 32, 128, 1),
    ]


def test_a_drain_an_upgrade_and_power(load):
    """Of 16 nodes 4 go; 6 are away for a day and come back as others, behind; 100 kW run 10 nodes of 9.99 kW."""
    events = [
        "{at: 1 d, drain: [{type: hgx-h100, count: 4}]}",
        "{at: 2 d, upgrade: {type: hgx-h100, to: hgx-h200, count: 6, takes: 1 d}, burn_in: 1 d}",
        "{at: 5 d, power: 99.9 kW, per_node: 9.99 kW}",
        "{at: 6 d, power: unlimited}",
    ]
    scenario = load(events)
    assert days(scenario) == [
        (0.0, "the run starts", 16, 16, 128, 0),
        (1.0, "4 hgx-h100 leave", 12, 12, 120, 0),
        (2.0, "6 hgx-h100 leave", 6, 6, 126, 0),
        (4.0, "6 hgx-h200 join", 12, 12, 120, 0),
        (5.0, "power is 99.9 kW", 10, 10, 120, 0),
        (6.0, "power is unlimited", 12, 12, 120, 0),
    ]
    stretches = stretches_of(scenario)
    assert [(g.type.name, g.count) for g in stretches[4].scenario.cluster.nodes] == [("hgx-h100", 6), ("hgx-h200", 4)]
    assert stretches[4].gate == "99.9 kW run 10 of 6 hgx-h100 and 6 hgx-h200, at 9.99 kW each"
    assert not stretches[5].gate


def test_what_happens_at_once_is_one_stretch(load):
    events = [
        "{at: 0 s, power: 80 kW, per_node: 10 kW}",
        "{at: 1 d, add: [{type: hgx-h100, count: 16}]}",
        "{at: 1 d, power: unlimited, relay: at once, move: 30 s}",
    ]
    assert days(load(events)) == [
        (0.0, "power is 80.0 kW", 8, 8, 128, 0),
        (1.0, "16 hgx-h100 join; power is unlimited", 32, 32, 128, 0),
    ]
    assert [(one.planned, one.move) for one in stretches_of(load(events))] == [(False, None), (True, 30.0)]


def test_spares_are_left_and_what_leaves_the_job_as_it_is_says_so(load):
    """Two nodes stand by of 18; two more leave the job alone; of 15, one goes, which takes a replica."""
    events = [
        "{at: 1 d, add: [{type: hgx-h100, count: 2}]}",
        "{at: 2 d, add: [{type: hgx-h100, count: 2}]}",
        "{at: 3 d, drain: [{type: hgx-h100, count: 5}]}",
    ]
    scenario = load(events, spares=2, job__parallelism__data=14, job__global_batch=224)
    assert days(scenario) == [
        (0.0, "the run starts", 16, 14, 224, 2),
        (1.0, "2 hgx-h100 join", 18, 16, 224, 2),
        (2.0, "2 hgx-h100 join", 20, 18, 216, 2),
        (3.0, "5 hgx-h100 leave", 15, 13, 221, 2),
    ]
    scenario = load(events[:1], spares=0, job__global_batch=16)
    assert [(one.same, one.plan.data) for one in stretches_of(scenario)] == [(False, 16), (True, 16)]


# -- the job -------------------------------------------------------------------------------------------------------------
def test_the_job_is_what_its_events_say(load):
    """Dotted or nested; what is said stays, but for the replicas, which are the most again."""
    events = [
        "{at: 1 d, add: [{type: hgx-h100, count: 16}], job: {global_batch: 256, parallelism.data: 16}}",
        "{at: 2 d, job: {parallelism: {tensor: 4}, micro_batch: 2}}",
        "{at: 3 d, drain: [{type: hgx-h100, count: 16}]}",
    ]
    jobs = [one.scenario.job for one in stretches_of(load(events))]
    told = [(j.parallelism.tensor, j.micro_batch, j.global_batch, j.parallelism.data) for j in jobs]
    assert told == [(8, 1, 128, 16), (8, 1, 256, 16), (4, 2, 256, 64), (4, 2, 256, 32)]
    assert jobs[1].parallelism.sharding == "optimizer"


def test_replicas_times_sequences_are_the_most(load):
    """Of 128 sequences 24 replicas take 120 (24 x 120 = 2,880; 16 x 128 = 2,048); 31 take 124; 70 would take 70, and 64 all."""
    for nodes, expected in ((24, (24, 120)), (31, (31, 124)), (64, (64, 128)), (70, (64, 128))):
        added = f"{{at: 1 d, add: [{{type: hgx-h100, count: {nodes - 16}}}]}}"
        _, grown = stretches_of(load([added]))
        assert (grown.plan.data, grown.scenario.job.global_batch) == expected
        best = max((d * (128 // d * d), d) for d in range(1, nodes + 1))
        assert best == (expected[0] * expected[1], expected[0])
        assert bool(grown.notes) == (expected[1] < 128)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "job__parallelism__schedule": "interleaved",
            "job__parallelism__pipeline": 2,
            "job__parallelism__virtual_pipeline": 2,
        },
        {"job__balance": "speed", "job__micro_batch": 2},
        {"job__groups": "{hgx-h100: {micro_batch: 2}}", "job__micro_batch": 4},
        {"job__parallelism__context": 2, "job__parallelism__sharding_group": 4},
    ],
)
def test_a_job_that_is_laid_anew_keeps_the_rules(load, changes):
    """Rounds of interleaved stages, shares by speed, micro-batches of groups, shards that some ranks share."""
    for nodes in (1, 7, 23):
        scenario = load([f"{{at: 1 d, add: [{{type: hgx-h100, count: {nodes}}}]}}"], **changes)
        grown = stretches_of(scenario)[1]
        assert derive(grown.scenario).data == grown.scenario.job.parallelism.data
        assert 0 < grown.scenario.job.global_batch <= 128


# -- power ---------------------------------------------------------------------------------------------------------------
def test_power_of_a_node():
    """Provisioned: rated at 10.2 kW, and 8 GPUs' switches; measured: 6,849 W and these. Times the site's PUE."""
    cluster = load_scenario("colossus-100k").cluster
    node, switches = cluster.nodes[0].type, cluster.fabric.power
    assert site_power(node, "provisioned", switches, 1.11) == pytest.approx((10_200 + 8 * switches) * 1.11)
    assert site_power(node, "measured", switches, 1.11) == pytest.approx((6849 + 8 * switches) * 1.11)
    assert site_power(node, 5e3, switches, 1.11) == 5e3
    assert site_power(node, "provisioned", switches, 1.11) * 12_500 == pytest.approx(155e6, rel=5e-3)
    other = node.model_copy(update={"measured_power": None})
    assert site_power(other, "measured", 0.0, 1.0) == node.overhead_power + 8 * 700
    assert running([(node, 3), (node, 9)], 60e3, 10e3, switches, 1.0) == [3, 3]
    assert running([(node, 3)], 3 * 0.1, 0.1, switches, 1.0) == [3]


# -- errors --------------------------------------------------------------------------------------------------------------
def test_each_rule_at_its_place(load):
    found = wrong(
        load,
        "{at: 3 d, add: [{type: hgx-h100, count: 4}], waves: 2}",
        "{at: 2 d, drain: [{type: hgx-h10, count: 4}], burn_in: 1 h}",
        "{at: 4 d, power: 1 MW, every: 2 d, waves: 2}",
        "{at: 5 d, upgrade: {type: hgx-h100, to: hgx-h100, count: 8}, relay: next restart}",
        "{at: 6 d}",
        "{at: 6 d, add: [{type: hgx-h100, count: 1}], drain: [{type: hgx-h100, count: 99}]}",
        "{at: 6 d, per_node: measured, job: {global_bach: 3, sequence_length.x: 3, model: llama3-70b}}",
        "{at: 6 d, add: [{type: hgx-h100, count: 2}], waves: 3, every: 1 h}",
        "{at: 6 d, drain: [{type: hgx-h100, count: 2}, {type: hgx-h100, count: 2}], every: 1 h}",
    )
    assert [(line, field) for line, _, field, _ in found] == [
        (13, "events.0.waves"), (14, "events.1.at"), (14, "events.1.drain.0.type"), (14, "events.1.burn_in"),
        (15, "events.2.waves"), (16, "events.3.upgrade.to"), (16, "events.3.relay"), (17, "events.4"), (18, "events.5"),
        (18, "events.5.drain.0.count"), (19, "events.6.per_node"), (19, "events.6.job.global_bach"),
        (19, "events.6.job.sequence_length.x"), (19, "events.6.job.model"), (20, "events.7.waves"),
        (21, "events.8.drain.1.type"), (21, "events.8.every"),
    ]  # fmt: skip
    says = {field: message for _, _, field, message in found}
    assert says["events.0.waves"] == "2 need the time between them: say `every: 3 d`"
    assert says["events.1.at"] == "2.00 d is before the event above it, at 3.00 d: write them in order"
    assert "did you mean `hgx-h100`?" in says["events.1.drain.0.type"]
    assert says["events.3.relay"] == "nothing stops the job, so that it would never be laid anew: at once would"
    assert says["events.4"] == "says nothing that changes: add, drain, upgrade, power or job"
    assert says["events.5"].startswith("has add and drain: one event has one of them")
    assert says["events.6.job.global_bach"] == "no field `global_bach`: did you mean `global_batch`?"
    assert says["events.6.job.model"] == "an event can't change it: a checkpoint is of one model"
    assert [column for _, column, field, _ in found if field == "events.6.job.global_bach"] == [54]


def test_fields_and_rules_are_told_together(load):
    """What can't be read hides no rule of the others, and nothing that it would have led to."""
    found = wrong(
        load,
        "{at: 1, add: [{type: hgx-h100, count: 0}]}",
        "{at: 2 d, power: 8 MWh}",
        "{at: 3 d, waves: 2, job: {precision: fp9}}",
        "{at: 4 d, drain: [{type: hgx-h100, count: 17}]}",
    )
    assert [(line, column, field) for line, column, field, _ in found] == [
        (13, 10, "events.0.at"), (13, 43, "events.0.add.0.count"), (14, 22, "events.1.power"), (15, 22, "events.2.waves"),
    ]  # fmt: skip
    assert found[1][3] == "`0` is too small: at least 1"
    assert "or `unlimited`" in found[2][3]


def test_values_of_a_job_are_read_as_its_own(load):
    found = wrong(load, "{at: 3 d, job: {precision: fp9, parallelism: {data: x}}}")
    assert [(line, column, field) for line, column, field, _ in found] == [
        (13, 32, "events.0.job.precision"),
        (13, 57, "events.0.job.parallelism.data"),
    ]
    assert found[0][3] == "`fp9` is none of bf16, fp16, fp8: did you mean `fp8`?"
    assert found[1][3] == "`x` should be a whole number from 1, or `auto`"


def test_variants_change_events(tmp_path):
    """Whole or by dotted path; what is wrong with one is told where the variant says it."""
    path = tmp_path / "toy.yaml"
    changes = [
        "events.0.drain.0.count: 17",
        "events.0.job.parallelism.data: 14",
        "events.0.drain: [{type: h100, count: 1}]",
    ]
    first = (
        "events:\n  - {at: 1 d, drain: [{type: hgx-h100, count: 1}], job: {parallelism.data: 15, global_batch: 120}}\n"
    )
    path.write_text(TOY + first + "cases:\n" + "".join(f"  - set: {{{change}}}\n" for change in changes))
    with pytest.raises(ScenarioError) as error:
        load_variants(path)
    assert [(p.line, p.field) for p in error.value.problems] == [
        (15, "events.0.drain.0.count"), (13, "events.0.job.global_batch"), (17, "events.0.drain.0.type"),
    ]  # fmt: skip
    path.write_text(TOY + first + "grid:\n  events.0.drain.0.count: [1, 2]\n  events.0.at: [1 d, 2 d]\n")
    assert [
        days(variant.scenario)[1][:3] for variant in load_variants(path, set=["events.0.job.parallelism.data=auto"])
    ] == [(at, f"{count} hgx-h100 leave", 16 - count) for count in (1, 2) for at in (1.0, 2.0)]


def test_what_is_not_there_does_not_go(load):
    """Nodes in their tests haven't joined."""
    found = wrong(
        load,
        "{at: 1 d, add: [{type: hgx-h200, count: 4}], burn_in: 2 d}",
        "{at: 2 d, drain: [{type: hgx-h200, count: 1}]}",
        "{at: 4 d, drain: [{type: hgx-h200, count: 5}]}",
        "{at: 5 d, upgrade: {type: hgx-h100, to: hgx-h200, count: 17}}",
    )
    assert [(line, column, field, message) for line, column, field, message in found] == [
        (14, 30, "events.1.drain.0.type", "`hgx-h200`: no such nodes have joined by then: did you mean `hgx-h100`?"),
        (15, 47, "events.2.drain.0.count", "5 of 4 hgx-h200 that have joined by 4.00 d: 4 at the most"),
        (16, 62, "events.3.upgrade.count", "17 of 16 hgx-h100 that have joined by 5.00 d: 16 at the most"),
    ]


def test_a_job_that_no_longer_fits(load):
    """Each at its event, all of them: no power, replicas beyond the nodes, a batch that they don't share, spares."""
    found = wrong(
        load,
        "{at: 1 d, power: 5 kW, per_node: 11 kW}",
        "{at: 2 d, power: 30 kW, per_node: 11 kW, job: {parallelism: {data: 9}}}",
        "{at: 3 d, power: unlimited, job: {global_batch: 77, parallelism.data: 8}}",
        "{at: 4 d, drain: [{type: hgx-h100, count: 15}]}",
        spares=1,
        job__parallelism__data=8,
    )
    assert [(line, column, field, message) for line, column, field, message in found] == [
        (13, 5, "events.0", "at 24.0 h, 5.00 kW run 0 of 16 hgx-h100, at 11.0 kW each: the job needs some"),
        (14, 72, "events.1.job.parallelism.data", "at 2.00 d, 30.0 kW run 2 of 16 hgx-h100, at 11.0 kW each:"
         " 9 replicas x 8 GPUs = 72; the cluster has 16: 2 would fit"),
        (15, 53, "events.2.job.global_batch", "at 3.00 d, 16 hgx-h100: 77 sequences do not divide among 8 replicas x 1 a"
         " micro-batch: 72 or 80 would"),
        (16, 5, "events.3", "at 4.00 d, 1 hgx-h100: one replica takes 8 GPUs; the job has 0, 1 nodes standing by"),
    ]  # fmt: skip


def test_what_a_run_with_events_needs(load, tmp_path):
    short = TOY.replace(
        "checkpoint: {interval: 10 min, write: 5 s, restart: 3 min}\nrun: {duration: 10 d}\n", "run: {steps: 9}\n"
    )
    with pytest.raises(ScenarioError) as error:
        load(["{at: 1 d, add: [{type: hgx-h100, count: 1}], waves: 1}"], text=short)
    assert [(p.line, p.field) for p in error.value.problems] == [(12, "events")] * 2
    assert "run: {duration: 90 d}" in str(error.value)
    assert "checkpoint: {interval, write, restart}" in str(error.value)
    found = wrong(load, "{at: 1 d, add: [{type: hgx-h100, count: 70}], waves: 65, every: 1 h}")
    assert found[0][3] == "change the cluster 65 times, and a step is played after each: at most 64"
    found = wrong(load, "{at: 1 d, job: {micro_batch: 2}}", job__batch_ramp="{start: 64, increment: 64, samples: 1k}")
    assert any(field == "job.batch_ramp" and "events" in message for _, _, field, message in found)


def test_events_after_the_end_are_noted(load):
    """A shorter run is no error of its events."""
    events = [
        "{at: 3 d, add: [{type: hgx-h100, count: 1}], burn_in: 7 d}",
        "{at: 9 d, drain: [{type: hgx-h100, count: 1}]}",
    ]
    scenario = load(events)
    notes = [note for note in no_effects(scenario, derive(scenario)) if "events" in note]
    assert notes == ["`events.0` had no effect: the run ends before, after 10.0 d"]


# -- eras by hand --------------------------------------------------------------------------------------------------------
def grown_by_hand(load, events, one, *changes):
    """A campaign with the stretches of some events, whose eras are those of a setting and changes of it."""
    stretches = stretches_of(load(events))
    assert len(stretches) == len(changes) + 1
    return Grown(grown_eras(one, *changes), tuple(stretches), (None,) * len(stretches))


ADD = "{at: 100 s, add: [{type: hgx-h100, count: 16}], move: 40 s}"


def test_a_change_is_paid_back_by_what_it_brings(load):
    """A token a second, and two from 100 s on: 10 s of a checkpoint, 40 s of moving, 50 s of a restart, so that it goes on at
    200 s with 100 tokens. 100 + 2 (t - 200) = t at 300 s."""
    hand = grown_by_hand(
        load,
        [ADD],
        setting(duration=400.0, interval=math.inf),
        {"begins": 100.0, "tokens": 2.0, "move": 40.0, "planned": True},
    )
    log = play_campaign(hand.setting)
    first, second = rows_of(hand, log)
    assert (first.laid, first.down, first.paid_back, first.tokens) == (0.0, 0.0, None, 100.0)
    assert (second.laid, second.down, second.tokens) == (110.0, 100.0, 400.0)
    assert second.paid_back == pytest.approx(300.0, rel=1e-12)
    short = dataclasses.replace(hand, setting=dataclasses.replace(hand.setting, duration=299.0))
    assert rows_of(short, play_campaign(short.setting))[1].paid_back is None


def test_what_brings_no_more_is_never_paid_back(load):
    drain = "{at: 100 s, drain: [{type: hgx-h100, count: 8}]}"
    hand = grown_by_hand(load, [drain], setting(duration=4e3), {"begins": 100.0, "step_s": 2.0, "planned": True})
    _, second = rows_of(hand, play_campaign(hand.setting))
    assert (second.down, second.paid_back) == (60.0, None)


def test_a_change_that_waits_for_a_restart_costs_its_moving(load, monkeypatch):
    """A fault at 300 s takes 80 s of work (checkpoints end at 110 and 220 s) with or without the change, for which the job
    then moves for 40 s: two tokens a second from 390 s on, one from 350 on without: as many at 430 s."""
    at(monkeypatch, 300.0)
    events = [ADD.replace("move", "relay: next restart, move")]
    text = TOY + "faults: {software: {mtbf: 1 d}}\n"
    stretches = tuple(stretches_of(load(events, text=text)))
    assert not stretches[1].planned
    one = setting(source(1.0), duration=1000.0, interval=100.0)
    hand = Grown(grown_eras(one, {"begins": 150.0, "tokens": 2.0, "move": 40.0}), stretches, (None, None))
    _, second = rows_of(hand, play_campaign(hand.setting))
    assert (second.laid, second.down) == (300.0, 40.0)
    assert second.paid_back == pytest.approx(430.0)


def test_catching_up():
    """By hand: straight lines, one that stands still, falls, or is never behind; until the end or not."""
    steady = [(0.0, 0.0), (100.0, 100.0)]
    late = [
        (0.0, 0.0),
        (10.0, 10.0),
        (30.0, 10.0),
        (100.0, 220.0),
    ]  # 3 tokens a second from 30 s on: 10 + 3 (t - 30) = t
    assert caught_up(late, steady, 10.0, 100.0) == pytest.approx(40.0)
    assert caught_up(late, steady, 10.0, 39.9) is None
    assert caught_up(steady, late, 10.0, 35.0) == 10.0
    falls = [(0.0, 0.0), (35.0, 35.0), (35.0, 5.0), (100.0, 70.0)]
    assert caught_up(late, falls, 10.0, 100.0) == 35.0
    assert caught_up(steady, steady, 10.0, 100.0) == 10.0
    assert caught_up(steady, [(0.0, 0.0), (20.0, 40.0)], 10.0, 100.0) == 40.0  # which then stands still


def test_a_standstill_is_from_the_last_token_to_the_next():
    trace = [(0.0, 0.0), (100.0, 100.0), (110.0, 100.0), (150.0, 100.0), (200.0, 150.0)]
    assert standstill(trace, 120.0, 200.0) == 50.0
    assert standstill(trace[:4], 120.0, 170.0) == 70.0


# -- played --------------------------------------------------------------------------------------------------------------
#: A drain and an upgrade, in a campaign of two days of 16 nodes.
EVENTS = [
    "{at: 6 h, add: [{type: hgx-h100, count: 16}], waves: 2, every: 6 h, burn_in: 1 h, move: 1 min}",
    "{at: 18 h, drain: [{type: hgx-h100, count: 16}], move: 1 min}",
    "{at: 24 h, upgrade: {type: hgx-h100, to: hgx-h200, count: 8, takes: 6 h}, job: {global_batch: 256}}",
]
TWO_DAYS = TOY.replace("10 d", "2 d")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    path = tmp_path_factory.mktemp("growth") / "toy.yaml"
    path.write_text(TWO_DAYS + "events:\n" + "".join(f"  - {event}\n" for event in EVENTS))
    scenario = load_scenario(path)
    return scenario, simulate(scenario)


def test_tokens_are_steps_times_batches(played):
    scenario, result = played
    rows = result.campaign.growth.stretches
    assert [(row["begins_s"] / 3600, row["gpus_in_job"], row["global_batch"]) for row in rows] == [
        (0, 128, 128), (7, 192, 120), (13, 256, 128), (18, 128, 128), (24, 64, 128), (30, 128, 256),
    ]  # fmt: skip
    assert all(row["tokens"] == row["steps"] * row["global_batch"] * 8192 for row in rows)
    whole = np.diff([*(row["laid_s"] for row in rows), result.campaign.wall_s])
    shares = [row["steps"] * row["step_time_s"] / seconds for row, seconds in zip(rows, whole, strict=True)]
    assert [row["goodput"] for row in rows] == pytest.approx(shares, abs=1e-3)
    assert (rows[0]["mtbf_s"], rows[0]["interval_s"]) == (None, 600)
    assert rows[-1]["tokens_so_far"] == sum(row["tokens"] for row in rows) == result.campaign.tokens
    assert sum(row["steps"] for row in rows) == result.campaign.steps
    needed = model_flops_per_token(scenario.job.model, 8192)
    assert rows[-1]["flops_so_far"] == pytest.approx(result.campaign.tokens * needed, rel=1e-12)
    for row, after in itertools.pairwise([*rows, {"laid_s": result.campaign.wall_s}]):
        # Within a step, and the checkpoints of 5 s every 10 min.
        seconds = (after["laid_s"] - row["laid_s"] - row["move_s"] - row["restart_s"]) / (1 + 5 / 600)
        assert row["steps"] * row["step_time_s"] == pytest.approx(seconds, abs=10 + row["step_time_s"])


def test_the_ledger_adds_up(played):
    """Five changes: two write a checkpoint of 5 s, move for a minute and restart in three; none of them fails."""
    _, result = played
    spent_s, rows = result.campaign.spent_s, result.campaign.growth.stretches
    assert sum(spent_s.values()) == pytest.approx(result.campaign.wall_s, rel=1e-9)
    assert spent_s["growth"] == pytest.approx(sum(row["down_s"] for row in rows), abs=1e-6)
    assert [row["down_s"] for row in rows] == pytest.approx([0, 245, 245, 245, 185, 185], abs=5.001)
    assert [(row["move_s"], row["restart_s"], row["burn_in_s"]) for row in rows[:4]] == [
        (0, 0, 0), (60, 180, 3600), (60, 180, 3600), (60, 180, 0),
    ]  # fmt: skip


def test_energy_is_that_of_each_stretch(played):
    """A site draws its step's mean while it trains, and less while the job is laid anew. GPU hours: all that have joined."""
    _, result = played
    rows = result.campaign.growth.stretches
    edges = [*(row["laid_s"] for row in rows), result.campaign.wall_s]
    for row, seconds in zip(rows, np.diff(edges), strict=True):
        assert 0.97 * row["site_W"] * seconds <= row["energy_J"] <= row["site_W"] * (seconds + 245)
    assert rows[0]["site_W"] == result.power.site_W
    assert rows[2]["site_W"] == pytest.approx(2 * result.power.site_W, rel=0.02)
    assert result.cost["energy_J"] == pytest.approx(sum(row["energy_J"] for row in rows))
    times, watts = result.power_over_time()
    assert np.diff(times) @ watts == pytest.approx(result.cost["energy_J"])
    assert result.cost["gpu_hours"] == pytest.approx(128 * 7 + 192 * 6 + 256 * 5 + 128 * 6 + 64 * 6 + 128 * 18)


def test_paybacks_are_those_of_arithmetic(played):
    """Stands still for d, then makes r' in place of r tokens a second: d r' / (r' - r) after it stopped, checkpoints aside."""
    _, result = played
    rows = result.campaign.growth.stretches
    for before, row in itertools.pairwise(rows[:3]):
        gain = row["tokens_per_s"] / before["tokens_per_s"]
        assert row["paid_back_s"] - row["begins_s"] == pytest.approx(row["down_s"] * gain / (gain - 1), abs=20)
    assert [row["paid_back_s"] is None for row in rows] == [True, False, False, True, True, False]


def test_growth_is_told(played, tmp_path):
    scenario, result = played
    told = json.loads(result.to_json())["campaign"]["growth"]
    assert [row["what"] for row in told["stretches"]] == [row["what"] for row in result.campaign.growth.stretches]
    assert told["stretches"][1]["what"] == "8 hgx-h100 join"
    assert told["without"]["gpus_in_job"] == 128
    assert 0 < told["without"]["tokens"] < told["stretches"][-1]["tokens_so_far"]
    assert any("120" in note and "24 replicas" in note for note in result.notes)
    page = str(result)
    assert "changes of the cluster" in page
    assert "paid back" in page
    assert "5 changes, for which the job stood still for" in page
    write(result, tmp_path)
    assert (tmp_path / "growth.png").exists()
    assert not (tmp_path / "interval.png").exists()
    sections = explain(scenario)
    assert sections["events"]["7.00 h"].startswith(
        "8 hgx-h100 join; 192 of 192 GPUs in 24 replicas, 120 sequences a step;"
    )
    assert sections["events"]["7.00 h"].endswith("it stops for that; 0 nodes stand by")


def test_growth_is_drawn(played):
    _, result = played
    lower = growth(result)
    without, line = lower.get_lines()[:2]
    assert line.get_ydata()[-1] == pytest.approx(result.campaign.growth.log.done / 1e9)
    assert without.get_ydata()[-1] < line.get_ydata()[-1]
    gpus = lower.figure.axes[0].patches[0].get_data().values
    assert gpus.tolist() == [0.128, 0.192, 0.256, 0.128, 0.064, 0.128]
    alone = Figure().add_subplot()
    assert growth(result, alone) is alone
    # Of what an undisturbed job would make, never more than all.
    shares = goodput(result, Figure().add_subplot()).patches[0].get_data().values
    assert 0.9 < shares.max() <= 1.0 + 1e-9
    with pytest.raises(SimulationError, match="`events` say how"):
        growth(dataclasses.replace(result, campaign=dataclasses.replace(result.campaign, growth=None)))


def test_a_step_is_played_once(load, monkeypatch):
    """What comes back to the nodes that it had, and another case on the same ones, need no new step."""
    from colossim import simulation

    counted = []
    real = simulation.play_step
    monkeypatch.setattr(simulation, "play_step", lambda *a: counted.append(1) or real(*a))
    events = ["{at: 1 h, drain: [{type: hgx-h100, count: 8}]}", "{at: 2 h, add: [{type: hgx-h100, count: 8}]}"]
    known = Known()
    scenario = load(events, text=TWO_DAYS, job__parallelism__data=16)
    results = [simulate(scenario, known=known) for _ in range(2)]
    assert len(counted) == 2
    cost = {"setup_s", "wall_s", "peak_memory_bytes"}
    first, second = ({key: told for key, told in one.to_dict().items() if key not in cost} for one in results)
    assert first == second


def test_gpus_that_differ_differ_after_a_change(load):
    """The median step of each stretch has its jitter, that of another case isn't taken for it."""
    events, known = ["{at: 1 d, drain: [{type: hgx-h100, count: 8}]}"], Known()
    rows = [
        simulate(load(events, text=TWO_DAYS, **jitter), known=known).campaign.growth.stretches
        for jitter in ({}, {"jitter__slow": "{share: 10 %, factor: 1.1}"})
    ]
    for alike, slow in zip(*rows, strict=True):
        assert slow["step_time_s"] > 1.05 * alike["step_time_s"]


def test_what_changes_spares_alone_stops_nothing(load):
    """Faults take a node a day; two more stand by from noon on, so that the second one isn't waited for."""
    events = ["{at: 12 h, add: [{type: hgx-h100, count: 2}]}"]
    text = TWO_DAYS + "faults: {node: {mtbf: 16 d, repair: 20 h}}\n"
    scenario = load(events, text=text, job__global_batch=16)
    campaign = simulate(scenario).campaign
    row = campaign.growth.stretches[1]
    assert row["down_s"] == 0
    assert row["paid_back_s"] is None
    assert campaign.spent_s["growth"] == 0
    alone = simulate(scenario.model_copy(update={"events": ()})).campaign
    assert campaign.spent_s["waiting"] < alone.spent_s["waiting"]


def test_a_run_that_ends_with_its_tokens_before_a_change(load, tmp_path):
    """10 steps of 128 sequences, within a minute: what would come after a day never does."""
    text = TOY.replace("run: {duration: 10 d}\n", "").replace(
        "  global_batch: 128\n", "  global_batch: 128\n  tokens: 10485760\n"
    )
    result = simulate(load(["{at: 1 d, add: [{type: hgx-h100, count: 16}]}"], text=text))
    first, second = result.campaign.growth.stretches
    assert (first["steps"], second["steps"], second["laid_s"], second["energy_J"]) == (10, 0, None, 0.0)
    assert result.cost["gpu_hours"] == pytest.approx(128 * result.campaign.wall_s / 3600)
    assert "never laid" in str(result)
    write(result, tmp_path)
    assert (tmp_path / "growth.png").exists()


def test_a_gate_from_the_start_on(load):
    """The page is of what runs at first: two of 16 nodes."""
    result = simulate(load(["{at: 0 s, power: 20 kW, per_node: 10 kW}", "{at: 1 d, power: unlimited}"], text=TWO_DAYS))
    assert (result.gpus, result.gpus_in_job) == (16, 16)
    assert [row["gpus_in_job"] for row in result.campaign.growth.stretches] == [16, 128]
    assert result.campaign.growth.stretches[0]["gate"] == "20.0 kW run 2 of 16 hgx-h100, at 10.0 kW each"


def test_a_job_that_does_not_fit_its_memory_later_says_when(load):
    events = ["{at: 1 d, job: {parallelism.tensor: 1, parallelism.sequence: false, parallelism.sharding: none}}"]
    with pytest.raises(DoesNotFit, match=r"^from 24.0 h on \(the job changes\): "):
        simulate(load(events, text=TWO_DAYS))


def test_the_checkpoint_is_moved_by_its_bytes(load):
    """Llama 3 8B: 8.03e9 parameters of 14 bytes, 2 for the weight and 12 of the optimizer, over 32 nodes of 100 MB/s."""
    text = TWO_DAYS.replace("restart: 3 min", "restart: 3 min, storage: {node: 100 MB/s}")
    rows = simulate(load(["{at: 1 d, add: [{type: hgx-h100, count: 16}]}"], text=text)).campaign.growth.stretches
    assert rows[1]["move_s"] == pytest.approx(8.03e9 * 14 / 32 / 100e6, rel=1e-3)


def test_a_stretch_knows_what_stops_it(load):
    """A fault of a GPU in 100 days: each of 128 GPUs, then of 256."""
    text = TWO_DAYS + "faults: {gpu: {mtbf: 100 d}}\n"
    campaign = simulate(
        load(["{at: 1 d, add: [{type: hgx-h100, count: 16}], relay: next restart}"], text=text)
    ).campaign
    rows = campaign.growth.stretches
    assert [row["mtbf_s"] for row in rows] == pytest.approx([100 * DAY / 128, 100 * DAY / 256])
    assert rows[1]["laid_s"] >= DAY
    assert rows[1]["waited_s"] == rows[1]["laid_s"] - DAY
    assert any(
        item["time_s"] <= rows[1]["laid_s"] <= item["time_s"] + item["restart_s"] for item in campaign.interruptions
    )
    assert sum(campaign.spent_s.values()) == pytest.approx(2 * DAY, rel=1e-9)


# -- the story -----------------------------------------------------------------------------------------------------------
def test_colossus_as_it_grew():
    """Days from the start of training on 22 July 2024, and GPUs in the job."""
    found = {}
    for case in ("day 122 + 92", "about May 2025", "grid alone"):
        stretches = stretches_of(load_scenario("colossus-expansion", case=case))
        found[case] = [(round(s.begins / DAY), s.plan.gpus, s.plan.world, s.same) for s in stretches]
    halls = [
        (0, 25_000, 24_576, False),
        (21, 50_000, 49_152, False),
        (31, 75_000, 74_752, False),
        (41, 100_000, 98_304, False),
    ]
    assert found["day 122 + 92"] == [*halls, (41 + 92, 200_000, 196_608, False)]
    assert found["about May 2025"] == [*halls, (289, 200_000, 196_608, False)]
    assert found["grid alone"] == [
        (0, 5_176, 5_120, False), (10, 25_000, 24_576, False), (21, 32_376, 32_256, False), (31, 32_376, 32_256, True),
        (41, 32_376, 32_256, True), (133, 32_376, 32_256, True), (289, 97_128, 96_768, False),
    ]  # fmt: skip
