"""Kernels and what they take: max(FLOPs over what products sustain, bytes over what memory sustains), plus a launch.

Each kernel says its FLOPs and bytes; `kernel_time` prices it on a GPU. The curves are in the catalogue, per GPU type
(models.md 2); nothing here knows a model or a stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from colossim.catalog.types import Gpu

#: A weight gradient that accumulates into fp32 is 3 to 5 % slower (models.md 2).
_ACCUMULATE = 1.04


@dataclass(frozen=True)
class Gemm:
    """`batch` products (m, k) x (k, n).

    accumulate: adds into an fp32 gradient.  half: computed in 16 bit whatever the job's precision.
    """

    m: float
    n: float
    k: float
    batch: float = 1.0
    accumulate: bool = False
    half: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k * self.batch


@dataclass(frozen=True)
class Stream:
    """A kernel bound by memory. bytes: read and written."""

    bytes: float

    @property
    def flops(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Scores:
    """One batched product of unfused attention: its arithmetic and its traffic do not overlap. bytes: of the scores."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Flash:
    """A flash-attention kernel. tiles: query tiles of 128 rows; backward: whether it is the backward one."""

    flops: float
    tiles: float
    backward: bool = False


Kernel = Gemm | Stream | Scores | Flash


@lru_cache(maxsize=65536)
def _time(kernel: Kernel, gpu: _Key, precision: str) -> float:
    facts = gpu.gpu
    memory = facts.memory_rate * facts.memory_efficiency
    sixteen = "bf16" if precision == "fp8" else precision
    if isinstance(kernel, Stream):
        return kernel.bytes / memory + facts.kernel_overhead
    if isinstance(kernel, Scores):
        arithmetic = kernel.flops / (facts.unfused_attention * facts.peak[sixteen])  # type: ignore[index]
        return arithmetic + kernel.bytes / memory + facts.kernel_overhead
    if isinstance(kernel, Flash):
        curve = facts.attention
        share = (
            curve.forward * kernel.tiles / (kernel.tiles + curve.tiles) * (curve.backward if kernel.backward else 1.0)
        )
        return kernel.flops / (share * facts.peak[sixteen]) + facts.kernel_overhead  # type: ignore[index]
    used = sixteen if kernel.half else precision
    gemm = facts.gemm[used]  # type: ignore[index]
    area = kernel.m * kernel.n * kernel.batch
    share = gemm.sustained * area / (area + gemm.area) * kernel.k / (kernel.k + gemm.depth)
    arithmetic = kernel.flops / (share * facts.peak[used])  # type: ignore[index]
    width = 1.0 if used == "fp8" else 2.0
    moved = kernel.batch * (
        width * (kernel.m * kernel.k + kernel.k * kernel.n) + (8.0 if kernel.accumulate else 2.0) * kernel.m * kernel.n
    )
    return max(arithmetic * (_ACCUMULATE if kernel.accumulate else 1.0), moved / memory) + facts.kernel_overhead


class _Key:
    """A GPU as a key of the cache: by identity of its facts, which are frozen."""

    __slots__ = ("gpu",)

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def __hash__(self) -> int:
        return hash(self.gpu.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.gpu is other.gpu or self.gpu == other.gpu)


def kernel_time(kernel: Kernel, gpu: Gpu, precision: str) -> float:
    """Seconds of a kernel alone on a GPU.

    Product: e = sustained x mn/(mn + area) x k/(k + depth), time max(FLOPs/(P e), bytes/memory) + overhead. Unfused
    attention adds arithmetic and traffic; flash attention has its own share, times n/(n + tiles).
    precision: of the matrix products (bf16, fp16, fp8); attention stays in 16 bit. Raises KeyError if the GPU has no
    curve for it.
    """
    return _time(kernel, _Key(gpu), precision)
