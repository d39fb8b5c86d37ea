import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.report.numbers import (
    compact,
    duration,
    energy,
    grams,
    percent,
    plain,
    share,
    show,
    significant,
    size,
)


def spaced(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1520.4, "1,520"), (15.24, "15.2"), (0.00152, "0.00152"), (0, "0"), (999.6, "1,000"),
        (-3.14159, "−3.14"), (1.5e-7, "1.50×10⁻⁷"), (2.5e11, "2.50×10¹¹"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_three_digits(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0012, "0.0012"), (10000.0, "10,000"), (1e-5, "1×10⁻⁵"), (2.5, "2.5")]
)
def test_plain_has_no_trailing_zeros(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0, "0 s", "0 秒"), (3.8e-5, "38.0 µs", "38.0 微秒"), (0.7381, "738 ms", "738 毫秒"),
        (12.34, "12.3 s", "12.3 秒"), (59.96, "1 min", "1 分"), (302.4, "5 min 2 s", "5 分 2 秒"),
        (3599.8, "1 h", "1 小时"), (11520, "3 h 12 min", "3 小时 12 分"),
        (86400 * 2 + 7300, "2 d 2 h", "2 天 2 小时"), (86400 + 60, "1 d", "1 天"),
    ],
)  # fmt: skip
def test_durations_in_two_units_at_most(seconds, english, chinese):
    assert spaced(duration(seconds).en) == english
    assert spaced(duration(seconds).zh) == chinese


@given(st.floats(min_value=1e-6, max_value=1e8))
def test_a_duration_is_true_to_a_percent_or_its_smaller_unit(seconds):
    units = {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
    words = spaced(duration(seconds).en).replace(",", "").split()
    told = sum(
        float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True)
    )
    smaller = {"d": 3600, "h": 60, "min": 1}.get(words[1], 0)
    assert told == pytest.approx(seconds, rel=0.006, abs=smaller)


def test_other_quantities():
    assert [compact(value) for value in (812, 8192, 11.2e6, 2.1e9)] == [
        "812", "8.19k", "11.2M", "2.10B"
    ]  # fmt: skip
    assert [spaced(percent(value)) for value in (0.041, -0.31, 0.0, 0.99951, None)] == [
        "+4.1 %", "−31 %", "0 %", "+100 %", "–"
    ]  # fmt: skip
    assert spaced(share(0.583)) == "58 %"
    assert [spaced(size(value)) for value in (612e6, 999.9e6, 24e9, 12, 0)] == [
        "612 MB", "1.00 GB", "24.0 GB", "12.0 B", "0 B"
    ]  # fmt: skip
    assert [spaced(energy(value)) for value in (212, 1661, 4e6, 1.17e12)] == [
        "212 J",
        "0.461 Wh",
        "1.11 kWh",
        "325 MWh",
    ]
    assert [spaced(grams(value)) for value in (0.185, 1.51, 4100, 2.39e8)] == [
        "185 mg",
        "1.51 g",
        "4.10 kg",
        "239 t",
    ]


@pytest.mark.parametrize(
    "unit", ["seconds", "bytes", "joules", "dollars", "grams", "share", "watts", "number"]
)
def test_what_is_absent_or_not_finite_is_a_dash(unit):
    for value in (None, math.nan, math.inf):
        assert show(value, unit).en == "–"
    assert show(1.0, unit).en != "–"
