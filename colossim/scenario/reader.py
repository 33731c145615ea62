"""From YAML to a Scenario, with every problem at once and each in its place.

A problem reads `file:line:column: field: what is wrong, what would be right`; ScenarioError holds them all.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pydantic

from colossim import yaml12
from colossim.catalog import KINDS, Extra, entry, read_extra
from colossim.errors import Problem, ScenarioError
from colossim.scenario.derive import derive
from colossim.scenario.event_jobs import read_jobs
from colossim.scenario.fields import wrong_path
from colossim.scenario.files import find_graph, with_dumps
from colossim.scenario.messages import Place, place_of, translated
from colossim.scenario.rules_events import check_events
from colossim.scenario.schema import Scenario
from colossim.shipped import scenario_path
from colossim.yaml12 import Document, Path_, dotted

#: Value of a dotted path that `--set`, a case or a grid changes, and where it was written.
Change = tuple[str, Any, Place]

#: Parts of a scenario that no rule between fields reads, and what stands in for them when rules are checked.
_FREE: dict[Path_, Any] = {
    ("name",): "x",
    **dict.fromkeys(
        (part,) for part in ("description", "sources", "assumptions", "traffic", "jitter", "run", "cases", "grid")
    ),
    ("cluster", "fabric"): "spectrum-x",
    **dict.fromkeys(("cluster", part) for part in ("degraded", "pue", "storage")),
    **dict.fromkeys(
        ("job", part)
        for part in (
            "software",
            "recompute",
            "balance",
            "groups",
            "batch_ramp",
            "overlap",
            "bucket",
            "tokens",
            "collectives_algorithm",
            "collectives_protocol",
            "optimizer",
        )
    ),
}


def load_scenario(source: str | Path, set: Iterable[str] = (), case: str | None = None) -> Scenario:
    """Reads a scenario from a path, or by the name of one that ships.

    set: changes as `path=value` (the value read as YAML).  case: the name of one of its `cases`.
    Raises ScenarioError with all problems, located.
    """
    document, name = read(source)
    changes = [change_of(text) for text in set]
    if case is not None:
        changes = [*case_changes(document, name, case), *changes]
    return build(document, name, changes)


def read(source: str | Path) -> tuple[Document, str]:
    """The document of a scenario and what errors call it."""
    path = scenario_path(source)
    return yaml12.read_file(path), str(path)


def change_of(text: str) -> Change:
    """`path=value` of the command line. Raises ScenarioError if it isn't of that form."""
    path, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not path:
        raise ScenarioError([Problem("", f"--set `{text}`: write it as path=value, such as --set job.micro_batch=2")])
    label = f"--set {path}"
    try:
        parsed = yaml12.read_text(value, label).value if value else None
    except ScenarioError as error:
        raise ScenarioError([Problem("", p.message, label) for p in error.problems]) from None
    return path, parsed, (label, None, None)


def case_changes(document: Document, file: str, name: str) -> list[Change]:
    """The changes of the case of that name, or of that index. Raises ScenarioError, with the nearest name."""
    cases = document.value.get("cases") if isinstance(document.value, dict) else ()
    cases = cases if isinstance(cases, tuple) else ()
    labels = [str(c.get("name", i)) if isinstance(c, dict) else str(i) for i, c in enumerate(cases)]
    if name not in labels:
        near = difflib.get_close_matches(name, labels, n=1, cutoff=0.3)
        known = "known: " + ", ".join(labels) if labels else "the scenario has none"
        hint = f"did you mean `{near[0]}`?" if near else known
        raise ScenarioError([Problem("cases", f"no case `{name}`: {hint}", file)])
    index = labels.index(name)
    found = cases[index].get("set") if isinstance(cases[index], dict) else None
    return [
        (path, value, (file, *document.marks[("cases", index, "set", path)]))
        for path, value in (found.items() if isinstance(found, dict) else ())
    ]


