"""A result for the terminal: a page that a person reads at a glance, in 80 columns, with or without colour."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from colossim.engine.record import LABEL
from colossim.result.confidence import said
from colossim.result.fabric import show_fabric
from colossim.result.ledger import bar, ledger, said_campaign, table_of
from colossim.result.result import ARROW, kind_of
from colossim.result.stretches import said_growth, table_of_growths, table_of_stretches
from colossim.units import (
    format_compute,
    format_count,
    format_energy,
    format_money,
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


def text(result: Result, width: int = 80) -> str:
    """The summary as plain text."""
    from rich.console import Console

    out = io.StringIO()
    show(result, Console(file=out, width=width, color_system=None))
    return out.getvalue().rstrip("\n")


def _say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Prints words, some with a style. Nothing in them is markup: names and assumptions are the user's."""
    from rich.text import Text

    console.print(Text.assemble(*parts))


def show(result: Result, console: Console) -> None:
    """Prints the summary."""
    from rich.table import Table
    from rich.text import Text

    _say(console, (result.scenario, "bold"))
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, main, more in _facts(result):
        facts.add_row(label, Text.assemble((main, "bold"), more))
    console.print(facts)
    console.print()
    console.print(_breakdown(result, not console.encoding.lower().startswith("utf")))
    console.print()
    console.print(_links(result))
    console.print()
    if result.campaign is not None:
        console.print(ledger(result.campaign, not console.encoding.lower().startswith("utf")))
        console.print()
        if result.campaign.growth is not None:
            console.print(table_of_stretches(result.campaign.growth))
            console.print()
        _say(console, ("Campaign", "bold"), f" {said_campaign(result.campaign)}")
        if result.campaign.growth is not None:
            _say(console, ("Growth", "bold"), f" {said_growth(result.campaign.growth)}")
    _say(console, ("Bound by", "bold"), f" {result.bound}.")
    if result.power.measured_nodes_W is not None:
        _say(console, ("Power", "bold"), f" {said_power(result)}.")
    if len(result.shares) > 1:
        _say(console, ("Shares", "bold"), f" {'; '.join(said_share(row) for row in result.shares)}.")
    if result.mix is not None:
        _say(console, ("Mixed", "bold"), f" {_mix(result.mix)}")
    if result.collectives:
        _say(console, ("Collectives", "bold"), f" {'; '.join(collectives(result.collectives))}.")
    _say(console, ("Routing", "bold"), f" {routing(result.routing)}.")
    _say(console, (said(result.error_band), ""))
    for title, lines in (("Assumed:", result.assumptions), ("Note:", result.notes)):
        for line in lines:
            _say(console, (title, "dim"), f" {line}")
    cost = (
        f"Simulated with {result.processes:,} processes and {result.events:,} events ({result.fold} fold): "
        f"set-up {format_time(result.setup_s)}, events {format_time(result.wall_s)}."
    )
    _say(console, (cost, "dim"))


def _facts(result: Result) -> list[tuple[str, str, str]]:
    """Label, what matters, and the rest of the line."""
    spares = ", ".join(f"{count:,} {name}" for name, count in result.spares.items())
    memory = result.memory_bytes
    facts = [
        ("step time", format_time(result.step_time_s), ""),
        (
            "throughput",
            f"{format_count(result.tokens_per_s)} tokens/s",
            f"  ({result.tokens_per_s_per_gpu:,.0f} a GPU)",
        ),
        (
            "MFU",
            format_share(result.mfu),
            f"  ({format_compute(result.model_flops_per_gpu)} a GPU; HFU {format_share(result.hfu)})",
        ),
        (
            "GPUs",
            "",
            f"{result.gpus_in_job:,} of {result.gpus:,} in the job" + (f"; spare nodes: {spares}" if spares else ""),
        ),
        (
            "memory",
            "",
            f"{format_size(memory['peak'])} of {format_size(memory['capacity'])} on the fullest GPU "
            f"(stage {memory['stage']:.0f})",
        ),
        *_power(result),
    ]
    if result.jitter is not None:
        facts.append(("stragglers", *_stragglers(result.jitter)))
    if result.ramp is not None:
        ramp = result.ramp
        more = (
            f"{format_time(abs(ramp['extra_s']))} {'more' if ramp['extra_s'] >= 0 else 'less'} than at the full batch"
        )
        what = f"{ramp['steps']:,} steps from {ramp['sizes'][0]['global_batch']:,} sequences on: "
        facts.append(("batch ramp", "", f"{what}{format_time(ramp['time_s'])}, {more}"))
    if result.time_to_train_s is not None:
        facts.append(("time to train", "", format_time(result.time_to_train_s)))
    return facts


