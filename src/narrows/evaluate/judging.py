"""What a model that says one thing of a text says of rows whose class or number is known.

    rows → documents, as training has them → scores → items, metrics

A correlation of ranks is of those among all rows, in each drawing of items, too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from narrows.data import teaching
from narrows.data.rows import Row, rows
from narrows.data.teaching import Document
from narrows.evaluate import classification, regression
from narrows.evaluate.assessment import CONFUSION, Found, Item, Kind, Manner, Rows, metrics
from narrows.evaluate.passes import Pass, Passes, Whole
from narrows.evaluate.progress import Progress, Talk
from narrows.infer.classifier import Classifier
from narrows.spec.errors import BadInput
from narrows.spec.objective import Classify

_CLASSES_MOST = 32
"""Whose confusions every item is written with."""
_OF_CLASSES = (
    Kind(name="accuracy", form="mean", better="higher"),
    Kind(name=CONFUSION, form="f1_macro", better="higher"),
    Kind(name="Brier score", form="mean", better="lower"),
    Kind(name="calibration error", form="calibration", better="lower"),
)
_OF_NUMBERS = (
    Kind(name="mean absolute error", form="mean", better="lower"),
    Kind(name="root mean squared error", form="root", better="lower"),
    Kind(name="Pearson", form="correlation", better="higher"),
    Kind(name="Spearman", form="correlation", better="higher"),
)
_Sums = dict[str, tuple[float, ...]]


def judge(
    classifier: Classifier, data: Rows, manner: Manner, passes: Passes, talk: Talk
) -> Found:  # fmt: skip
    """Every row read; raises BadInput, before any is, where one has no text, has a label outside of
    the classes, or is longer than the model reads.
    """
    path = Path(data.file).expanduser()
    asked = list(islice(rows(path), manner.limit))
    if not asked:
        raise BadInput(f"{path} has no rows", hint='{"text": "...", "label": "..."} on each line')
    labels = classifier.labels
    taught = list(teaching.documents(asked, classifier.objective, classifier.words, labels))
    found = [documents[0] for _, documents in taught]
    _refuse_long(asked, found, manner.context or classifier.model.spec.context)
    said_MC = _scores(classifier, [each.tokens for each in found], manner.batch, passes, talk)
    truth_M = np.array([document.value for document in found])
    if isinstance(classifier.objective, Classify):
        kinds = (*_OF_CLASSES, *(_f1_of(label) for label in labels))
        items, notes = _of_classes(truth_M.astype(int), said_MC, labels), _left_out(labels)
    else:
        kinds, notes = _OF_NUMBERS, ()
        items = _of_numbers(truth_M, said_MC[:, 0])
    return Found(
        items, metrics(kinds, items, manner.seed), _digest(asked),
        sum(len(document.tokens) for document in found), sum(each.bytes for each in found),
        notes, labels,
    )  # fmt: skip


def _f1_of(label: str) -> Kind:
    return Kind(name=f"F1 of {label}", form="f1", better="higher")


def _left_out(labels: Sequence[str]) -> tuple[str, ...]:
    if len(labels) <= _CLASSES_MOST:
        return ()
    return (f"{CONFUSION} and confusions are told of {_CLASSES_MOST} classes at most",)


def _refuse_long(asked: Sequence[Row], found: Sequence[Document], context: int) -> None:
    for row, document in zip(asked, found, strict=True):
        if len(document.tokens) > context:
            raise BadInput(
                f"{row.place} is too long: {len(document.tokens)} tokens, and the model reads "
                f"{context}",
                hint="shorten the row; nothing is cut in silence",
            )


def _scores(
    classifier: Classifier, texts: Sequence[Sequence[int]], batch: int, passes: Passes, talk: Talk
) -> np.ndarray:
    """Of each text's tokens [M,C], those of like length read together."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    together = [order[first : first + batch] for first in range(0, len(order), batch)]
    planned = Counter[Pass](_pass([texts[number] for number in some]) for some in together)
    passes.announce(planned, f"{len(texts):,} rows", talk)
    progress = Progress(talk, "rows", len(texts))
    said_MC = np.empty((len(texts), max(1, len(classifier.labels))))
    for some in together:
        read = [texts[number] for number in some]
        with passes.timed() as made:
            said_MC[some] = classifier.scores(read).cpu().numpy()[:, : said_MC.shape[1]]
            made[_pass(read)] += 1
        progress.add(len(some))
    return said_MC


def _pass(texts: Sequence[Sequence[int]]) -> Whole:
    return Whole(len(texts), max(map(len, texts)))


def _of_classes(
    truth_M: np.ndarray, scores_MC: np.ndarray, labels: Sequence[str]
) -> tuple[Item, ...]:
    odds_MC = np.exp(scores_MC - scores_MC.max(-1, keepdims=True))
    odds_MC /= odds_MC.sum(-1, keepdims=True)
    said_M = odds_MC.argmax(-1)
    right_M = said_M == truth_M
    misses_M = classification.brier_of_rows(truth_M, odds_MC)
    bins_MX = classification.binned(odds_MC.max(-1), right_M)
    items = []
    for place, (truth, said) in enumerate(zip(truth_M.tolist(), said_M.tolist(), strict=True)):
        added: _Sums = {
            "accuracy": (float(truth == said), 1.0),
            "Brier score": (float(misses_M[place]), 1.0),
            "calibration error": tuple(map(float, bins_MX[place])),
            **{
                f"F1 of {label}": (
                    float(truth == said == number), float(truth == number) + (said == number)
                )
                for number, label in enumerate(labels)
            },
        }  # fmt: skip
        if len(labels) <= _CLASSES_MOST:
            pairs_CC = classification.confusion(truth_M[[place]], said_M[[place]], len(labels))
            added[CONFUSION] = tuple(map(float, pairs_CC.ravel()))
        items.append(Item(number=place + 1, sums=added, answer=labels[said]))
    return tuple(items)


def _of_numbers(truth_M: np.ndarray, said_M: np.ndarray) -> tuple[Item, ...]:
    misses_M = said_M - truth_M
    linear_M6 = regression.products(truth_M, said_M)
    ranked_M6 = regression.products(regression.ranks(truth_M), regression.ranks(said_M))
    return tuple(
        Item(
            number=place + 1, answer=f"{said_M[place]:.4g}",
            sums={
                "mean absolute error": (abs(float(misses_M[place])), 1.0),
                "root mean squared error": (float(misses_M[place] ** 2), 1.0),
                "Pearson": tuple(map(float, linear_M6[place])),
                "Spearman": tuple(map(float, ranked_M6[place])),
            },
        )
        for place in range(len(truth_M))
    )  # fmt: skip


def _digest(asked: Sequence[Row]) -> str:
    said = hashlib.sha256()
    for row in asked:
        fields = sorted((str(name), str(value)) for name, value in row.fields.items())
        said.update(repr(fields).encode("utf-8", "surrogatepass"))
    return said.hexdigest()
