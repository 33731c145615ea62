"""Kernels and what they take: max(FLOPs over what products sustain, bytes over what memory sustains), plus a launch.

Each kernel says its FLOPs and bytes; `kernel_time` prices it on a GPU. The curves are in the catalogue, per GPU type
(`python -m calibration.kernels` fits them); nothing here knows a model or a stack.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

from colossim.catalog.gpu import AttentionKind, GemmCurve, Gpu

#: Rows and columns of the tile that a thread block of a matrix product computes (cuBLAS on A100 and later).
_TILE = (128, 256)
#: Queries of a tile of fused attention.
QUERIES = 128
#: Bytes of an element in 16 bit.
_HALF = 2.0
#: Bytes that a thread loads at once in cuBLAS's fastest kernels ("align8": eight numbers of 16 bit).
_ALIGNMENT = 16


@dataclass(frozen=True)
class Gemm:
    """`batch` products (m, k) x (k, n).

    accumulate: a weight's gradient, which adds into what is accumulated: in the product itself or, with `added`, in a kernel
    behind it that moves so many bytes an element.  half: computed in 16 bit whatever the job's precision.  tokens: of each
    product in one grouped kernel of experts; 0 if it isn't one.  spared: SMs that a transfer's kernel beside it has.
    """

    m: float
    n: float
    k: float
    batch: float = 1.0
    accumulate: bool = False
    half: bool = False
    tokens: float = 0.0
    added: float | None = None
    spared: int = 0

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k * self.batch

    def aligned(self, width: float) -> bool:
        """Whether rows of all three matrices, numbers of `width` bytes, begin at multiples of 16 bytes.

        Rows are features, n and k wide; those of a weight's gradient and of what it comes from m and n.
        """
        return not any(columns * width % _ALIGNMENT for columns in (self.m if self.accumulate else self.k, self.n))


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
    """A fused attention kernel: `heads` (of all sequences) of `queries` x `keys`, vectors of `size`, `kv_heads` of keys.

    causal: each query meets the keys up to its own, which for the last query is the last, and masked tiles are skipped. Its
    FLOPs are those of the unmasked part, as papers count; backward has 5 products where forward has 2.
    """

    kind: AttentionKind
    heads: float
    kv_heads: float
    queries: float
    keys: float
    size: int
    causal: bool
    backward: bool = False

    @property
    def met(self) -> float:
        """Keys that a query meets, on average."""
        return self.keys - self.queries / 2 if self.causal else self.keys

    @property
    def flops(self) -> float:
        return 4.0 * self.heads * self.queries * self.met * self.size * (2.5 if self.backward else 1.0)

    @property
    def bytes(self) -> float:
        """Queries and outputs, keys and values; backward also the gradient of each."""
        once = 2 * _HALF * self.size * (self.heads * self.queries + self.kv_heads * self.keys)
        return 2 * once if self.backward else once


Kernel = Gemm | Stream | Scores | Flash


def ceiling(curve: GemmCurve, gpu: Gpu, spared: int = 0) -> float:
    """Share of the peak that large products sustain: moved by the power limit, at most what a short benchmark reaches.

    spared: SMs that they leave to others. The rest has the power of all: f ~ P^(1/3) on each (`Gpu.clock`).
    """
    part = _left(gpu, spared) / gpu.sms
    share: float = gpu.pace * part * min(curve.sustained * gpu.clock / part ** (1 / 3), curve.benchmark or 1.0)
    return share


def _left(gpu: Gpu, spared: int) -> int:
    """SMs of a product beside others; there is always one."""
    return max(1, gpu.sms - spared)


def gemm_share(kernel: Gemm, curve: GemmCurve, gpu: Gpu) -> float:
    """Share of the datasheet peak that a product reaches: ceiling x fill x k/(k + depth) (x tokens/(tokens + rows)).

    Fill: mn/(mn + area), or the share of full waves of tiles over the SMs, to a power below 1 where splitting k fills part of
    the last wave. The products of a batch fill the GPU together.
    """
    area = kernel.m * kernel.n * kernel.batch
    fill = area / (area + curve.area)
    if curve.waves:
        rows, columns = _TILE
        tiles = kernel.batch * math.ceil(kernel.m / rows) * math.ceil(kernel.n / columns)
        sms = _left(gpu, kernel.spared)
        fill *= (area / (rows * columns * sms * math.ceil(tiles / sms))) ** curve.waves
    share = ceiling(curve, gpu, kernel.spared) * fill * kernel.k / (kernel.k + curve.depth)
    share *= 1.0 if kernel.aligned(_HALF) else curve.unaligned
    return share * kernel.tokens / (kernel.tokens + curve.group_rows) if kernel.tokens else share


def flash_share(kernel: Flash, gpu: Gpu) -> float:
    """Share of the datasheet peak that fused attention reaches, on the FLOPs of the unmasked part.

    By head size; x keys/(keys + half), what a tile costs to start; x tiles/(tiles + half), the last wave; behind a causal
    mask, where n/2 tiles of keys are met, x n/(n + 1): each row of tiles computes half a tile more, on the diagonal.
    """
    curve = gpu.attention[kernel.kind]
    shares = curve.backward if kernel.backward else curve.forward
    half_keys, half_tiles = (
        (curve.keys_backward, curve.tiles_backward) if kernel.backward else (curve.keys, curve.tiles)
    )
    share = _between(curve.head_sizes, shares, kernel.size)
    tiles = kernel.queries / QUERIES
    share *= kernel.met / (kernel.met + half_keys) * kernel.heads * tiles / (kernel.heads * tiles + half_tiles)
    met = 2 * kernel.met / QUERIES
    return share * met / (met + 1) if kernel.causal else share


def _between(sizes: tuple[int, ...], values: tuple[float, ...], size: float) -> float:
    """The value at `size`, on the line between its neighbours; the first or last beyond them."""
    i = bisect_left(sizes, size)
    if i == 0 or i == len(sizes):
        return values[min(i, len(sizes) - 1)]
    part = (size - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
    return values[i - 1] + part * (values[i] - values[i - 1])


@lru_cache(maxsize=65536)
def _times(kernel: Kernel, gpu: _Key, precision: str) -> tuple[float, float]:
    """s of a kernel, and for how long of it arithmetic keeps the GPU busy; the rest is memory's, and the launch."""
    facts = gpu.gpu
    memory = facts.memory_rate * facts.memory_efficiency
    sixteen = "bf16" if precision == "fp8" else precision
    if isinstance(kernel, Stream):
        return kernel.bytes / memory + facts.kernel_overhead, 0.0
    if isinstance(kernel, Scores):
        arithmetic = kernel.flops / (facts.unfused_attention * facts.clock * facts.pace * facts.peak[sixteen])  # type: ignore[index]
        return arithmetic + kernel.bytes / memory + facts.kernel_overhead, arithmetic
    if isinstance(kernel, Flash):
        curve = facts.gemm[sixteen]  # type: ignore[index]
        # Attention was measured in short benchmarks: a step's clock is lower by as much as its products' is.
        held = ceiling(curve, facts) / curve.benchmark if curve.benchmark else facts.clock * facts.pace
        arithmetic = kernel.flops / (flash_share(kernel, facts) * held * facts.peak[sixteen])  # type: ignore[index]
        moving = kernel.bytes / memory
        return max(arithmetic, moving) + facts.kernel_overhead, arithmetic if arithmetic >= moving else 0.0
    used = sixteen if kernel.half else precision
    curve = facts.gemm[used]  # type: ignore[index]
    arithmetic = kernel.flops / (gemm_share(kernel, curve, facts) * facts.peak[used])  # type: ignore[index]
    width = 1.0 if used == "fp8" else _HALF
    adds = kernel.accumulate and kernel.added is None
    outputs = kernel.batch * kernel.m * kernel.n
    moving = kernel.batch * width * (kernel.m + kernel.n) * kernel.k + (8.0 if adds else _HALF) * outputs
    arithmetic, moving = arithmetic * (curve.accumulate if adds else 1.0), moving / memory
    product = max(arithmetic, moving) + facts.kernel_overhead
    added = kernel.added * outputs / memory + facts.kernel_overhead if kernel.added else 0.0
    return product + added, arithmetic if arithmetic >= moving else 0.0


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

    Products and fused attention: max(FLOPs/(P e), bytes/memory) + overhead, with e of `gemm_share` and `flash_share`. The
    products of unfused attention add arithmetic and traffic.
    precision: of the matrix products (bf16, fp16, fp8); attention stays in 16 bit. Raises KeyError if the GPU has no
    curve for it.
    """
    return _times(kernel, _Key(gpu), precision)[0]


def arithmetic_time(kernel: Kernel, gpu: Gpu, precision: str) -> float:
    """Seconds of `kernel_time` for which arithmetic sets the pace; memory does for the rest, launches included.

    A product or fused attention is the one or the other; the products of unfused attention are parted. precision: as there.
    """
    return _times(kernel, _Key(gpu), precision)[1]
