"""Fits what kernels reach, a GPU at a time, on the measured tables that ship; prints or writes the constants.

    python -m calibration.kernels           # what would change, and the errors
    python -m calibration.kernels --write   # into colossim/catalog/gpus/*.yaml

Needs scipy (`pip install -e '.[calibration]'`). A robust least-squares fit of the log of predicted over measured seconds of
short benchmarks. What whole steps *sustain* isn't touched: it comes from whole runs.

Waves of tiles are counted where that predicts products better that the fit hasn't seen (five folds, shapes whole): on the A100
the mean error falls from 4.0 to 3.3 % and the median from 1.9 to 1.2 %, on the B200 neither moves (10.8 and 5.0 %), whatever
the tile: its products of one shape differ by 40 % with no pattern in shape or layout, so it keeps the simple form.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from scipy.optimize import least_squares

from calibration.measured_kernels import MeasuredKernel, error, gpu, rows
from colossim import catalog
from colossim.catalog.gpu import AttentionCurve, GemmCurve, Gpu
from colossim.workload.kernels import kernel_time

GPUS = Path(catalog.__file__).parent / "gpus"
#: Relative error beyond which a row counts less than in proportion to its square.
ROBUST = 0.05
#: Bounds of each kind of constant, in SI.
BOUNDS = {
    "benchmark": (0.2, 1.0), "area": (0.0, 1e7), "depth": (1.0, 3000.0), "waves": (0.0, 1.0), "accumulate": (1.0, 1.3),
    "group_rows": (0.0, 2000.0), "forward": (0.05, 1.0), "backward": (0.05, 1.0), "keys": (0.0, 1000.0),
    "keys_backward": (0.0, 1000.0), "tiles": (0.0, 2000.0), "tiles_backward": (0.0, 2000.0),
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """One curve of one GPU. free: constants to fit, `forward.64` the share at that head size.

    gpus: whose rows count.  ops: which.  written: the other curves of the GPU that take the constants over.
    """

    gpu: str
    section: str
    curve: str
    free: tuple[str, ...]
    ops: tuple[str, ...]
    gpus: tuple[str, ...]
    precision: str = "bf16"
    written: tuple[str, ...] = ()


_SHAPE = ("accumulate", "group_rows")
_SIZES = ("forward.64", "forward.128", "forward.256", "backward.64", "backward.128", "keys", "keys_backward")
_ROWS = ("keys", "keys_backward", "tiles", "tiles_backward")
_PRODUCTS = ("matmul", "grouped")
FITS = (
    Fit("A100-80GB", "gemm", "bf16", ("benchmark", "depth", "waves", *_SHAPE), _PRODUCTS, ("A100-80GB",), "bf16", ("fp16",)),
    Fit("B200", "gemm", "bf16", ("benchmark", "area", "depth", *_SHAPE), _PRODUCTS, ("B200",), "bf16", ("fp16", "fp8")),
    Fit("H100", "gemm", "fp8", ("benchmark", "area", "depth"), _PRODUCTS, ("H100", "H200"), "fp8"),
    *(
        Fit("H100", "attention", kind, _SIZES, (f"{kind} forward", f"{kind} backward"), ("H100",))
        for kind in ("flash-2", "flash-3", "cudnn")
    ),
    Fit("A100-80GB", "attention", "flash-2", ("forward.128", "backward.128", "tiles", "tiles_backward"),
        ("flash-2 forward", "flash-2 backward"), ("A100-80GB",)),
    Fit("B200", "attention", "flash-2", ("forward.64", "backward.64", "keys", "keys_backward"),
        ("flash-2 forward", "flash-2 backward"), ("B200",)),
    Fit("B200", "attention", "cudnn", ("forward.128", "backward.128", *_ROWS),
        ("cudnn forward", "cudnn backward"), ("B200",)),
)  # fmt: skip


def chosen(fit: Fit) -> list[MeasuredKernel]:
    """The rows that a fit is made on."""
    return [r for r in rows() if r.gpu in fit.gpus and r.op in fit.ops and r.precision == fit.precision]


def changed(curve: GemmCurve | AttentionCurve, constants: dict[str, float]) -> GemmCurve | AttentionCurve:
    """The curve with other constants; a benchmark's ceiling is what it sustains."""
    update: dict[str, object] = {}
    for name, number in constants.items():
        field, _, size = name.partition(".")
        if size:
            assert isinstance(curve, AttentionCurve)
            shares = list(update.get(field, getattr(curve, field)))  # type: ignore[call-overload]
            shares[curve.head_sizes.index(int(size))] = number
            update[field] = tuple(shares)
        else:
            update[field] = number
    if "benchmark" in update:
        update["sustained"] = update["benchmark"]
    return curve.model_copy(update=update)


