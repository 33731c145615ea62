"""Campaigns: accounts that add up, closed forms of checkpoints and restarts, faults by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from colossim import catalog
from colossim.campaign import setting_of, times_of
from colossim.catalog.faults import FaultClass
from colossim.damage import firsts_of, in_state, places_of
from colossim.draws import generator
from colossim.engine.campaign import play_campaign
from colossim.engine.faults import Failures
from colossim.engine.log import Log
from colossim.engine.setting import Era, Setting, Source, State, Wrong
from colossim.errors import ScenarioError, SimulationError
from colossim.explain import explain
from colossim.layout import prepare
from colossim.plot import goodput, interval, lost_time
from colossim.reliability import best_interval, daly, ettr, wall_over_work, young
from colossim.result.ledger import said_campaign, table_of
from colossim.result.write import write
from colossim.scenario.derive import derive
from colossim.scenario.reader import load_scenario
from colossim.shipped import scenario_path
from colossim.simulation import simulate
from colossim.units import TIME, format_time
from colossim.workload import transformer

HOUR = 3600.0


def kind(mtbf, effect="stop", **facts):
    return FaultClass.model_construct(
        **{
            "mtbf": mtbf,
            "effect": effect,
            "to": 0.5,
            "detect": 0.0,
            "repair": 0.0,
            "repair_spread": 0.0,
            "shape": 1.0,
            "per": None,
        }
        | facts
    )


def source(mtbf, owner="job", count=1, name="software", **facts):
    return Source(name, kind(mtbf, **facts), owner, count)


def setting(*sources, **changes):
    """A step a second, forever; a checkpoint of 10 s every 100 s of training, 50 s of restart, no spares."""
    base = Era(
        begins=0.0, step_s=1.0, tokens=1.0, sources=sources, nodes=1, spares=0, interval=100.0, write=10.0, durable=0.0,
        restart=50.0, step_of=lambda state: 1.0 / math.prod(one.left for one in state.wrong),
    )  # fmt: skip
    whole = {"duration": math.inf, "work": math.inf, "seed": 0}
    whole |= {name: changes.pop(name) for name in list(changes) if name in whole}
    return Setting(**whole, eras=(dataclasses.replace(base, **changes),))


def wrong(part, left, place=0):
    """The state with one part that is slower."""
    return State((Wrong(part, left, place),))


def at(monkeypatch, *times):
    """Faults at these times, of component 0, then none."""

    def next_one(self):
        moments = iter(times) if not hasattr(self, "left") else self.left
        self.left = moments
        return next(moments, math.inf), 0

    monkeypatch.setattr(Failures, "next", next_one)


def spent(log: Log):
    return {name: seconds for name, seconds in log.spent.items() if abs(seconds) > 1e-9}


# -- by hand -------------------------------------------------------------------------------------------------------------
def test_nothing_fails():
    """340 s: 100 of training, 10 of a checkpoint, three times over, and 10 of training."""
    log = play_campaign(setting(duration=340.0))
    assert spent(log) == pytest.approx({"productive": 310.0, "checkpoint": 30.0})
    assert (log.wall, log.done, log.checkpoints) == (340.0, 310.0, 3)
    assert log.trace[0] == (0.0, 0.0)
    assert log.trace[-1] == (340.0, 310.0)


def test_work_ends_without_a_last_checkpoint():
    log = play_campaign(setting(work=250.0))
    assert (log.wall, log.checkpoints) == (270.0, 2)


def test_a_fault_loses_what_came_after_the_last_checkpoint(monkeypatch):
    """At 150 s: 100 + 10 + 40 of training; 5 s until it is noticed, 50 of restart: at 205 s it goes on at 100, and has done 195
    at 300 s."""
    at(monkeypatch, 150.0)
    log = play_campaign(setting(source(1.0, detect=5.0), duration=300.0))
    assert spent(log) == pytest.approx(
        {"productive": 195.0, "lost_work": 40.0, "checkpoint": 10.0, "detection": 5.0, "restart": 50.0}
    )
    (item,) = log.interruptions
    assert (item.time, item.cause, item.component, item.lost, item.restart) == (150.0, "software", "job", 40.0, 55.0)


def test_a_fault_in_a_checkpoint_loses_all_since_the_one_before(monkeypatch):
    at(monkeypatch, 105.0)
    log = play_campaign(setting(source(1.0), duration=155.0))
    assert spent(log) == pytest.approx({"lost_work": 100.0, "checkpoint": 5.0, "restart": 50.0})


def test_a_fault_in_a_restart_begins_it_anew(monkeypatch):
    """At 50 and 70 s: 20 s of the first restart, 50 of the second. What the end cuts short is told as well."""
    at(monkeypatch, 50.0, 70.0)
    log = play_campaign(setting(source(1.0), duration=130.0))
    assert spent(log) == pytest.approx({"productive": 10.0, "lost_work": 50.0, "restart": 70.0})
    assert [(item.time, item.lost, item.restart) for item in log.interruptions] == [
        (50.0, 50.0, 20.0),
        (70.0, 0.0, 50.0),
    ]


def test_an_asynchronous_write_counts_when_it_is_durable(monkeypatch):
    """Durable 60 s after its start at 100 s: a fault at 150 s goes back to nothing, one at 170 s to 100."""
    for when, lost in ((150.0, 140.0), (170.0, 60.0)):
        at(monkeypatch, when)
        log = play_campaign(setting(source(1.0), duration=220.0, durable=60.0))
        assert spent(log)["lost_work"] == pytest.approx(lost)


def test_corruption_reaches_back_to_before_it_was_noticed(monkeypatch):
    """Corrupt at 150 s, noticed at 350 s: the checkpoints of 220 and 330 s are worthless, that of 110 s isn't."""
    at(monkeypatch, 150.0)
    log = play_campaign(setting(source(1.0, effect="corrupt", detect=200.0), duration=400.0))
    assert spent(log) == pytest.approx({"productive": 100.0, "lost_work": 220.0, "checkpoint": 30.0, "restart": 50.0})


