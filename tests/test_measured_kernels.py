"""Measured products and attention kernels against what the catalogue's curves predict."""

from __future__ import annotations

from statistics import median

import pytest

from calibration.measured_kernels import error, gpu, rows
from colossim.workload.kernels import Flash, Gemm

#: Rows, and the median absolute error that the curves may have, %, of each kind of product.
PRODUCTS = {
    ("A100-80GB", "matmul", "bf16"): (183, 2.0),
    ("A100-80GB", "matmul", "fp16"): (8, 15.0),  # a 400 W part's products, on which no constant was fitted
    ("B200", "matmul", "bf16"): (514, 7.0),
    ("H100", "matmul", "fp8"): (9, 5.0),
    ("H200", "matmul", "fp8"): (9, 5.0),
    ("A100-80GB", "grouped", "bf16"): (12, 6.0),
    ("B200", "grouped", "bf16"): (108, 16.0),
}
ATTENTION = 8.0


def by_kind():
    found = {}
    for row in rows():
        found.setdefault((row.gpu, row.op, row.precision), []).append(row)
    return found


@pytest.mark.parametrize("key", by_kind(), ids=" ".join)
def test_the_median_error_of_each_kind(key):
    found = by_kind()[key]
    count, bound = PRODUCTS.get(key, (len(found), ATTENTION))
    assert len(found) == count
    assert all(row.tflops > 0 and len(row.source) > 10 for row in found)
    assert 100 * median(abs(error(row)) for row in found) < bound


def test_every_kind_of_product_is_there():
    assert set(PRODUCTS) <= set(by_kind())


def test_rows_are_read_as_kernels():
    """FlashAttention-3, head size 128, causal, 512 of 16k tokens: 32 sequences x 16 heads; 292 TFLOP/s of half the FLOPs.

    4 x 512 x 512^2 x 128 / 2 = 34.4 GFLOP take 118 us. A weight gradient of a grouped product has its tokens along k.
    """
    (paper,) = [row for row in rows() if row.op == "flash-3 forward" and row.tflops == 292]
    assert paper.kernel == Flash("flash-3", 512, 512, 512, 512, 128, True)
    assert paper.seconds == pytest.approx(4 * 512 * 512**2 * 128 / 2 / 292e12)
    gradients = [k for row in rows() if isinstance(k := row.kernel, Gemm) and k.tokens and k.tokens == k.k]
    assert len(gradients) == (12 + 108) / 3
    assert any(k.accumulate for k in gradients)


@pytest.mark.slow
def test_the_calibration_finds_the_constants_that_ship():
    """`python -m calibration.kernels` finds every constant again, to 2 %."""
    pytest.importorskip("scipy")
    from calibration.kernels import FITS, constants, value

    for fit in FITS:
        curve = getattr(gpu(fit.gpu, ""), fit.section)[fit.curve]
        for name, number in constants(fit).items():
            assert number == pytest.approx(value(curve, name), rel=0.02, abs=1e-3), (fit.gpu, fit.curve, name)