def value(curve: GemmCurve | AttentionCurve, name: str) -> float:
    """A constant of a curve."""
    field, _, size = name.partition(".")
    found = getattr(curve, field)
    return float(found[curve.head_sizes.index(int(size))] if size and isinstance(curve, AttentionCurve) else found)


def constants(fit: Fit) -> dict[str, float]:
    """The fitted constants."""
    kernels = chosen(fit)
    curve = getattr(gpu(fit.gpu, ""), fit.section)[fit.curve]
    low, high = (np.array([BOUNDS[name.partition(".")[0]][i] for name in fit.free]) for i in (0, 1))
    start = np.array([value(curve, name) for name in fit.free])

    def named(point: np.ndarray) -> dict[str, float]:
        return dict(zip(fit.free, (low + (high - low) * point).tolist(), strict=True))

    def residuals(point: np.ndarray) -> np.ndarray:
        curves = {fit.curve: changed(curve, named(point))}
        parts: dict[tuple[str, str], Gpu] = {}
        for name, limit in {(row.gpu, row.power_limit) for row in kernels}:
            part = gpu(name, limit)
            parts[name, limit] = part.model_copy(update={fit.section: {**getattr(part, fit.section), **curves}})
        seconds = [kernel_time(row.kernel, parts[row.gpu, row.power_limit], row.precision) for row in kernels]
        return np.log(seconds) - np.log([row.seconds for row in kernels])

    point = np.clip((start - low) / (high - low), 1e-4, 1 - 1e-4)
    found = least_squares(residuals, point, bounds=(0, 1), loss="soft_l1", f_scale=ROBUST, diff_step=1e-6, xtol=1e-12)
    return named(found.x)


def fields(fit: Fit, found: dict[str, float]) -> dict[str, str]:
    """{field: text} as it stands in YAML, to three digits."""
    curve = changed(getattr(gpu(fit.gpu, ""), fit.section)[fit.curve], found)
    texts: dict[str, str] = {}
    for name in found:
        field = name.partition(".")[0]
        item = getattr(curve, field)
        texts[field] = f"[{', '.join(map(_share, item))}]" if isinstance(item, tuple) else _text(field, item)
    return texts


def _share(number: float) -> str:
    return f"{float(f'{100 * number:.3g}'):g} %"


def _text(field: str, number: float) -> str:
    if field == "benchmark":
        return _share(number)
    return f"{float(f'{number:.3g}'):g}".replace("e+0", "e") if number > 1e-3 else "0"


def write(fit: Fit, texts: dict[str, str]) -> None:
    """Changes these fields in the GPU's file, and leaves the rest of it."""
    path = GPUS / f"{fit.gpu}.yaml"
    text = path.read_text(encoding="utf-8")
    head, mark, section = text.partition(f"\n{fit.section}:\n")
    for curve in (fit.curve, *fit.written):
        block = re.search(rf"^  {curve}:\n((?:    .*\n)+)", section, re.M)
        assert block, f"{path.name} has no {fit.section} {curve}"
        lines = block[1]
        for field, item in texts.items():
            lines, count = re.subn(rf"^    {field}: .*$", f"    {field}: {item}", lines, flags=re.M)
            assert count == 1, f"{path.name}: {curve} has no {field}"
        section = section.replace(block[0], f"  {curve}:\n{lines}", 1)
    path.write_text(head + mark + section, encoding="utf-8")


def report() -> str:
    """Mean and median absolute error of what the catalogue predicts, by GPU and operation."""
    errors: dict[tuple[str, str, str], list[float]] = {}
    for row in rows():
        errors.setdefault((row.gpu, row.precision, row.op), []).append(100 * error(row))
    return "\n".join(
        f"{' '.join(key):34} n {len(found):3}  mean {np.mean(np.abs(found)):5.1f} %  median {median(map(abs, found)):5.1f} %"
        f"  bias {np.mean(found):+5.1f} %"
        for key, found in sorted(errors.items())
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the constants into the catalogue")
    args = parser.parse_args()
    print(report())
    for fit in FITS:
        texts = fields(fit, constants(fit))
        print(fit.gpu, fit.section, fit.curve, texts)
        if args.write:
            write(fit, texts)


if __name__ == "__main__":
    main()
