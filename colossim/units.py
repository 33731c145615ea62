"""Quantities as people write them, and as the program computes with them.

Text has a unit, is case-sensitive and read whole: `b` is a bit, `B` a byte, k/M/G/T are powers of 1000 and
Ki/Mi/Gi/Ti of 1024. Inside everything is a float in SI: seconds, bytes, bytes/s, FLOP/s, watts; prices are in dollars.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

_NUMBER = r"(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_PREFIXES = _DECIMAL | _BINARY


def _table(units: dict[str, float], prefixes: dict[str, float]) -> dict[str, float]:
    return {prefix + unit: scale * value for prefix, scale in prefixes.items() for unit, value in units.items()}


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of quantity.

    units: text to SI factor.  example: a text that is right.  common: units that an error proposes.
    bare: factor of a number alone; None where a unit is due.  most: largest SI value, and how to write it.
    """

    name: str
    units: dict[str, float]
    example: str
    common: tuple[str, ...]
    bare: float | None = None
    most: float = math.inf
    most_text: str = ""

    def parse(self, text: str) -> float:
        """SI value of a text such as `80 GiB`. Raises ValueError with what would be right."""
        found = re.fullmatch(_NUMBER + r"\s*(?P<unit>\S.*)?", text.strip())
        if found is None:
            raise ValueError(f"`{text}` is not a {self.name}: write a number and a unit, such as `{self.example}`")
        number, unit = float(found["number"].replace("_", "")), found["unit"]
        if unit is None:
            return self.bare_value(number)
        if unit not in self.units:
            raise ValueError(f"`{text}`: {self._why_not(unit)}")
        return self._bounded(number * self.units[unit], text)

    def bare_value(self, number: float) -> float:
        """SI value of a number without a unit. Raises ValueError where a unit is due."""
        if self.bare is None:
            raise ValueError(f"`{number:g}` has no unit: write {_or([f'{number:g} {unit}' for unit in self.common])}")
        return self._bounded(number * self.bare, f"{number:g}")

    def _bounded(self, value: float, text: str) -> float:
        if not 0 <= value < math.inf:
            raise ValueError(f"`{text}` is not a {self.name}: it must be finite and not negative")
        if value > self.most:
            raise ValueError(f"`{text}` is not a {self.name}: it must be at most {self.most_text}")
        return value

    def _why_not(self, unit: str) -> str:
        same = [known for known in self.units if known.lower() == unit.lower()]
        if same:
            return f"`{unit}` is not a unit of {self.name} (case matters): did you mean {_or(same[:3])}?"
        return f"`{unit}` is not a unit of {self.name}: write it such as `{self.example}`"

    @property
    def pattern(self) -> str:
        """A regular expression for JSON Schema."""
        units = "|".join(sorted((re.escape(u).replace("\\ ", " ") for u in self.units), key=len, reverse=True))
        tail = f"\\s*({units})" + ("?" if self.bare is not None else "")
        return r"^\s*[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?" + tail + r"\s*$"


def _or(words: list[str]) -> str:
    return " or ".join(f"`{word}`" for word in words)


