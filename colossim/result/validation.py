"""The scoreboard of published runs (`validation.validate`): for the terminal, and as the README's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colossim.units import format_size, format_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_validation(report: dict[str, Any], console: Console) -> None:
    """Prints the scoreboard: a line a source, rows that are flagged or don't fit; of a single source every row."""
    single = len({case["source"] for part in (report, report["memory"]) for case in part["cases"]}) == 1
    if single:
        _show_cases(report["cases"], console)
    _show_sources(report, console)
    flagged = [case for case in report["cases"] if case["flag"]]
    if flagged and not single:
        _say("\nflagged: the measurement is to be distrusted, and is counted apart", console)
        _show_cases(flagged, console)
    memory = report["memory"]
    if memory["cases"]:
        _say("\nmemory of the fullest GPU", console)
        if single:
            _show_memory(memory["cases"], console)
        _show_sources(memory, console)
    if report["does_not_fit"]:
        _say("\nran, and doesn't fit by the memory model", console)
        table = _table(("run", "predicted", "a GPU has"))
        for case in report["does_not_fit"]:
            sizes = (format_size(case["predicted_bytes"]), format_size(case["capacity_bytes"]))
            table.add_row(f"{case['source']} {case['case']}", *sizes)
        _print(table, console)


def _show_sources(part: dict[str, Any], console: Console) -> None:
    overall = part["overall"]
    table = _table(("source", "runs", "mean", "median", "worst", "bias", "flagged", "mean of all"))
    for name, row in {**part["sources"], "all": overall}.items():
        errors = [_percent(row[key]) for key in ("mean_pct", "median_pct", "worst_pct")]
        flagged = str(row["flagged_n"]) if row["flagged_n"] else ""
        every = _percent(row["all_mean_pct"]) if row["flagged_n"] else ""
        table.add_row(name, str(row["n"]), *errors, _percent(row["bias_pct"], sign=True), flagged, every)
    if len(part["sources"]) > 1:
        equal = (_percent(overall["equal_weight_mean_pct"]), _percent(overall["equal_weight_median_pct"]))
        table.add_row("all, equal weight a source", "", *equal, "", "", "", "")
    _print(table, console)


def _show_cases(cases: list[dict[str, Any]], console: Console) -> None:
    table = _table(("run", "measured", "predicted", "error"))
    table.add_column("flag", overflow="fold")
    for case in cases:
        times = (format_time(case["measured_s"]), format_time(case["predicted_s"]))
        table.add_row(f"{case['source']} {case['case']}", *times, _percent(case["error_pct"], sign=True), case["flag"])
    _print(table, console)
    console.print()


def _show_memory(cases: list[dict[str, Any]], console: Console) -> None:
    table = _table(("run", "measured", "predicted", "error"))
    for case in cases:
        sizes = (format_size(case["measured_bytes"]), format_size(case["predicted_bytes"]))
        table.add_row(f"{case['source']} {case['case']}", *sizes, _percent(case["error_pct"], sign=True))
    _print(table, console)
    console.print()


def _table(titles: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(titles[0], no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _print(what: Any, console: Console) -> None:
    console.print(what, highlight=False, markup=False, emoji=False)


def _say(words: str, console: Console) -> None:
    console.print(words, style="bold", highlight=False, markup=False, emoji=False)


def _percent(number: float | None, *, sign: bool = False) -> str:
    if number is None:
        return "-"
    return f"{number:+.1f} %" if sign else f"{number:.1f} %"


def markdown(report: dict[str, Any]) -> str:
    """The README's table: a row a source, then all of them; errors of step times.

    Columns of the calibration only where it left numbers.
    """
    sources, overall = report["sources"], report["overall"]
    fitted = {"untuned_mean_pct": "before any fit", "left_out_mean_pct": "left-out configurations"}
    fitted = {key: title for key, title in fitted.items() if any(row[key] is not None for row in sources.values())}
    titles = ["source", "runs", "mean error", "median", "worst", "bias", *fitted.values(), "flagged"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]

    def line(name: str, row: dict[str, Any]) -> None:
        errors = [_percent(row[key]) for key in ("mean_pct", "median_pct", "worst_pct")]
        left = [_percent(row.get(key)) for key in fitted]
        flagged = f"{row['flagged_n']} ({_percent(row['flagged_mean_pct'])})" if row["flagged_n"] else ""
        cells = [name, str(row["n"]), *errors, _percent(row["bias_pct"], sign=True), *left, flagged]
        lines.append("| " + " | ".join(cells) + " |")

    for name, row in sources.items():
        line(f"[{name}](scenarios/published/{name}.yaml)", row)
    line("all rows", overall)
    equal = [_percent(overall[f"equal_weight_{key}"]) for key in ("mean_pct", "median_pct")]
    lines.append("| equal weight a source | | " + " | ".join(equal) + " | | |" + " |" * len(fitted) + " |")
    return "\n".join(lines)
