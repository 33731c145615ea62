"""A cluster that changed, on the terminal: what each stretch did, and several cases side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from colossim.units import format_count, format_time

if TYPE_CHECKING:
    from colossim.result.growth import Growth


def table_of_stretches(growth: Growth) -> Any:
    """A stretch a row."""
    table = _table("from", ("GPUs", "batch", "step", "tokens/s", "tokens", "stood still", "paid back"))
    for row in growth.stretches:
        first = row["begins_s"] == 0
        table.add_row(
            _day(row["begins_s"]),
            f"{row['gpus_in_job']:,}",
            f"{row['global_batch']:,}",
            format_time(row["step_time_s"]),
            format_count(row["tokens_per_s"]),
            format_count(row["tokens"]),
            "-" if first else "never laid" if row["laid_s"] is None else format_time(row["down_s"]),
            "-" if row["paid_back_s"] is None else f"after {format_time(row['paid_back_s'] - row['begins_s'])}",
        )
    return table


def said_growth(growth: Growth) -> str:
    """What the changes came to, in a sentence or two."""
    rows = growth.stretches
    total, alone = rows[-1]["tokens_so_far"], growth.without["tokens"]
    times = (
        f", {total / alone:.2f} times as many as the first {growth.without['gpus_in_job']:,.0f} GPUs alone"
        if alone
        else ""
    )
    down = sum(row["down_s"] for row in rows)
    return (
        f"{format_count(total)} tokens and {rows[-1]['flops_so_far']:.3g} FLOPs{times}; {len(rows) - 1} changes, for which the"
        f" job stood still for {format_time(down)}."
    )


def table_of_growths(growths: Sequence[tuple[str, Growth]]) -> Any:
    """Cases side by side: GPUs in the job at first and at last, and what they did."""
    from rich.text import Text

    table = _table("case", ("GPUs", "at last", "changes", "stood still", "tokens", "FLOPs", "without"))
    for label, growth in growths:
        rows = growth.stretches
        table.add_row(
            Text(label),
            f"{rows[0]['gpus_in_job']:,}",
            f"{rows[-1]['gpus_in_job']:,}",
            f"{len(rows) - 1}",
            format_time(sum(row["down_s"] for row in rows)),
            format_count(rows[-1]["tokens_so_far"]),
            f"{rows[-1]['flops_so_far']:.3g}",
            format_count(growth.without["tokens"]),
        )
    return table


def _day(seconds: float) -> str:
    return f"day {seconds / 86400:.4g}"


def _table(first: str, others: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table
