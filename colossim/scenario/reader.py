"""From YAML to a Scenario, with every problem at once and each in its place.

A scenario with a problem raises ScenarioError; its problems read `file:line:column: field: what, and what would be right`.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel

from colossim import yaml12
from colossim.catalog import Extra, read_extra
from colossim.errors import Problem, ScenarioError
from colossim.scenario.derive import derive
from colossim.scenario.schema import LATER_KEYS, LATER_VALUES, Case, Scenario
from colossim.shipped import scenario_path
from colossim.yaml12 import Document, Path_, dotted

#: Value of a dotted path that `--set`, a case or a grid changes, and where it was written.
Change = tuple[str, Any, tuple[str, int | None, int | None]]


def load_scenario(source: str | Path, *, set: Iterable[str] = (), case: str | None = None) -> Scenario:
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
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ScenarioError([Problem("", f"--set `{text}`: write it as path=value, such as --set job.micro_batch=2")])
    label = f"--set {path.strip()}"
    try:
        parsed = yaml12.read_text(value, label).value if value.strip() else None
    except ScenarioError as error:
        raise ScenarioError([Problem("", f"{label}: {p.message}") for p in error.problems]) from None
    return path.strip(), parsed, (label, None, None)


def case_changes(document: Document, file: str, name: str) -> list[Change]:
    """The changes of the case of that name. Raises ScenarioError, with the nearest name."""
    cases = document.value.get("cases", ()) if isinstance(document.value, dict) else ()
    labels = [str(c.get("name", i)) if isinstance(c, dict) else str(i) for i, c in enumerate(cases or ())]
    if name not in labels:
        near = difflib.get_close_matches(name, labels, n=1, cutoff=0.3)
        hint = f"did you mean `{near[0]}`?" if near else ("known: " + ", ".join(labels) if labels else "it has no cases")
        raise ScenarioError([Problem("cases", f"no case `{name}`: {hint}", file)])
    index = labels.index(name)
    found = cases[index].get("set") or {}
    return [
        (str(path), value, (file, *document.marks.get(("cases", index, "set", path), (1, 1))))
        for path, value in (found.items() if isinstance(found, dict) else ())
    ]


def build(document: Document, file: str, changes: list[Change]) -> Scenario:
    """The Scenario of a document with changes applied. Raises ScenarioError with all problems."""
    value = document.value
    if not isinstance(value, dict):
        message = "a scenario is a mapping with `cluster:` and `job:`"
        raise ScenarioError([Problem("", message, file, *document.marks[()])])
    marks: dict[Path_, tuple[str, int | None, int | None]] = {
        path: (file, *place) for path, place in {**document.marks, **document.keys}.items()
    }
    places = {path: (file, *place) for path, place in document.marks.items()}
    problems: list[Problem] = []
    for path, changed, place in changes:
        value = _changed(value, tuple(path.split(".")), changed, place, marks, places, problems)
    extra = _extra(value, file, problems, places)
    problems += _later(value, places, marks)
    later = {problem.field for problem in problems}
    scenario = None
    try:
        scenario = Scenario.model_validate(value, context={"catalog": extra})
    except pydantic.ValidationError as error:
        problems += [p for p in _translated(error, value, marks, places) if p.field not in later]
    if scenario is not None:
        scenario._marks.update({dotted(path): place for path, place in places.items()})
        problems += _variant_problems(scenario, value, places)
        try:
            derive(scenario)
        except ScenarioError as error:
            problems += scenario.located(error).problems
    if problems or scenario is None:
        raise ScenarioError(sorted(problems, key=lambda p: (p.line or 0, p.column or 0)))
    return scenario


def _extra(value: dict[str, Any], file: str, problems: list[Problem], places: Mapping[Path_, Any]) -> Extra:
    """The user's own catalogue, named relative to the scenario."""
    name = value.get("catalog")
    if not isinstance(name, str):
        return {}
    try:
        return read_extra(Path(file).parent / name)
    except ScenarioError as error:
        problems += [
            p if p.line else Problem("catalog", f"{p.file}: {p.message}", *places.get(("catalog",), (file, 1, 1)))
            for p in error.problems
        ]
        return {}