def test_spares_and_waiting(monkeypatch):
    """Nodes fail at 20 and 100 s and need 1,000 s: with one spare the job waits from 100 s on, for the first, back at 1,020."""
    at(monkeypatch, 20.0, 100.0)
    one = source(1.0, "node", 8, "node", repair=1000.0)
    log = play_campaign(setting(one, duration=2000.0, spares=1))
    assert spent(log)["waiting"] == pytest.approx(920.0)
    assert spent(log)["restart"] == pytest.approx(100.0)
    assert [item.component for item in log.interruptions] == ["node 0", "node 0"]
    assert "waiting" not in spent(play_campaign(setting(one, duration=2000.0, spares=2)))


def test_a_switch_is_waited_for(monkeypatch):
    at(monkeypatch, 20.0)
    log = play_campaign(setting(source(1.0, "leaf", 8, "leaf", repair=300.0), duration=500.0, spares=5))
    assert spent(log)["waiting"] == pytest.approx(300.0)


def test_a_degraded_link_slows_the_job_until_it_is_repaired(monkeypatch):
    """At 20 s half the rate, for 60 s: 30 s of progress less, no interruption."""
    at(monkeypatch, 20.0)
    log = play_campaign(setting(source(1.0, "gpu", 8, "link", effect="degrade", repair=60.0), duration=100.0))
    assert spent(log) == pytest.approx({"productive": 70.0, "degraded": 30.0})
    assert not log.interruptions
    assert log.faults == {"link": 1}


def test_two_slow_parts_are_as_slow_as_the_slowest(monkeypatch):
    at(monkeypatch, 20.0, 40.0)
    log = play_campaign(setting(source(1.0, "gpu", 8, "gpu", effect="slow", repair=60.0), duration=120.0, interval=1e9))
    assert spent(log) == pytest.approx({"productive": 120.0 - 40.0, "degraded": 40.0})


def test_no_progress_is_given_up():
    """A fault every second, a restart of a minute: the reason has the numbers."""
    with pytest.raises(SimulationError, match=r"stop the job every 1 s in the mean, a restart takes 50 s"):
        play_campaign(setting(source(1.0), duration=1e12))


# -- accounts ------------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_accounts_add_up(data):
    """Of random campaigns: to the wall time, the clock never back, progress what productive says."""
    draw = data.draw
    sources = []
    for name in ("a", "b", "c"):
        effect = draw(st.sampled_from(["stop", "degrade", "slow", "corrupt"]))
        owner = draw(st.sampled_from(["job", "gpu", "node", "leaf"]))
        times = {key: draw(st.floats(0.0, 400.0)) for key in ("detect", "repair")}
        shape = draw(st.sampled_from([1.0, 0.7, 2.0]))
        sources.append(
            source(
                draw(st.floats(200.0, 5000.0)),
                owner,
                draw(st.integers(1, 4)),
                name,
                effect=effect,
                shape=shape,
                **times,
            )
        )
    changes = {key: draw(st.floats(0.1, 300.0)) for key in ("interval", "write", "durable", "restart")}
    one = setting(*sources, duration=5000.0, spares=draw(st.integers(0, 2)), seed=draw(st.integers(0, 99)), **changes)
    log = play_campaign(one)
    assert log.wall == pytest.approx(5000.0)
    assert math.fsum(log.spent.values()) == pytest.approx(log.wall, rel=1e-9)
    assert log.spent["productive"] == pytest.approx(log.done, rel=1e-9, abs=1e-6)
    assert all(seconds >= -1e-6 for seconds in log.spent.values())
    times = [when for when, _ in log.trace]
    assert times == sorted(times)
    assert play_campaign(one).spent == log.spent


