"""Where an axis is marked: at round numbers, few enough to read."""

from __future__ import annotations

import math

from narrows.report.numbers import plain

_STEPS = (1.0, 2.0, 5.0, 10.0)
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def linear(low: float, high: float, most: int) -> tuple[float, ...]:
    """At most `most` round numbers from `low` to `high`, evenly spaced."""
    step = spacing(low, high, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def spacing(low: float, high: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that needs no more than `most` marks."""
    assert high > low and most >= 2
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * step for step in _STEPS if power * step >= rough * (1 - 1e-9))


def around(low: float, high: float, most: int) -> tuple[float, ...]:
    """Marks that reach to or beyond both ends: the first and last are the axis's own."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = spacing(low, high, most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def logarithmic(low: float, high: float, most: int) -> tuple[float, ...]:
    """Powers of ten from `low` to `high`, thinned to `most`; with 2 and 5 where few are left, and
    evenly spaced where even these are few.
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    powers = tuple(10.0**power for power in range(first, last + 1) if power % every == 0)
    if len(powers) >= 3:
        return powers
    finer = (10.0**power * digit for power in range(first - 1, last + 1) for digit in (1, 2, 5))
    found = tuple(mark for mark in finer if low * 0.999 <= mark <= high * 1.001)
    return found if len(found) > 1 else linear(low, high, most)


def decimals(marks: tuple[float, ...]) -> int:
    """Decimals that tell all the marks apart."""
    for places in range(7):
        if all(abs(mark - round(mark, places)) < 1e-9 * max(1.0, abs(mark)) for mark in marks):
            return places
    return 7


def labels(marks: tuple[float, ...]) -> tuple[str, ...]:
    """The marks written with equal decimals, thousands grouped."""
    places = decimals(marks)
    return tuple(f"{mark:,.{places}f}".replace("-", "−") for mark in marks)


def prefixed(value: float, unit: str = "") -> str:
    """A power of ten with its SI prefix: 100 G, 1 T, 0.1."""
    for factor, prefix in _PREFIXES:
        if value >= factor * 0.999:
            return f"{plain(value / factor)} {prefix}{unit}".strip()
    return f"{plain(value)} {unit}".strip()
