from __future__ import annotations

import numpy as np
import pytest

from narrows.evaluate.bootstrap import drawn, interval, paired_interval
from narrows.evaluate.forms import value

GENERATOR = np.random.default_rng(0)


def shares(right: np.ndarray) -> np.ndarray:
    return np.stack([right, np.ones(len(right))], axis=1)


def test_drawn_sums_are_those_of_as_many_items() -> None:
    sums_RX = drawn(shares(GENERATOR.random(30)), seed=1, draws=50)
    assert sums_RX.shape == (50, 2) and (sums_RX[:, 1] == 30).all()
    assert np.array_equal(sums_RX, drawn(shares(GENERATOR.random(30)), 1, 50)) is False


def test_equal_seeds_draw_equal_items() -> None:
    sums_MX = shares(GENERATOR.random(30))
    assert np.array_equal(drawn(sums_MX, 7), drawn(sums_MX, 7))
    assert not np.array_equal(drawn(sums_MX, 7), drawn(sums_MX, 8))


def test_an_interval_is_that_of_the_mean() -> None:
    """By the normal approximation: ± 1.96 deviations of the mean."""
    values_M = GENERATOR.normal(3.0, 1.0, 400)
    found = interval("mean", shares(values_M), 0)
    assert found is not None
    half = 1.96 * values_M.std() / 20.0
    assert found.low == pytest.approx(values_M.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values_M.mean() + half, abs=0.1 * half)


def test_pairs_cancel_what_makes_items_hard() -> None:
    hard_M = GENERATOR.normal(5.0, 3.0, 200)
    first, second = shares(hard_M + 0.1), shares(hard_M + GENERATOR.normal(0.0, 0.1, 200))
    alone, together = interval("mean", first, 0), paired_interval("mean", first, second, 0)
    assert alone is not None and together is not None
    assert together.high - together.low < 0.1 * (alone.high - alone.low)
    assert together.low < 0.1 < together.high and together.low > 0.0


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """60 samples of 80 fair coins: 95 % of intervals hold 0.5, and more than 8 misses of 60 have
    a chance below one in a hundred.
    """
    misses = 0
    for seed in range(60):
        coins = np.random.default_rng(seed).integers(2, size=80).astype(float)
        found = interval("mean", shares(coins), seed)
        assert found is not None
        misses += not found.low <= 0.5 <= found.high
    assert misses <= 8


def test_few_items_tell_nothing_of_chance() -> None:
    assert interval("mean", shares(np.ones(5)), 0) is None
    assert paired_interval("mean", shares(np.ones(5)), shares(np.ones(5)), 0) is None


@pytest.mark.filterwarnings("error")
def test_what_is_infinite_has_no_interval() -> None:
    lost = np.tile([9e9, 1.0], (30, 1))
    assert value("perplexity", lost[0]) == np.inf
    assert interval("perplexity", lost, 0) is None
    assert paired_interval("perplexity", lost, lost, 0) is None


def test_forms_by_hand() -> None:
    assert value("perplexity", np.array([np.log(8.0) * 3, 3.0])) == pytest.approx(8.0)
    assert value("bits", np.array([np.log(2.0) * 12, 4.0])) == pytest.approx(3.0)
    assert value("mean", np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [0.5, 0.75]
    assert value("f1_macro", np.array([1.0, 1.0, 0.0, 2.0])) == pytest.approx((2 / 3 + 0.8) / 2)