# -- closed forms --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mtbf", "interval", "write", "restart"), [(3600, 600, 30, 180), (1831, 300, 5, 180), (1831, 1800, 40, 480)]
)
def test_wall_over_work_of_exponential_failures(mtbf, interval, write, restart):
    """Within 1 % over 200 seeds of 200 intervals; the last one has no checkpoint."""
    one = setting(source(mtbf), work=200.0 * interval, interval=interval, write=write, restart=restart)
    wall = np.mean([play_campaign(dataclasses.replace(one, seed=seed)).wall for seed in range(60)])
    exact = wall_over_work(interval, mtbf, write, restart)
    assert wall / (200 * interval) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("mtbf", "write"), [(1831.0, 5.0), (3 * HOUR, 40.0), (HOUR, 300.0)])
def test_the_best_interval_is_dalys(mtbf, write):
    """Within 2 %; Young's is longer. It is the least of the exact formula, whatever the restart."""
    best = best_interval(mtbf, write)
    assert best == pytest.approx(daly(mtbf, write), rel=0.02)
    assert young(mtbf, write) > best
    for other in (0.99 * best, 1.01 * best):
        assert wall_over_work(other, mtbf, write, 100.0) > wall_over_work(best, mtbf, write, 100.0)
    assert daly(1.0, 3.0) == 1.0


def test_where_the_linear_ettr_is_wrong():
    """At 98,304 GPUs (M 1,831 s) with 30 min, 40 s, 8 min: 0.24 by the linear formula, 0.44 in truth (exactly 1/2.29)."""
    rate = 1 / 1831.0
    assert ettr(1, rate, 1800.0, 40.0, 480.0) == pytest.approx(0.24, abs=0.01)
    assert 1 / wall_over_work(1800.0, 1831.0, 40.0, 480.0) == pytest.approx(0.44, abs=0.01)


def test_failures_are_poisson():
    """Counts in windows of a tenth of the total rate's mean gap: chi-square over 2,000 windows of 3 failures each, 5 bins."""
    failures = Failures(kind(800.0), 8, generator(7, "gpu"))
    times = []
    while not times or times[-1] < 2000 * 300.0:
        times.append(failures.next()[0])
    counts = np.bincount((np.array(times[:-1]) // 300.0).astype(int), minlength=2000)[:2000]
    mean = 3.0
    expected = [2000 * math.exp(-mean) * mean**k / math.factorial(k) for k in range(7)]
    expected.append(2000 - sum(expected))
    seen = [int((counts == k).sum()) for k in range(7)] + [int((counts >= 7).sum())]
    chi = sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True))
    assert chi < 18.5  # 99 % of 7 degrees of freedom


@pytest.mark.parametrize("shape", [0.7, 3.0])
def test_weibull_lifetimes_have_their_mean(shape):
    """1,000 new components of a mean of 100 s, each renewed at once: in the long run 10 failures a second; at first more if
    what is new fails more often."""
    failures = Failures(kind(100.0, shape=shape), 1000, generator(3, "gpu"))
    times = []
    while not times or times[-1] < 400.0:
        when, component = failures.next()
        failures.renew(component, when)
        times.append(when)
    assert sum(200 < when < 400 for when in times) / 200 == pytest.approx(10, rel=0.05)
    assert (sum(when < 20 for when in times) / 20 > 10) == (shape < 1)


def test_repairs_have_their_mean():
    failures = Failures(kind(1.0, repair=100.0, repair_spread=0.5), 1, generator(1, "x"))
    assert np.mean([failures.repair() for _ in range(20_000)]) == pytest.approx(100.0, rel=0.02)


# -- of scenarios ------------------------------------------------------------------------------------------------------
CAMPAIGN = (
    "run.duration=2 d",
    "faults.gpu={mtbf: 2000 h, repair: 1 d, detect: 30 s}",
    "faults.link={mtbf: 2000 h, effect: degrade, to: 25 %, repair: 6 h}",
    "checkpoint={interval: 20 min, write: 10 s, restart: 5 min}",
)


@pytest.fixture(scope="module")
def played():
    return simulate(load_scenario("two-pods", set=CAMPAIGN), replicas=4)