def _power(result: Result) -> list[tuple[str, str, str]]:
    """What the site draws, how it swings, what a cap costs, what the run costs."""
    power, cost = result.power, result.cost
    step = f"{format_power(result.power_W)}, {format_energy(result.energy_per_step_J)} a step"
    rows = [
        ("power", "", f"{step}; {format_power(power.it_W)} of it IT, {power.energy_per_token_J:.3g} J a token"),
        (
            "swing",
            "",
            f"{format_power(power.trough_W)} to {format_power(power.peak_W)}, {format_energy(power.battery_J)} to level; "
            f"{format_power(power.provisioned_W)} provisioned",
        ),
    ]
    if power.cap is not None:
        limits = ", ".join(f"{format_power(limit)} of each {name}" for name, limit in power.cap["gpu_limit_W"].items())
        costs = f"{format_share(power.cap['slower'])} fewer tokens/s for {format_power(power.cap['saved_W'])} less"
        rows.append(("power cap", "", f"{limits}: {costs}"))
    if cost["of"] != "hour" or "USD" in cost:
        what = {"tokens": "for all tokens", "campaign": "for the campaign", "hour": "an hour"}[cost["of"]]
        priced = (("energy_USD", "energy"), ("gpu_USD", "GPUs"))
        parts = [f"{format_money(cost[key])} of {name}" for key, name in priced if key in cost]
        hours = f"{format_energy(cost['energy_J'])} and {format_count(cost['gpu_hours'])} GPU hours {what}"
        rows.append(("cost", "", hours + (f": {' and '.join(parts)}" if parts else "")))
    return rows


def said_power(result: Result) -> str:
    """What the job draws beside what nodes like these drew in a measured training run, where there is one."""
    power = result.power
    assert power.measured_nodes_W is not None
    away = power.share["communicating"] + power.share["waiting"]
    busy = power.share["arithmetic"]
    return (
        f"of IT: {format_power(power.measured_nodes_W)} if all nodes drew what such nodes drew in a measured training run,"
        f" {format_power(power.it_W)} in this job, whose GPUs do arithmetic {format_share(busy)} of the time and communicate or"
        f" wait {format_share(away)}"
    )


def _stragglers(jitter: dict[str, Any]) -> tuple[str, str]:
    """What GPUs that differ cost a step, and the rest of the line."""
    cost, plain = jitter["cost_s"], jitter["undisturbed_s"]
    words = [f"{name} alone {format_time(each)}" for name, each in jitter["of_each_s"].items()]
    more = f"  ({format_share(cost / plain)}" + (f"; {', '.join(words)}" if len(words) > 1 else "") + ")"
    if jitter["percentile"] is not None:
        no_slower = f"{100 * jitter['percentile']:.2f} % of GPUs are no slower"
        more += f"; as if all kernels took {jitter['pace']:.3f} of their time: {no_slower}"
    return f"{format_time(cost)} a step", more


def _breakdown(result: Result, ascii_only: bool) -> Any:
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
            table.add_row(LABEL[name], format_time(seconds), format_share(share), bar(share, ascii_only=ascii_only))
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
    """Link classes of a kind and capacity as one row: the busiest one's figures, all their links.

    Links of a graph are a kind; its row has the name of the busiest one.
    """
    rows: dict[tuple[str, float], dict[str, float]] = {}
    busiest: dict[tuple[str, float], str] = {}
    for name, link in links.items():
        key = (ARROW if ARROW in name else kind_of(name), link["capacity_Bps"])
        known = rows.get(key)
        if known is None:
            rows[key] = dict(link)
            busiest[key] = name
            continue
        count = known["count"] + link["count"]
        if link["bytes_per_step"] > known["bytes_per_step"]:
            known.update(link)
            busiest[key] = name
        known["count"] = count
    names = [kind for kind, _ in rows]
    return {
        busiest[key]
        if key[0] == ARROW
        else key[0]
        if names.count(key[0]) == 1
        else f"{key[0]} ({format_rate(key[1])})": row
        for key, row in rows.items()
    }


def said_share(row: dict[str, Any], *, alone: bool = False) -> str:
    """What each replica of a kind plays. alone: there is no other kind."""
    if alone:
        return f"{row['micro_batches']} a replica, {row['micro_batch']} sequence(s) each"
    each = f"{row['micro_batches']} micro-batches of {row['micro_batch']}"
    return f"{row['replicas']:,} replicas on {' and '.join(row['nodes'])} play {each} (recompute {row['recompute']})"


