"""Metrics as functions of sums over documents or rows.

What an item adds is known once; a metric of any selection of items is a form of their sum. So a
bootstrap draws sums, and no text is read twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from narrows.evaluate import classification, overlap, regression

Array = npt.NDArray[np.float64]
Form = Literal[
    "mean", "root", "perplexity", "bits", "bleu", "chrf", "calibration", "f1", "f1_macro",
    "correlation",
]  # fmt: skip
Better = Literal["lower", "higher"]


def value(form: Form, sums_X: Array) -> Array:
    """The metric of sums [..., X]."""
    found: Array = _FORMS[form](sums_X)
    return found


def _mean(sums_2: Array) -> Array:
    return np.divide(sums_2[..., 0], sums_2[..., 1])


def _perplexity(sums_2: Array) -> Array:
    with np.errstate(over="ignore"):  # of a model that diverged it is infinite
        return np.exp(_mean(sums_2))


def _bits(sums_2: Array) -> Array:
    return _mean(sums_2) / math.log(2.0)


def _root(sums_2: Array) -> Array:
    return np.sqrt(_mean(sums_2))


def _f1(sums_2: Array) -> Array:
    """Of one class: twice those told right, over those told and those there; 0 of none."""
    found: Array = 2.0 * sums_2[..., 0] / np.maximum(sums_2[..., 1], 1.0)
    return found


def _f1_macro(sums_X: Array) -> Array:
    classes = math.isqrt(sums_X.shape[-1])
    found: Array = classification.f1_macro(sums_X.reshape(*sums_X.shape[:-1], classes, classes))
    return found


def _bleu(sums_X: Array) -> Array:
    return np.apply_along_axis(overlap.bleu, -1, sums_X)


def _chrf(sums_X: Array) -> Array:
    return np.apply_along_axis(overlap.chrf, -1, sums_X)


_FORMS: Mapping[Form, Callable[[Array], Any]] = {
    "mean": _mean, "root": _root, "perplexity": _perplexity, "bits": _bits, "bleu": _bleu,
    "chrf": _chrf, "calibration": classification.error_of_bins, "f1": _f1, "f1_macro": _f1_macro,
    "correlation": regression.correlation,
}  # fmt: skip