def test_a_scenario_with_faults_has_the_contracts_keys(played):
    """goodput is productive step time over wall time; steps and tokens are those that count."""
    found = json.loads(played.to_json())
    assert set(found["interruptions"][0]) == {"time_s", "cause", "component", "lost_s", "restart_s"}
    campaign = found["campaign"]
    assert sum(campaign["spent_s"].values()) == pytest.approx(campaign["wall_s"], rel=1e-9)
    assert campaign["wall_s"] == 2 * 24 * HOUR
    assert found["goodput"] == pytest.approx(campaign["spent_s"]["productive"] / campaign["wall_s"])
    assert found["ettr"] > found["goodput"], "a degraded link is no time lost by Kokolis's definition"
    assert campaign["steps"] == math.floor(campaign["spent_s"]["productive"] / found["step_time_s"] + 1e-9)
    assert campaign["tokens"] == campaign["steps"] * found["tokens_per_step"]
    assert campaign["replicas"]["n"] == 4
    assert sum(campaign["faults"].values()) >= len(found["interruptions"])


def test_a_degraded_link_takes_what_a_step_takes_with_it(played):
    """The step time of a state is that of the scenario with the link degraded by hand."""
    scenario = load_scenario("two-pods", set=CAMPAIGN)
    setup = prepare(scenario).laid
    step = played.step_time_s
    setting = setting_of(scenario, setup.plan, setup.cluster, step, lambda other: simulate(strip(other)).step_time_s)
    slower = setting.first.step_of(wrong("nic", 0.25))
    by_hand = load_scenario("two-pods", set=["cluster.degraded=[{node: 0, gpu: 0, link: nic, rate: 0.25}]"])
    assert slower == simulate(by_hand).step_time_s > step
    assert setting.first.step_of(wrong("gpu", 0.5)) > step


def strip(scenario):
    return scenario.model_copy(update={"faults": None, "run": scenario.run.model_copy(update={"duration": None})})


def test_one_and_two_workers_give_the_same_bytes(played):
    again = simulate(load_scenario("two-pods", set=CAMPAIGN), replicas=4, workers=2)
    for one, other in zip(played.campaign.logs, again.campaign.logs, strict=True):
        assert repr(one) == repr(other)
    assert played.campaign.to_dict() == again.campaign.to_dict()


def test_seeds_differ_and_the_first_is_the_scenarios(played):
    alone = simulate(load_scenario("two-pods", set=[*CAMPAIGN, "run.seed=1"]))
    assert repr(alone.campaign.logs[0]) == repr(played.campaign.logs[1])
    assert repr(played.campaign.logs[0]) != repr(played.campaign.logs[1])


def test_tokens_end_a_campaign_that_says_no_steps(tmp_path):
    changes = [change for change in CAMPAIGN if not change.startswith("run.")]
    text = scenario_path("two-pods").read_text()
    assert "  steps: 20\n" in text
    path = tmp_path / "s.yaml"
    path.write_text(text.replace("  steps: 20\n", "  seed: 0\n"))
    result = simulate(load_scenario(path, set=["job.tokens=1B", *changes]))
    assert result.campaign.steps == math.ceil(1e9 / result.tokens_per_step) > 20


def test_an_optimal_interval_is_the_best_one():
    changes = [*CAMPAIGN[:3], "checkpoint={interval: optimal, write: 10 s, restart: 5 min}"]
    campaign = simulate(load_scenario("two-pods", set=changes)).campaign
    assert campaign.interval_s == campaign.best_s == pytest.approx(daly(campaign.mtbf_s, 10.0), rel=0.02)


def test_files_of_a_campaign(played, tmp_path):
    made = write(played, tmp_path)
    assert {path.name for path in made} >= {"interruptions.csv", "goodput.png", "lost-time.png", "interval.png"}
    with (tmp_path / "interruptions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["seed", "time_s", "cause", "component", "lost_s", "restart_s"]
    assert {row["seed"] for row in rows} == {"0", "1", "2", "3"}
    assert len([row for row in rows if row["seed"] == "0"]) == len(played.interruptions)


def test_a_step_leaves_no_files_of_a_campaign(played, tmp_path):
    write(played, tmp_path, plots=False)
    made = write(simulate(load_scenario("two-pods")), tmp_path, plots=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in made)


def test_plots_of_a_campaign_say_what_they_show(played):
    assert "interruptions" in goodput(played).get_title(loc="left")
    labels = [text.get_text() for text in interval(played).get_legend().get_texts()]
    assert any(label.startswith("best: ") for label in labels)
    assert any("of 4 seeds" in label for label in labels)
    causes = [text.get_text() for text in lost_time(played).get_yticklabels()]
    assert set(causes) == {"gpu", "checkpoints", "slower running"}
    with pytest.raises(SimulationError, match="make a campaign of it"):
        goodput(simulate(load_scenario("two-pods")))


def test_the_page_tells_a_campaign(played):
    text = said_campaign(played.campaign)
    assert text.startswith("2.00 d: goodput ")
    assert "Over 4 seeds goodput" in text
    assert "best would be" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["faults.leaf={mtbf: 9 h}", "cluster.fabric={type: single-switch, link: 400 Gb/s, switch_ports: 999}"],
            "has no leaf switches",
        ),
        (["spares=999"], "the job leaves"),
        (["job.batch_ramp={start: 64, increment: 64, samples: 1M}"], "a batch that grows"),
    ],
)
def test_what_can_not_be_is_told(changes, says):
    with pytest.raises(ScenarioError, match=says):
        derive(load_scenario("two-pods", set=[*CAMPAIGN, *changes]))


