"""The scenario file as JSON Schema, so that an editor can complete and check it."""

from __future__ import annotations

from typing import Any

from colossim.scenario.schema import Scenario


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a scenario file.

    Quantities are text with a pattern; an entry is its catalogue name, its fields, or `base` and changes.
    It holds what one field can say; rules between fields are the reader's.
    """
    schema = Scenario.model_json_schema()
    _tidy(schema)
    schema["required"] = [name for name in schema["required"] if name != "job"]
    schema["oneOf"] = [{"required": ["job"]}, {"required": ["jobs"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "colossim scenario",
        **schema,
    }


def _tidy(node: Any) -> None:
    """Drops generated titles, which repeat the keys."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    for item in node.values():
        _tidy(item)
