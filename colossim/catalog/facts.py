"""What every fact of the catalogue is: strict, frozen, declared; an entry has a source and a date."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Facts(BaseModel):
    """Strict, frozen, and nothing that isn't declared."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


class Entry(Facts):
    """A catalogue entry: every fact has a source and a date."""

    name: str = Field(default="inline", description="its name in the catalogue")
    source: str = Field(default="the scenario", description="where the facts come from")
    date: str = Field(default="", description="when they were read, ISO date")
    note: str = Field(default="", description="what is assumed, and why")
