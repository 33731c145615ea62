"""Tables of the catalogue and of measured collectives, for the terminal."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from colossim import catalog
from colossim.errors import Problem, ScenarioError
from colossim.shipped import published_names, scenario_names, scenario_path
from colossim.yaml12 import read_file

if TYPE_CHECKING:
    from rich.console import Console

_KINDS = (*catalog.KINDS, "scenarios")


def _known(word: str, words: list[str], what: str) -> None:
    if word not in words:
        near = difflib.get_close_matches(word, words, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(words)}"
        raise ScenarioError([Problem("", f"`{word}` is no {what} of the catalogue: {hint}")])


def _names(kind: str) -> list[str]:
    return [*scenario_names(), *published_names()] if kind == "scenarios" else catalog.names(kind)


def facts(kind: str | None, name: str | None) -> dict[str, Any]:
    """The catalogue as written: kinds and their names, a kind's entries, or one entry's fields."""
    if kind is None:
        return {each: _names(each) for each in _KINDS}
    _known(kind, list(_KINDS), "kind")
    if name is not None:
        _known(name, _names(kind), "entry")
        return _fields(kind, name)
    return {each: _fields(kind, each) for each in _names(kind)}


def _fields(kind: str, name: str) -> dict[str, Any]:
    if kind == "scenarios":
        value: dict[str, Any] = read_file(scenario_path(name)).value
        return value
    return catalog.entry(kind, name)


def show(kind: str | None, name: str | None, console: Console) -> None:
    """Prints what `facts` gives. Raises ScenarioError for an unknown kind or name."""
    from rich.table import Table

    found = facts(kind, name)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=name is None)
    if kind is None:
        table.add_column("kind", no_wrap=True)
        table.add_column("entries", overflow="fold")
        for each, names in found.items():
            table.add_row(each, ", ".join(names))
    elif name is None:
        table.add_column(kind, no_wrap=True)
        table.add_column("source" if kind != "scenarios" else "description", overflow="fold")
        if kind != "scenarios":
            table.add_column("date", no_wrap=True)
        for each, fields in found.items():
            if kind == "scenarios":
                table.add_row(each, str(fields.get("description", "")).split(". ")[0].strip())
            else:
                table.add_row(each, str(fields["source"]), str(fields["date"]))
    else:
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for field, value in found.items():
            table.add_row(field, _plain(value))
    console.print(table, highlight=False, markup=False, emoji=False)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key}: {_plain(item)}" if not isinstance(item, dict) else f"{key} {{{_plain(item)}}}"
            for key, item in value.items()
        )
    if isinstance(value, tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value).strip()


def show_sections(title: str, sections: dict[str, dict[str, str]], console: Console) -> None:
    """Prints sections of labels and values below a title."""
    from rich.table import Table

    console.print(title, style="bold", highlight=False, markup=False, emoji=False)
    for section, rows in sections.items():
        console.print()
        console.print(section, style="bold", highlight=False, markup=False)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, value in rows.items():
            table.add_row(label, value)
        console.print(table, highlight=False, markup=False, emoji=False)


def show_collectives(report: dict[str, Any], console: Console) -> None:
    """Prints the scoreboard of measured collectives (`measured.report`): a line a group, then what holds of all."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("group", no_wrap=True)
    for title in ("rows", "median", "worst", "bias"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in report["groups"].items():
        cells = [f"{row['median_pct']:.1f} %", f"{row['worst_pct']:+.1f} %", f"{row['bias_pct']:+.1f} %"]
        table.add_row(name, str(row["n"]), *cells)
    console.print(table, highlight=False, markup=False, emoji=False)
    overall, worst = report["overall"], report["worst_group"]
    words = [
        "",
        "errors are of the time; a bias above 0 is a prediction that is too slow",
        f"from 1 MiB on: median {overall['median_pct_large']:.1f} %; below: {overall['median_pct_small']:.1f} % "
        f"({overall['n']} rows)",
        f"worst group: {worst}, median {report['groups'][worst]['median_pct']:.1f} %",
        f"{report['flagged']} rows are flagged and don't count:",
        *[f"  {count} {reason}" for reason, count in sorted(report["flags"].items(), key=lambda item: -item[1])],
    ]
    console.print("\n".join(words), highlight=False, markup=False, emoji=False)