# -- Llama 3 -----------------------------------------------------------------------------------------------------------
#: Unexpected interruptions in 54 days (The Llama 3 Herd of Models, table 5), by the classes of the profile.
TABLE_5 = {
    "faulty-gpu": 148, "hbm": 72, "software": 54 + 7 + 2, "link": 35, "maintenance": 32, "gpu-sram": 19, "gpu-processor": 17,
    "nic": 7, "silent-corruption": 6, "gpu-thermal": 6, "host": 3 + 3 + 2 + 2 + 2 + 2,
}  # fmt: skip


@pytest.mark.slow
def test_llama_3_was_interrupted_as_often_as_published():
    """Over 100 seeds 419 lies within 90 % of them, goodput is above 90 %, and each cause comes as often as printed."""
    result = simulate(load_scenario("llama3-54-days"), replicas=100)
    replicas = result.campaign.replicas
    assert replicas["interruptions"]["low"] <= 419 <= replicas["interruptions"]["high"]
    assert replicas["goodput"]["low"] > 0.90
    assert set(replicas["by_cause"]) == set(TABLE_5)
    assert sum(TABLE_5.values()) == 419
    for cause, printed in TABLE_5.items():
        mean = replicas["by_cause"][cause]["mean"]
        assert mean == pytest.approx(printed, abs=3 * math.sqrt(printed / 100) + 0.02 * printed), cause


def test_check_tells_what_fails_how_often():
    """2,000 h of each of 128 GPUs: every 15.6 h one."""
    weeks = explain(load_scenario("two-pods", set=CAMPAIGN))["weeks"]
    scenario = load_scenario("two-pods")
    gpus = derive(scenario).world
    assert weeks["gpu"] == f"every {format_time(2000 * HOUR / gpus)} one of {gpus} (GPUs): stop"
    assert weeks["stops the job"] == f"something, every {format_time(2000 * HOUR / gpus)}"
    best = format_time(best_interval(2000 * HOUR / gpus, 10.0))
    assert weeks["checkpoint"].endswith(f"after 20.0 min of training, blocks for 10.0 s; the best interval is {best}")
    assert "weeks" not in explain(scenario)


def test_cases_are_told_side_by_side():
    """Means over seeds, the shares of one adding up."""
    found = simulate(load_scenario("two-pods", set=CAMPAIGN), replicas=3).campaign
    out = io.StringIO()
    Console(file=out, width=100).print(table_of([("a", found), ("b", found)]))
    head, first, second = (line.split() for line in out.getvalue().splitlines())
    assert head == ["case", "goodput", "stops", "lost", "written", "down", "slower", "interval"]
    assert first[1:] == second[1:]
    shares = [float(cell) for cell, unit in itertools.pairwise(first) if unit == "%"]
    assert sum(shares) == pytest.approx(100, abs=0.3)


@pytest.mark.parametrize(
    ("fault", "watchdog", "noticed"),
    [
        ("hang: true", "", 600.0),
        ("hang: true", ", watchdog: 30 min", 1800.0),
        ("hang: true, detect: 1 min", "", 60.0),
        ("hang: true, detect: 1 h", "", 600.0),
        ("detect: 1 h", "", 3600.0),
    ],
)
def test_a_hang_is_noticed_by_the_watchdog(fault, watchdog, noticed):
    """After ten minutes, PyTorch's default (kProcessGroupNCCLDefaultTimeout), unless it is set or something else is sooner."""
    checkpoint = f"checkpoint={{interval: 20 min, write: 10 s, restart: 5 min{watchdog}}}"
    scenario = load_scenario(
        "two-pods", set=["run.duration=9 d", f"faults.software={{mtbf: 20 h, {fault}}}", checkpoint]
    )
    found = simulate(scenario).campaign
    assert found.restart_s == noticed + 300.0
    first = found.interruptions[0]
    assert first["restart_s"] == pytest.approx(noticed + 300.0)


