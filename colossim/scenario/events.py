"""What a user says about a cluster that changes: nodes that come, go or are replaced, and what power there is for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from colossim import units
from colossim.catalog.facts import Facts
from colossim.catalog.quantities import Named, Positive, Quantity, Seconds, SomeSeconds
from colossim.catalog.types import NodeType


@dataclass(frozen=True)
class _OrWord(Quantity):
    """A power, or one of some words. Words with a number are that number inside, others stay themselves."""

    words: tuple[tuple[str, float | None], ...] = ()

    def read(self, value: object) -> Any:
        for word, number in self.words:
            if value == word:
                return word if number is None else number
        try:
            return super().read(value)
        except ValueError as error:
            known = " or ".join(f"`{word}`" for word, _ in self.words)
            raise ValueError(f"{error}; or {known}") from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def json_schema(self) -> dict[str, Any]:
        return {"anyOf": [super().json_schema(), {"enum": [word for word, _ in self.words]}]}


Supply = Annotated[float, _OrWord(units.POWER, zero=False, words=(("unlimited", math.inf),))]
#: W by which nodes are counted: a number, or where it comes from.
PerNode = Annotated[Any, _OrWord(units.POWER, zero=False, words=(("provisioned", None), ("measured", None)))]


class Added(Facts):
    """Nodes of one type that come."""

    type: Annotated[NodeType, Named("nodes")] = Field(description="catalogue name, or the node's fields")
    count: Positive = Field(description="how many nodes")


class Drained(Facts):
    """Nodes of one type that go."""

    type: str = Field(description="name of their type, as the cluster has it then")
    count: Positive = Field(description="how many nodes; the last ones of the type go")


class Upgrade(Facts):
    """Nodes that become others."""

    type: str = Field(description="name of their type before")
    to: Annotated[NodeType, Named("nodes")] = Field(
        description="what they become: catalogue name, or the node's fields"
    )
    count: Positive = Field(description="how many nodes")
    takes: Seconds = Field(default="0 s", validate_default=True, description="s for which each is away")


class Event(Facts):
    """One change of the cluster, or of the job alone."""

    at: Seconds = Field(description="s from the run's start")
    add: Annotated[tuple[Added, ...], Field(min_length=1)] | None = Field(
        default=None, description="nodes that come, behind those that are there"
    )
    drain: Annotated[tuple[Drained, ...], Field(min_length=1)] | None = Field(default=None, description="nodes that go")
    upgrade: Upgrade | None = Field(default=None, description="nodes that become others")
    power: Supply | None = Field(
        default=None, description="W that the site has from then on, which limit how many nodes run; or unlimited"
    )
    per_node: PerNode = Field(
        default="provisioned",
        description="W of the site by which power is counted, a node. provisioned: what its supply is laid out for, with"
        " switches and cooling; measured: what one drew in a measured run (or its GPUs' limits and its overhead), with both; or"
        " a power",
    )
    waves: Positive = Field(default=1, description="equal parts in which nodes come, go or are replaced")
    every: SomeSeconds | None = Field(default=None, description="s from one wave to the next")
    burn_in: Seconds = Field(
        default="0 s", validate_default=True, description="s of tests before nodes that came may join the job"
    )
    relay: Literal["at once", "next restart"] = Field(
        default="at once",
        description="when the job is laid anew: it writes a checkpoint and stops for it, or a fault stops it anyhow",
    )
    move: Seconds | None = Field(
        default=None,
        description="s beside the restart for which the checkpoint is cut anew; when absent its bytes over"
        " `checkpoint.storage`, or nothing",
    )
    job: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of the job that change with it, dotted or nested, and stay; replicas are `auto` again otherwise",
    )
