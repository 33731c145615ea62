"""Tables of collectives as nccl-tests prints them: what starts with `#` is a comment, a line a size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colossim.alone import Row
    from colossim.benchmark_table import Table

_HEAD = (("size", "count", "type", "redop"), ("(B)", "(elements)", "", ""))
_TIMES = (("time", "algbw", "busbw", "algorithm", "protocol"), ("(us)", "(GB/s)", "(GB/s)", "", ""))


def lines(table: Table, other: Table | None = None, ratios: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """The lines of a table; with another cluster's table, its times stand beside, and the ratio of both.

    ratios: of `benchmark_table.time_ratios`.
    """
    tables = (table,) if other is None else (table, other)
    names: tuple[str, ...] = (table.scenario,) if other is None else (table.scenario, f"against {other.scenario}")
    for name, each in zip(names, tables, strict=True):
        spread = f"{each.ranks:,} ranks on {each.nodes:,} node{'s' if each.nodes > 1 else ''}"
        yield f"# {name}: {each.cluster}; group {each.group}: {spread}"
    found = {(r["operation"], r["size"]): r["time_ratio"] for r in ratios or ()}
    theirs = {} if other is None else {(r.operation, s): r for r, s in zip(other.rows, other.asked, strict=True)}
    mine = {(r.operation, s): r for r, s in zip(table.rows, table.asked, strict=True)}
    for operation in table.operations:
        yield f"#\n# {operation}"
        for first, words in zip(_HEAD, _TIMES, strict=True):
            beside = "" if other is None else f"{_times(*words)}  {'ratio' if words is _TIMES[0] else '':>6}"
            yield f"# {_head(*first)[2:]}{_times(*words)}{beside}".rstrip()
        for (which, size), row in mine.items():
            if which != operation:
                continue
            line = _head(row.size, row.count, row.type, row.redop) + _times(*_cells(row))
            if (which, size) in theirs:
                ratio = found[which, row.size]
                line += f"{_times(*_cells(theirs[which, size]))}  {ratio:6.2f}"
            yield line.rstrip()
        yield f"# Avg bus bandwidth    : {table.average(operation) / 1e9:g}"
        if other is not None and operation in other.operations:
            yield f"# Avg bus bandwidth {names[1]} : {other.average(operation) / 1e9:g}"
    if other is not None:
        yield f"# ratio: time {names[1]} over time of {table.scenario}; above 1 the first is faster"
    for name, each in zip(names, tables, strict=True):
        yield from (f"# {name}: {note}" for note in each.notes)


def _head(size: object, count: object, kind: str, redop: str) -> str:
    return f"{size:>13}  {count:>13}  {kind:>8}  {redop:>5}"


def _times(time: str, algbw: str, busbw: str, algorithm: str, protocol: str) -> str:
    return f"  {time:>8}  {algbw:>6}  {busbw:>6}  {algorithm:>12}  {protocol:>8}"


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    algbw, busbw = (_number(rate / 1e9, 6) for rate in (row.algbw, row.busbw))
    return _number(1e6 * row.time, 7), algbw, busbw, row.algorithm, row.protocol


def _number(value: float, width: int) -> str:
    """A number with as many of two decimals as the column holds."""
    for decimals in (2, 1, 0):
        text = f"{value:.{decimals}f}"
        if len(text) <= width:
            return text
    return f"{value:.0f}"
