"""What chance has to do with a number: items drawn again, with replacement (Efron 1979)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrows.evaluate.forms import Array, Form, value

DRAWS = 2000
LEVEL = 0.95
LEAST = 6
"""Fewer items would all agree by chance more often than once in twenty: 2 · 2^-5 > 0.05."""
_AT_ONCE = 1 << 22


class Interval(NamedTuple):
    """Where the number lies in 95 of 100 draws."""

    low: float
    high: float


def interval(form: Form, sums_MX: Array, seed: int) -> Interval | None:
    """Of a metric over M items; None of fewer than LEAST, which say nothing of chance, and where
    it is infinite.
    """
    return _between(value(form, drawn(sums_MX, seed))) if len(sums_MX) >= LEAST else None


def paired_interval(form: Form, a_MX: Array, b_MX: Array, seed: int) -> Interval | None:
    """Of the metric of the first minus that of the second, both over the same items in each draw:
    what makes an item hard for both cancels (Koehn 2004).
    """
    assert len(a_MX) == len(b_MX)
    if len(a_MX) < LEAST:
        return None
    with np.errstate(invalid="ignore"):  # infinite less infinite
        return _between(value(form, drawn(a_MX, seed)) - value(form, drawn(b_MX, seed)))


def drawn(sums_MX: Array, seed: int, draws: int = DRAWS) -> Array:
    """Sums of M items drawn from M [R,X]; equal seeds draw the same items."""
    generator = np.random.default_rng(seed)
    items = len(sums_MX)
    found, left = [], draws
    while left:
        some = max(1, min(left, _AT_ONCE // items))
        places_RM = generator.integers(items, size=(some, items))
        found.append(_counts(places_RM) @ sums_MX)
        left -= some
    return np.concatenate(found)


def _counts(places_RM: npt.NDArray[np.int64]) -> Array:
    """How often each item was drawn [R,M]."""
    draws, items = places_RM.shape
    flat = (places_RM + np.arange(draws)[:, None] * items).ravel()
    return np.bincount(flat, minlength=draws * items).reshape(draws, items).astype(np.float64)


def _between(values_R: Array) -> Interval | None:
    if not np.isfinite(values_R).all():
        return None
    edge = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(values_R, [edge, 1.0 - edge])
    return Interval(float(low), float(high))
