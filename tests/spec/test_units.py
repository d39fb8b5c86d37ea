from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.spec import units
from narrows.spec.errors import BadInput
from narrows.spec.units import Bytes, BytesPerSecond, Dollars, Joules, Quantity, Seconds, Tokens

KINDS = Quantity.__subclasses__()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Bytes, "80 GiB", 80 * 2**30),
        (Bytes, "24GB", 24e9),
        (Bytes, "1,000 B", 1000.0),
        (Bytes, "1_000 B", 1000.0),
        (BytesPerSecond, "3.35 TB/s", 3.35e12),
        (BytesPerSecond, "100 Gbit/s", 12.5e9),
        (Seconds, "10 min", 600.0),
        (Seconds, "5min", 300.0),
        (Seconds, "2.5 h", 9000.0),
        (Seconds, "3 µs", 3e-6),
        (Seconds, "3us", 3e-6),
        (Seconds, "1e-3 s", 1e-3),
        (Joules, "0.4 kWh", 1.44e6),
        (Dollars, "$20", 20.0),
        (Dollars, "$ 0.50", 0.5),
        (Dollars, "50 cents", 0.5),
        (Tokens, "20M tokens", 20e6),
        (Tokens, "1.5B tokens", 1.5e9),
        (Tokens, "300 tokens", 300.0),
        (units.FlopPerSecond, "989 TFLOP/s", 989e12),
        (units.RequestsPerSecond, "5 requests/s", 5.0),
        (units.RequestsPerSecond, "30 req/min", 0.5),
        (units.Watts, "350 W", 350.0),
        (units.DollarsPerHour, "2.5 $/h", 2.5),
        (units.GramsPerKilowattHour, "0.4 kg/kWh", 400.0),
    ],
)
def test_reads_what_people_write(kind: type[Quantity], text: str, value: float) -> None:
    assert kind.parse(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_example_is_valid(kind: type[Quantity]) -> None:
    assert kind.parse(kind.example) > 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(value=st.floats(allow_nan=False, allow_infinity=False, min_value=-1e25, max_value=1e25))
def test_text_reads_back_as_the_very_same_number(kind: type[Quantity], value: float) -> None:
    assert float(kind.parse(str(kind(value)))) == value


@given(value=st.floats(min_value=1e-9, max_value=1e15), digits=st.integers(1, 6))
def test_short_text_is_within_its_digits(value: float, digits: int) -> None:
    read = Seconds.parse(Seconds(value).text(digits))
    assert read == pytest.approx(value, rel=0.51 * 10 ** (1 - digits) * 10)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Bytes(85899345920), "85.9 GB"),
        (Bytes(999.9996e6), "1 GB"),
        (Bytes(1234e12), "1234 TB"),
        (Seconds(90), "1.5 min"),
        (Seconds(0.00025), "250 µs"),
        (Dollars(20), "$20"),
        (Tokens(12.5e6), "12.5 M tokens"),
        (Joules(0), "0 J"),
    ],
)
def test_short_text_has_the_largest_fitting_unit(value: Quantity, text: str) -> None:
    assert value.text() == text


@pytest.mark.parametrize(
    "text", ["5", 5, 5.0, True, None, "", "min", "5 m", "nan s", "inf s", "1e999 s", "5 s s", "$5"]
)
def test_refuses_what_has_no_known_unit(text: object) -> None:
    with pytest.raises(BadInput) as caught:
        Seconds.parse(text)
    assert '"10 min"' in str(caught.value)


def test_refuses_two_units() -> None:
    with pytest.raises(BadInput, match="unknown unit"):
        Dollars.parse("$20 cents")
