"""pydantic's findings in the project's own words, each with its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import BaseModel

from colossim.catalog.quantities import Named
from colossim.errors import Problem
from colossim.scenario.fields import fields_at, meaning, nearest
from colossim.yaml12 import Path_, dotted

#: File, line and column, as far as they are known.
Place = tuple[str | None, int | None, int | None]
NOWHERE: Place = (None, None, None)

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list, such as `[a, b]`",
    "dict_type": "a mapping, such as `{key: value}`",
    "model_type": "a mapping of its fields",
}
#: Fields that take one of two types, where pydantic tells of each.
_EITHER = {
    ("job", "parallelism", "data"): "a whole number from 1, or `auto`",
    ("job", "parallelism", "sharding_group"): "a whole number from 1, or `all`",
}


def translated(
    error: pydantic.ValidationError,
    root: type[BaseModel],
    value: Any,
    keys: Mapping[Path_, Place],
    values: Mapping[Path_, Place],
    under: Path_ = (),
) -> list[Problem]:
    """One problem a field.

    root: the model that was read from value.  keys, values: where keys and values stand; their paths begin
    with `under`.
    """
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        path, rest = _written(item["loc"], value)
        field = dotted(path)
        # pydantic counts the valid entries, so a list with a wrong entry is "too short" as well
        if field in found or (item["type"] == "too_short" and item["input"]):
            continue
        at_key = item["type"] == "extra_forbidden" or rest == ("[key]",)
        place = place_of((*under, *path), keys if at_key else values, keys)
        message = _message(item, root, path)
        if path in _EITHER:
            message = f"{_should_be(item['input'])} {_EITHER[path]}"
        elif rest and rest != ("[key]",):
            message = f"in its catalogue entry, `{dotted(rest)}`: {message}"
        found[field] = Problem(dotted((*under, *path)), message, *place)
    return list(found.values())


def place_of(path: Path_, first: Mapping[Path_, Place], keys: Mapping[Path_, Place]) -> Place:
    """Where a path stands by the first table, or else its nearest enclosing path by the second."""
    place = first.get(path)
    while place is None and path:
        path = path[:-1]
        place = keys.get(path)
    return place or NOWHERE


def _written(loc: tuple[int | str, ...], value: Any) -> tuple[Path_, Path_]:
    """pydantic's location as a path in the document, and the rest of it inside a catalogue entry."""
    path: list[str | int] = []
    node = value
    for i, part in enumerate(loc):
        here = isinstance(node, dict) and part in node
        if here or (isinstance(node, tuple) and isinstance(part, int) and part < len(node)):
            node = node[part]
            path.append(part)
        elif isinstance(node, dict) and "base" not in node and i == len(loc) - 1 and part != "[key]":
            path.append(part)
        else:
            return tuple(path), loc[i:]
    return tuple(path), ()


def _shown(given: object) -> str:
    if isinstance(given, dict | tuple):
        return "a mapping" if isinstance(given, dict) else "a list"
    text = str(given).lower() if isinstance(given, bool) else str(given)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def _should_be(given: object) -> str:
    return "has no value: it should be" if given is None else f"{_shown(given)} should be"


def _message(item: Any, root: type[BaseModel], path: Path_) -> str:
    kind, given, ctx = item["type"], item["input"], item.get("ctx") or {}
    if kind == "missing":
        what = meaning(root, path)
        return f"is missing: {what}" if what else "is missing"
    if kind == "extra_forbidden":
        return f"is no field here: {nearest(str(path[-1]), fields_at(root, path[:-1]))}"
    if kind == "value_error":
        return str(ctx["error"])
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(ctx["expected"]))
        near = difflib.get_close_matches(str(given).lower(), allowed, n=1, cutoff=0.6)
        hint = f": did you mean `{near[0]}`?" if near else ""
        if given is None or len(allowed) == 1:
            return f"{_should_be(given)} {' or '.join(allowed)}"
        return f"{_shown(given)} is none of {', '.join(allowed)}{hint}"
    if kind in ("greater_than_equal", "less_than_equal"):
        low = kind == "greater_than_equal"
        limit = ctx["ge"] if low else ctx["le"]
        return f"{_shown(given)} is too {'small' if low else 'large'}: at {'least' if low else 'most'} {limit:g}"
    if kind == "too_short":
        return "is empty: it needs at least one entry"
    if kind in _WANTED:
        field = fields_at(root, path[:-1]).get(str(path[-1])) if path else None
        name = field is not None and any(isinstance(mark, Named) for mark in field.metadata)
        wanted = ("a catalogue name, or " if name else "") + _WANTED[kind]
        return f"{_should_be(given)} {wanted}{_repair(kind, given)}"
    return f"{_shown(given)}: {item['msg']}"


def _repair(kind: str, given: object) -> str:
    """How to write what was meant, where it can be told."""
    if kind.startswith("int") and isinstance(given, float) and given.is_integer():
        return f": write {given:.0f}"
    if kind.startswith(("int", "float")) and isinstance(given, str):
        plain = given.replace(",", "").replace("_", "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", plain):
            return f": write {plain}, without quotes or separators"
    if kind == "bool_type" and str(given).lower() in ("yes", "on", "no", "off"):
        return f": write {'true' if str(given).lower() in ('yes', 'on') else 'false'}"
    return ""
