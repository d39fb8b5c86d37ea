"""How good predicted numbers are; arrays in, numbers out. Tests hold it to numpy and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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
    return pearson(_ranks(truth_M), _ranks(said_M))


def _ranks(values_M: Array) -> Array:
    _, place_M, count_U = np.unique(values_M, return_inverse=True, return_counts=True)
    last_U = np.cumsum(count_U)
    return (last_U - (count_U - 1) / 2.0)[place_M]
