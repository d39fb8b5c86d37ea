from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.evaluate import classification, regression
from narrows.spec.errors import BadInput

LABELS = np.array([0, 0, 1, 1, 2, 2])
SAID = np.array([0, 1, 1, 1, 2, 0])


@st.composite
def judged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that add up to one."""
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights_MC = generator.random((rows, classes)) ** 3 + 1e-6
    return generator.integers(classes, size=rows), weights_MC / weights_MC.sum(1, keepdims=True)


def test_a_confusion_counts_truth_by_rows() -> None:
    found = classification.confusion(LABELS, SAID, 3)
    assert found.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert classification.accuracy(LABELS, SAID) == pytest.approx(4 / 6)


def test_f1_by_hand() -> None:
    confusion_CC = classification.confusion(LABELS, SAID, 3)
    # 2 · right / (told + there): 2/4, 4/5, 2/3.
    assert classification.f1(confusion_CC).tolist() == pytest.approx([0.5, 0.8, 2 / 3])
    assert float(classification.f1_macro(confusion_CC)) == pytest.approx((0.5 + 0.8 + 2 / 3) / 3)
    assert float(classification.f1_micro(confusion_CC)) == pytest.approx(4 / 6)


def test_calibration_by_hand() -> None:
    probabilities_MC = np.array([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55], [0.35, 0.65]])
    labels_M = np.array([0, 1, 1, 0])
    found = classification.reliability(labels_M, probabilities_MC)
    assert found.rows.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 2]
    assert found.confidence[9] == pytest.approx(0.95) and found.accuracy[9] == pytest.approx(0.5)
    expected = (0.45 + 0.65 + 2 * 0.45) / 4
    assert classification.calibration_error(labels_M, probabilities_MC) == pytest.approx(expected)
    brier = (2 * 0.05**2 + 2 * 0.95**2 + 2 * 0.45**2 + 2 * 0.65**2) / 4
    assert classification.brier(labels_M, probabilities_MC) == pytest.approx(brier)


def test_a_sure_and_right_classifier_is_perfect() -> None:
    probabilities_MC = np.eye(3)[LABELS]
    assert classification.calibration_error(LABELS, probabilities_MC) == 0.0
    assert classification.brier(LABELS, probabilities_MC) == 0.0


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, -1, 1]])
def test_a_label_outside_of_the_classes_is_named(labels: list[int]) -> None:
    with pytest.raises(BadInput, match=r"row \d has the label -?\d"):
        classification.confusion(np.array(labels), np.zeros(3, dtype=int), 3)


def test_no_labels_are_refused() -> None:
    with pytest.raises(BadInput, match="no labels"):
        classification.brier(np.array([], dtype=int), np.zeros((0, 2)))


@given(judged())
@settings(max_examples=60, deadline=None)
def test_classification_equals_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    theirs: Any = pytest.importorskip("sklearn.metrics")
    labels_M, probabilities_MC = case
    classes, said_M = probabilities_MC.shape[1], probabilities_MC.argmax(1)
    confusion_CC = classification.confusion(labels_M, said_M, classes)
    wanted_CC = theirs.confusion_matrix(labels_M, said_M, labels=range(classes))
    assert confusion_CC.tolist() == wanted_CC.tolist()
    for name in ("macro", "micro"):
        ours = getattr(classification, f"f1_{name}")(confusion_CC)
        assert float(ours) == pytest.approx(theirs.f1_score(labels_M, said_M, average=name))
    each = theirs.f1_score(labels_M, said_M, labels=range(classes), average=None, zero_division=0)
    assert classification.f1(confusion_CC).tolist() == pytest.approx(each.tolist())
    brier = theirs.brier_score_loss(
        labels_M, probabilities_MC, labels=list(range(classes)), scale_by_half=False
    )
    assert classification.brier(labels_M, probabilities_MC) == pytest.approx(brier)


@given(judged())
@settings(max_examples=60, deadline=None)
def test_calibration_is_what_its_bins_add_up_to(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels_M, probabilities_MC = case
    found = classification.reliability(labels_M, probabilities_MC)
    assert found.rows.sum() == len(labels_M)
    assert 0.0 <= classification.calibration_error(labels_M, probabilities_MC) <= 1.0
    right_M = probabilities_MC.argmax(1) == labels_M
    added_MX = classification.binned(probabilities_MC.max(1), right_M)
    whole = classification.calibration_error(labels_M, probabilities_MC)
    assert float(classification.error_of_bins(added_MX.sum(0))) == pytest.approx(whole)


@given(st.integers(0, 2**32 - 1), st.integers(2, 50))
@settings(max_examples=60, deadline=None)
def test_regression_equals_numpy_and_scipy(seed: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    truth_M, said_M = generator.integers(0, 9, rows) / 2.0, generator.normal(size=rows)
    ours = regression.mean_absolute_error(truth_M, said_M)
    assert ours == pytest.approx(np.mean(np.abs(truth_M - said_M)))
    squared = regression.root_mean_squared_error(truth_M, said_M) ** 2
    assert squared == pytest.approx(np.mean((truth_M - said_M) ** 2))
    if len(set(truth_M)) == 1:
        assert np.isnan(regression.pearson(truth_M, said_M))
        return
    assert regression.pearson(truth_M, said_M) == pytest.approx(np.corrcoef(truth_M, said_M)[0, 1])
    theirs: Any = pytest.importorskip("scipy.stats")
    expected = theirs.spearmanr(truth_M, said_M).statistic
    assert regression.spearman(truth_M, said_M) == pytest.approx(expected)


def test_spearman_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    truth_M, said_M = np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.0, 5.0, 6.0, 7.0])
    assert regression.spearman(truth_M, said_M) == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))
