"""How good a classifier is, from labels and what it said; arrays in, numbers out, no model.

Labels are class numbers from 0 on [M], probabilities [M,C]. Tests hold all of it to scikit-learn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from narrows.spec.errors import BadInput

Array = npt.NDArray[Any]
BINS = 10


class Reliability(NamedTuple):
    """Of each bin of confidence: how many answers, how sure they were, how many were right, each in
    the mean; 0 where a bin is empty.
    """

    rows: Array
    confidence: Array
    accuracy: Array


def check(labels_M: Array, classes: int) -> None:
    """Raises BadInput for the first label outside of the classes, by its row, counted from 1."""
    labels_M = np.asarray(labels_M)
    if not labels_M.size:
        raise BadInput("there are no labels", hint="give at least one row")
    wrong_M = (labels_M < 0) | (labels_M >= classes)
    if wrong_M.any():
        row = int(np.argmax(wrong_M))
        what = f"row {row + 1} has the label {labels_M[row]}, and there are {classes} classes"
        raise BadInput(what, hint=f"labels are numbers from 0 to {classes - 1}")


def accuracy(labels_M: Array, said_M: Array) -> float:
    """The share of rows that were told right."""
    return float(np.mean(np.asarray(labels_M) == np.asarray(said_M)))


def confusion(labels_M: Array, said_M: Array, classes: int) -> Array:
    """How many rows of each class (first) were said to be of each (second) [C,C]."""
    check(labels_M, classes)
    check(said_M, classes)
    pairs_M = np.asarray(labels_M) * classes + np.asarray(said_M)
    return np.bincount(pairs_M, minlength=classes * classes).reshape(classes, classes)


def f1(confusion_CC: Array) -> Array:
    """2 · right / (told + there) of each class [..., C]; 0 for a class that is neither."""
    right_C = np.diagonal(confusion_CC, axis1=-2, axis2=-1)
    both_C = confusion_CC.sum(-1) + confusion_CC.sum(-2)
    return 2.0 * right_C / np.maximum(both_C, 1)


def f1_macro(confusion_CC: Array) -> Array:
    """The mean F1 of the classes that occur, in truth or in answers."""
    occurs_C = confusion_CC.sum(-1) + confusion_CC.sum(-2) > 0
    return f1(confusion_CC).sum(-1) / np.maximum(occurs_C.sum(-1), 1)


def f1_micro(confusion_CC: Array) -> Array:
    """F1 of all rows together, which is accuracy where each row has one class."""
    right = np.trace(confusion_CC, axis1=-2, axis2=-1)
    return right / np.maximum(confusion_CC.sum((-2, -1)), 1)


def brier(labels_M: Array, probabilities_MC: Array) -> float:
    """The mean squared distance between what was said and the truth, from 0 to 2 (Brier 1950)."""
    return float(brier_of_rows(labels_M, probabilities_MC).mean())


def brier_of_rows(labels_M: Array, probabilities_MC: Array) -> Array:
    """The same of each row [M]."""
    check(labels_M, probabilities_MC.shape[1])
    truth_MC = np.eye(probabilities_MC.shape[1])[labels_M]
    squares_M: Array = ((probabilities_MC - truth_MC) ** 2).sum(-1)
    return squares_M


def reliability(labels_M: Array, probabilities_MC: Array, bins: int = BINS) -> Reliability:
    """By the likeliest class's probability, in bins of equal width."""
    check(labels_M, probabilities_MC.shape[1])
    sure_M, said_M = probabilities_MC.max(-1), probabilities_MC.argmax(-1)
    sums_3X = binned(sure_M, said_M == labels_M, bins).sum(0)
    count_X, confidence_X, right_X = sums_3X.reshape(3, bins)
    many_X = np.maximum(count_X, 1)
    return Reliability(count_X.astype(int), confidence_X / many_X, right_X / many_X)


def calibration_error(labels_M: Array, probabilities_MC: Array, bins: int = BINS) -> float:
    """By how much confidence misses accuracy, in the mean over all rows (arXiv:1706.04599)."""
    found = reliability(labels_M, probabilities_MC, bins)
    gaps_X = np.abs(found.accuracy - found.confidence)
    return float((found.rows * gaps_X).sum() / found.rows.sum())


def binned(sure_M: Array, right_M: Array, bins: int = BINS) -> Array:
    """What each row adds to the counts, confidences and right answers of the bins [M, 3·bins]."""
    bin_M = np.clip((np.asarray(sure_M) * bins).astype(int), 0, bins - 1)
    here_MX = np.eye(bins)[bin_M]
    parts = (here_MX, here_MX * np.asarray(sure_M)[:, None], here_MX * np.asarray(right_M)[:, None])
    return np.concatenate(parts, axis=1)


def error_of_bins(sums_3X: Array) -> Array:
    """The calibration error of what rows added up to [..., 3·bins]."""
    count_X, confidence_X, right_X = np.split(sums_3X, 3, axis=-1)
    gaps_X = np.abs(right_X - confidence_X)
    return gaps_X.sum(-1) / np.maximum(count_X.sum(-1), 1)
