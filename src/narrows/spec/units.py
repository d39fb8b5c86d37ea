"""Quantities with a unit: parsed at the door, SI inside, written back as people write them.

A `Quantity` is a float in the base unit. `Bytes.parse("80 GiB") == 85899345920.0`; a bare number is
refused, since a reader could not tell what it counts.
"""

from __future__ import annotations

import math
import re
from typing import ClassVar, Self

from narrows.spec.errors import BadInput

_NUMBER = re.compile(
    r"^\s*([$€¥]?)\s*([+-]?\d[\d_,]*\.?\d*(?:[eE][+-]?\d+)?|[+-]?\.\d+)\s*(.*?)\s*$"
)
_SI = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_IEC = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SMALL = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3}


class Quantity(float):
    """A finite number of `symbol`s. Subclasses name the unit and what may be written for it."""

    symbol: ClassVar[str] = ""
    example: ClassVar[str] = ""
    units: ClassVar[dict[str, float]] = {}
    written: ClassVar[tuple[tuple[str, float], ...]] = ()

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `text`; raises BadInput with an example where the unit is missing or unknown."""
        if isinstance(text, cls):
            return text
        if not isinstance(text, str):
            raise BadInput(
                f"{text!r} has no unit", hint=f'write it with its unit, such as "{cls.example}"'
            )
        match = _NUMBER.match(text)
        if not match:
            raise BadInput(f'"{text}" is not a quantity', hint=f'write it as "{cls.example}"')
        unit = match[1] + match[3]
        if unit not in cls.units:
            missing = "has no unit" if not unit else f'has the unknown unit "{unit}"'
            known = ", ".join(dict.fromkeys(name for name, _ in cls.written))
            raise BadInput(
                f'"{text}" {missing}', hint=f'write it as "{cls.example}" (units: {known})'
            )
        value = float(match[2].replace(",", "").replace("_", "")) * cls.units[unit]
        if not math.isfinite(value):
            raise BadInput(f'"{text}" is too large', hint=f'write it as "{cls.example}"')
        return cls(value)

    def rounded(self, digits: int = 4) -> Self:
        """The quantity to `digits` significant digits, as a measurement deserves.

        It is the value that its short text parses to, so that it is written short.
        """
        nearest = type(self)(float(f"{float(self):.{digits}g}"))
        return type(self).parse(nearest.text(digits))

    def __str__(self) -> str:
        """Text that parses to exactly this value, in round units where they can say it."""
        text = self.text(12)
        if float(self.parse(text)) == float(self):
            return text
        base = next(name for name, factor in self.units.items() if factor == 1.0)
        number = repr(float(self))
        return f"${number}" if base == "$" else f"{number} {base}"

    def text(self, digits: int = 3) -> str:
        """With the largest unit that leaves a number of at least one."""
        value = float(self)
        rounded = abs(float(f"{value:.{digits}g}"))
        reached = (unit for unit in self.written if rounded >= unit[1])
        name, factor = next(reached, self.written[-1])
        number = f"{value / factor:.{digits}g}"
        if "e" in number and abs(value / factor) < 1e6:
            number = f"{value / factor:.0f}"
        return f"${number}" if name == "$" else f"{number} {name}"


def _prefixed(symbol: str, prefixes: dict[str, float]) -> dict[str, float]:
    return {prefix + symbol: factor for prefix, factor in prefixes.items()}


def _descending(units: dict[str, float], *names: str) -> tuple[tuple[str, float], ...]:
    return tuple((name, units[name]) for name in names)


class Bytes(Quantity):
    """Memory or storage."""

    symbol, example = "B", "24 GiB"
    units = {**_prefixed("B", _SI), **_prefixed("B", _IEC)}
    written = _descending(units, "TB", "GB", "MB", "kB", "B")


class BytesPerSecond(Quantity):
    """Bandwidth of memory, a link or a disk."""

    symbol, example = "B/s", "3.35 TB/s"
    units = {
        **_prefixed("B/s", {**_SI, **_IEC}),
        **{name: factor / 8 for name, factor in _prefixed("bit/s", _SI).items()},
    }
    written = _descending(units, "TB/s", "GB/s", "MB/s", "kB/s", "B/s")


class FlopPerSecond(Quantity):
    """Rate of floating-point (or integer) operations; a fused multiply-add counts as two."""

    symbol, example = "FLOP/s", "989 TFLOP/s"
    units = {
        **_prefixed("FLOP/s", _SI),
        **_prefixed("FLOPS", _SI),
        **_prefixed("OP/s", _SI),
    }
    written = _descending(units, "PFLOP/s", "TFLOP/s", "GFLOP/s", "MFLOP/s", "FLOP/s")


class Seconds(Quantity):
    """Time."""

    symbol, example = "s", "10 min"
    units = {
        "s": 1.0, "sec": 1.0, "seconds": 1.0, **_prefixed("s", _SMALL),
        "second": 1.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0,
        "hours": 3600.0, "d": 86400.0, "day": 86400.0, "days": 86400.0,
        "week": 604800.0, "weeks": 604800.0,
    }  # fmt: skip
    written = _descending(units, "d", "h", "min", "s", "ms", "µs", "ns")


class Joules(Quantity):
    """Energy."""

    symbol, example = "J", "0.4 kWh"
    units = {
        **_prefixed("J", _SI),
        **{name: factor * 3600.0 for name, factor in _prefixed("Wh", _SI).items()},
    }
    written = _descending(units, "GWh", "MWh", "kWh", "Wh", "J")


class Watts(Quantity):
    """Power."""

    symbol, example = "W", "350 W"
    units = _prefixed("W", {**_SI, **_SMALL})
    written = _descending(units, "MW", "kW", "W")


class Dollars(Quantity):
    """Money, in US dollars."""

    symbol, example = "$", "$20"
    units = {
        "$": 1.0, "USD": 1.0, "dollars": 1.0, "cents": 0.01, "cent": 0.01,
        "$k": 1e3, "$M": 1e6,
    }  # fmt: skip
    written = (("$", 1.0),)


class DollarsPerHour(Quantity):
    """A rental price, in US dollars for an hour of the whole machine."""

    symbol, example = "$/h", "2.5 $/h"
    units = {"$/h": 1.0, "USD/h": 1.0}
    written = (("$/h", 1.0),)


class Grams(Quantity):
    """A mass of carbon dioxide."""

    symbol, example = "g", "12 kg"
    units = {"g": 1.0, "mg": 1e-3, "kg": 1e3, "t": 1e6}
    written = _descending(units, "t", "kg", "g", "mg")


class GramsPerKilowattHour(Quantity):
    """Carbon intensity of electricity, in grams of CO2 equivalent."""

    symbol, example = "g/kWh", "400 g/kWh"
    units = {"g/kWh": 1.0, "gCO2/kWh": 1.0, "kg/kWh": 1e3}
    written = (("g/kWh", 1.0),)


class RequestsPerSecond(Quantity):
    """How often somebody asks."""

    symbol, example = "requests/s", "5 requests/s"
    units = {
        f"{word}/{time}": 1.0 / seconds
        for word in ("requests", "request", "req")
        for time, seconds in (("s", 1.0), ("min", 60.0), ("h", 3600.0))
    }
    written = _descending(units, "requests/s", "requests/min", "requests/h")


class Tokens(Quantity):
    """A number of tokens."""

    symbol, example = "tokens", "20M tokens"
    units = {
        f"{prefix}{gap}{word}": factor
        for prefix, factor in {**_SI, "B": 1e9}.items()
        for gap in ("", " ")
        for word in ("tokens", "token")
    }
    written = _descending(units, "T tokens", "B tokens", "M tokens", "k tokens", "tokens")
