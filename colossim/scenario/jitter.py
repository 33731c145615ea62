"""What a user says about GPUs that aren't alike: each kernel's variation, each GPU's own pace, slow machines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from colossim.catalog.facts import Facts
from colossim.catalog.quantities import Ratio, Share


class Slow(Facts):
    """Machines that are slower than the others for as long as the run lasts."""

    share: Share = Field(description="how many of them: so many, rounded, at random places of the cluster")
    factor: Ratio = Field(description="what their kernels take over what those of others take")
    per: Literal["node", "gpu"] = Field(
        default="node", description="whether it is whole nodes (a host, its cooling) or single GPUs"
    )

    def count(self, machines: int) -> int:
        """How many of so many."""
        return round(self.share * machines)


class Jitter(Facts):
    """How GPUs of a type differ. Shares are standard deviations over the mean; times are lognormal around it."""

    kernel: Share = Field(default="0 %", validate_default=True, description="of one kernel's time, each time anew")
    gpu: Share = Field(
        default="0 %",
        validate_default=True,
        description="of all kernels' time among GPUs, for as long as the run lasts; in the place of the GPU type's `spread`",
    )
    slow: Slow | None = Field(default=None, description="machines that are slower than the others")

    @property
    def given(self) -> bool:
        """Whether GPUs differ by anything."""
        return bool(self.kernel or self.gpu or (self.slow is not None and self.slow.share and self.slow.factor > 1.0))