def _changed(
    value: Any,
    path: tuple[str, ...],
    new: Any,
    place: tuple[str, int | None, int | None],
    marks: dict[Path_, Any],
    places: dict[Path_, Any],
    problems: list[Problem],
    done: Path_ = (),
) -> Any:
    """A copy of value with the part at `path` replaced. A catalogue name on the way becomes `base: NAME` with a change."""
    if not path:
        for known in [p for p in places if p[: len(done)] == done]:
            del places[known]
        places[done] = marks[done] = place
        return new
    head, rest = path[0], path[1:]
    if isinstance(value, tuple):
        if not head.isdigit() or int(head) >= len(value):
            message = f"`{head}` is no index of `{dotted(done)}`, which has {len(value)} entries (from 0)"
            problems.append(Problem(dotted((*done, *path)), message, *place))
            return value
        index = int(head)
        item = _changed(value[index], rest, new, place, marks, places, problems, (*done, index))
        return (*value[:index], item, *value[index + 1 :])
    if isinstance(value, str) and done:
        value = {"base": value}
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.append(Problem(dotted((*done, *path)), f"`{dotted(done)}` is a value, it has no `{head}`", *place))
        return value
    marks.setdefault((*done, head), place)
    places.setdefault((*done, head), place)
    return {**value, head: _changed(value.get(head), rest, new, place, marks, places, problems, (*done, head))}


def _later(value: dict[str, Any], places: Mapping[Path_, Any], marks: Mapping[Path_, Any]) -> list[Problem]:
    """Keys and values of capabilities that are not there yet."""
    found = []
    for path, what in LATER_KEYS.items():
        inside = value
        for part in path[:-1]:
            inside = inside.get(part) if isinstance(inside, dict) else None  # type: ignore[assignment]
        if isinstance(inside, dict) and path[-1] in inside:
            message = f"isn't available yet: it comes with {what}; leave it out"
            found.append(Problem(dotted(path), message, *marks.get(path, (None, None, None))))
    for path, values in LATER_VALUES.items():
        node: Any = value
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, str) and node in values:
            message = f"`{node}` isn't available yet: it comes with {values[node]}"
            found.append(Problem(dotted(path), message, *places.get(path, (None, None, None))))
    return found


def _variant_problems(scenario: Scenario, value: dict[str, Any], places: Mapping[Path_, Any]) -> list[Problem]:
    """Cases and grid name fields that exist; names are unique."""
    problems = []
    seen: set[str] = set()
    for i, case in enumerate(scenario.cases):
        if case.name is not None and case.name in seen:
            problems.append(Problem(f"cases.{i}.name", f"`{case.name}` is taken: names are unique", *places[("cases", i, "name")]))
        seen.add(case.name or str(i))
        for path in case.set:
            problems += _unknown_path(("cases", i, "set", path), path, places)
    for path in scenario.grid:
        problems += _unknown_path(("grid", path), path, places)
        if not scenario.grid[path]:
            problems.append(Problem(f"grid.{path}", "needs at least one value", *places.get(("grid", path), (None,) * 3)))
    return problems


def _unknown_path(at: Path_, path: str, places: Mapping[Path_, Any]) -> list[Problem]:
    kind: Any = Scenario
    parts = path.split(".")
    for depth, part in enumerate(parts):
        models = _models(kind)
        items = _items(kind)
        if part.isdigit() and items is not None:
            kind = items
            continue
        known: dict[str, Any] = {name: field for model in models for name, field in model.model_fields.items()}
        if not models:
            if kind is Any or items is not None or depth == 0:
                return []
            return [Problem(dotted(at), f"`{'.'.join(parts[:depth])}` is a value, it has no `{part}`", *places.get(at, (None,) * 3))]
        if part not in known:
            return [Problem(dotted(at), f"no field `{path}`: {_nearest(part, known)}", *places.get(at, (None,) * 3))]
        kind = known[part].annotation
    return []