def _mix(mix: dict[str, Any]) -> str:
    parts = [
        f"{kind} does a stage's kernels in {format_time(row['work_s'])} and waits {format_time(row['waits_s'])}"
        for kind, row in mix["types"].items()
    ]
    return f"job: {mix['pace']} sets the pace; " + "; ".join(parts) + "."


def collectives(kinds: Sequence[dict[str, Any]]) -> list[str]:
    """Kinds of collectives in words, such as "data reduce-scatter 355 MB to 757 MB: pat/simple"; those alike are one."""
    sizes: dict[tuple[str, str], list[float]] = {}
    for kind in kinds:
        what = f"{kind['channel']} {kind['operation']}".replace("_", "-")
        sizes.setdefault((what, f"{kind['algorithm']}/{kind['protocol']}"), []).append(kind["bytes"])
    found = []
    for (what, how), of in sizes.items():
        low, high = format_size(min(of)), format_size(max(of))
        found.append(f"{what} {low if low == high else f'{low} to {high}'}: {how}")
    return found


def routing(told: dict[str, Any]) -> str:
    """One sentence: how fast pinned flows move together, and where they meet."""
    words, hottest = str(told["policy"]), told["hottest"]
    if told.get("rate_share"):
        share = told["rate_share"]
        many = f" ({told['flows_per_nic']:.3g} a NIC)" if told["flows_per_nic"] > 1 else ""
        pairs = many + f" of {told['queue_pairs']} queue pairs" if told["queue_pairs"] > 1 else many
        words += (
            f": {told['channel'].replace('_', ' ')} flows{pairs} move at {share['mean']:.2f} of line rate in the mean, "
            f"{share['min']:.2f} at worst"
        )
    elif "flows" in told:
        words += ": no flow leaves its leaf"
    if hottest and "flows" in hottest[0]:
        if hottest[0]["flows"] == 1:
            return f"{words}; none meets another"
        words += f"; hottest: {hottest[0]['link']}, with {hottest[0]['flows']} flows"
    elif hottest:
        words += (
            f"; busiest above the NICs: {hottest[0]['link']}, {format_share(hottest[0]['busy_fraction'])} of the time"
        )
    return words


def show_measured(row: Row, console: Console) -> None:
    """Prints the summary of a variant, and how far it is from what was measured."""
    assert row.result is not None
    show(row.result, console)
    if row.error is not None and row.measured is not None:
        words = f" {format_time(row.measured)}: predicted {100 * row.error:+.1f} %."
        _say(console, ("Measured", "bold"), words)


def show_rows(rows: Sequence[Row], console: Console) -> None:
    """One row a variant, those of the fabric alone first; below, why some could not be played."""
    from rich.table import Table
    from rich.text import Text

    fabrics = [(row.label, row.fabric) for row in rows if row.fabric is not None]
    if fabrics:
        show_fabric(fabrics, console)
    rows = [row for row in rows if row.fabric is None]
    if not rows:
        return
    if fabrics:
        console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("case", overflow="fold")
    measured = any(row.measured is not None for row in rows)
    for title in ("GPUs", "step", "tokens/s", "a GPU", "MFU", "bubble", *(("measured", "error") if measured else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        result = row.result
        cells = ["-"] * 6
        if result is not None:
            cells = [
                f"{result.gpus_in_job:,}",
                format_time(result.step_time_s),
                format_count(result.tokens_per_s),
                f"{result.tokens_per_s_per_gpu:,.0f}",
                format_share(result.mfu),
                format_share(result.breakdown_s["pipeline_bubble"] / result.step_time_s),
            ]
        if row.measured is not None:
            cells += [format_time(row.measured), "-" if row.error is None else f"{100 * row.error:+.1f} %"]
        table.add_row(Text(row.label), *cells)
    console.print(table)
    campaigns = [
        (row.label, row.result.campaign) for row in rows if row.result is not None and row.result.campaign is not None
    ]
    if campaigns:
        console.print()
        console.print(table_of(campaigns))
    growths = [(label, campaign.growth) for label, campaign in campaigns if campaign.growth is not None]
    if growths:
        console.print()
        console.print(table_of_growths(growths))
    for row in rows:
        if row.result is None:
            console.print()
            _say(console, (row.label, "bold"), f" {row.why_not}")
