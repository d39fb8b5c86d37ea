"""Classifiers and regressors on rows: each number is the plain formula's over their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.data.published import Words
from narrows.data.tokenizers import Tokenizer
from narrows.evaluate import classification, regression
from narrows.evaluate.assessment import CONFUSION, Assessment, Found, Manner, Rows, sums
from narrows.evaluate.comparison import compared
from narrows.evaluate.forms import value
from narrows.evaluate.judging import judge
from narrows.evaluate.passes import Passes
from narrows.evaluate.told import told
from narrows.infer.classifier import Classifier
from narrows.spec.errors import BadInput
from narrows.spec.objective import Classify, Regress
from tests.infer.conftest import built, spec

LABELS = ("bad", "fair", "good")
COUNT = 40


def classifier(bpe: Tokenizer, objective: Classify | Regress, **changes: Any) -> Classifier:
    classes = len(LABELS) if isinstance(objective, Classify) else 1
    shape = msgspec.structs.replace(spec(), classes=classes, pooling="mean", causal=False)
    return Classifier(built(msgspec.structs.replace(shape, **changes)), Words(bpe), objective)


def written(folder: Path, field: str) -> Path:
    path = folder / "rows.jsonl"
    values = {"label": lambda n: LABELS[n % 3], "value": lambda n: float(n % 7)}
    rows = ({"text": "Juliet is the sun. "[: 3 + n % 9] * (1 + n % 3), field: values[field](n)}
            for n in range(COUNT))  # fmt: skip
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def said(found: Found) -> dict[str, float]:
    return {metric.name: metric.value for metric in found.metrics}


def asked(model: Classifier, path: Path, **manner: Any) -> Found:
    passes = Passes(model.model)
    return judge(model, Rows(file=str(path)), Manner(**manner), passes, lambda text: None)


def texts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_metric_of_classes_is_that_of_the_single_answers(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    path, model = written(tmp_path, "label"), classifier(bpe, Classify(labels=LABELS))
    found = asked(model, path)
    odds_MC = np.zeros((COUNT, 3))
    for place, row in enumerate(texts(path)):
        for each in model.answer(row["text"]):
            assert each.label is not None
            odds_MC[place, LABELS.index(each.label)] = each.share
    truth_M = np.array([LABELS.index(row["label"]) for row in texts(path)])
    said_M = odds_MC.argmax(-1)
    pairs_CC = classification.confusion(truth_M, said_M, 3)
    expected = {
        "accuracy": classification.accuracy(truth_M, said_M),
        CONFUSION: float(classification.f1_macro(pairs_CC)),
        "Brier score": classification.brier(truth_M, odds_MC),
        "calibration error": classification.calibration_error(truth_M, odds_MC),
        **{f"F1 of {label}": float(classification.f1(pairs_CC)[place])
           for place, label in enumerate(LABELS)},
    }  # fmt: skip
    assert said(found) == pytest.approx(expected, abs=1e-5)
    assert (sums(found.items, CONFUSION).sum(0).reshape(3, 3) == pairs_CC).all()
    assert [item.answer for item in found.items] == [LABELS[each] for each in said_M]
    assert found.labels == LABELS


def test_each_metric_of_numbers_is_that_of_the_single_answers(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    path, model = written(tmp_path, "value"), classifier(bpe, Regress())
    found = asked(model, path)
    said_M = np.array([model.answer(row["text"])[0].number for row in texts(path)])
    truth_M = np.array([row["value"] for row in texts(path)])
    expected = {
        "mean absolute error": regression.mean_absolute_error(truth_M, said_M),
        "root mean squared error": regression.root_mean_squared_error(truth_M, said_M),
        "Pearson": regression.pearson(truth_M, said_M),
        "Spearman": regression.spearman(truth_M, said_M),
    }
    assert said(found) == pytest.approx(expected, abs=1e-4)


def test_what_does_not_vary_has_no_correlation() -> None:
    same_M, other_M = np.full(9, 1e6), np.arange(9.0)
    for pair in ((same_M, other_M), (other_M, same_M)):
        assert float(value("correlation", regression.products(*pair).sum(0))) == 0.0
    far_M = 1e6 + other_M
    assert float(value("correlation", regression.products(far_M, other_M).sum(0))) == pytest.approx(
        1.0
    )


@pytest.mark.parametrize("field", ["label", "value"])
def test_the_batch_changes_nothing(field: str, bpe: Tokenizer, tmp_path: Path) -> None:
    objective = Classify(labels=LABELS) if field == "label" else Regress()
    path, model = written(tmp_path, field), classifier(bpe, objective)
    one, many = (said(asked(model, path, batch=batch)) for batch in (1, 8))
    assert many == pytest.approx(one, abs=1e-5)


def test_two_are_compared_over_the_same_rows(bpe: Tokenizer, tmp_path: Path) -> None:
    path = written(tmp_path, "label")
    first, second = (
        assessed(asked(classifier(bpe, Classify(labels=labels)), path))
        for labels in (LABELS, tuple(reversed(LABELS)))
    )
    found = {each.metric: each for each in compared(first, second).differences}
    assert set(found) == {metric.name for metric in first.metrics}
    assert found["accuracy"].low is not None
    other = assessed(asked(classifier(bpe, Classify(labels=LABELS)), path, limit=9))
    with pytest.raises(BadInput, match="other data"):
        compared(first, other)


def test_confusions_are_told_by_their_labels(bpe: Tokenizer, tmp_path: Path) -> None:
    found = asked(classifier(bpe, Classify(labels=LABELS)), written(tmp_path, "label"))
    lines = told(assessed(found)).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("is, said"))
    table = [line.split() for line in lines[at + 1 : at + 4]]
    assert [row[0] for row in table] == list(LABELS)
    assert sum(int(count) for row in table for count in row[1:]) == COUNT


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "sun", "label": "worse"}, "none of bad, fair, good"),
        ({"text": "sun"}, "has no label"),
        ({"text": "Juliet is the sun. " * 40, "label": "bad"}, "too long"),
        ({"label": "bad"}, "has no text"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(
    row: dict[str, str], what: str, bpe: Tokenizer, tmp_path: Path
) -> None:
    path = written(tmp_path, "label")
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(BadInput, match=what) as caught:
        asked(classifier(bpe, Classify(labels=LABELS)), path)
    assert f"line {COUNT + 1}" in caught.value.what


def test_a_file_without_rows_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(BadInput, match="has no rows"):
        asked(classifier(bpe, Regress()), tmp_path / "rows.jsonl")


def assessed(found: Found) -> Assessment:
    return Assessment(
        model="m", precision="fp32", data=Rows(file="rows.jsonl"), sha256=found.sha256,
        manner=Manner(), metrics=found.metrics, items=found.items, tokens=found.tokens,
        seconds=1.0, labels=found.labels, narrows="0",
    )  # fmt: skip