def _models(kind: Any) -> list[type[BaseModel]]:
    """The pydantic models that a type annotation may hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(kind) for model in _models(part)]
    return []


def _items(kind: Any) -> Any:
    """The type of a tuple's items, or of a mapping's values; None if it is neither."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _items(typing.get_args(kind)[0])
    if origin is tuple:
        return typing.get_args(kind)[0]
    return None


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(names)}"


def _translated(
    error: pydantic.ValidationError, value: Any, marks: Mapping[Path_, Any], places: Mapping[Path_, Any]
) -> list[Problem]:
    """pydantic's findings in our words, one a field."""
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        path = _real_path(item["loc"], value)
        field = dotted(path)
        key_error = item["type"] == "extra_forbidden"
        place = (marks if key_error else places).get(path)
        at = path
        while place is None and at:
            at = at[:-1]
            place = marks.get(at)
        if field not in found:
            found[field] = Problem(field, _message(item, path), *(place or (None, None, None)))
    return list(found.values())


def _real_path(loc: tuple[int | str, ...], value: Any) -> Path_:
    """The part of pydantic's location that exists in the document (unions add names of their branches)."""
    path: list[str | int] = []
    node = value
    for i, part in enumerate(loc):
        if isinstance(node, dict) and part in node:
            node = node[part]
            path.append(part)
        elif isinstance(node, tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
            path.append(part)
        elif i == len(loc) - 1 and (isinstance(node, dict) or not path) and isinstance(part, str):
            path.append(part)
    return tuple(path)


def _message(item: Any, path: Path_) -> str:
    kind, given, ctx = item["type"], item["input"], item.get("ctx") or {}
    shown = "nothing" if given is None else f"`{str(given).lower() if isinstance(given, bool) else given}`"
    if len(shown) > 60:
        shown = "what is given"
    if kind == "missing":
        return f"is missing: {_meaning(path)}"
    if kind == "extra_forbidden":
        return f"is no field here: {_nearest(str(path[-1]), _fields_at(path[:-1]))}"
    if kind == "value_error":
        return str(ctx.get("error", item["msg"]))
    if kind == "literal_error":
        allowed = [word.strip("'") for word in str(ctx["expected"]).replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.6)
        hint = f": did you mean `{near[0]}`?" if near else ""
        return f"{shown} is none of {', '.join(allowed)}{hint}"
    wanted = {
        "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number", "bool_type": "true or false",
        "string_type": "text", "tuple_type": "a list, such as `[a, b]`", "dict_type": "a mapping", "model_type": "a mapping of its fields",
        "model_attributes_type": "a mapping of its fields", "float_parsing": "a number", "int_parsing": "a whole number",
    }.get(kind)  # fmt: skip
    if kind in ("greater_than_equal", "less_than_equal"):
        limit = ctx["ge"] if kind == "greater_than_equal" else ctx["le"]
        return f"{shown} is too {'small' if kind == 'greater_than_equal' else 'large'}: {'at least' if kind == 'greater_than_equal' else 'at most'} {limit}"
    if kind == "too_short":
        return f"needs at least {ctx['min_length']} entry"
    if wanted:
        return f"{shown} should be {wanted}"
    return f"{shown}: {item['msg']}"


def _fields_at(path: Path_) -> list[str]:
    kind: Any = Scenario
    for part in path:
        items = _items(kind)
        if isinstance(part, int) and items is not None:
            kind = items
            continue
        known = {name: field for model in _models(kind) for name, field in model.model_fields.items()}
        if part not in known:
            return []
        kind = known[str(part)].annotation
    return [name for model in _models(kind) for name in model.model_fields]


def _meaning(path: Path_) -> str:
    kind: Any = Scenario
    text = "see `colossim schema`"
    for part in path:
        items = _items(kind)
        if isinstance(part, int) and items is not None:
            kind = items
            continue
        known = {name: field for model in _models(kind) for name, field in model.model_fields.items()}
        if part not in known:
            return text
        kind, text = known[str(part)].annotation, known[str(part)].description or text
    return text


__all__ = ["Case", "build", "case_changes", "change_of", "load_scenario", "read"]
