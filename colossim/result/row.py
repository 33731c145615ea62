"""One variant's line in a table of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colossim.result.result import Result


@dataclass(frozen=True)
class Row:
    """A variant's result, or why there is none.

    label: of the variant.  measured: s a step, in the world.  why_not: text, if result is None.
    """

    label: str
    result: Result | None
    measured: float | None
    why_not: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one."""
        if self.result is None or self.measured is None:
            return None
        return self.result.step_time_s / self.measured - 1

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the result's numbers, or the error."""
        numbers = {"error": self.why_not} if self.result is None else self.result.to_dict()
        measured = {} if self.measured is None else {"measured_step_time_s": self.measured}
        return {"case": self.label, **measured, **numbers}
