"""The scenario file as JSON Schema, so that an editor can complete and check it."""

from __future__ import annotations

from typing import Any

from colossim.scenario.schema import LATER_VALUES, Scenario


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


#: Words of the contract that the reader refuses as yet, by the field that they are values of.
_REFUSED = {path[-1]: set(values) for path, values in LATER_VALUES.items()}


def _tidy(node: Any) -> None:
    """Drops generated titles, which repeat the keys, and words that the reader refuses."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    properties = node.get("properties")
    if isinstance(properties, dict):
        for name, words in _REFUSED.items():
            enum = properties.get(name, {}).get("enum")
            if enum is not None:
                properties[name]["enum"] = [word for word in enum if word not in words]
    for item in node.values():
        _tidy(item)
