"""A GPU of the catalogue, and the curves of what its kernels reach."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from colossim.catalog.facts import Entry, Facts
from colossim.catalog.quantities import (
    Factor,
    FlopRate,
    Positive,
    Precision,
    Rate,
    Ratio,
    Seconds,
    Share,
    SomeShare,
    SomeSize,
    SomeWatts,
    Watts,
)


class GemmCurve(Facts):
    """Efficiency of a matrix product (m, k) x (k, n): ceiling x fill x k/(k + depth).

    fill: mn/(mn + area), or with `waves` the share of the SMs' waves of 128 x 256 tiles that the product fills, to that power.
    """

    sustained: SomeShare = Field(description="share of the datasheet peak that whole steps sustain at the part's TDP")
    benchmark: SomeShare | None = Field(
        default=None, description="share of it that a short, cool benchmark reaches; what is sustained never passes it"
    )
    area: Factor = Field(description="mn at which half of the efficiency is lost")
    depth: Factor = Field(description="k at which half of the efficiency is lost")
    waves: Factor = Field(
        default=0.0, description="exponent of the share of waves of 128 x 256 tiles that is filled; 0 ignores waves"
    )
    accumulate: Ratio = Field(default=1.04, description="times slower if it adds into an fp32 gradient")
    unaligned: SomeShare = Field(
        default="100 %",
        validate_default=True,
        description="share of it that a product reaches whose rows don't begin at multiples of 16 bytes",
    )
    group_rows: Factor = Field(
        default=0.0, description="tokens of an expert at which a grouped product loses half of the efficiency"
    )


class AttentionCurve(Facts):
    """Efficiency of a fused attention kernel of one kind in a short benchmark, on the FLOPs that aren't masked.

    share x keys/(keys + half) x tiles/(tiles + half): the share by head size, the keys that a query meets (half of them
    behind a causal mask), the tiles of 128 queries; and n/(n + 1) behind a causal mask of n tiles, whose diagonal ones are
    computed whole.
    """

    head_sizes: tuple[Positive, ...] = Field(description="head sizes of the shares, rising; between them it is a line")
    forward: tuple[SomeShare, ...] = Field(description="share of the datasheet peak, forward, by head size")
    backward: tuple[SomeShare, ...] = Field(description="the same, backward")
    keys: Factor = Field(default=0.0, description="keys a query at which half is lost, forward")
    keys_backward: Factor = Field(default=0.0, description="the same, backward")
    tiles: Factor = Field(default=0.0, description="query tiles of 128 at which half is lost, forward")
    tiles_backward: Factor = Field(default=0.0, description="the same, backward")

    @model_validator(mode="after")
    def _aligned(self) -> AttentionCurve:
        if not len(self.head_sizes) == len(self.forward) == len(self.backward) or not self.head_sizes:
            raise ValueError("head_sizes, forward and backward list as many values, at least one")
        if list(self.head_sizes) != sorted(set(self.head_sizes)):
            raise ValueError("head_sizes rise")
        return self


#: Kinds of fused attention kernels: FlashAttention's versions and cuDNN's.
AttentionKind = Literal["flash-1", "flash-2", "flash-3", "cudnn"]


class ActivityPower(Facts):
    """What a GPU asks for by what it does, as shares of the way from idle to its TDP.

    The limit holds for the mean over some milliseconds: arithmetic may ask for more while other kernels stand between. The same
    for all types until measured ones are published (docs/power.md).
    """

    arithmetic: Factor = Field(
        default=1.23,
        description="kernels that arithmetic bounds, at the clock that whole steps sustain; above 1 others make up",
    )
    memory: Share = Field(default="36 %", validate_default=True, description="kernels that memory bounds")
    communicating: Share = Field(
        default="40 %", validate_default=True, description="collectives and transfers that nothing is computed beside"
    )
    waiting: Share = Field(
        default="11 %", validate_default=True, description="waiting for others: a kernel that polls, or none at all"
    )


class Gpu(Entry):
    """One GPU."""

    peak: dict[Precision, FlopRate] = Field(description="FLOP/s, dense, by precision, from the datasheet")
    gemm: dict[Precision, GemmCurve] = Field(description="what matrix products sustain, by precision")
    attention: dict[AttentionKind, AttentionCurve] = Field(
        description="what fused attention reaches in a short benchmark, by kind; in a step less, as products do"
    )
    unfused_attention: SomeShare = Field(
        default="80 %", validate_default=True, description="share of the peak of attention's batched products"
    )
    sms: Positive = Field(description="streaming multiprocessors")
    memory: SomeSize = Field(description="bytes that the driver offers")
    memory_rate: Rate = Field(description="bytes/s of HBM, from the datasheet")
    memory_efficiency: SomeShare = Field(
        default="82 %", validate_default=True, description="share of it that large streams reach"
    )
    kernel_overhead: Seconds = Field(
        default="2 us", validate_default=True, description="s that each kernel costs beside its work"
    )
    nvlink: Rate = Field(description="bytes/s of NVLink, one direction")
    pace: SomeShare = Field(
        default="100 %", validate_default=True, description="clock under load over the type's mean: less for a slow GPU"
    )
    spread: Share = Field(
        default="0 %",
        validate_default=True,
        description="standard deviation of clocks under load among GPUs of the type; a step waits for the job's slowest",
    )
    tdp: Watts = Field(description="W, the part's design power, at which its curves hold")
    power_limit: SomeWatts | None = Field(default=None, description="W that the GPU is limited to; its TDP when absent")
    idle: Watts = Field(description="W when idle")
    activity: ActivityPower = Field(
        default=ActivityPower(), description="what it draws by what it does, between idle and its TDP"
    )

    @property
    def limit(self) -> float:
        """W that it may draw."""
        return self.tdp if self.power_limit is None else self.power_limit

    @property
    def watts(self) -> tuple[float, float, float, float]:
        """W that it asks for by what it does, in the order of `ActivityPower`.

        A lower limit lowers the clock by its third root (`clock`), and what arithmetic asks for with the limit; the others
        don't feel it until it is below them.
        """
        shares = (self.activity.memory, self.activity.communicating, self.activity.waiting)
        memory, communicating, waiting = (
            min(self.limit, self.idle + share * max(0.0, self.tdp - self.idle)) for share in shares
        )
        arithmetic = self.idle + self.activity.arithmetic * max(0.0, self.limit - self.idle)
        return arithmetic, memory, communicating, waiting

    @property
    def clock(self) -> float:
        """Clock that a busy GPU keeps under its limit, over the one at its TDP.

        Dynamic power goes with V^2 f, and V with f near the top: f ~ P^(1/3). Measured products of the 300 W A100 reach 78.0 %
        where those of the 400 W part sustain 85.9 %: (3/4)^(1/3) = 0.909 of it is 78.1 %.
        """
        return float((self.limit / self.tdp) ** (1 / 3)) if self.tdp else 1.0
