"""Measured kernels that ship with the catalogue, as kernels of the model; needs no scipy."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from colossim import catalog
from colossim.catalog.gpu import Gpu
from colossim.workload.kernels import Flash, Gemm, Kernel, kernel_time

TABLES = Path(catalog.__file__).parent / "measured"


@dataclass(frozen=True)
class MeasuredKernel:
    """One row. power_limit: as the table has it, empty for the TDP.  tflops: TFLOP/s, masked FLOPs not counted."""

    gpu: str
    power_limit: str
    precision: str
    op: str
    kernel: Kernel
    tflops: float
    source: str

    @property
    def seconds(self) -> float:
        return self.kernel.flops / (self.tflops * 1e12)


def rows() -> Iterator[MeasuredKernel]:
    """All rows of gemms.csv and attention.csv."""
    for row in _read("gemms.csv"):
        m, n, k, batch, tokens = (float(row[name]) for name in ("m", "n", "k", "batch", "tokens"))
        kernel: Kernel = Gemm(m, n, k, batch, row["accumulate"] == "yes", tokens=tokens)
        yield MeasuredKernel(
            row["gpu"], row["power_limit"], row["precision"], row["kind"], kernel, float(row["tflops"]), row["source"]
        )
    for row in _read("attention.csv"):
        batch, length, heads, kv = (float(row[name]) for name in ("batch", "sequence", "heads", "kv_heads"))
        kernel = Flash(
            row["kind"],  # type: ignore[arg-type]
            batch * heads, batch * kv, length, length, int(row["head_size"]), row["causal"] == "yes",
            row["direction"] == "backward",
        )  # fmt: skip
        op = f"{row['kind']} {row['direction']}"
        yield MeasuredKernel(row["gpu"], row["power_limit"], "bf16", op, kernel, float(row["tflops"]), row["source"])


def _read(name: str) -> Iterator[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@cache
def gpu(name: str, power_limit: str) -> Gpu:
    """The catalogue's GPU under a limit, as a short benchmark finds it: what whole steps sustain doesn't bound it."""
    fields = catalog.based("gpus", {"base": name, **({"power_limit": power_limit} if power_limit else {})})
    return benchmarked(Gpu.model_validate(fields | {"name": f"{name} {power_limit}".strip()}))


def benchmarked(gpu: Gpu) -> Gpu:
    """The same GPU with the benchmark's ceilings."""
    curves = {
        precision: curve.model_copy(update={"sustained": curve.benchmark or curve.sustained})
        for precision, curve in gpu.gemm.items()
    }
    return gpu.model_copy(update={"gemm": curves})


def error(row: MeasuredKernel) -> float:
    """Predicted over measured seconds, minus 1."""
    return kernel_time(row.kernel, gpu(row.gpu, row.power_limit), row.precision) / row.seconds - 1