def build(document: Document, file: str, changes: list[Change]) -> Scenario:
    """The Scenario of a document with changes applied. Raises ScenarioError with all problems."""
    value = document.value
    if not isinstance(value, dict):
        message = "a scenario is a mapping with `cluster:` and `job:`"
        raise ScenarioError([Problem("", message, file, *document.marks[()])])
    places: dict[Path_, Place] = {path: (file, *place) for path, place in document.marks.items()}
    keys: dict[Path_, Place] = places | {path: (file, *place) for path, place in document.keys.items()}
    problems: list[Problem] = []
    for path, changed, place in changes:
        wrong = wrong_path(Scenario, path)
        if wrong is not None:
            problems.append(Problem(path, wrong, *place))
            continue
        value = _changed(value, tuple(path.split(".")), changed, place, keys, places, problems)
    extra = _extra(value, file, problems, places)
    value = with_dumps(value, file, extra, problems, places)
    broken_entries = bool(problems)
    told = {problem.field for problem in problems}
    scenario = None
    try:
        scenario = Scenario.model_validate(value, context={"catalog": extra})
    except pydantic.ValidationError as error:
        found = [p for p in translated(error, Scenario, value, keys, places) if p.field not in told]
        if "jobs" in value:
            # What is wrong with the first of several jobs is told where it stands.
            found = [p for p in found if p.field or "`job." not in p.message]
        problems += [p for p in found if not (broken_entries and "in its catalogue entry" in p.message)]
        problems += _rules_beside(value, error, extra, places)
    if scenario is not None:
        scenario._marks.update({dotted(path): place for path, place in places.items()})
        find_graph(scenario, file)
        problems += _variant_problems(scenario, places)
        of_events = read_jobs(scenario, value, extra, places, partial(_put, keys=keys, places=places))
        problems += of_events
        problems += _rules(scenario, jobs=not of_events)
    if problems or scenario is None:
        raise ScenarioError(sorted(problems, key=lambda p: (p.line or 0, p.column or 0)))
    return scenario


def _rules(scenario: Scenario, *, events: bool = True, jobs: bool = True) -> tuple[Problem, ...]:
    """The rules between fields that the scenario breaks. events, jobs: whether its events and their jobs could be read."""
    if scenario.jobs:
        return _rules_of_jobs(scenario)
    problems: list[Problem] = []
    try:
        derive(scenario)
    except ScenarioError as error:
        problems += error.problems
    laid = jobs and not problems
    check_events(scenario, lambda field, message: problems.append(Problem(field, message)), sound=events, laid=laid)
    return scenario.located(ScenarioError(problems)).problems if problems else ()


def _rules_of_jobs(scenario: Scenario) -> tuple[Problem, ...]:
    """The rules of each job, with its place among the jobs; no two have one name."""
    problems: list[Problem] = []
    names = [job.name for job in scenario.jobs]
    for i, name in enumerate(names):
        if name in names[:i]:
            clash = ScenarioError([Problem(f"jobs.{i}.name", f"`{name}` is taken: names are unique")])
            problems += scenario.located(clash).problems
        problems += [
            replace(p, field=f"jobs.{i}" + p.field[3:]) if p.field.split(".")[0] == "job" else p
            for p in _rules(scenario.alone(i))
        ]
    return tuple(dict.fromkeys(problems))


def _rules_beside(
    value: dict[str, Any], error: pydantic.ValidationError, extra: Extra, places: Mapping[Path_, Place]
) -> tuple[Problem, ...]:
    """Rules that are broken beside fields that are wrong by themselves, where those can't be the reason."""
    broken: set[Path_] = set()
    events: set[int] = set()
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        loc = item["loc"]
        if len(loc) > 1 and loc[0] == "events" and isinstance(loc[1], int):
            events.add(loc[1])
            continue
        free = next((path for path in _FREE if loc[: len(path)] == path), None)
        if free is None and not (item["type"] == "extra_forbidden" and len(loc) == 1):
            return ()
        broken.add(free or loc)
    sound = dict(value)
    for path in broken:
        owner = sound
        for part in path[:-1]:
            owner[str(part)] = dict(owner[str(part)])
            owner = owner[str(part)]
        owner.pop(str(path[-1]), None)
        if _FREE.get(path) is not None:
            owner[str(path[-1])] = _FREE[path]
    if events:
        sound["events"] = tuple({"at": "0 s"} if i in events else part for i, part in enumerate(sound["events"]))
    try:
        scenario = Scenario.model_validate(sound, context={"catalog": extra})
    except pydantic.ValidationError:
        return ()
    scenario._marks.update({dotted(path): place for path, place in places.items()})
    find_graph(scenario, "")
    hidden = tuple(f"events.{i}" for i in events)
    return tuple(
        p for p in _rules(scenario, events=not events) if not f"{p.field}.".startswith(tuple(f"{h}." for h in hidden))
    )


