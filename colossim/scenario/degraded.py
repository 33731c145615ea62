"""What a scenario says about parts that run below their rate, or not at all. Which keys stand together names the part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from colossim.catalog.facts import Facts
from colossim.catalog.quantities import Natural, Share

#: Each kind of part: what errors call it, the keys that it needs, those that it may have.
_PARTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "gpu": ("a GPU's link", ("node", "gpu", "rate"), ("link",)),
    "uplink": ("a leaf's uplink", ("uplink", "pod", "rate"), ("rail",)),
    "core_uplink": ("a spine's uplink", ("core_uplink", "block", "spine", "rate"), ()),
    "leaf": ("a leaf switch", ("switch", "pod"), ("rail", "rate")),
    "spine": ("a spine switch", ("switch", "block", "spine"), ("rate",)),
    "rail": ("a rail", ("rail",), ("pod", "rate")),
}


class Degraded(Facts):
    """A part of the cluster that runs below its rate, or not at all. Both directions of a link are meant.

        {node: 0, gpu: 3, rate: 50 %}                      the NIC of a GPU; `link: nvlink` its NVLink
        {uplink: 5, pod: 0, rail: 3, rate: 0 %}            link 5 of a leaf, to spine 5 of its block
        {core_uplink: 5, block: 0, spine: 2, rate: 50 %}   link 5 of a spine, to its fifth core (three tiers or more)
        {switch: leaf, pod: 0, rail: 3}                    a leaf switch; the NICs below it are gone
        {switch: spine, block: 0, spine: 2}                a spine switch
        {rail: 3}, {rail: 3, pod: 1}                       the leaf switches of a rail in all pods, or in one

    Leaves of a fat-tree have no rail. A switch or a rail without `rate` is dead; with one, all its links are slowed.
    """

    node: Natural | None = Field(default=None, description="index of the node, from 0")
    gpu: Natural | None = Field(default=None, description="index of the GPU in the node, from 0")
    link: Literal["nic", "nvlink"] = Field(default="nic", description="which of the GPU's links")
    uplink: Natural | None = Field(default=None, description="index of a leaf's link up, from 0; 5 leads to spine 5")
    core_uplink: Natural | None = Field(default=None, description="index of a spine's link up, from 0")
    switch: Literal["leaf", "spine"] | None = Field(default=None, description="a whole switch, of this tier")
    pod: Natural | None = Field(
        default=None, description="index of the leaf's pod, from 0; a rail without is down in all"
    )
    rail: Natural | None = Field(default=None, description="the leaf's rail, from 0; none on a fat-tree")
    block: Natural | None = Field(default=None, description="index of the spine's block, from 0")
    spine: Natural | None = Field(default=None, description="index of the spine in its block, from 0")
    rate: Share | None = Field(
        default=None,
        description="share of its rate that is left; 0 % (dead) is for parts of the fabric, and is what a switch or rail "
        "without `rate` has",
    )

    @property
    def part(self) -> str:
        """The kind of part that the keys name: gpu, uplink, core_uplink, leaf, spine or rail; "" if none."""
        for kind in ("uplink", "core_uplink"):
            if getattr(self, kind) is not None:
                return kind
        if self.switch is not None:
            return self.switch
        if self.node is not None or self.gpu is not None:
            return "gpu"
        return "" if self.rail is None else "rail"

    @property
    def left(self) -> float:
        """Share of the rate that is left."""
        return self.rate or 0.0

    @model_validator(mode="after")
    def _names_one_part(self) -> Self:
        """Raises pydantic's own error, so that each problem stands at its key."""
        wrong = list(self._wrong())
        if wrong:
            raise ValidationError.from_exception_data("Degraded", wrong)
        return self

    def _wrong(self) -> Iterator[InitErrorDetails]:
        if not self.part:
            parts = "; ".join(f"{what}: {', '.join(needed)}" for what, needed, _ in _PARTS.values())
            yield _error((), f"names no part. What would: {parts}", None)
            return
        what, needed, more = _PARTS[self.part]
        given = {name for name in type(self).model_fields if name in self.model_fields_set}
        for name in sorted(given - {*needed, *more}):
            keys = ", ".join((*needed, *(f"{key} (may be left out)" for key in more)))
            yield _error((name,), f"doesn't belong to {what}, whose keys are {keys}", getattr(self, name))
        for name in needed:
            if getattr(self, name) is None:
                yield _error((name,), f"is missing: {type(self).model_fields[name].description}", None)
        if self.part == "gpu" and self.rate == 0:
            message = "a GPU's link keeps more than 0 %: leave its node out, or name a dead `rail` or leaf switch"
            yield _error(("rate",), message, self.rate)


def _error(loc: tuple[str, ...], message: str, given: object) -> InitErrorDetails:
    kind = PydanticCustomError("value_error", "{error}", {"error": message})
    return InitErrorDetails(type=kind, loc=loc, input=given)
