"""Fields of the job that change with an event: the job as each of them leaves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from colossim.catalog import Extra
from colossim.errors import Problem
from colossim.scenario.fields import wrong_path
from colossim.scenario.messages import Place, place_of, translated
from colossim.scenario.schema import Scenario
from colossim.yaml12 import Path_, dotted

#: What a checkpoint is of, or what is said of the run as a whole.
_FIXED = {
    "model": "a checkpoint is of one model",
    "tokens": "they are of the whole run",
    "batch_ramp": "a batch that grows can't be played on a cluster that changes",
    "name": "it is of a job among several",
}
#: (value, path, what to put there, its place, problems so far) to the value with it there.
Change = Callable[[Any, tuple[str, ...], Any, Place, list[Problem]], Any]


def read_jobs(
    scenario: Scenario, value: dict[str, Any], extra: Extra, places: Mapping[Path_, Place], change: Change
) -> list[Problem]:
    """Tells the scenario what its job is after each event that changes it. Returns what is wrong.

    value: the scenario as written.  change: puts something into it.
    """
    problems: list[Problem] = []
    plain = {key: part for key, part in value.items() if key not in ("events", "cases", "grid")}
    for i, event in enumerate(scenario.events):
        found: list[Problem] = []
        for path, new in _leaves(event.job):
            at: Path_ = ("events", i, "job", *path)
            place = place_of(at, places, places)
            parts = tuple(".".join(path).split("."))
            wrong = _wrong(parts)
            if wrong is not None:
                found.append(Problem(dotted(at), wrong, *place))
            else:
                plain = change(plain, ("job", *parts), new, place, found)
        if event.job and not found:
            try:
                changed = Scenario.model_validate(plain, context={"catalog": extra})
            except pydantic.ValidationError as error:
                found += _translated(error, plain, i, places)
            else:
                scenario._jobs_after[i] = changed.job
        problems += found
        if found:
            break  # what follows builds on it
    return problems


def _leaves(job: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Values by their paths, dotted keys as they are written."""
    for key, new in job.items():
        if isinstance(new, dict) and new:
            yield from _leaves(new, (*above, key))
        else:
            yield (*above, key), new


def _wrong(parts: tuple[str, ...]) -> str | None:
    if parts[0] in _FIXED:
        return f"an event can't change it: {_FIXED[parts[0]]}"
    wrong = wrong_path(Scenario, ".".join(("job", *parts)))
    return None if wrong is None else wrong.replace("`job.", "`", 1)


def _translated(
    error: pydantic.ValidationError, value: dict[str, Any], event: int, places: Mapping[Path_, Place]
) -> list[Problem]:
    """What is wrong with the values of an event, where they stand in it."""
    own: dict[Path_, Place] = {
        ("job", *".".join(map(str, path[3:])).split(".")): place
        for path, place in places.items()
        if path[:3] == ("events", event, "job") and len(path) > 3
    }
    below: dict[Path_, Place] = {("job",): place_of(("events", event, "job"), places, places), **own}
    found = translated(error, Scenario, value, below, below)
    return [Problem(f"events.{event}.{p.field}", p.message, p.file, p.line, p.column) for p in found]
