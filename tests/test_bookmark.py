"""Runs that are interrupted and go on: the same bytes, whatever ended them; and files that can't be gone on from."""

from __future__ import annotations

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from colossim import bookmark
from colossim.bookmark import Bookmark, hash_of
from colossim.cli import _run
from colossim.errors import ScenarioError
from colossim.replicas import play_replicas
from colossim.result.write import write
from colossim.scenario.reader import load_scenario
from colossim.scenario.variants import load_variants
from colossim.simulation import simulate

FAULTS = (
    "faults.gpu={mtbf: 2000 h, repair: 1 d, detect: 30 s, shape: 0.8, repair_spread: 1}",
    "faults.link={mtbf: 2000 h, effect: degrade, to: 25 %, repair: 6 h}",
    "checkpoint={interval: 20 min, write: 10 s, restart: 5 min}",
)
#: Of this machine, which differ between any two runs.
OWN = re.compile(rb'"(setup_s|wall_s|peak_memory_bytes)": [0-9.e+-]+,\n')


def words(*more, days=20):
    """A command, each --set apart."""
    sets = [word for change in (f"run.duration={days} d", *FAULTS) for word in ("--set", change)]
    return ["run", "two-pods", *sets, "--quiet", "--json", *more]


def played(*more, days=20):
    return simulate(load_scenario("two-pods", set=[f"run.duration={days} d", *FAULTS]), **dict(more))


