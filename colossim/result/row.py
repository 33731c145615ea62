"""One variant's line in a table of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colossim.result.fabric import FabricResult
from colossim.result.result import Result


@dataclass(frozen=True)
class Row:
    """A variant's result, or why there is none.

    label: of the variant.  measured: s a step, in the world.  why_not: text, if there is neither a result nor a fabric.
    fabric: of a variant with `traffic`, which plays the fabric in place of a step.
    """

    label: str
    result: Result | None
    measured: float | None
    why_not: str = ""
    fabric: FabricResult | None = None

    @property
    def played(self) -> Result | FabricResult | None:
        """The step, or the fabric alone."""
        return self.result or self.fabric

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one."""
        if self.result is None or self.measured is None:
            return None
        return self.result.step_time_s / self.measured - 1

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the result's numbers, or the error."""
        numbers = {"error": self.why_not} if self.played is None else self.played.to_dict()
        measured = {} if self.measured is None else {"measured_step_time_s": self.measured}
        return {"case": self.label, **measured, **numbers}
