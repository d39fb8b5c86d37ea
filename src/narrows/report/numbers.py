"""Numbers as people read them: three digits, a unit, and an honest dash where there is none."""

from __future__ import annotations

import math
from typing import Literal

from narrows.report.words import ABSENT, Phrase, same
from narrows.spec.units import Bytes, BytesPerSecond, FlopPerSecond, Quantity

Unit = Literal[
    "seconds", "tokens_per_s", "bytes", "joules", "dollars", "grams", "share", "watts", "number"
]
_GAP = "\u00a0"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DURATIONS = ((86400, "d", "天"), (3600, "h", "小时"), (60, "min", "分"), (1, "s", "秒"))


def show(value: float | None, unit: Unit) -> Phrase:
    """A value with its unit, or a dash where it is absent or not finite."""
    if value is None or not math.isfinite(value):
        return ABSENT
    match unit:
        case "seconds":
            return duration(value)
        case "tokens_per_s":
            return Phrase(
                f"{significant(value)}{_GAP}tokens/s", f"{significant(value)}{_GAP}词元/秒"
            )
        case "bytes":
            return same(size(value))
        case "joules":
            return same(energy(value))
        case "dollars":
            return same(f"${significant(value, 2)}")
        case "grams":
            return same(grams(value))
        case "share":
            return same(share(value))
        case "watts":
            return same(f"{significant(value)}{_GAP}W")
        case "number":
            return same(significant(value))


def significant(value: float, digits: int = 3) -> str:
    """To so many significant digits, thousands grouped: 1,520 · 15.2 · 0.00152 · 1.5×10⁻⁷."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if exponent < -4 or exponent > 8:
        mantissa = f"{value / 10.0**exponent:.{digits - 1}f}"
        return _minus(f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}")
    return _minus(f"{value:,.{max(0, digits - 1 - exponent)}f}")


def plain(value: float, digits: int = 3) -> str:
    """As `significant`, without trailing zeros: 0.0012, 1×10⁻⁷."""
    mantissa, times, power = significant(value, digits).partition("×")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return mantissa + times + power


def compact(value: float) -> str:
    """A count with its prefix: 812 · 8.19k · 10.5M · 2.1B."""
    if not math.isfinite(value):
        return "–"
    for factor, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return significant(value / factor) + prefix
    return significant(value) if value != int(value) else _minus(str(int(value)))


def percent(fraction: float | None) -> str:
    """A signed share: +4.1 %, −31 %."""
    if fraction is None or not math.isfinite(fraction):
        return "–"
    amount = abs(fraction) * 100
    digits = f"{amount:.1f}" if amount < 9.95 else f"{amount:,.0f}"
    if digits == "0.0":
        return f"0{_GAP}%"
    sign = "+" if fraction > 0 else "−"
    return f"{sign}{digits}{_GAP}%"


def share(fraction: float) -> str:
    """An unsigned share of a whole: 41 %, 0.6 %."""
    return percent(fraction).lstrip("+")


def duration(seconds: float) -> Phrase:
    """Two units at most: 38 µs · 12.3 s · 5 min 2 s · 3 h 12 min."""
    if abs(seconds) < 59.95:
        return _short(seconds)
    coarse = 60 if seconds >= 3600 else 1
    left = round(seconds / coarse) * coarse
    parts: list[Phrase] = []
    for whole, unit, chinese in _DURATIONS:
        amount, left = divmod(left, whole)
        if amount and len(parts) < 2:
            parts.append(Phrase(f"{amount}{_GAP}{unit}", f"{amount}{_GAP}{chinese}"))
        elif parts:
            break
    return Phrase(_GAP.join(part.en for part in parts), _GAP.join(part.zh for part in parts))


def size(value: float) -> str:
    """Bytes: 812 MB, 1.62 GB."""
    return _scaled(value, Bytes)


def bandwidth(value: float) -> str:
    """Bytes a second: 17.2 GB/s."""
    return _scaled(value, BytesPerSecond)


def flop_rate(value: float) -> str:
    """FLOP a second: 612 GFLOP/s."""
    return _scaled(value, FlopPerSecond)


def dollars(value: float) -> str:
    """Money: $42.5, $1,504,863."""
    return f"${value:,.0f}" if value >= 100 else f"${significant(value)}"


def energy(joules: float) -> str:
    """Energy: 212 J, 5.12 Wh, 1.20 kWh, 324 MWh."""
    for factor, unit in ((3.6e12, "GWh"), (3.6e9, "MWh")):
        if abs(joules) >= factor:
            return f"{significant(joules / factor)}{_GAP}{unit}"
    for factor, unit in ((3.6e6, "kWh"), (3600.0, "Wh")):
        if abs(joules) >= factor / 10:
            return f"{significant(joules / factor)}{_GAP}{unit}"
    return f"{significant(joules)}{_GAP}J"


def grams(value: float) -> str:
    """A mass: 310 mg, 1.62 g, 4.1 kg, 239 t."""
    if abs(value) >= 1e6:
        return f"{significant(value / 1e6)}{_GAP}t"
    if abs(value) >= 1e3:
        return f"{significant(value / 1e3)}{_GAP}kg"
    if abs(value) >= 1:
        return f"{significant(value)}{_GAP}g"
    return f"{significant(value * 1e3)}{_GAP}mg"


def _scaled(value: float, kind: type[Quantity]) -> str:
    """Three digits of the largest unit that leaves at least one."""
    if not math.isfinite(value):
        return "–"
    fitting = (unit for unit in kind.written if abs(value) >= unit[1] * 0.9995)
    name, factor = next(fitting, kind.written[-1])
    return f"{significant(value / factor)}{_GAP}{name}"


def _short(seconds: float) -> Phrase:
    """Below a minute: one unit, three digits."""
    units = ((1.0, "s", "秒"), (1e-3, "ms", "毫秒"), (1e-6, "µs", "微秒"))
    fitting = (unit for unit in units if abs(seconds) >= unit[0] * 0.9995 or seconds == 0)
    factor, unit, chinese = next(fitting, units[-1])
    number = significant(seconds / factor)
    return Phrase(f"{number}{_GAP}{unit}", f"{number}{_GAP}{chinese}")


def _minus(text: str) -> str:
    return "−" + text[1:] if text.startswith("-") else text