def test_profiles_have_the_rates_that_are_printed():
    """2.34 failures in 1,000 node-days; 0.057 % of links and 0.051 % of leaf switches a month."""
    day, month = 24 * HOUR, 730.5 * HOUR
    nodes = catalog.entry("faults", "meta-rsc-2")["node"]["mtbf"]
    assert 1000 * day / TIME.parse(nodes) == pytest.approx(2.34, rel=1e-3)
    printed = {"link": 0.00057, "leaf": 0.00051}
    for name, share in printed.items():
        assert month / TIME.parse(catalog.entry("faults", "alibaba-hpn")[name]["mtbf"]) == pytest.approx(
            share, rel=1e-3
        )


@pytest.mark.parametrize("profile", ["meta-rsc-2", "alibaba-hpn"])
def test_profiles_are_played(profile):
    rest = ["run.duration=90 d", "checkpoint={interval: 20 min, write: 10 s, restart: 5 min}"]
    found = simulate(load_scenario("two-pods", set=[*rest, f"faults={profile}"])).campaign
    assert 0.9 < found.goodput <= 1.0


# -- what a reviewer found -----------------------------------------------------------------------------------------------
def struck(monkeypatch, times):
    """Faults at these times, of component 0, by the mean time between failures of their class."""
    left = {mtbf: iter(moments) for mtbf, moments in times.items()}
    monkeypatch.setattr(Failures, "next", lambda self: (next(left[self.kind.mtbf], math.inf), 0))


@pytest.mark.parametrize("shape", [1.0, 1.0001])
def test_a_spare_fails_as_often_as_what_it_stands_in_for(shape):
    """Four places and four spares, mean life = mean repair: births and deaths of a chain in how many are out, k: at rate 4/M
    while no place is empty, else (8 - k)/M, and back at k/M; the job waits where k > 4."""
    rates = [4.0 if k <= 4 else 8.0 - k for k in range(8)]
    weights = np.cumprod([1.0, *(rate / (k + 1) for k, rate in enumerate(rates))])
    whole = weights[:5].sum() / weights.sum()
    fails = source(36000.0, "node", 4, "node", repair=36000.0, repair_spread=1.0, shape=shape)
    found = [
        play_campaign(
            setting(fails, duration=5e6, interval=math.inf, write=0.0, restart=0.0, spares=4, nodes=4, seed=seed)
        )
        for seed in range(60)
    ]
    waited = np.mean([log.spent["waiting"] for log in found]) / 5e6
    assert 1 - waited == pytest.approx(whole, abs=0.015)


def test_a_node_that_is_back_is_no_switch(monkeypatch):
    """A node at 10 (a spare is there), a leaf at 20 for 500 s: the wait lasts 500 s, and the spare is there again."""
    struck(monkeypatch, {1.0: [10.0], 2.0: [20.0]})
    both = (source(1.0, "node", 1, "node", repair=90.0), source(2.0, "leaf", 1, "leaf", repair=500.0))
    log = play_campaign(setting(*both, duration=1000.0, spares=1))
    assert log.spent["waiting"] == 500.0


def test_another_fault_finds_no_corruption(monkeypatch):
    """Corrupt at 150 and found at 550; a stop at 250 goes back to the checkpoint of 220 (of 110 s), which is corrupt as well:
    what was done from 100 s on is lost at 550. Times: 100 + 10 + 100 + 10 = 220, 30 more; 50 restart, 300 + 10 ... = 550."""
    struck(monkeypatch, {1.0: [150.0], 2.0: [250.0]})
    kinds = (source(1.0, name="a", effect="corrupt", detect=400.0), source(2.0, name="b"))
    log = play_campaign(setting(*kinds, duration=700.0))
    assert [item.lost for item in log.interruptions] == [30.0, 330.0]
    assert log.done == 200.0


def test_a_checkpoint_begun_before_a_corruption_is_sound(monkeypatch):
    """Asynchronous, durable after 100 s: written from 200 to 210, corrupt at 250, found at 550: the one of 200 counts."""
    struck(monkeypatch, {1.0: [250.0]})
    log = play_campaign(setting(source(1.0, effect="corrupt", detect=300.0), write=0.0, durable=100.0, duration=600.0))
    assert [item.lost for item in log.interruptions] == [350.0]


def test_what_was_corrupt_is_out_for_its_repair(monkeypatch):
    struck(monkeypatch, {1.0: [50.0]})
    fault = source(1.0, "node", 1, "node", effect="corrupt", detect=200.0, repair=100.0)
    assert play_campaign(setting(fault, duration=1000.0)).spent["waiting"] == 100.0


