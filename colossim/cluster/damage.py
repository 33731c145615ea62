"""What degraded and dead parts leave of a cluster: rates of GPUs' links, and the health of every single link above them.

    spine (B, I)     V links up, to its cores: `core_uplink`
    leaf (P, R)      U links up, link I to spine I of its block: `uplink`
    NICs of the GPUs

A switch takes its links with it: a leaf its uplinks and the NICs below it, a spine one link of each leaf of its block and its
own to the cores. What several faults leave of a link multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from colossim.cluster.topology import Cluster, Floats, Ints
from colossim.errors import Problem
from colossim.scenario.degraded import Degraded


@dataclass
class _Left:
    """Shares that are left, all links whole at first; as `Cluster` keeps them."""

    cluster: Cluster
    nvlink: Floats
    nic: Floats
    health: tuple[Floats, ...] = ()

    def above(self, level: int) -> Floats:
        """(groups, paths) of the links above leaves (1) or spines (2)."""
        if not self.health:
            groups, (up, middle, _) = self.cluster.groups, self.cluster.ways
            self.health = np.ones((groups[0], up)), np.ones((groups[1], up * middle))
        return self.health[level - 1]


def damaged(cluster: Cluster, parts: tuple[Degraded, ...]) -> tuple[Cluster, list[Problem]]:
    """The cluster with these parts degraded or dead, and what is wrong with them (such parts change nothing)."""
    left = _Left(cluster, cluster.nvlink.copy(), cluster.nic.copy())
    problems: list[Problem] = []
    named: dict[tuple[str, int], int] = {}
    for i, part in enumerate(parts):
        here = f"cluster.degraded.{i}"
        wrong = [Problem(f"{here}.{key}", message) for key, message in _wrong(cluster, part)]
        if not wrong:
            what = _units(cluster, part)
            twice = sorted({named[unit] for unit in what if unit in named})
            wrong = [Problem(here, f"names a part that cluster.degraded.{twice[0]} names, too")] if twice else []
            named.update(dict.fromkeys(what, i))
        if not wrong:
            _apply(left, part)
        problems += wrong
    return replace(cluster, nvlink=left.nvlink, nic=left.nic, health=left.health), problems


def _wrong(cluster: Cluster, part: Degraded) -> Iterator[tuple[str, str]]:
    """(key, message) of indices that are out of range, and of parts that this fabric doesn't have."""
    fabric, (up, middle, _) = cluster.fabric, cluster.ways
    kind, tiers = part.part, cluster.tiers
    if kind == "gpu":
        if part.node is not None and part.node >= cluster.nodes:
            yield "node", f"{part.node} is no node: they are numbered 0 to {cluster.nodes - 1}"
        elif part.node is not None and part.gpu is not None:
            gpus = cluster.node_types[int(cluster.node_type[part.node])].gpus
            if part.gpu >= gpus:
                yield "gpu", f"{part.gpu} is no GPU of the node: 0 to {gpus - 1}"
        return
    key = "switch" if part.switch else kind
    needed = {"uplink": 2, "spine": 2, "core_uplink": 3}.get(kind, 1)
    if fabric.type == "single-switch":
        yield key, "a single-switch fabric has one switch, and no other parts: fat-tree and rail-optimized ones do"
        return
    if tiers < needed:
        what = {"uplink": "uplinks", "spine": "spines", "core_uplink": "links to a core"}[kind]
        yield key, f"a fabric of {tiers} tier{'s' * (tiers > 1)} has no {what}: it takes {needed} tiers or more"
        return
    optimized = fabric.type == "rail-optimized"
    if kind in ("uplink", "leaf") and optimized and part.rail is None:
        yield key, f"`rail` is missing: which of the {cluster.rails} leaves of the pod, 0 to {cluster.rails - 1}"
    if part.rail is not None and not optimized:
        yield "rail", "a fat-tree has no rails: a pod has one leaf, which `pod` names"
    pods, blocks = cluster.groups[0] // cluster.rails, cluster.groups[1]
    limits = (
        ("rail", cluster.rails, "rail"),
        ("pod", pods, "pod"),
        ("block", blocks, "block"),
        ("spine", up, "spine of the block"),
        ("uplink", up, "uplink of the leaf"),
        ("core_uplink", middle, "uplink of the spine"),
    )
    for name, count, word in limits:
        value = getattr(part, name)
        if value is not None and value >= count and not (name == "rail" and not optimized):
            yield (
                name,
                f"{value} is no {word}: " + (f"they are numbered 0 to {count - 1}" if count > 1 else "it has one, 0"),
            )


def _leaves(cluster: Cluster, part: Degraded) -> Ints:
    """Leaves that a part names: one, or those of its rail in all pods."""
    pods = np.arange(cluster.groups[0] // cluster.rails) if part.pod is None else np.array([part.pod])
    return pods * cluster.rails + (part.rail or 0)


def _units(cluster: Cluster, part: Degraded) -> list[tuple[str, int]]:
    """The parts that an entry names, one by one."""
    up, middle, _ = cluster.ways
    if part.part == "gpu":
        return [(part.link, int(cluster.first_gpu[part.node or 0]) + (part.gpu or 0))]
    spine = (part.block or 0) * up + (part.spine or 0)
    if part.part == "spine":
        return [("spine", spine)]
    if part.part == "core_uplink":
        return [("core_uplink", spine * middle + (part.core_uplink or 0))]
    leaves = _leaves(cluster, part)
    if part.part == "uplink":
        return [("uplink", int(leaf) * up + (part.uplink or 0)) for leaf in leaves]
    return [("leaf", int(leaf)) for leaf in leaves]


def _apply(left: _Left, part: Degraded) -> None:
    cluster, rate = left.cluster, part.left
    _, middle, _ = cluster.ways
    gpus = np.arange(cluster.gpus)
    ((_, number), *_) = _units(cluster, part)
    if part.part == "gpu":
        (left.nic if part.link == "nic" else left.nvlink)[number] *= rate
    elif part.part == "uplink":
        left.above(1).reshape(-1)[number] *= rate
    elif part.part == "core_uplink":
        left.above(2).reshape(-1)[number] *= rate
    elif part.part == "spine":
        block, spine = part.block or 0, part.spine or 0
        rails = cluster.rails
        a_block = cluster.fabric.pods_per_block * rails if cluster.tiers > 2 else cluster.groups[0]
        left.above(1)[block * a_block : (block + 1) * a_block, spine] *= rate
        left.above(2)[block, spine * middle : (spine + 1) * middle] *= rate
    else:
        leaves = _leaves(cluster, part)
        left.nic[np.isin(cluster.leaf(gpus), leaves)] *= rate
        left.above(1)[leaves] *= rate