def mark_of(days=20):
    return hash_of(load_variants("two-pods", set=[f"run.duration={days} d", *FAULTS]), 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_kept_often_changes_nothing(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(bookmark, "EVERY", 0.005)
    whole = played(("replicas", 2))
    file = Bookmark(tmp_path / "f", "mark")
    kept = played(("replicas", 2), ("workers", workers), ("shelf", file.shelf(0)))
    assert repr(kept.campaign.logs) == repr(whole.campaign.logs)
    assert set(file.shelf(0).replicas()) == {0, 1}
    assert file.shelf(0).steps()[0, ((("nic", 0.25, 0),), 0)] > whole.step_time_s


def test_steps_and_replicas_are_not_played_again(tmp_path, monkeypatch):
    """With what is kept neither a state nor a campaign is played: `steps` and `replicas` say all."""
    file = Bookmark(tmp_path / "f", "mark")
    whole = played(("shelf", file.shelf(0)))
    file.close()
    file = Bookmark(tmp_path / "f", "mark", resume=True)
    monkeypatch.setattr("colossim.replicas.Campaign", None)
    again = played(("shelf", file.shelf(0)))
    assert repr(again.campaign.logs) == repr(whole.campaign.logs)


def test_a_run_goes_on_from_the_middle(tmp_path, monkeypatch):
    """Ended after ten turns by an error: what is left is played from there on."""
    whole = played()
    monkeypatch.setattr(bookmark, "EVERY", 0.0)
    file = Bookmark(tmp_path / "f", "mark")
    shelf, turns = file.shelf(0), iter(range(10))
    put = shelf.put

    def some(replica, where):
        put(replica, where)
        next(turns)

    monkeypatch.setattr(shelf, "put", some)
    with pytest.raises(StopIteration):
        played(("shelf", shelf))
    file.close()
    file = Bookmark(tmp_path / "f", "mark", resume=True)
    place = file.shelf(0).replicas()[0]
    assert 0 < json.loads(place)["now"] < whole.campaign.wall_s
    assert repr(played(("shelf", file.shelf(0))).campaign.logs) == repr(whole.campaign.logs)


# -- the command ---------------------------------------------------------------------------------------------------------
def test_options_that_can_not_be(tmp_path, capsys):
    """A file that is there, one that isn't, --resume alone, a scenario of one step: exit 2, a line that says what to do."""
    file = tmp_path / "f"

    def says(*arguments):
        assert _run(list(arguments)) == 2
        return capsys.readouterr().err.strip()

    assert "there is no file" in says(*words("--checkpoint", str(file), "--resume"))
    assert not file.exists()
    assert "name it" in says(*words("--resume"))
    assert "keeps campaigns" in says("run", "two-pods", "--checkpoint", str(file))
    assert _run(words("--checkpoint", str(file))) == 0
    capsys.readouterr()
    assert says(*words("--checkpoint", str(file))).startswith(f"--checkpoint: `{file}` is there: --resume goes on")
    assert "of another run" in says(*words("--checkpoint", str(file), "--resume", days=21))
    assert "of another run" in says(*words("--checkpoint", str(file), "--resume", "--replicas", "2"))
    assert _run(words("--checkpoint", str(file), "--force", days=21)) == 0
    assert _run(words("--checkpoint", str(file), "--resume", days=21)) == 0
    assert "cannot be written" in says(*words("--checkpoint", str(tmp_path / "no" / "f")))
    capsys.readouterr()


def test_broken_files_are_told(tmp_path):
    """Empty, text, half, another program's, and with a byte that isn't as it was written."""
    path, mark = tmp_path / "f", mark_of()
    file = Bookmark(path, mark)
    played(("shelf", file.shelf(0)))
    file.close()
    good = path.read_bytes()
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE t (a)")
    other.close()
    for wrong in (b"", b"once upon a time" * 500, good[: len(good) // 2], (tmp_path / "other").read_bytes()):
        path.write_bytes(wrong)
        with pytest.raises(ScenarioError, match="is broken"):
            Bookmark(path, mark, resume=True)
    at = good.index(b'"interruptions": [[') + 30
    path.write_bytes(good[:at] + b"7" + good[at + 1 :])
    file = Bookmark(path, mark, resume=True)
    with pytest.raises(ScenarioError, match="is broken"):
        file.shelf(0).replicas()
    file.close()


def test_a_file_is_of_one_run_at_a_time(tmp_path):
    file = Bookmark(tmp_path / "f", "mark")
    with pytest.raises(ScenarioError, match="in use"):
        Bookmark(tmp_path / "f", "mark", resume=True)
    file.close()
    Bookmark(tmp_path / "f", "mark", resume=True).close()


def test_a_run_that_fails_at_once_leaves_no_file(tmp_path, capsys):
    """Checkpoints that have no end."""
    often = ["--set", "checkpoint.write=0.1 ms", "--set", "checkpoint.interval=1 ms"]
    assert _run(words("--checkpoint", str(tmp_path / "f"), *often)) == 1
    assert "more than can be played" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_all_that_numbers_depend_on_is_in_the_hash(tmp_path):
    def mark(*more, replicas=1):
        return hash_of(load_variants("two-pods", set=[*FAULTS, *more]), replicas)

    others = [mark("run.seed=1"), mark(replicas=2), mark("run.duration=9 d"), mark("faults.gpu.mtbf=1999 h")]
    assert len({mark(), *others}) == 5
    assert mark() == mark()


def test_a_step_that_a_process_lacks_is_played_once():
    """Three replicas in two processes: each state is asked of the setting once, in this process."""
    from test_campaign import setting, source

    asked = []

    def step_of(state):
        asked.append(state)
        return 1.0 / min([one.left for one in state.wrong], default=1.0)

    kinds = (
        source(500.0, "gpu", 1, "link", effect="degrade", repair=90.0),
        source(700.0, "gpu", 1, "gpu", effect="slow"),
    )
    one = setting(*kinds, duration=20_000.0, step_of=step_of)
    assert repr(play_replicas(one, 3, 2)) == repr(play_replicas(one, 3, 1))
    assert sorted(asked[: len(asked) // 2]) == sorted(set(asked))


RUN = "import sys; from colossim import bookmark; bookmark.EVERY = 0.05; from colossim.cli import main; main()"


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    file = tmp_path / "f"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.replace("import sys", "import signal, sys"), *words("--checkpoint", str(file), days=9000)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not file.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert f"the same command with --resume goes on from `{file}`" in err
    Bookmark(file, mark_of(9000), resume=True).close()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "most"), [("1", 3.0), ("2", 6.0)])
def test_killed_ten_times_it_gives_the_same_bytes(workers, most, tmp_path):
    """kill -9 after 0.2 to 3 or 6 s, ten times, some of them amid a campaign; then what is printed and written is that of a
    run that nobody disturbed."""
    rng = random.Random(7)
    more = ("--replicas", "2", "--workers", workers, "--out")
    command = [sys.executable, "-c", RUN]
    whole = subprocess.run(
        [*command, *words(*more, str(tmp_path / "a"), days=3000)], capture_output=True, check=True
    ).stdout
    kept = tmp_path / "f"
    kills, amid = 0, set()
    while True:
        resume = ["--resume"] if kept.exists() else []
        arguments = words(*more, str(tmp_path / "b"), "--checkpoint", str(kept), *resume, "--force", days=3000)
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE)
        try:
            out, _ = process.communicate(timeout=rng.uniform(0.2, most) if kills < 10 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            if kept.exists():
                with closing(sqlite3.connect(kept)) as file:
                    amid |= set(file.execute("SELECT replica, text FROM replicas WHERE NOT over"))
            continue
        assert process.returncode == 0
        break
    assert kills == 10
    assert len(amid) > 2
    assert OWN.sub(b"", out) == OWN.sub(b"", whole)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in "ab")
        assert OWN.sub(b"", one) == OWN.sub(b"", other), name


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    """Files that it wrote beside their names are taken away by the next run; others' are not."""
    half, others = tmp_path / ".power.png.d26yn6vo", tmp_path / ".power.png.swp"
    half.touch()
    others.touch()
    write(simulate(load_scenario("two-pods")), tmp_path, plots=False)
    assert not half.exists()
    assert others.exists()