def _extra(value: dict[str, Any], file: str, problems: list[Problem], places: Mapping[Path_, Place]) -> Extra:
    """The user's own catalogue, named relative to the scenario; its entries are checked in its own file."""
    name = value.get("catalog")
    if not isinstance(name, str):
        return {}
    path = Path(file).parent / name
    try:
        document = read_extra(path)
    except ScenarioError as error:
        problems += [
            p if p.line else Problem("catalog", f"{p.file}: {p.message}", *place_of(("catalog",), places, places))
            for p in error.problems
        ]
        return {}
    extra: Extra = document.value
    values: dict[Path_, Place] = {at: (str(path), *mark) for at, mark in document.marks.items()}
    keys: dict[Path_, Place] = values | {at: (str(path), *mark) for at, mark in document.keys.items()}
    for kind, entries in extra.items():
        for label, fields in entries.items():
            try:
                KINDS[kind].model_validate(entry(kind, label, extra), context={"catalog": extra})
            except pydantic.ValidationError as error:
                problems += translated(error, KINDS[kind], fields, keys, values, (kind, label))
            except ValueError as error:
                problems.append(Problem(f"{kind}.{label}", str(error), *values[(kind, label)]))
    return extra


def _changed(
    value: Any,
    path: tuple[str, ...],
    new: Any,
    place: Place,
    keys: dict[Path_, Place],
    places: dict[Path_, Place],
    problems: list[Problem],
    done: Path_ = (),
) -> Any:
    """A copy of value with the part at `path` replaced; a catalogue name on the way becomes `base: NAME`."""
    if not path:
        for known in [p for p in places if p[: len(done)] == done]:
            del places[known]
        places[done] = keys[done] = place
        return new
    head, rest = path[0], path[1:]
    if isinstance(value, tuple):
        if not head.isdigit() or int(head) >= len(value):
            last = f"its last is {len(value) - 1}" if value else "it is empty"
            message = f"`{head}` is no index of `{dotted(done)}`: {last}"
            problems.append(Problem(dotted((*done, *path)), message, *place))
            return value
        index = int(head)
        item = _changed(value[index], rest, new, place, keys, places, problems, (*done, index))
        return (*value[:index], item, *value[index + 1 :])
    if isinstance(value, str) and done:
        value = {"base": value}
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.append(Problem(dotted((*done, *path)), f"`{dotted(done)}` is a value, it has no `{head}`", *place))
        return value
    keys.setdefault((*done, head), place)
    places.setdefault((*done, head), place)
    return {**value, head: _changed(value.get(head), rest, new, place, keys, places, problems, (*done, head))}


def _put(
    value: Any,
    path: tuple[str, ...],
    new: Any,
    place: Place,
    problems: list[Problem],
    *,
    keys: Mapping[Path_, Place],
    places: Mapping[Path_, Place],
) -> Any:
    """As `_changed`, of a value of which nobody asks where its parts stand."""
    return _changed(value, path, new, place, dict(keys), dict(places), problems)


def _variant_problems(scenario: Scenario, places: Mapping[Path_, Place]) -> list[Problem]:
    """Cases and grid name fields that exist; names are unique; a measurement has a source."""
    problems = []
    seen: set[str] = set()
    for i, case in enumerate(scenario.cases):
        if case.name is not None and case.name in seen:
            message = f"`{case.name}` is taken: names are unique"
            problems.append(Problem(f"cases.{i}.name", message, *place_of(("cases", i, "name"), places, places)))
        seen.add(case.name or str(i))
        if case.measured is not None and not (case.measured.source or scenario.sources):
            message = "is missing: where it was published, here or in the scenario's `sources`"
            where = place_of(("cases", i, "measured"), places, places)
            problems.append(Problem(f"cases.{i}.measured.source", message, *where))
        for path in case.set:
            problems += _unsettable(("cases", i, "set"), path, places)
    for path, values in scenario.grid.items():
        problems += _unsettable(("grid",), path, places)
        if not values:
            message = "is empty: it needs at least one value"
            problems.append(Problem(f"grid.{path}", message, *place_of(("grid", path), places, places)))
    return problems


def _unsettable(owner: Path_, path: str, places: Mapping[Path_, Place]) -> list[Problem]:
    wrong = wrong_path(Scenario, path)
    if wrong is None and path.split(".")[0] in ("cases", "grid", "catalog"):
        wrong = f"a variant cannot change `{path.split('.')[0]}`"
    return [] if wrong is None else [Problem(dotted((*owner, path)), wrong, *place_of((*owner, path), places, places))]
