"""What a benchmark of the fabric alone gives, and its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class FabricResult:
    """The numbers of a scenario's `traffic`. Keys are those of `--json`; bytes/s, s, shares of line rate.

    flows: in flight at once, of all NICs.  queue_pairs: of each flow.  line_rate_Bps: of a NIC, the mean over NICs.
    efficiency: share of it that the catalogue says congestion control sustains; it is in all shares below.
    nic_share: {min, p1, p5, median, mean} over NICs of what each sends.  split_share: the same if each NIC's flows carry
    equal parts of one message, which waits for the slowest.  hottest: single links with most flows, where routing pins them.
    """

    scenario: str
    description: str
    gpus: int
    nodes: int
    seed: int
    version: str
    pattern: str
    flows_per_nic: int
    routing: str
    queue_pairs: int
    flows: int
    line_rate_Bps: float
    efficiency: float
    nic_share: dict[str, float]
    split_share: dict[str, float]
    hottest: tuple[dict[str, Any], ...]
    wall_s: float
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON; `played` says that this is no step."""
        return {"played": "fabric", **{name: getattr(self, name) for name in self.__dataclass_fields__}}

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, default=list)


def show_fabric(rows: Sequence[tuple[str, FabricResult]], console: Console) -> None:
    """A line a benchmark, labels before them: shares of line rate."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("fabric alone", overflow="fold")
    for title in ("routing", "flows", "mean", "1 %", "worst", "split"):
        table.add_column(title, justify="right", no_wrap=True)
    for label, result in rows:
        nic = result.nic_share
        pairs = f" x {result.queue_pairs}" if result.queue_pairs > 1 else ""
        shares = (nic["mean"], nic["p1"], nic["min"], result.split_share["mean"])
        table.add_row(
            Text(label), result.routing, f"{result.flows_per_nic}{pairs}", *(f"{share:.3f}" for share in shares)
        )
    console.print(table)
    gpus = sorted({result.gpus for _, result in rows})
    console.print(
        Text(
            f"{' and '.join(f'{count:,}' for count in gpus)} NICs send at once, `flows` each (x queue pairs). Shares of line "
            "rate: mean, first percentile and worst of the NICs; split: mean if a NIC's flows carry equal parts of a message.",
            style="dim",
        )
    )
    if len(rows) == 1 and rows[0][1].hottest:
        hot = rows[0][1].hottest[0]
        console.print(Text(f"Hottest: {hot['link']}, with {hot['flows']} flow(s)."))
