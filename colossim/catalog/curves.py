"""Curves of what collectives reach on a node type: rings over NVLink, reduction in its switch, the network."""

from __future__ import annotations

from pydantic import Field

from colossim.catalog.facts import Facts
from colossim.catalog.quantities import Factor, Rate, Seconds, Size, SomeShare


class RingCurve(Facts):
    """Rings over NVLink: base + passes (n-1) hop + bytes/bandwidth (1 + (half_size n/8 / S)^exponent)."""

    bandwidth: Rate = Field(description="bytes/s that an NVLink edge of a ring sustains for long messages")
    half_size: Size = Field(description="S0: bytes at which the ramp has cost as much as the transfer, 8 ranks")
    exponent: Factor = Field(description="g of the ramp; above 1 more bytes would take less time")
    base: Seconds = Field(description="s, once a collective")
    hop: Seconds = Field(description="s of one step of a ring over NVLink")


class NvlsCurve(Facts):
    """Reduction in the NVSwitch: base + bytes/bandwidth (1 + (half_size/S)^exponent), (1 + 1/n) S bytes a GPU."""

    bandwidth: Rate = Field(description="bytes/s that a GPU's NVLink sustains for long messages")
    half_size: Size = Field(description="S0: bytes at which the ramp has cost as much as the transfer")
    exponent: Factor = Field(description="g of the ramp; above 1 more bytes would take less time")
    base: Seconds = Field(description="s, once a collective")
    nominal: SomeShare = Field(description="what NCCL's tuner believes it reaches of the rings' rate")


class NetworkCurve(Facts):
    """Collectives over the network: base + steps x hop + bytes/(rate x NIC) (1 + (half_size q/8 / S)^exponent)."""

    efficiency: SomeShare = Field(description="share of the NIC's rate that a collective's edge sustains")
    crossing: SomeShare = Field(
        default="100 %",
        validate_default=True,
        description="share of that where a ring leaves a node behind another PCIe switch than it came in (`gpus_per_switch`)",
    )
    base: Seconds = Field(description="s, once a collective")
    hop: Seconds = Field(description="s of one step over the network in protocol Simple, before switches")
    half_size: Size = Field(
        default="0 B", validate_default=True, description="S0 of the ramp, for 8 GPUs of a group a node"
    )
    exponent: Factor = Field(default=0.5, description="g of the ramp; above 1 more bytes would take less time")
    ll128: bool = Field(default=True, description="whether NCCL runs protocol LL128 over it")
