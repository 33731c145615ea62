"""XML with the line of every element, and files as bytes, with the problems that a reader would name.

Python's own expat: external entities are never fetched, and its limit on amplification stops entity bombs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from colossim.errors import Problem, ScenarioError


@dataclass(eq=False)
class Element:
    """An element: its tag without namespace, its attributes, where it starts (from 1), what it stands in and holds."""

    tag: str
    attributes: dict[str, str]
    line: int
    parent: Element | None
    children: list[Element] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        """This element and all below it, in the order of the file."""
        stack = [self]
        while stack:
            element = stack.pop()
            yield element
            stack.extend(reversed(element.children))

    def above(self) -> Iterator[Element]:
        """What it stands in, from the inside out."""
        outer = self.parent
        while outer is not None:
            yield outer
            outer = outer.parent


def read_bytes(path: str | os.PathLike[str], field_: str) -> bytes:
    """What a file holds. Raises ScenarioError, `field_` being the field that named the file."""
    name = os.fspath(path)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        message = "no such file"
    except IsADirectoryError:
        message = "is a directory: name a file in it"
    except (OSError, ValueError) as error:
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    raise ScenarioError([Problem(field_, message, name)])


def read_xml(data: bytes, file: str, field_: str) -> Element:
    """The outermost element of XML text. Raises ScenarioError with the line and column where it breaks."""
    parser = expat.ParserCreate()
    inside: list[Element] = []
    roots: list[Element] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        parent = inside[-1] if inside else None
        element = Element(name.rpartition(":")[2], attributes, parser.CurrentLineNumber, parent)
        (parent.children if parent else roots).append(element)
        inside.append(element)

    def end(_: str) -> None:
        inside.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        message = f"is not XML: {expat.ErrorString(error.code)}"
        raise ScenarioError([Problem(field_, message, file, error.lineno, error.offset + 1)]) from None
    except (ValueError, LookupError) as error:  # an encoding that Python doesn't know
        raise ScenarioError([Problem(field_, f"is not XML: {error}", file)]) from None
    return roots[0]
