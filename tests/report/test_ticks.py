import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from narrows.report import ticks

NUMBERS = st.floats(min_value=-1e6, max_value=1e6, allow_subnormal=False)


@given(NUMBERS, NUMBERS, st.integers(min_value=4, max_value=9))
def test_linear_marks_are_few_even_and_inside(low, high, most):
    assume(high - low > max(abs(low), abs(high), 1e-3) * 1e-6)
    marks = ticks.linear(low, high, most)
    step = ticks.spacing(low, high, most)
    assert 1 <= len(marks) <= most
    assert all(low - step * 1e-6 <= mark <= high + step * 1e-6 for mark in marks)
    for first, second in zip(marks, marks[1:], strict=False):
        assert second - first == pytest.approx(step, rel=1e-4)


@given(NUMBERS, NUMBERS)
def test_marks_around_a_range_enclose_it(low, high):
    assume(high - low > max(abs(low), abs(high), 1e-3) * 1e-6)
    marks = ticks.around(low, high, 7)
    slack = (high - low) * 1e-6
    assert marks[0] <= low + slack and marks[-1] >= high - slack
    assert len(marks) <= 9


def test_marks_around_a_single_value_still_make_an_axis():
    assert ticks.around(4.0, 4.0, 5)[0] < 4.0 < ticks.around(4.0, 4.0, 5)[-1]
    assert len(ticks.around(0.0, 0.0, 5)) >= 2


def test_labels_have_equal_decimals_and_a_true_minus():
    assert ticks.labels((0.0, 0.5, 1.0)) == ("0.0", "0.5", "1.0")
    assert ticks.labels((0.0, 1000.0)) == ("0", "1,000")
    assert ticks.labels((-2.0, 0.0)) == ("−2", "0")


def test_logarithmic_marks_are_powers_of_ten_or_finer_where_these_are_few():
    assert ticks.logarithmic(0.04, 300, 7) == (0.1, 1.0, 10.0, 100.0)
    assert ticks.logarithmic(12, 480, 7) == (20.0, 50.0, 100.0, 200.0)
    assert len(ticks.logarithmic(1e-6, 1e12, 6)) <= 7


def test_prefixes():
    assert [ticks.prefixed(value) for value in (0.1, 1.0, 1e3, 1e11, 1e12)] == [
        "0.1", "1", "1 k", "100 G", "1 T"
    ]  # fmt: skip


def test_where_even_finer_marks_are_fewer_than_two_they_are_even():
    assert ticks.logarithmic(0.021, 0.055, 6) == (0.03, 0.04, 0.05)
    assert ticks.logarithmic(300.0, 900.0, 6) == (400.0, 600.0, 800.0)
    assert ticks.logarithmic(0.019, 0.055, 6) == (0.02, 0.05)
