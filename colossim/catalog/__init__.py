"""The catalogue: YAML facts, each with a source and a date, one file an entry.

A user's own entries come from the file that a scenario names with `catalog:`, a mapping of the same kinds:
`{gpus: {NAME: {...}}, nodes: {...}, fabrics: {...}, models: {...}, software: {...}}`.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

from colossim import yaml12
from colossim.catalog.types import Entry, Fabric, Gpu, Model, NodeType, Software
from colossim.errors import Problem, ScenarioError

#: The kinds, and what each holds.
KINDS: dict[str, type[Entry]] = {
    "gpus": Gpu,
    "nodes": NodeType,
    "fabrics": Fabric,
    "models": Model,
    "software": Software,
}
Extra = dict[str, dict[str, Any]]
_HERE = Path(__file__).parent


def names(kind: str, extra: Extra | None = None) -> list[str]:
    """Names of all entries of a kind, sorted; the user's own among them."""
    shipped = {path.stem for path in (_HERE / kind).glob("*.yaml")}
    return sorted(shipped | set((extra or {}).get(kind, {})))


def entry(kind: str, name: str, extra: Extra | None = None) -> dict[str, Any]:
    """The fields of an entry, as written. Raises ValueError with the nearest name if there is none."""
    own = (extra or {}).get(kind, {})
    if name in own:
        return {"name": name, **own[name]}
    known = names(kind, extra)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"`{name}` is not in the catalogue of {kind}: {hint}")
    return {"name": name, **_shipped(kind, name)}


@cache
def _shipped(kind: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml12.read_file(_HERE / kind / f"{name}.yaml").value
    return value


def load(kind: str, name: str, extra: Extra | None = None) -> Entry:
    """An entry, validated. Raises ValueError (pydantic's included) if it is unknown or wrong."""
    return KINDS[kind].model_validate(entry(kind, name, extra), context={"catalog": extra or {}})


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
            problems.append(
                Problem(kind, f"is no kind of the catalogue: {hint}", str(path), *document.keys[(kind,)])
            )
        elif not isinstance(entries, dict) or not all(isinstance(item, dict) for item in entries.values()):
            place = document.marks[(kind,)]
            problems.append(Problem(kind, "should be a mapping of names to fields", str(path), *place))
    if problems:
        raise ScenarioError(problems)
    return document
