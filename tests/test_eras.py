"""Eras of a campaign: when a cluster that grew is taken up, what going over to it costs, what fails in it; and going on."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_campaign import setting, source, spent

from colossim.catalog.faults import Infant
from colossim.draws import generator
from colossim.engine.campaign import Campaign, play_campaign
from colossim.engine.faults import Failures
from colossim.engine.setting import Peers, Setting


def grown(one: Setting, *changes):
    """More eras, each the first with changes."""
    return dataclasses.replace(one, eras=(*one.eras, *(dataclasses.replace(one.first, **more) for more in changes)))


def struck(monkeypatch, times):
    """Faults at these times, of component 0, by the mean time between failures of their class, however often it is asked."""
    left = {mtbf: list(moments) for mtbf, moments in times.items()}
    monkeypatch.setattr(
        Failures, "next", lambda self: (left[self.kind.mtbf][0] if left[self.kind.mtbf] else math.inf, 0)
    )
    monkeypatch.setattr(Failures, "renew", lambda self, component, when: left[self.kind.mtbf].pop(0))


#: A step that takes half as long.
FAST = {"step_s": 0.5, "step_of": lambda state: 0.5}


# -- by hand -------------------------------------------------------------------------------------------------------------
def test_a_planned_era_stops_the_job():
    """A token a second, and two from 150 s on. 100 s, a checkpoint of 10, 40 s; then a checkpoint of 10 s, 20 s of moving, 50 s
    of a restart: at 230 s. 70 s are left of 300."""
    log = play_campaign(grown(setting(duration=300.0), {"begins": 150.0, "move": 20.0, "planned": True} | FAST))
    assert spent(log) == {"productive": 210.0, "checkpoint": 10.0, "growth": 80.0}
    assert log.by_era == [140.0, 140.0]
    assert (log.done, log.checkpoints) == (280.0, 2)
    assert log.eras == [(0.0, 0), (160.0, 1)]
    assert not log.interruptions


def test_an_asynchronous_checkpoint_is_durable_before_the_job_stops():
    """Written at 50 s, durable at 110 s, a restart of 50 s: 40 s of 200 are left."""
    log = play_campaign(grown(setting(duration=200.0, durable=60.0), {"begins": 50.0, "planned": True}))
    assert spent(log) == {"productive": 90.0, "growth": 110.0}


def test_an_era_that_begins_in_a_checkpoint_waits_for_its_end():
    """From 100 to 110 s one is written anyhow; a restart until 160."""
    log = play_campaign(grown(setting(duration=200.0), {"begins": 105.0, "planned": True}))
    assert spent(log) == {"productive": 140.0, "checkpoint": 10.0, "growth": 50.0}
    assert log.eras == [(0.0, 0), (110.0, 1)]


def test_what_is_not_planned_is_taken_up_at_a_restart(monkeypatch):
    """There at 20 s, a fault at 150 s: 50 s of restart and 7 of moving, then 50 tokens a step of 1 s."""
    struck(monkeypatch, {1.0: [150.0]})
    log = play_campaign(grown(setting(source(1.0), duration=237.0), {"begins": 20.0, "tokens": 50.0, "move": 7.0}))
    assert spent(log) == {"productive": 130.0, "lost_work": 40.0, "checkpoint": 10.0, "restart": 50.0, "growth": 7.0}
    assert log.by_era == [100.0, 1500.0]
    assert log.eras == [(0.0, 0), (150.0, 1)]


def test_what_is_lost_is_lost_to_the_era_that_did_it(monkeypatch):
    """A second era from 50 s on (10 s to write, a restart of 50): two tokens a second until 130 s, where a fault takes both its
    40 tokens; a corruption from 30 s on that is found at 200 takes the first era's as well."""
    struck(monkeypatch, {1.0: [130.0], 2.0: [30.0]})
    one = setting(source(1.0, name="a"), source(2.0, name="b", effect="corrupt", detect=170.0), duration=250.0)
    log = play_campaign(grown(one, {"begins": 50.0, "planned": True} | FAST))
    assert [(item.cause, item.lost) for item in log.interruptions] == [("a", 20.0), ("b", 70.0)]
    assert log.by_era == [0.0, 0.0]
    assert sum(log.spent.values()) == log.wall == 250.0


def test_moving_that_a_fault_cuts_short_is_begun_anew(monkeypatch):
    """At 50 s a checkpoint, from 60 s on moving for 100 s: a fault at 90, and 100 s from then on; a restart until 240."""
    struck(monkeypatch, {1.0: [90.0]})
    log = play_campaign(grown(setting(source(1.0), duration=250.0), {"begins": 50.0, "move": 100.0, "planned": True}))
    assert spent(log) == {"productive": 60.0, "growth": 140.0, "restart": 50.0}


