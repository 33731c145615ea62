"""Fits what collectives sustain, a node type at a time, on the measured tables that ship; prints or writes the constants.

    python -m calibration.collectives           # what would change
    python -m calibration.collectives --write   # into colossim/catalog/nodes/*.yaml

Needs scipy (`pip install -e '.[calibration]'`). A robust least-squares fit of the log of predicted over measured; which
algorithm and protocol NCCL takes isn't fitted, but follows the constants, so that choosing and fitting alternate. Curves
are shared by the node types of one GPU generation, latencies and the network's efficiency belong to each. No constant
knows a run: those of a type hold for every size, number of nodes and operation.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from colossim import nccl
from colossim.catalog.types import NodeType
from colossim.collective import Library
from colossim.measured import Bench, Measured, counted, error, node_type

NODES = Path(__file__).parents[1] / "colossim" / "catalog" / "nodes"
ROUNDS = 6
#: Relative error beyond which a row counts less than in proportion to its square.
ROBUST = 0.08
#: Bounds of each kind of constant, in SI. A ramp of exponent above 1 would make more bytes take less time.
BOUNDS = {
    "launch": (-3e-6, 400e-6),
    "nvlink_ring.bandwidth": (10e9, 1000e9),
    "nvlink_ring.half_size": (0.1e6, 100e6),
    "nvlink_ring.exponent": (0.2, 1.0),
    "nvlink_ring.hop": (0.3e-6, 10e-6),
    "nvls.bandwidth": (50e9, 1000e9),
    "nvls.half_size": (0.1e6, 100e6),
    "nvls.exponent": (0.2, 1.0),
    "nvls.base": (5e-6, 100e-6),
    "network.efficiency": (0.8, 0.99),
    "network.hop": (14e-6, 200e-6),
    "network.half_size": (0.1e6, 100e6),
    "network.exponent": (0.2, 1.0),
}


@dataclass(frozen=True)
class Generation:
    """Node types fitted together. root: the type that holds the shared constants, and from which the others derive.

    shared: constants that all of them have in common; own: those of one type.
    """

    root: str
    shared: tuple[str, ...]
    own: dict[str, tuple[str, ...]]


RING = ("nvlink_ring.bandwidth", "nvlink_ring.half_size", "nvlink_ring.exponent")
NVLS = ("nvls.bandwidth", "nvls.half_size", "nvls.exponent", "nvls.base")
NETWORK = ("network.half_size", "network.exponent")
REACH = ("network.hop", "network.efficiency")
GENERATIONS = {
    "Ampere": Generation("hgx-a100", RING, {"hgx-a100": ("launch",), "aws-p4de": ("launch", *REACH, *NETWORK)}),
    "Hopper": Generation(
        "hgx-h100",
        (*NVLS, *NETWORK),
        {
            "hgx-h100": ("launch", "network.efficiency"),
            "hgx-h200": (),
            "aws-p5": ("launch", "network.hop"),
            "azure-nd-h100-v5": ("launch",),
            "azure-nd-h200-v5": ("launch",),
        },
    ),
    "Grace Hopper": Generation("alps-gh200", (), {"alps-gh200": ("launch", *REACH, *NETWORK)}),
    "Blackwell": Generation(
        "hgx-b200", NVLS, {"aws-p6-b200": ("launch", *REACH, *NETWORK), "hgx-b300": ("network.efficiency",)}
    ),
    "Blackwell, 72 GPUs": Generation(
        "gb200-nvl72",
        ("nvls.bandwidth", "network.efficiency", *NETWORK),
        {"gb200-nvl72": (), "oci-gb200-nvl72": ("launch",), "gb300-nvl72": ("launch",)},
    ),
}


def value(node: NodeType, name: str) -> float:
    """A constant of a node type. launch: s that a call costs beyond NCCL's own base."""
    if name == "launch":
        return node.nvlink_ring.base - nccl.BASE["ring"][2]
    curve, _, field = name.partition(".")
    return float(getattr(getattr(node, curve), field))


def changed(node: NodeType, constants: dict[str, float]) -> NodeType:
    """The node type with other constants."""
    for name, number in constants.items():
        if name == "launch":
            base = {"base": number + nccl.BASE["ring"][2]}
            curves = {
                "nvlink_ring": node.nvlink_ring.model_copy(update=base),
                "network": node.network.model_copy(update=base),
            }
        else:
            curve, _, field = name.partition(".")
            curves = {curve: getattr(node, curve).model_copy(update={field: number})}
        node = node.model_copy(update=curves)
    return node


