from __future__ import annotations

import pytest

from narrows.spec.errors import BadInput
from narrows.spec.record import with_override
from narrows.spec.tuning import Axis, Choice, Range, Value, assignment, axis


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("train.learning_rate=1e-4..1e-2[log]",
         Range(key="train.learning_rate", low=1e-4, high=1e-2, log=True)),
        ("model.layers=2..6", Range(key="model.layers", low=2, high=6)),
        ("train.weight_decay=0..0.5", Range(key="train.weight_decay", low=0, high=0.5)),
        ("train.optimizer=adamw, lion", Choice(key="train.optimizer", values=("adamw", "lion"))),
    ],
)  # fmt: skip
def test_values_to_search_are_read(text: str, meant: Axis) -> None:
    assert axis(text) == meant


def test_whole_numbers_are_searched_where_both_ends_are_whole() -> None:
    layers, decay = axis("model.layers=2..6"), axis("train.weight_decay=0..0.5")
    assert isinstance(layers, Range) and layers.whole
    assert isinstance(decay, Range) and not decay.whole


@pytest.mark.parametrize(
    "text",
    [
        "train.learning_rate", "=1..2", "model.layers=", "model.layers=6..2", "model.layers=3..3",
        "train.learning_rate=0..1[log]", "train.learning_rate=-1..1[log]", "train.optimizer=adamw",
        "train.optimizer=adamw,adamw", "train.clip=a..b", "train.clip=1..nan",
        "data.vocabulary=1..9", "seed=1,2", "train.optimizer=adamw,,lion",
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        axis(text)
    assert caught.value.hint


@pytest.mark.parametrize("value", [3, 0.00123456789, "adamw"])
def test_a_value_reaches_the_job_as_it_is(value: Value) -> None:
    assert with_override({}, assignment("train.x", value)) == {"train": {"x": value}}