def test_a_job_that_waits_goes_over_at_once(monkeypatch):
    """Short of a node from 20 s on, for 1,000 s; at 100 s there are spares."""
    struck(monkeypatch, {1.0: [20.0]})
    node = source(1.0, "node", 8, "node", repair=1000.0)
    log = play_campaign(grown(setting(node, duration=300.0, nodes=8), {"begins": 100.0, "spares": 1}))
    assert spent(log)["waiting"] == 80.0
    assert log.eras == [(0.0, 0), (100.0, 1)]


def test_what_is_away_lacks_in_a_job_that_takes_the_spares(monkeypatch):
    """A spare stands in from 20 s on; at 100 s the job grows to all nodes and waits for the one that is back at 1,020 s."""
    struck(monkeypatch, {1.0: [20.0]})
    node = source(1.0, "node", 8, "node", repair=1000.0)
    one = setting(node, duration=2000.0, nodes=8, spares=1)
    log = play_campaign(grown(one, {"begins": 100.0, "spares": 0, "nodes": 9, "planned": True}))
    assert spent(log)["waiting"] == 910.0


def test_of_two_eras_that_came_the_last_is_taken_up(monkeypatch):
    struck(monkeypatch, {1.0: [90.0]})
    log = play_campaign(grown(setting(source(1.0), duration=200.0), {"begins": 10.0, "move": 9.0}, {"begins": 20.0}))
    assert log.eras == [(0.0, 0), (90.0, 2)]
    assert "growth" not in spent(log)


# -- what fails ----------------------------------------------------------------------------------------------------------
def test_more_components_fail_more_often():
    """Of a mean of 1,000 s: 10 until 50,000 s, then 40, that never stop the job: 500 and 2,000, each within 4 sigma."""
    few, many = (source(1000.0, "gpu", count, "link", effect="degrade") for count in (10, 40))
    one = setting(few, duration=100_000.0, interval=math.inf)
    before = play_campaign(dataclasses.replace(one, duration=50_000.0)).faults["link"]
    log = play_campaign(grown(one, {"begins": 50_000.0, "planned": True, "sources": (many,)}))
    assert before == pytest.approx(500, abs=4 * math.sqrt(500))
    assert log.faults["link"] - before == pytest.approx(2000, abs=4 * math.sqrt(2000))


def test_weibull_components_keep_their_age():
    """Lives of all but exactly 100 s (shape 100): those of 60 s fail about 100, those that came then about 160."""
    failures = Failures(source(100.0, shape=100.0).kind, 3, generator(0, "gpu"))
    failures.resize(5, 60.0)
    found = []
    for _ in range(5):
        when, component = failures.next()
        failures.renew(component, when)
        found.append((component, when))
    assert {component for component, _ in found[:3]} == {0, 1, 2}
    assert [when for _, when in found] == pytest.approx([100, 100, 100, 160, 160], abs=8)
    failures.resize(2, 165.0)
    assert failures.next()[1] in (0, 1)


INFANT = Infant.model_construct(factor=5.0, lasts=2000.0)


@pytest.mark.parametrize("end", [1000.0, 4000.0, 20_000.0])
def test_what_is_new_fails_more_often(end):
    """Of n lives of mean M until T: n/M (T + (f - 1) tau (1 - exp(-T/tau))), over 40 seeds within 4 sigma."""
    link = source(1000.0, "gpu", 10, "link", effect="degrade", infant=INFANT)
    faults = [play_campaign(setting(link, duration=end, interval=math.inf, seed=i)).faults["link"] for i in range(40)]
    mean = 40 * 10 / 1000.0 * (end + 4.0 * 2000.0 * -math.expm1(-end / 2000.0))
    assert sum(faults) == pytest.approx(mean, abs=4 * math.sqrt(mean))


def test_what_joins_is_new():
    """Ten until 20,000 s, when the first are old; ten more then, whose first 2,000 s bring (2,000 + 8,000 (1 - 1/e))/100."""
    few, many = (source(1000.0, "gpu", count, "link", effect="degrade", infant=INFANT) for count in (10, 20))
    found = []
    for seed in range(40):
        one = setting(few, duration=22_000.0, interval=math.inf, seed=seed)
        before = play_campaign(dataclasses.replace(one, duration=20_000.0)).faults["link"]
        grew = grown(one, {"begins": 20_000.0, "planned": True, "sources": (many,)})
        found.append(play_campaign(grew).faults["link"] - before)
    old = 20.0 + 80.0 * (math.exp(-10) - math.exp(-11))
    mean = 40 * (old + 20.0 + 80.0 * (1 - math.exp(-1)))
    assert sum(found) == pytest.approx(mean, abs=4 * math.sqrt(mean))


