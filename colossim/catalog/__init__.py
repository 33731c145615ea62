"""The catalogue: YAML facts, each with a source and a date, one file an entry.

A user's own entries come from the file that a scenario names with `catalog:`, a mapping of the same kinds:
`{gpus: {NAME: {...}}, nodes: {...}, fabrics: {...}, models: {...}, software: {...}, faults: {...}}`.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

from colossim import yaml12
from colossim.catalog.facts import Entry
from colossim.catalog.faults import FaultProfile
from colossim.catalog.gpu import Gpu
from colossim.catalog.types import Fabric, Model, NodeType, Software
from colossim.errors import Problem, ScenarioError

#: The kinds, and what each holds.
KINDS: dict[str, type[Entry]] = {
    "gpus": Gpu,
    "nodes": NodeType,
    "fabrics": Fabric,
    "models": Model,
    "software": Software,
    "faults": FaultProfile,
}
#: Fields of entries that hold an entry themselves.
_HOLDING = frozenset({"gpu"})
Extra = dict[str, dict[str, Any]]
_HERE = Path(__file__).parent
#: What `colossim calibrate` found for entries that ship.
CALIBRATED = _HERE / "calibrated.yaml"
#: How far published runs are predicted off before that, and while they were left out of it.
SCORES = _HERE / "measured" / "validation.yaml"


def names(kind: str, extra: Extra | None = None) -> list[str]:
    """Names of all entries of a kind, sorted; the user's own among them."""
    shipped = {path.stem for path in (_HERE / kind).glob("*.yaml")}
    return sorted(shipped | set((extra or {}).get(kind, {})))


def entry(kind: str, name: str, extra: Extra | None = None, *, calibrated: bool = True) -> dict[str, Any]:
    """The fields of an entry, as written. Raises ValueError with the nearest name if there is none.

    calibrated: with what `colossim calibrate` found for those that ship (calibrated.yaml, a catalogue file like a user's).
    """
    own = (extra or {}).get(kind, {})
    if name in own:
        # its own `base` may be an entry of the same name that ships
        others = {**(extra or {}), kind: {key: item for key, item in own.items() if key != name}}
        return {**based(kind, own[name], others, calibrated=calibrated), "name": name}
    known = names(kind, extra)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"`{name}` is not in the catalogue of {kind}: {hint}")
    fields = based(kind, _shipped(kind, name), calibrated=calibrated)
    if calibrated:
        found = _calibrated().get(kind, {}).get(name, {})
        fields = _changed(fields, {key: item for key, item in found.items() if key != "base"})
    return {**fields, "name": name}


@cache
def _calibrated() -> Extra:
    found: Extra = yaml12.read_file(CALIBRATED).value
    return found


def based(kind: str, fields: dict[str, Any], extra: Extra | None = None, *, calibrated: bool = True) -> dict[str, Any]:
    """Fields with their `base: NAME` filled in, mappings field by field. Raises ValueError."""
    if "base" not in fields:
        return fields
    base = fields["base"]
    if not isinstance(base, str):
        raise ValueError(f"`base` is a name of the catalogue of {kind}, and the fields beside it are changes")
    return _changed(
        entry(kind, base, extra, calibrated=calibrated), {key: item for key, item in fields.items() if key != "base"}
    )


def lineage(kind: str, name: str, extra: Extra | None = None) -> tuple[str, ...]:
    """An entry's name and those of the entries it is based on; the name alone if it isn't of the catalogue."""
    found: list[str] = [name]
    own = (extra or {}).get(kind, {})
    while True:
        here = found[-1]
        fields = own.get(here) or (_shipped(kind, here) if here in names(kind) else {})
        base = fields.get("base")
        if not isinstance(base, str) or base in found:
            return tuple(found)
        found.append(base)


def _changed(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(fields)
    for key, item in changes.items():
        old = result.get(key)
        # `base` names an entry where the field holds one (a node's GPU); a curve has a field of that name.
        anew = key in _HOLDING and isinstance(item, dict) and "base" in item
        if isinstance(item, dict) and not anew and isinstance(old, str | dict):
            item = {"base": old, **item} if isinstance(old, str) else _changed(old, item)
        result[key] = item
    return result


@cache
def _shipped(kind: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml12.read_file(_HERE / kind / f"{name}.yaml").value
    return value


def load(kind: str, name: str, extra: Extra | None = None, *, calibrated: bool = True) -> Entry:
    """An entry, validated. Raises ValueError (pydantic's included) if it is unknown or wrong."""
    fields = entry(kind, name, extra, calibrated=calibrated)
    return KINDS[kind].model_validate(fields, context={"catalog": extra or {}})


def read_extra(path: Path) -> yaml12.Document:
    """A user's catalogue file. Raises ScenarioError if it isn't a mapping of kinds of entries."""
    document = yaml12.read_file(path)
    value = document.value
    problems = []
    if not isinstance(value, dict):
        raise ScenarioError([Problem("", "a catalogue is a mapping of " + ", ".join(KINDS), str(path), 1, 1)])
    for kind, entries in value.items():
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(KINDS)}"
            problems.append(Problem(kind, f"is no kind of the catalogue: {hint}", str(path), *document.keys[(kind,)]))
        elif not isinstance(entries, dict) or not all(isinstance(item, dict) for item in entries.values()):
            place = document.marks[(kind,)]
            problems.append(Problem(kind, "should be a mapping of names to fields", str(path), *place))
    if problems:
        raise ScenarioError(problems)
    return document
