from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.spec.errors import BadInput
from narrows.spec.fleet import Spread, counted
from narrows.spec.record import from_builtins, to_builtins

COUNTS = (
    "data", "replicas", "tensor", "pipeline", "interleave", "context", "expert", "micro_batch",
    "accumulation",
)  # fmt: skip
FEW = st.integers(min_value=1, max_value=64)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_nothing_is_divided_among_none(name: str, value: int) -> None:
    with pytest.raises(BadInput, match=rf"layout\.{name} is {value}") as caught:
        Spread(**{name: value})
    assert caught.value.hint == "use at least 1"


@given(counts=st.fixed_dictionaries(dict.fromkeys(COUNTS, FEW)))
def test_devices_and_sequences_are_products_of_ranks(counts: dict[str, int]) -> None:
    spread = Spread(**counts)  # type: ignore[arg-type]
    ranks = spread.data * spread.replicas
    assert spread.devices == ranks * spread.tensor * spread.pipeline * spread.context
    assert spread.batch_sequences == ranks * spread.micro_batch * spread.accumulation
    assert from_builtins(Spread, to_builtins(spread)) == spread


def test_one_device_by_default() -> None:
    assert (Spread().devices, Spread().batch_sequences) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sharding", "zero"), ("recompute", "half"), ("precision", "int8"), ("kernels", "quick")],
)
def test_a_choice_that_is_not_known_is_refused_when_read(name: str, value: str) -> None:
    with pytest.raises(BadInput, match=f"{name} cannot be '{value}'"):
        from_builtins(Spread, {name: value})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("h100-sxm", (None, None, "h100-sxm")),
        ("8xh100-sxm", (8, None, "h100-sxm")),
        (" 16 x 8 X h100-sxm ", (16, 8, "h100-sxm")),
        ("7900 xtx", (None, None, "7900 xtx")),
        ("2x7900 xtx", (2, None, "7900 xtx")),
    ],
)
def test_counts_are_read_before_what_they_count(
    name: str, parts: tuple[int | None, int | None, str]
) -> None:
    assert counted(name) == parts
