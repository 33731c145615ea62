"""What routing does to the flows of a job: how fast they move together, and which links they meet on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from colossim.cluster.hashed import Members
from colossim.flows import Pinned
from colossim.footprint import Floats, Ints
from colossim.traffic import BOUNDARY_CHANNELS

#: How many links are named.
HOTTEST = 10


def routing_of(
    policy: str, pinned: Pinned | None, used: frozenset[tuple[str, str]], links: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """{policy, hottest: [{link, busy_fraction}]} for adaptive routing; for pinned flows what `collisions` says.

    used: (channel, algorithm) of the collectives that a step runs.  links: those of the result, by name.
    """
    if pinned is not None:
        return {"policy": policy, **collisions(pinned, used)}
    fabric = {name: link for name, link in links.items() if name.split()[0] in ("leaf", "block", "zone")}
    order = sorted(fabric, key=lambda name: -fabric[name]["busy_fraction"])
    hottest = [{"link": name, "busy_fraction": fabric[name]["busy_fraction"]} for name in order[:HOTTEST]]
    return {"policy": policy, "hottest": hottest}


def collisions(pinned: Pinned, used: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """The flows of the busiest channel, the one with most edges above the leaves, when all of them are in flight.

    flows: how many are pinned, of all channels that a step uses.  queue_pairs: of a flow.  channel: the busiest, or None.
    flows_per_nic: of that channel, of the NICs that have any: the share of line rate that each could get is one over it.
    rate_share: rates of its flows over the line rate of their NIC, queue pairs summed.  hottest: links with most flows.
    """
    channels = pinned.traffic.channels
    edges = np.bincount(pinned.channel, weights=pinned.flows.weight, minlength=len(channels))
    count = np.bincount(pinned.channel, minlength=len(channels))
    runs = [c.name in BOUNDARY_CHANNELS or (c.name, c.algorithm) in used for c in channels]
    edges, count = np.where(runs, edges, 0.0), np.where(runs, count, 0)
    found: dict[str, Any] = {
        "flows": int(count.sum()),
        "queue_pairs": pinned.pairs or pinned.traffic.cluster.fabric.paths_per_flow,
    }
    if not edges.any():
        return {**found, "channel": None, "rate_share": None, "hottest": []}
    busiest = int(np.argmax(edges))
    active = pinned.channel == busiest
    flows, cluster = pinned.flows, pinned.traffic.cluster
    src, dst, weight = flows.src[active], flows.dst[active], flows.weight[active]
    rates = pinned.pair_rates(active).reshape(-1, pinned.pairs).mean(axis=1) * weight
    # What each flow would ask for if only the NICs at its ends were shared.
    out, into = (np.bincount(end, weights=weight, minlength=cluster.gpus)[end] / cluster.nic[end] for end in (src, dst))
    asked = weight / np.maximum(out, into)
    rows = np.repeat(active, pinned.pairs)[pinned.who]
    flow = (np.cumsum(active) - 1)[pinned.who[rows] // pinned.pairs]
    return {
        **found,
        "channel": channels[busiest].name,
        "flows_per_nic": src.size / np.unique(src).size,
        "rate_share": distribution(rates / cluster.line_rate[src]),
        "hottest": hottest(pinned.members, pinned.where[rows], flow, asked / pinned.pairs, pinned.capacity),
    }


def distribution(shares: Floats) -> dict[str, float]:
    """{min, p1, p5, median, mean} of shares."""
    low, p1, p5, median = (float(value) for value in np.percentile(shares, [0, 1, 5, 50]))
    return {"min": low, "p1": p1, "p5": p5, "median": median, "mean": float(shares.mean())}


def hottest(members: Members, where: Ints, flow: Ints, asked: Floats, capacity: Floats) -> list[dict[str, Any]]:
    """The single links with most flows on them: {link, flows, asked_share}, the share of its capacity asked for.

    where, flow: (rows,) link of the fabric and flow of each crossing; two queue pairs of a flow on a link are two.
    asked: (flows,) bytes/s of one queue pair.  capacity: (links or more,) bytes/s.
    """
    crossings = np.bincount(where, minlength=members.links)
    load = np.bincount(where, weights=asked[flow], minlength=members.links)
    # Dead links carry nothing.
    room = capacity[: members.links]
    share = np.divide(load, room, out=np.zeros_like(load), where=room > 0) if load.size else load
    # The links may be a million: only those that can be among the most are sorted.
    least = np.partition(crossings, -HOTTEST)[-HOTTEST] if crossings.size > HOTTEST else 1
    among = np.flatnonzero(crossings >= max(1, least))
    worst = among[np.lexsort((-share[among], -crossings[among]))[:HOTTEST]]
    return [
        {"link": members.name(int(link)), "flows": int(crossings[link]), "asked_share": float(share[link])}
        for link in worst
    ]