SIZE = Kind("size", _table({"B": 1.0, "b": 0.125}, _PREFIXES), "80 GiB", ("GB", "GiB"))
RATE = Kind(
    "rate",
    _table({"B/s": 1.0, "b/s": 0.125, "Bps": 1.0, "bps": 0.125}, _PREFIXES),
    "400 Gb/s",
    ("GB/s", "Gb/s"),
)
TIME = Kind(
    "time",
    {
        "s": 1.0,
        "ms": 1e-3,
        "us": 1e-6,
        "µs": 1e-6,
        "ns": 1e-9,
        "min": 60.0,
        "h": 3600.0,
        "d": 86400.0,
        "w": 604800.0,
    },
    "30 min",
    ("s", "ms", "us"),
)
POWER = Kind("power", _table({"W": 1.0}, _DECIMAL), "700 W", ("W", "kW"))
#: $/J inside.
ENERGY_PRICE = Kind("price of energy", {"$/MWh": 1 / 3.6e9, "$/kWh": 1 / 3.6e6}, "60 $/MWh", ("$/MWh", "$/kWh"))
MONEY = Kind("price", {"$": 1.0}, "2 $", ("$",))
COMPUTE = Kind("compute rate", _table({"FLOP/s": 1.0, "FLOPS": 1.0}, _DECIMAL), "989 TFLOP/s", ("TFLOP/s",))
SHARE = Kind("share", {"%": 0.01}, "1.5 %", ("%",), bare=1.0, most=1.0, most_text="100 %")
COUNT = Kind("count", {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, "15T", ("T",), bare=1.0)

parse_size: Callable[[str], float] = SIZE.parse
parse_rate: Callable[[str], float] = RATE.parse
parse_time: Callable[[str], float] = TIME.parse
parse_power: Callable[[str], float] = POWER.parse
parse_compute: Callable[[str], float] = COMPUTE.parse
parse_share: Callable[[str], float] = SHARE.parse
parse_count: Callable[[str], float] = COUNT.parse


def _rounded(value: float, digits: int = 3) -> float:
    """`value` with that many significant digits, so that 999.9 shows as 1.00 of the next prefix."""
    return float(f"{value:.{digits - 1}e}")


def _scaled(value: float, unit: str, prefixes: tuple[str, ...]) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    value = _rounded(value)
    index = min(len(prefixes) - 1, max(0, math.floor(math.log10(abs(value)) / 3 + 1e-12)))
    return f"{_digits(value / 1000.0**index)} {prefixes[index]}{unit}"


def _digits(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits, never in scientific notation for ordinary sizes."""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}" if abs(value) < 1e6 else f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-12)) if value else 0
    return f"{value:.{min(places, 6)}f}"


def format_size(value: float) -> str:
    """Bytes as `45.1 GB` (decimal)."""
    return _scaled(value, "B", ("", "k", "M", "G", "T", "P"))


def format_rate(value: float) -> str:
    """Bytes/s as `50.0 GB/s`."""
    return _scaled(value, "B/s", ("", "k", "M", "G", "T", "P"))


def format_compute(value: float) -> str:
    """FLOP/s as `989 TFLOP/s`."""
    return _scaled(value, "FLOP/s", ("", "k", "M", "G", "T", "P", "E"))


def format_power(value: float) -> str:
    """Watts as `124 MW`."""
    return _scaled(value, "W", ("", "k", "M", "G"))


def format_energy(value: float) -> str:
    """Joules as `43.6 kWh`."""
    return _scaled(value / 3600.0, "Wh", ("", "k", "M", "G", "T"))


def format_money(value: float) -> str:
    """Dollars as `$1.20M`."""
    return f"${_scaled(value, '', ('', 'k', 'M', 'B', 'T')).replace(' ', '')}"


def format_count(value: float) -> str:
    """A count as `314B` (short scale)."""
    return _scaled(value, "", ("", "k", "M", "B", "T")).replace(" ", "")


def format_share(value: float) -> str:
    """A share as `41.5 %`."""
    return f"{100 * value:.1f} %"


def format_time(value: float) -> str:
    """Seconds as `20.7 s`, `312 us`, `83.1 d`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} s"
    rounded = _rounded(value)
    for limit, unit, scale in ((1e-6, "ns", 1e9), (1e-3, "us", 1e6), (1.0, "ms", 1e3), (180.0, "s", 1.0)):
        if abs(rounded) < limit:
            return f"{_digits(rounded * scale)} {unit}"
    # Three digits of seconds aren't three of days.
    for limit, unit, scale in ((7200.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if abs(rounded) < limit:
            return f"{_digits(value / scale)} {unit}"
    return f"{_digits(value / 86400.0)} d"
