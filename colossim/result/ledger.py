"""A campaign on the terminal: where its wall time went, and what it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from colossim.units import format_count, format_share, format_time

if TYPE_CHECKING:
    from colossim.result.campaign import Campaign

_BAR = 30
_ACCOUNTS = {
    "productive": "training that counts",
    "lost_work": "lost work",
    "checkpoint": "checkpoints",
    "detection": "detection",
    "restart": "restarts",
    "waiting": "waiting for repair",
    "degraded": "slower running",
    "growth": "changes of the cluster",
}


def bar(share: float, width: int = _BAR, *, ascii_only: bool = False) -> str:
    """A bar of block characters (`#` for a terminal that has none); whole when share is 1."""
    whole = max(0.0, min(1.0, share)) * width
    if ascii_only:
        return "#" * round(whole)
    eighths = round(whole * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def ledger(campaign: Campaign, ascii_only: bool) -> Any:
    """Where the wall time goes, an account a row."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("where the wall time goes", no_wrap=True)
    for name in ("time", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column()
    for name, seconds in campaign.spent_s.items():
        if name == "growth" and not seconds:
            continue
        share = seconds / campaign.wall_s if campaign.wall_s else 0.0
        table.add_row(_ACCOUNTS[name], format_time(seconds), format_share(share), bar(share, ascii_only=ascii_only))
    return table


def said_campaign(campaign: Campaign) -> str:
    """What a campaign came to, in some sentences."""
    causes = Counter(item["cause"] for item in campaign.interruptions)
    most = ", ".join(f"{name} {count:,}" for name, count in causes.most_common(4))
    words = (
        f"{format_time(campaign.wall_s)}: goodput {format_share(campaign.goodput)} (ETTR {format_share(campaign.ettr)}), "
        f"{campaign.steps:,} steps, {format_count(campaign.tokens)} tokens; {len(campaign.interruptions):,} interruptions"
        + (f" ({most})" if most else "")
        + "."
    )
    first = " Something" if campaign.growth is None else " At first something"
    if campaign.fewer_replicas_s:
        words += f" {format_time(campaign.fewer_replicas_s)} of training were with fewer replicas."
    if campaign.mtbf_s is not None:
        words += f"{first} stops the job every {format_time(campaign.mtbf_s)}."
    if campaign.best_s is not None and campaign.interval_s is not None:
        assert campaign.young_s is not None
        assert campaign.daly_s is not None
        words += (
            f" A checkpoint every {format_time(campaign.interval_s)}; best would be {format_time(campaign.best_s)}"
            f" (Young {format_time(campaign.young_s)}, Daly {format_time(campaign.daly_s)})."
        )
    if campaign.replicas is not None:
        seeds = campaign.replicas
        goodput, stops = seeds["goodput"], seeds["interruptions"]
        words += (
            f" Over {seeds['n']:,} seeds goodput {format_share(goodput['mean'])} (90 % within {format_share(goodput['low'])}"
            f" to {format_share(goodput['high'])}), {stops['mean']:,.0f} interruptions"
            f" ({stops['low']:,.0f} to {stops['high']:,.0f})."
        )
    return words


def table_of(campaigns: Sequence[tuple[str, Campaign]]) -> Any:
    """Campaigns side by side, a row each, means over seeds: goodput, how often they were stopped, shares of their wall time."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("case", overflow="fold")
    for title in ("goodput", "stops", "lost", "written", "down", "slower", "interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for label, campaign in campaigns:
        seeds = campaign.replicas
        spent, wall = (seeds["spent_s"], seeds["wall_s"]) if seeds else (campaign.spent_s, campaign.wall_s)
        down = spent["detection"] + spent["restart"] + spent["waiting"]
        parts = (spent["lost_work"], spent["checkpoint"], down, spent["degraded"])
        table.add_row(
            Text(label),
            format_share(seeds["goodput"]["mean"] if seeds else campaign.goodput),
            f"{seeds['interruptions']['mean'] if seeds else len(campaign.interruptions):,.0f}",
            *(format_share(part / (wall or 1.0)) for part in parts),
            "-" if campaign.interval_s is None else format_time(campaign.interval_s),
        )
    return table