@pytest.mark.parametrize("shape", [1.0, 0.7])
def test_what_left_the_cluster_is_mended_for_nobody(shape):
    """Three links that a crew is at when two of them leave; later three again: what comes is new, and fails."""
    three, one = (source(200.0, "gpu", count, "link", effect="degrade", repair=500.0, shape=shape) for count in (3, 1))
    begin = setting(three, duration=50_000.0, interval=math.inf, crews=1)
    fewer = {"begins": 1000.0, "planned": True, "sources": (one,)}
    more = {"begins": 1200.0, "planned": True, "sources": (three,)}
    faults = [
        play_campaign(grown(dataclasses.replace(begin, seed=seed), fewer, more)).faults["link"] for seed in range(20)
    ]
    # One crew and lives that are short beside repairs: it is busy all but all the time.
    assert np.mean(faults) == pytest.approx(100, rel=0.1)


# -- accounts, and going on ----------------------------------------------------------------------------------------------
def drawn(data) -> Setting:
    """A random campaign with eras."""
    draw = data.draw
    sources = []
    for name in ("a", "b", "c"):
        effect = draw(st.sampled_from(["stop", "degrade", "slow", "corrupt"]))
        owner = draw(st.sampled_from(["job", "gpu", "node", "leaf"]))
        times = {key: draw(st.floats(0.0, 400.0)) for key in ("detect", "repair")}
        facts = {
            "infant": draw(st.sampled_from([None, INFANT])),
            "shape": draw(st.sampled_from([1.0, 0.7, 2.0])),
            "repair_spread": draw(st.sampled_from([0.0, 1.0])),
        }
        mtbf, count = draw(st.floats(200.0, 5000.0)), draw(st.integers(1, 4))
        sources.append(source(mtbf, owner, count, name, effect=effect, **facts, **times))
    changes = {key: draw(st.floats(5.0, 300.0)) for key in ("interval", "write", "durable", "restart")}
    spares, seed = draw(st.integers(0, 2)), draw(st.integers(0, 99))
    changes["peers"] = draw(st.sampled_from([None, Peers(20.0, 1.0, 10.0, 2)]))
    changes["crews"] = draw(st.sampled_from([None, 1]))
    one = setting(*sources, duration=5000.0, spares=spares, seed=seed, nodes=draw(st.integers(1, 4)), **changes)
    later = []
    for begins in sorted(draw(st.lists(st.floats(0.0, 5000.0), max_size=3))):
        counts = (dataclasses.replace(kind, count=kind.count + draw(st.integers(0, 3))) for kind in sources)
        later.append(
            {
                "begins": begins,
                "sources": tuple(counts),
                "nodes": draw(st.integers(4, 9)),
                "step_s": draw(st.sampled_from([1.0, 0.5])),
                "step_of": one.first.step_of,
                "tokens": draw(st.sampled_from([1.0, 3.0])),
                "move": draw(st.sampled_from([0.0, 30.0])),
                "planned": draw(st.booleans()),
            }
        )
    return grown(one, *later)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_accounts_of_eras_add_up(data):
    one = drawn(data)
    log = play_campaign(one)
    assert math.fsum(log.spent.values()) == pytest.approx(log.wall, rel=1e-9)
    assert sum(log.by_era) == pytest.approx(log.done, rel=1e-9, abs=1e-6)
    counted = sum(done / era.tokens * era.step_s for done, era in zip(log.by_era, one.eras, strict=True))
    assert log.spent["productive"] == pytest.approx(counted, rel=1e-9, abs=1e-6)
    assert all(index for _, index in log.eras[1:])
    assert max(Counter(index for _, index in log.eras).values()) == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_campaign_that_goes_on_is_the_one_that_never_stopped(data):
    """Written down and read again wherever the job's loop begins, or now and then: the same log to the last bit."""
    one = drawn(data)
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    often = data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    whole = play_campaign(one)
    text, stops = None, 0
    while True:
        fresh = iter([False] * (text is not None))
        campaign = Campaign(one, text)
        text = campaign.play(lambda fresh=fresh: next(fresh, True) and rng.random() < often)
        if text is None:
            break
        stops += 1
    assert repr(campaign.log) == repr(whole)
    assert stops or often < 1 or whole.checkpoints == 0
