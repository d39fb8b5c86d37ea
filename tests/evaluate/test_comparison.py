from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from narrows.evaluate.assessment import Assessment, Item, Kind, Manner, Texts, metrics
from narrows.evaluate.comparison import compared
from narrows.evaluate.told import told
from narrows.infer.sampling import Sampling
from narrows.spec.errors import BadInput
from narrows.spec.record import from_builtins, to_builtins

KINDS = (
    Kind(name="loss", form="mean", better="lower"),
    Kind(name="accuracy", form="mean", better="higher"),
)


def assessed(loss: np.ndarray, right: np.ndarray, *, tokens: int = 1000) -> Assessment:
    items = tuple(
        Item(number=n, sums={"loss": (10.0 * float(a), 10.0), "accuracy": (float(b), 1.0)})
        for n, (a, b) in enumerate(zip(loss, right, strict=True), 1)
    )
    return Assessment(
        model="model", precision="fp32", data=Texts(corpus="text"), sha256="00ff", manner=Manner(),
        metrics=metrics(KINDS, items, 0), items=items, tokens=tokens, bytes=2000, seconds=2.0,
        narrows="0",
    )  # fmt: skip


GENERATOR = np.random.default_rng(1)
LOSS, RIGHT = GENERATOR.normal(3.0, 1.0, 50), GENERATOR.integers(2, size=50)


def test_a_small_difference_on_every_item_is_seen() -> None:
    found = compared(assessed(LOSS - 0.05, RIGHT), assessed(LOSS, RIGHT))
    loss, accuracy = found.differences
    assert loss.value == pytest.approx(-0.05) and loss.verdict == "better"
    assert loss.high is not None and loss.high < 0.0
    assert (accuracy.value, accuracy.verdict) == (0.0, "undecided")


def test_higher_is_better_where_it_is() -> None:
    found = compared(assessed(LOSS, np.zeros(50)), assessed(LOSS, np.ones(50)))
    assert found.differences[1].verdict == "worse"
    found = compared(assessed(LOSS + 1, np.ones(50)), assessed(LOSS, np.zeros(50)))
    assert [each.verdict for each in found.differences] == ["worse", "better"]


def test_chance_is_no_difference() -> None:
    other = GENERATOR.permutation(LOSS)
    assert compared(assessed(LOSS, RIGHT), assessed(other, RIGHT)).differences[0].verdict == (
        "undecided"
    )


def test_few_documents_are_not_judged() -> None:
    found = compared(assessed(LOSS[:5], RIGHT[:5]), assessed(LOSS[:5] + 1, RIGHT[:5]))
    assert found.differences[0].low is None and found.differences[0].verdict == "undecided"
    both = msgspec.structs.replace(assessed(LOSS[:5], RIGHT[:5]), comparisons=(found,))
    assert "too few items to tell it from chance" in told(both)


def test_losses_by_other_tokens_are_not_compared() -> None:
    found = compared(assessed(LOSS, RIGHT), assessed(LOSS, RIGHT, tokens=900))
    assert [each.metric for each in found.differences] == ["accuracy"]
    assert found.left_out == {"loss": "the models cut the text into other tokens"}


def test_other_data_are_refused() -> None:
    other = msgspec.structs.replace(assessed(LOSS, RIGHT), sha256="1234")
    with pytest.raises(BadInput, match="other data"):
        compared(assessed(LOSS, RIGHT), other)
    with pytest.raises(BadInput, match="other rows"):
        compared(assessed(LOSS, RIGHT), assessed(LOSS[1:], RIGHT[1:]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"context": 8}, "context differ"), ({"tokens": 2, "stop": ("x",)}, "tokens and stop"),
        ({"sampling": Sampling(temperature=1.0)}, "sampling differ"),
    ],
)  # fmt: skip
def test_what_was_asked_in_another_way_is_refused(changed: dict[str, Any], said: str) -> None:
    one = assessed(LOSS, RIGHT)
    other = replace(one, manner=replace(one.manner, **changed))
    with pytest.raises(BadInput, match=said):
        compared(one, other)
    quicker = replace(one, manner=replace(one.manner, batch=1, precision="bf16"))
    assert compared(one, quicker).differences


def test_a_result_comes_back_from_what_was_kept() -> None:
    first = assessed(LOSS, RIGHT)
    both = msgspec.structs.replace(first, comparisons=(compared(first, first),))
    assert from_builtins(Assessment, to_builtins(both)) == both


def test_what_is_told() -> None:
    first = assessed(LOSS - 1.0, RIGHT)
    both = msgspec.structs.replace(
        first, comparisons=(compared(first, assessed(LOSS, RIGHT)),), notes=("a note",)
    )
    lines = told(both).splitlines()
    assert lines[0].startswith("model on text: 50 documents, 1,000 tokens, 2 kB, fp32, 2 s")
    assert lines[1] == "  a note"
    assert any(line.startswith("loss") and " to " in line for line in lines)
    assert any(line.endswith("better: 95 of 100 drawings of items agree on the side")
               for line in lines)  # fmt: skip
    assert any(line.endswith("no difference beyond chance") for line in lines)