def test_corruption_alone_can_be_hopeless():
    with pytest.raises(SimulationError, match="no checkpoint in"):
        play_campaign(setting(source(1.0, effect="corrupt"), duration=1e6))


def test_slower_running_that_is_lost_is_lost(monkeypatch):
    """A link at half its rate from 0 to 150, a stop at 100: 50 s of progress and the 50 s that they took longer."""
    struck(monkeypatch, {1.0: [0.0], 2.0: [100.0]})
    slower = source(1.0, "gpu", 1, "link", effect="degrade", repair=150.0)
    log = play_campaign(setting(slower, source(2.0), duration=150.0))
    assert (log.spent["lost_work"], log.spent["degraded"], log.spent["productive"]) == (100.0, 0.0, 0.0)


def test_a_slow_gpu_is_of_its_own_type():
    """Of two types, the second slower: a slow GPU of the first is no slower than the second's others; of the second it is."""
    nodes = "{type: hgx-h100, count: 8}, {type: hgx-a100, count: 8}"
    scenario = load_scenario("two-pods", set=[*CAMPAIGN, f"cluster.nodes=[{nodes}]", "job.recompute=full"])
    laid = prepare(scenario).laid
    step = simulate(strip(scenario)).step_time_s
    setting = setting_of(scenario, laid.plan, laid.cluster, step, lambda other: simulate(strip(other)).step_time_s)
    places = places_of(laid.plan, laid.cluster)
    assert np.unique(places).tolist() == [0, 2, 5, 7], "stages 0 and 1 on H100, 2 and 3 on A100"
    link = next(source for source in setting.first.sources if source.name == "link")
    assert [link.place_of(component) for component in (0, 127)] == [0, 7]
    times = [setting.first.step_of(wrong("gpu", 0.7, place)) for place in (0, 7)]
    assert times[1] > 1.2 * step > times[0]


def test_what_is_slow_costs_what_its_stage_does():
    """A GPU at half its pace in each of four stages: the last, with the head, costs most. A link is the one named by hand."""
    scenario = load_scenario("two-pods", set=CAMPAIGN)
    laid = prepare(scenario).laid
    step = simulate(strip(scenario)).step_time_s
    setting = setting_of(scenario, laid.plan, laid.cluster, step, lambda other: simulate(strip(other)).step_time_s)
    times = [setting.first.step_of(wrong("gpu", 0.5, stage)) for stage in range(4)]
    assert firsts_of(laid.plan, laid.cluster, [0, 1, 3]) == {0: (0, 0), 1: (4, 0), 3: (12, 0)}
    for stage in (1, 3):
        by_hand = load_scenario("two-pods", set=[f"cluster.degraded=[{{node: {4 * stage}, gpu: 0, rate: 0.1}}]"])
        assert setting.first.step_of(wrong("nic", 0.1, stage)) == simulate(by_hand).step_time_s > step
    assert max(times) == times[3] > 1.02 * times[1]


def test_of_several_slow_parts_the_one_that_costs_most_sets_the_pace(monkeypatch):
    """At 3/4 of its pace in stage 1, which costs twice as much, from 20 s on; at half in stage 0 from 40 s on: 4/3 s a step
    in stage 0 would be 2, in stage 1 8/3."""
    moments = {1.0: [(40.0, 0)], 2.0: [(20.0, 1)]}
    monkeypatch.setattr(Failures, "next", lambda self: next(iter(moments[self.kind.mtbf]), (math.inf, 0)))
    monkeypatch.setattr(Failures, "renew", lambda self, component, when: moments[self.kind.mtbf].pop(0))
    asked = []

    def step_of(state):
        asked.append(state)
        return max([(1 + one.place) / one.left for one in state.wrong], default=1.0)

    kinds = [
        source(float(i + 1), "gpu", 2, f"g{i}", effect="slow", to=to, repair=1e9) for i, to in enumerate((0.5, 0.75))
    ]
    kinds = [dataclasses.replace(kind, places=np.array([0, 1])) for kind in kinds]
    log = play_campaign(setting(*kinds, duration=100.0, interval=1e9, step_of=step_of))
    assert log.done == pytest.approx(20.0 + 80.0 / (8 / 3))
    assert max(len(state.wrong) for state in asked) == 1


@pytest.mark.parametrize(("there", "fault", "lower"), [(0.1, 0.25, 0.1), (0.5, 0.25, 0.25)])
def test_a_link_that_is_slow_already_has_the_lower_rate(there, fault, lower):
    scenario = load_scenario("two-pods", set=[f"cluster.degraded=[{{node: 0, gpu: 0, link: nic, rate: {there}}}]"])
    (one,) = in_state(scenario, wrong("nic", fault), {0: (0, 0)}).cluster.degraded
    assert (one.node, one.gpu, one.link, one.rate) == (0, 0, "nic", lower)


