"""Campaigns of several seeds, in processes, kept in a file as they go. What comes out depends on neither."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from functools import partial
from math import inf

from colossim import bookmark
from colossim.bookmark import Shelf
from colossim.engine.campaign import Campaign
from colossim.engine.log import Log
from colossim.engine.setting import Setting, State
from colossim.processes import processes

#: s a step by era and state.
Steps = dict[tuple[int, State], float]


class Unknown(Exception):
    """A step that wasn't played yet: of an era, in a state."""


def play_replicas(setting: Setting, replicas: int, workers: int = 1, shelf: Shelf | None = None) -> list[Log]:
    """Campaigns of so many seeds, from the setting's on. shelf: where they are kept, and where they go on from.

    What is returned depends neither on the number of workers nor on where it was interrupted.
    """
    places = {} if shelf is None else shelf.replicas()
    steps: Steps = {} if shelf is None else shelf.steps()

    def step_of(era: int, state: State) -> float:
        if (era, state) not in steps:
            steps[era, state] = setting.eras[era].step_of(state)
            if shelf is not None:
                shelf.put_step(era, state, steps[era, state])
        return steps[era, state]

    def keep(replica: int, where: str | Log) -> None:
        places[replica] = where
        if shelf is not None:
            shelf.put(replica, where)

    seconds = inf if shelf is None else bookmark.EVERY
    left = [i for i in range(replicas) if not isinstance(places.get(i), Log)]
    if min(workers, len(left)) <= 1:
        for i in left:
            while not isinstance(where := places.get(i), Log):
                keep(i, _play_on(_seeded(setting, i, step_of), where, seconds))
    else:
        with processes(min(workers, len(left))) as pool:
            for i, where in _in_turn(pool, setting, left, places, steps, step_of, seconds):
                keep(i, where)
    return [log for i in range(replicas) if isinstance(log := places[i], Log)]


def _seeded(setting: Setting, replica: int, step_of: Callable[[int, State], float]) -> Setting:
    eras = tuple(replace(era, step_of=partial(step_of, i)) for i, era in enumerate(setting.eras))
    return replace(setting, seed=setting.seed + replica, eras=eras)


def _in_turn(
    pool: ProcessPoolExecutor,
    setting: Setting,
    left: list[int],
    places: dict[int, str | Log],
    steps: Steps,
    step_of: Callable[[int, State], float],
    seconds: float,
) -> Iterator[tuple[int, str | Log]]:
    """(replica, where it is) as replicas get somewhere. Steps are played here: a process says which one it lacks."""

    def send(replica: int) -> Future[str | Log | Unknown]:
        where = places.get(replica)
        assert not isinstance(where, Log)
        return pool.submit(_play_in_process, _seeded(setting, replica, partial(_look_up, dict(steps))), where, seconds)

    under_way = {send(i): i for i in left}
    while under_way:
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            replica, where = under_way.pop(future), future.result()
            if isinstance(where, Unknown):
                step_of(*where.args)
            else:
                yield replica, where
            if not isinstance(where, Log):
                under_way[send(replica)] = replica


def _look_up(steps: Steps, era: int, state: State) -> float:
    if (era, state) not in steps:
        raise Unknown(era, state)
    return steps[era, state]


def _play_in_process(setting: Setting, where: str | None, seconds: float) -> str | Log | Unknown:
    try:
        return _play_on(setting, where, seconds)
    except Unknown as unknown:
        return Unknown(*unknown.args)


def _play_on(setting: Setting, where: str | None, seconds: float) -> str | Log:
    """For so many seconds of this machine's time, and until it can be written down; a log, if it is over by then."""
    campaign = Campaign(setting, where)
    end = time.monotonic() + seconds
    # At once it would get nowhere.
    begun = iter((False,))
    text = campaign.play(lambda: next(begun, True) and time.monotonic() >= end)
    return campaign.log if text is None else text
