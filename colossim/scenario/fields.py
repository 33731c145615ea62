"""The declared fields, walked by dotted path: what stands there, what it means, what else would be there."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from colossim.catalog.facts import Entry
from colossim.yaml12 import Path_


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean ...?`, or all that is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(names)}"


def models_of(kind: Any) -> list[type[BaseModel]]:
    """The models that a type annotation may hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(kind) for model in models_of(part)]
    return []


def items_of(kind: Any) -> Any:
    """The type of a tuple's items or a mapping's values; None if it is neither."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return items_of(args[0])
    if origin in (typing.Union, types.UnionType):
        return next((items for part in args if (items := items_of(part)) is not None), None)
    if origin is tuple:
        return args[0]
    return args[1] if origin is dict else None


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """Fields of the models that an annotation may hold, by name."""
    return {name: field for model in models_of(kind) for name, field in model.model_fields.items()}


def extras_of(kind: Any) -> Any:
    """The type of what a model holds under names of the user's; None if it holds none."""
    for model in models_of(kind):
        if model.model_config.get("extra") == "allow":
            return typing.get_args(typing.get_type_hints(model)["__pydantic_extra__"])[1]
    return None


def fields_at(root: type[BaseModel], path: Path_) -> dict[str, FieldInfo]:
    """The fields of what stands at `path` under `root`; none if it is a plain value."""
    kind: Any = root
    for part in path:
        known, items = fields_of(kind), items_of(kind) or extras_of(kind)
        if part in known:
            kind = known[str(part)].annotation
        elif items is not None:
            kind = items
        else:
            return {}
    return fields_of(kind)


def meaning(root: type[BaseModel], path: Path_) -> str:
    """What the field at `path` means; empty if there is none."""
    field = fields_at(root, path[:-1]).get(str(path[-1])) if path else None
    return (field.description or "") if field else ""


def wrong_path(root: type[BaseModel], path: str) -> str | None:
    """What is wrong with a dotted path of `--set`, a case or a grid; None if it can be set."""
    kind: Any = root
    parts = path.split(".")
    for depth, part in enumerate(parts):
        known, items, extras = fields_of(kind), items_of(kind), extras_of(kind)
        if kind is Any:
            return None
        if part in known:
            kind = known[part].annotation
        elif part == "base" and any(issubclass(model, Entry) for model in models_of(kind)):
            kind = str
        elif extras is not None:
            kind = extras
        elif known:
            return f"no field `{path}`: {nearest(part, known)}"
        elif items is None:
            return f"`{'.'.join(parts[:depth])}` is a value, it has no `{part}`"
        elif typing.get_origin(kind) is tuple and not part.isdigit():
            return f"no field `{path}`: `{'.'.join(parts[:depth])}` is a list, name its entries 0, 1, ..."
        else:
            kind = items
    return None