def fit(generation: Generation) -> dict[str, dict[str, float]]:
    """The fitted constants: {node type: {constant: SI value}}, the shared ones under the root."""
    rows = [row for row in counted() if row.node in generation.own and row.quantity in ("time", "bus_bandwidth")]
    types = {name: node_type(name) for name in {*generation.own, generation.root}}
    names = [(generation.root, name) for name in generation.shared]
    names += [(node, name) for node, own in generation.own.items() for name in own]
    low, high = (np.array([BOUNDS[name][i] for _, name in names]) for i in (0, 1))
    start = np.array([value(types[node], name) for node, name in names])

    def constants(point: np.ndarray) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for (node, name), number in zip(names, low + (high - low) * point, strict=True):
            found.setdefault(node, {})[name] = float(number)
        return found

    def at(point: np.ndarray) -> dict[str, NodeType]:
        found = constants(point)
        inherited = {name: found.get(generation.root, {})[name] for name in generation.shared}
        return {node: changed(types[node], {**inherited, **found.get(node, {})}) for node in types}

    point = np.clip((start - low) / (high - low), 1e-3, 1 - 1e-3)
    for _ in range(ROUNDS):
        chosen = _choices(rows, at(point))

        def residuals(u: np.ndarray, chosen: list[_Choice] = chosen) -> np.ndarray:
            now = at(u)
            return np.array(
                [
                    math.log1p(error(row, _predict(row, how, now[row.node])))
                    for row, how in zip(rows, chosen, strict=True)
                ]
            )

        point = least_squares(residuals, point, bounds=(0, 1), loss="soft_l1", f_scale=ROBUST, diff_step=1e-6).x
    return constants(point)


@dataclass(frozen=True)
class _Choice:
    library: Library
    operation: str
    size: float
    shape: object
    protocol: str
    most: float
    factor: float


def _choices(rows: list[Measured], types: dict[str, NodeType]) -> list[_Choice]:
    bench = Bench(types)
    found = []
    for row in rows:
        alone, size = bench.alone(row), float(row.bytes or 16 * 2**30)
        shapes, most = alone.offered(row.operation)
        which, protocol = alone.library.choose(row.operation, size, shapes)
        found.append(_Choice(alone.library, row.operation, size, shapes[which], protocol, most[which], row.gpus))
    return found


def _predict(row: Measured, how: _Choice, node: NodeType) -> float:
    from colossim.alone import BUS_FACTOR

    library = Library((node,), node.nic, how.library.able, how.library.algorithm)
    t = library.price(how.operation, how.size, how.shape, how.protocol)  # type: ignore[arg-type]
    seconds = t.latency + t.bytes / min(t.cap, how.most)
    return seconds if row.quantity == "time" else how.size / seconds * BUS_FACTOR[row.operation](row.gpus)


def fitted() -> dict[str, dict[str, float]]:
    """{node type: {constant: SI value}} of all generations."""
    return {node: constants for generation in GENERATIONS.values() for node, constants in fit(generation).items()}


_TEXT = {
    "bandwidth": (1e9, "GB/s"), "half_size": (1e6, "MB"), "base": (1e-6, "us"), "hop": (1e-6, "us"),
    "efficiency": (0.01, "%"), "exponent": (1.0, ""),
}  # fmt: skip


def as_text(name: str, number: float) -> str:
    """A constant as it stands in YAML, to three digits."""
    unit, text = _TEXT[name.rpartition(".")[2]]
    return f"{float(f'{number / unit:.3g}'):g} {text}".rstrip()


def lines(constants: dict[str, float]) -> dict[str, dict[str, str]]:
    """{curve: {field: text}} of a node type's constants."""
    found: dict[str, dict[str, str]] = {}
    for name, number in constants.items():
        if name == "launch":
            for curve in ("nvlink_ring", "network"):
                found.setdefault(curve, {})["base"] = as_text("base", number + nccl.BASE["ring"][2])
        else:
            curve, _, key = name.partition(".")
            found.setdefault(curve, {})[key] = as_text(name, number)
    return found


def write(name: str, constants: dict[str, float]) -> None:
    """Changes these constants in a node type's file, and leaves the rest of it."""
    path = NODES / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    for curve, fields in lines(constants).items():
        old = re.search(rf"^{curve}: {{(.*)}}$", text, re.M)
        now = dict(part.split(": ", 1) for part in old[1].split(", ")) if old else {}
        line = f"{curve}: {{" + ", ".join(f"{key}: {item}" for key, item in {**now, **fields}.items()) + "}"
        text = text.replace(old[0], line) if old else f"{text}{line}\n"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the constants into the catalogue")
    args = parser.parse_args()
    for name, constants in fitted().items():
        print(name, lines(constants))
        if args.write:
            write(name, constants)


if __name__ == "__main__":
    main()