def test_what_is_slow_is_a_part_of_the_job():
    """On the second pod's nodes alone: a link of theirs, and GPUs of a node in the middle of its group."""
    where = ["job.placement=[8, 9, 10, 11, 12, 13, 14, 15]", "job.global_batch=64", *CAMPAIGN]
    scenario = load_scenario("two-pods", set=where)
    laid = prepare(scenario).laid
    step = simulate(strip(scenario)).step_time_s
    seen = []

    def step_time(other):
        seen.append(other)
        return simulate(strip(other)).step_time_s

    setting = setting_of(scenario, laid.plan, laid.cluster, step, step_time)
    assert setting.first.step_of(wrong("nic", 0.1)) > step
    assert setting.first.step_of(wrong("gpu", 0.5)) > setting.first.step_of(wrong("gpu", 0.8)) > step
    assert seen[0].cluster.degraded[-1].node == 8
    assert [(group.count, group.type.gpu.pace) for group in seen[1].cluster.nodes] == [(8, 1.0), (1, 0.5), (7, 1.0)]


@pytest.mark.parametrize(
    "changes",
    [
        ["checkpoint.interval=1 ms", "checkpoint.write=0.1 ms"],
        ["faults.link={mtbf: 1 ms, effect: degrade}"],
    ],
)
def test_what_has_no_end_is_refused(changes):
    with pytest.raises(SimulationError, match="more than can be played"):
        simulate(load_scenario("two-pods", set=[*CAMPAIGN, *changes]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("faults.gpu.shape=0.001", "at least 0.1"),
        ("faults.link.hang=true", "is of what stops the job"),
        ("faults.gpu={mtbf: 9 h, shape: 2, infant: {factor: 3, lasts: 9 d}}", "exponential otherwise"),
        ("faults.gpu.repair_spread=1e200", "at most 5"),
        ("faults.leaf={mtbf: 9 h, effect: degrade}", "degrade is of a gpu, not of a leaf"),
        (
            "checkpoint={interval: optimal, write: 1 s, restart: 1 s, asynchronous: true, durable: 9 h}",
            "find it unfinished",
        ),
    ],
)
def test_odd_campaigns_are_told(change, says):
    with pytest.raises(ScenarioError, match=says):
        simulate(load_scenario("two-pods", set=[*CAMPAIGN, change]))


@pytest.mark.parametrize(
    ("storage", "seconds"),
    [
        ("{node: 2 GB/s}", "size / (nodes * 2e9)"),
        ("{total: 40 GB/s}", "size / 40e9"),
        ("{node: 2 GB/s, total: 1 GB/s}", "size / 1e9"),
    ],
)
def test_a_write_takes_what_the_storage_takes(storage, seconds):
    """14 bytes a parameter, once for all replicas, at the slower of nodes and storage; asynchronous that is until durable."""
    restart = "restart: 5 min, interval: 20 min"
    scenario = load_scenario("two-pods", set=[*CAMPAIGN[:3], f"checkpoint={{storage: {storage}, {restart}}}"])
    size, nodes = 14 * transformer.parameters(scenario.job.model), 16
    expected = eval(seconds, {"size": size, "nodes": nodes})
    assert times_of(scenario, scenario.checkpoint, nodes, 3600.0) == pytest.approx((1200.0, expected, expected))
    beside = f"checkpoint={{storage: {storage}, write: 2 s, asynchronous: true, {restart}}}"
    scenario = load_scenario("two-pods", set=[*CAMPAIGN[:3], beside])
    assert times_of(scenario, scenario.checkpoint, nodes, 3600.0) == pytest.approx((1200.0, 2.0, expected))


@pytest.mark.parametrize(
    ("checkpoint", "says"),
    [
        ("{interval: 20 min, restart: 5 min}", "that a write takes, or `storage`"),
        ("{interval: 20 min, restart: 5 min, storage: {}}", "says no rate"),
        (
            "{interval: 20 min, restart: 5 min, storage: {total: 1 GB/s}, asynchronous: true}",
            "the copy to the host blocks",
        ),
        ("{interval: 20 s, restart: 5 min, storage: {total: 1 GB/s}}", "no shorter than the interval of 20.0 s"),
    ],
)
def test_odd_storage_is_told(checkpoint, says):
    with pytest.raises(ScenarioError, match=says):
        simulate(load_scenario("two-pods", set=[*CAMPAIGN[:3], f"checkpoint={checkpoint}"]))
