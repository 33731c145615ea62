"""YAML as version 1.2 reads it, with the place of every value, and nothing that could surprise.

`no` is text, `1e9` a number, `010` ten. Duplicate keys, tags, several documents and alias bombs are errors,
each with its place.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from colossim.errors import Problem, ScenarioError

#: A dotted path to a value, such as ("cluster", "nodes", 0, "count").
Path_ = tuple[str | int, ...]
_MOST_NODES = 200_000
#: libyaml's composer recurses in C, where too deep a nesting is a crash and not an exception.
_DEEPEST = 40
_TOO_DEEP = f"is nested more than {_DEEPEST} deep: a scenario needs far less"
#: Python refuses to read integers of more than 4,300 digits; anything near that is no count.
_LONGEST_INT = 400
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value).lower(), str(value), str(value).upper())
}
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Only composes: plain scalars stay text until `_scalar` reads them by the 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name for it)


@dataclass(frozen=True)
class Document:
    """A value made of dicts, tuples and scalars, and where each of its parts stands (line, column from 1).

    marks: of values; keys: of the keys of mappings.
    """

    value: Any
    marks: dict[Path_, tuple[int, int]]
    keys: dict[Path_, tuple[int, int]]


def read_file(path: Path) -> Document:
    """Reads a YAML file. Raises ScenarioError for anything that isn't one clean document."""
    name = str(path)
    if os.path.isdir(path):
        raise ScenarioError([Problem("", "is a directory: name the scenario file in it", name)])
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ScenarioError([Problem("", "no such file", name)]) from None
    except OSError as error:
        raise ScenarioError([Problem("", f"cannot be read: {error.strerror}", name)]) from None
    except UnicodeDecodeError as error:
        raise ScenarioError([Problem("", f"is not UTF-8 text (byte {error.start})", name)]) from None
    return read_text(text, name)


def read_text(text: str, file: str) -> Document:
    """Reads YAML text; `file` is what errors call it. Raises ScenarioError."""
    try:
        _check_depth(text, file)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ScenarioError([Problem("", _plain(error, _character(text, line, column)), file, line, column)]) from None
    except (yaml.YAMLError, UnicodeEncodeError):
        line, column, character = _forbidden(text)
        message = f"holds a character that YAML forbids (U+{ord(character):04X})" if character else "is not YAML"
        raise ScenarioError([Problem("", message, file, line, column)]) from None
    if node is None:
        message = "is empty: a scenario has at least `cluster:` and `job:`"
        raise ScenarioError([Problem("", message, file, 1, 1)])
    reader = _Reader(file)
    value = reader.read(node, ())
    if reader.problems:
        raise ScenarioError(reader.problems)
    return Document(value, reader.marks, reader.keys)


def _check_depth(text: str, file: str) -> None:
    """Raises ScenarioError where collections nest deeper than any scenario does."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                mark: Any = event.start_mark
                raise ScenarioError([Problem("", _TOO_DEEP, file, mark.line + 1, mark.column + 1)])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _forbidden(text: str) -> tuple[int, int, str]:
    """Line, column and the character that made the reader stop; no character if that isn't why."""
    found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    if found is None:
        return 1, 1, ""
    before = text[: found.start()]
    return before.count("\n") + 1, found.start() - (before.rfind("\n") + 1) + 1, found.group()


def _character(text: str, line: int, column: int) -> str:
    """The character at a place; empty behind the end."""
    lines = text.split("\n")
    return lines[line - 1][column - 1 : column] if line <= len(lines) else ""


def _plain(error: yaml.MarkedYAMLError, character: str) -> str:
    """libyaml's finding in plain words. character: the one where it stopped."""
    problem = error.problem or "is not YAML"
    if "tab character" in problem or ("cannot start any token" in problem and character == "\t"):
        return "a tab cannot indent YAML: use spaces"
    if "cannot start any token" in problem:
        return f"a value cannot start with `{character}`: put it in quotes"
    if "expected a single document" in str(error.context) or "another document" in problem:
        return "holds several documents: keep one, and put variants under `cases:`"
    if "mapping values are not allowed" in problem:
        return "is not YAML here: a `:` inside a value needs quotes, or the indentation is off"
    if "maximum nesting depth" in problem:
        # Newer versions of libyaml give up by themselves, far below.
        return _TOO_DEEP
    if "undefined alias" in problem:
        return "an alias names an anchor that stands nowhere above it"
    return f"is not YAML here: {problem}"


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.marks: dict[Path_, tuple[int, int]] = {}
        self.keys: dict[Path_, tuple[int, int]] = {}
        self._nodes = 0
        self._full = False
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: Path_) -> Any:
        place = (node.start_mark.line + 1, node.start_mark.column + 1)
        self.marks.setdefault(path, place)
        self._nodes += 1
        if self._full:
            return None
        if self._nodes > _MOST_NODES or id(node) in self._open:
            self._full = True
            self._problem(path, place, "aliases expand to more than a scenario can hold: write it out")
            return None
        kind = {"ScalarNode": "str", "SequenceNode": "seq", "MappingNode": "map"}[type(node).__name__]
        if node.tag != f"tag:yaml.org,2002:{kind}" and not (node.tag == "!" and kind == "str"):
            self._problem(path, place, f"tag `{node.tag}`: a scenario holds plain values, without tags")
            return None
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node.value) if not node.style else node.value
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return tuple(self.read(item, (*path, i)) for i, item in enumerate(node.value))
            return self._mapping(node, path) if isinstance(node, yaml.MappingNode) else None
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, place, "a key is a word")
                continue
            key = str(key_node.value)
            if key in result:
                self._problem((*path, key), place, "is given twice: keep one")
                continue
            self.keys[(*path, key)] = place
            result[key] = self.read(value_node, (*path, key))
        return result

    def _problem(self, path: Path_, place: tuple[int, int], message: str) -> None:
        self.problems.append(Problem(dotted(path), message, self.file, *place))


def dotted(path: Path_) -> str:
    """("cluster", "nodes", 0) as `cluster.nodes.0`."""
    return ".".join(str(part) for part in path)


def _scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) <= _LONGEST_INT:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=[inIN])", "", text))
    return text
