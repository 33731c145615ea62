"""What a user says about weeks of training: how checkpoints are written, and what a restart costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from colossim import units
from colossim.catalog.facts import Facts
from colossim.catalog.quantities import Positive, Quantity, Rate, Seconds, SomeSeconds


@dataclass(frozen=True)
class _Interval(Quantity):
    """A time, or `optimal`, which is 0 inside."""

    def read(self, value: object) -> float:
        if value == "optimal":
            return 0.0
        try:
            return super().read(value)
        except ValueError as error:
            raise ValueError(f"{error}; or `optimal`") from None

    def json_schema(self) -> dict[str, Any]:
        return {"anyOf": [super().json_schema(), {"const": "optimal"}]}


class Storage(Facts):
    """What takes the checkpoints, at the rate of whichever is slower: each node its equal share, or all of them together."""

    node: Rate | None = Field(default=None, description="bytes/s that a node writes")
    total: Rate | None = Field(default=None, description="bytes/s that the storage takes of all nodes")


class Peer(Facts):
    """Checkpoints that nodes keep in memory for each other."""

    interval: SomeSeconds = Field(description="s of training between two")
    write: Seconds = Field(description="s for which one blocks the job")
    restart: Seconds = Field(description="s from a job that stands still to one that trains again, out of memory")
    copies: Annotated[int, Field(ge=2, le=64)] = Field(
        default=2, description="neighbouring nodes that hold the same: of each such group one has to be left"
    )


class Checkpoint(Facts):
    """Checkpoints, and what a restart from one costs."""

    interval: Annotated[float, _Interval(units.TIME, zero=False)] = Field(
        description="s of training between two, or optimal: what failure rate and cost make best"
    )
    write: Seconds | None = Field(
        default=None, description="s for which a write blocks the job; what `storage` takes for it when absent"
    )
    storage: Storage | None = Field(
        default=None, description="where weights and optimizer states go: how long a write takes until it is durable"
    )
    asynchronous: bool = Field(
        default=False, description="the write goes on beside training: what blocks is the copy to the host's memory"
    )
    durable: Seconds | None = Field(
        default=None,
        description="s from an asynchronous write's start until it can be restarted from; when absent by `storage`, or the"
        " interval",
    )
    restart: Seconds = Field(
        description="s from a job that stands still to one that trains again, its checkpoint loaded"
    )

    peer: Peer | None = Field(default=None, description="checkpoints in the nodes' memory, beside those in storage")
    watchdog: SomeSeconds = Field(
        default="10 min",
        validate_default=True,
        description="s after which a collective that hangs ends the job; PyTorch's default for NCCL",
    )

    @property
    def best(self) -> bool:
        """Whether the interval is to be found."""
        return self.interval == 0.0


class Repairs(Facts):
    """Who repairs what has failed."""

    crews: Positive = Field(description="that repair one thing each, in the order in which it was found")


class Warm(Facts):
    """Spares that aren't ready at once."""

    nodes: Positive = Field(description="that stand by beside `spares`, for when none of these is left")
    join: Seconds = Field(
        description="s from a fault's detection until one has booted, is checked, and can join the job"
    )
