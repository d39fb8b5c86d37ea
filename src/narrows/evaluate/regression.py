"""How good predicted numbers are; arrays in, numbers out. Tests hold it to numpy and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_ROUNDING = 1e-20


def mean_absolute_error(truth_M: Array, said_M: Array) -> float:
    """The mean distance."""
    return float(np.abs(truth_M - said_M).mean())


def root_mean_squared_error(truth_M: Array, said_M: Array) -> float:
    """The root of the mean squared distance."""
    return float(np.sqrt(((truth_M - said_M) ** 2).mean()))


def pearson(truth_M: Array, said_M: Array) -> float:
    """The linear correlation; NaN where either does not vary, as it has none then."""
    a_M, b_M = truth_M - truth_M.mean(), said_M - said_M.mean()
    length = np.sqrt((a_M**2).sum() * (b_M**2).sum())
    return float((a_M * b_M).sum() / length) if length > 0 else float("nan")


def spearman(truth_M: Array, said_M: Array) -> float:
    """The correlation of the ranks; equal numbers share the mean of theirs."""
    return pearson(ranks(truth_M), ranks(said_M))


def products(truth_M: Array, said_M: Array) -> Array:
    """What each row adds to their correlation [M,6], of numbers moved to the mean of the truth."""
    middle = truth_M.mean()
    a_M, b_M = truth_M - middle, said_M - middle
    return np.stack([np.ones_like(a_M), a_M, b_M, a_M * a_M, b_M * b_M, a_M * b_M], axis=1)


def correlation(sums_6: Array) -> Array:
    """The linear one of what rows added up to [..., 6]; 0 where either does not vary."""
    count, a, b, aa, bb, ab = np.moveaxis(np.asarray(sums_6, dtype=np.float64), -1, 0)
    spread = np.maximum(count * aa - a * a, 0.0) * np.maximum(count * bb - b * b, 0.0)
    varies = spread > _ROUNDING * (count * aa) * (count * bb)
    found: Array = np.where(
        varies, (count * ab - a * b) / np.sqrt(np.where(varies, spread, 1.0)), 0.0
    )
    return found


def ranks(values_M: Array) -> Array:
    """From 1; equal numbers share the mean of theirs."""
    _, place_M, count_U = np.unique(values_M, return_inverse=True, return_counts=True)
    last_U = np.cumsum(count_U)
    return (last_U - (count_U - 1) / 2.0)[place_M]
