"""Types of fields: quantities as text with a unit, and entries by their name in the catalogue.

A quantity is written `400 Gb/s` and is a float in SI. An entry is its name, its fields, or `base: NAME` and
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import core_schema

from colossim import units


@dataclass(frozen=True)
class Quantity:
    """Makes a float field read text with a unit. zero: whether nothing at all is a value.

    A bare number is read where the kind allows one (shares and counts), otherwise an error shows the fix.
    """

    kind: units.Kind
    zero: bool = True

    def read(self, value: object) -> float:
        """SI value of what the user wrote. Raises ValueError with what would be right."""
        kind = self.kind
        if isinstance(value, str):
            number = kind.parse(value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            given = "has no value" if value is None else "should be text or a number"
            raise ValueError(f"{given}: write a {kind.name} such as `{kind.example}`")
        else:
            number = kind.bare_value(value)
        if number == 0 and not self.zero:
            raise ValueError(f"`{value}`: this {kind.name} must be more than 0")
        return number

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, core_schema.float_schema())

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.json_schema()

    def json_schema(self) -> dict[str, Any]:
        """What a JSON Schema says of it."""
        text = {"type": "string", "pattern": self.kind.pattern, "examples": [self.kind.example]}
        if self.kind.bare is None:
            return text
        number = {"type": "number", "minimum": 0} if self.zero else {"type": "number", "exclusiveMinimum": 0}
        return {"anyOf": [text, number]}


@dataclass(frozen=True)
class Named:
    """Lets a field be a catalogue name, its fields, or `base: NAME` with changes."""

    kind: str

    def look_up(self, value: Any, info: ValidationInfo) -> Any:
        """The fields of what the user wrote. Raises ValueError with the nearest name of the catalogue."""
        from colossim.catalog import based, entry

        extra = (info.context or {}).get("catalog", {})
        if isinstance(value, str):
            return entry(self.kind, value, extra)
        return based(self.kind, value, extra) if isinstance(value, dict) else value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_before_validator_function(self.look_up, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        from colossim.catalog import names

        reference = handler(schema)
        whole = handler.resolve_ref_schema(reference)
        name = {"anyOf": [{"enum": names(self.kind)}, {"type": "string"}]}
        changed = {
            "type": "object",
            "properties": {"base": name, **whole["properties"]},
            "required": ["base"],
            "additionalProperties": False,
        }
        return {"anyOf": [name, reference, changed]}


@dataclass(frozen=True)
class Short:
    """Lets a mapping be written as one quantity, which is then its field of that name."""

    field: str
    quantity: Quantity

    def fill(self, value: Any) -> Any:
        """The mapping. Raises ValueError with what would be right."""
        if isinstance(value, str | int | float):
            self.quantity.read(value)  # tells what is wrong with it here, where it was written
            return {self.field: value}
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.fill, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), self.quantity.json_schema()]}


Rate = Annotated[float, Quantity(units.RATE, zero=False)]
FlopRate = Annotated[float, Quantity(units.COMPUTE, zero=False)]
Size = Annotated[float, Quantity(units.SIZE)]
Seconds = Annotated[float, Quantity(units.TIME)]
Watts = Annotated[float, Quantity(units.POWER)]
Share = Annotated[float, Quantity(units.SHARE)]
Count = Annotated[float, Quantity(units.COUNT)]
SomeSize = Annotated[float, Quantity(units.SIZE, zero=False)]
SomeSeconds = Annotated[float, Quantity(units.TIME, zero=False)]
SomeWatts = Annotated[float, Quantity(units.POWER, zero=False)]
SomeShare = Annotated[float, Quantity(units.SHARE, zero=False)]
SomeCount = Annotated[float, Quantity(units.COUNT, zero=False)]
Precision = Literal["bf16", "fp16", "fp8"]
#: No count of a scenario comes near this; the rules look for divisors, which takes its square root.
MOST = 10**12
Positive = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]
