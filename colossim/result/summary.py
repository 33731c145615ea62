"""A result for the terminal: a page that a person reads at a glance, in 80 columns, with or without colour."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from colossim.engine.record import LABEL
from colossim.units import (
    format_compute,
    format_count,
    format_power,
    format_rate,
    format_share,
    format_size,
    format_time,
)

if TYPE_CHECKING:
    from rich.console import Console

    from colossim.result.result import Result
    from colossim.result.row import Row

_BAR = 30


def bar(share: float, width: int = _BAR) -> str:
    """A bar of block characters; whole when share is 1."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def text(result: Result, width: int = 80) -> str:
    """The summary as plain text."""
    from rich.console import Console

    out = io.StringIO()
    show(result, Console(file=out, width=width, color_system=None))
    return out.getvalue().rstrip("\n")


def show(result: Result, console: Console) -> None:
    """Prints the summary."""
    from rich.table import Table

    console.print(f"[bold]{result.scenario}[/bold]", highlight=False)
    spares = ", ".join(f"{count:,} {name}" for name, count in result.spares.items())
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("step time", f"[bold]{format_time(result.step_time_s)}[/bold]")
    facts.add_row(
        "throughput",
        f"[bold]{format_count(result.tokens_per_s)} tokens/s[/bold]  ({result.tokens_per_s_per_gpu:,.0f} a GPU)",
    )
    facts.add_row(
        "MFU",
        f"[bold]{format_share(result.mfu)}[/bold]  ({format_compute(result.model_flops_per_gpu)} a GPU; "
        f"HFU {format_share(result.hfu)})",
    )
    in_job = f"{result.gpus_in_job:,} of {result.gpus:,} in the job"
    facts.add_row("GPUs", in_job + (f"; spare nodes: {spares}" if spares else ""))
    memory = result.memory_bytes
    facts.add_row(
        "memory",
        f"{format_size(memory['peak'])} of {format_size(memory['capacity'])} on the fullest GPU (stage {memory['stage']:.0f})",
    )
    facts.add_row(
        "power", f"{format_power(result.power_W)}, {format_count(result.energy_per_step_J / 3.6e6)} kWh a step"
    )
    if result.time_to_train_s is not None:
        facts.add_row("time to train", format_time(result.time_to_train_s))
    console.print(facts, highlight=False)
    console.print()
    console.print(_breakdown(result), highlight=False)
    console.print()
    console.print(_links(result), highlight=False)
    console.print()
    console.print(f"[bold]Bound by[/bold] {result.bound}.", highlight=False, soft_wrap=False)
    if result.mix is not None:
        console.print(f"[bold]Mixed[/bold] {_mix(result.mix)}", highlight=False)
    for title, lines in (("Assumed", result.assumptions), ("Note", result.notes)):
        for line in lines:
            console.print(f"[dim]{title}:[/dim] {line}", highlight=False)
    console.print(
        f"[dim]Simulated with {result.processes:,} processes and {result.events:,} events "
        f"({result.fold} fold): set-up {format_time(result.setup_s)}, events {format_time(result.wall_s)}.[/dim]",
        highlight=False,
    )


def _breakdown(result: Result) -> Any:
    from rich.table import Table

    place = result.bottleneck
    where = f"stage {place['stage']} of {place['stages']}" if place["stages"] > 1 else "the step"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"where {where} spends it", no_wrap=True)
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    table.add_column("", no_wrap=True)
    for name, seconds in sorted(result.breakdown_s.items(), key=lambda item: -item[1]):
        share = seconds / result.step_time_s
        if share >= 0.0005:
            table.add_row(LABEL[name], format_time(seconds), format_share(share), bar(share))
    return table


def _links(result: Result) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("links", no_wrap=True)
    for title in ("count", "capacity", "a step", "load", "busy"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, link in by_kind(result.links).items():
        load = link["bytes_per_step"] / (link["capacity_Bps"] * result.step_time_s)
        table.add_row(
            name,
            f"{link['count']:,.0f}",
            format_rate(link["capacity_Bps"]),
            format_size(link["bytes_per_step"]),
            format_share(load),
            format_share(link["busy_fraction"]),
        )
    return table


def by_kind(links: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Link classes of a kind and capacity as one row: the busiest one's figures, all their links."""
    rows: dict[tuple[str, float], dict[str, float]] = {}
    for name, link in links.items():
        key = (name.rstrip("0123456789 "), link["capacity_Bps"])
        known = rows.get(key)
        if known is None:
            rows[key] = dict(link)
            continue
        count = known["count"] + link["count"]
        if link["bytes_per_step"] > known["bytes_per_step"]:
            known.update(link)
        known["count"] = count
    names = [kind for kind, _ in rows]
    return {
        kind if names.count(kind) == 1 else f"{kind} ({format_rate(capacity)})": row
        for (kind, capacity), row in rows.items()
    }


def _mix(mix: dict[str, Any]) -> str:
    parts = [
        f"{kind} does a stage's kernels in {format_time(row['same_work_s'])} and waits {format_time(row['waits_s'])}"
        for kind, row in mix["types"].items()
    ]
    return f"job: {mix['pace']} sets the pace; " + "; ".join(parts) + "."


def show_measured(row: Row, console: Console) -> None:
    """Prints the summary of a variant, and how far it is from what was measured."""
    assert row.result is not None
    show(row.result, console)
    if row.error is not None and row.measured is not None:
        console.print(
            f"[bold]Measured[/bold] {format_time(row.measured)}: predicted {100 * row.error:+.1f} %.", highlight=False
        )


def show_rows(rows: Sequence[Row], console: Console) -> None:
    """One row a variant; below, why some could not be played."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("case", overflow="fold")
    measured = any(row.measured is not None for row in rows)
    for title in ("GPUs", "step", "tokens/s", "a GPU", "MFU", "bubble", *(("measured", "error") if measured else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        result = row.result
        if result is None:
            table.add_row(row.label, "-", "-", "-", "-", "-", "-")
            continue
        cells = [
            f"{result.gpus_in_job:,}",
            format_time(result.step_time_s),
            format_count(result.tokens_per_s),
            f"{result.tokens_per_s_per_gpu:,.0f}",
            format_share(result.mfu),
            format_share(result.breakdown_s["pipeline_bubble"] / result.step_time_s),
        ]
        if row.error is not None and row.measured is not None:
            cells += [format_time(row.measured), f"{100 * row.error:+.1f} %"]
        table.add_row(row.label, *cells)
    console.print(table, highlight=False)
    for row in rows:
        if row.result is None:
            console.print(f"\n[bold]{row.label}[/bold] {row.why_not}", highlight=False)
