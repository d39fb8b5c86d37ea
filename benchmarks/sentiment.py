"""Sentiment: a run that classifies, or tells a number, against word counts and a linear model.

    python benchmarks/sentiment.py rows/films runs/films
    python benchmarks/sentiment.py rows/reviews runs/reviews --characters

The baseline is scikit-learn's: TF-IDF of one and two words, or of one to three characters where a
language has no spaces, and logistic regression, or ridge regression of numbers. It learns the same
train.jsonl, and both are asked every row of the same validation.jsonl, but those that the run left
out for their length. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from peers.commit import commit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from narrows.infer import classifier
from narrows.infer.classifier import Classifier
from narrows.spec.errors import BadInput

C, ALPHA = 8.0, 1.0
Row = dict[str, Any]


def main() -> None:
    """Learn the baseline, ask both, and print how often they are right or how far they are off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="a folder with train.jsonl and validation.jsonl")
    parser.add_argument("run", type=Path, help="what narrows train left")
    parser.add_argument("--characters", action="store_true", help="count these, not words")
    chosen = parser.parse_args()
    train, held = (read(chosen.rows / f"{split}.jsonl") for split in ("train", "validation"))
    model = classifier.load(chosen.run)
    answers = [answer(model, row["text"]) for row in held]
    ours = [said for said in answers if said is not None]
    asked = [row for row, said in zip(held, answers, strict=True) if said is not None]
    theirs = baseline(train, [row["text"] for row in asked], characters=chosen.characters)
    kind = "label" if "label" in held[0] else "value"
    truth = [row[kind] for row in asked]
    measure = accuracy if kind == "label" else error
    name = "accuracy" if kind == "label" else "root mean square error"
    found = {"ours": measure(ours, truth), "baseline": measure(theirs, truth)}
    print(f"{len(asked)} of {len(held)} rows held back, {name}")
    for who, value in found.items():
        print(f"{who:>10}  {value:.4f}")
    facts = {"rows": len(asked), "left_out": len(held) - len(asked), "commit": commit()}
    print(json.dumps({name.replace(" ", "_"): found, **facts}))


def read(path: Path) -> list[Row]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def baseline(train: list[Row], texts: list[str], *, characters: bool) -> list[Any]:
    """What a linear model of counts says of the texts."""
    counts = TfidfVectorizer(
        analyzer="char" if characters else "word", ngram_range=(1, 3 if characters else 2),
        min_df=2, sublinear_tf=True,
    )  # fmt: skip
    numbers = "value" in train[0]
    model = Ridge(alpha=ALPHA) if numbers else LogisticRegression(C=C, max_iter=500)
    learned = counts.fit_transform(row["text"] for row in train)
    model.fit(learned, [row["value" if numbers else "label"] for row in train])
    return list(model.predict(counts.transform(texts)))


def answer(model: Classifier, text: str) -> Any:
    """The likeliest label, or the number; None of a text that is longer than the model reads."""
    try:
        found = model.answer(text)[0]
    except BadInput:
        return None
    return found.number if found.label is None else found.label


def accuracy(said: list[Any], truth: list[Any]) -> float:
    """Share of the rows whose label was said."""
    return sum(mine == true for mine, true in zip(said, truth, strict=True)) / len(truth)


def error(said: list[Any], truth: list[Any]) -> float:
    """Root of the mean square of what was said beside the truth."""
    squares = [(float(mine) - true) ** 2 for mine, true in zip(said, truth, strict=True)]
    return math.sqrt(sum(squares) / len(squares))


if __name__ == "__main__":
    main()
