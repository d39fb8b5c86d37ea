"""What an evaluation found, with all it takes to hold another against it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from narrows.evaluate.bootstrap import interval
from narrows.evaluate.forms import Array, Better, Form, value
from narrows.infer.sampling import Sampling
from narrows.plan.layouts import TrainingPrecision
from narrows.spec.record import Record, at_least


class Texts(Record, tag="texts", tag_field="type"):
    """A corpus as `data.corpus` names it; `field` is that of a row's text."""

    corpus: str
    field: str = "text"


class Rows(Record, tag="rows", tag_field="type"):
    """A file or folder of rows, each with a prompt or messages and the answer; `options` are told
    to the model's chat template, where a row does not say them itself.
    """

    file: str
    options: dict[str, Any] = {}


class Tasks(Record, tag="tasks", tag_field="type"):
    """A task of lm-evaluation-harness: a name that it knows, or the file that describes one.

    `shots`: how many solved examples stand before a question, where the task leaves that open;
    `chat`: questions are rendered by the model's chat template.
    """

    task: str
    shots: int | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        at_least(0, self, "evaluate", "shots")


Data = Texts | Rows | Tasks
CONFUSION = "macro F1"
"""The metric whose sums are the confusions."""


class Manner(Record):
    """How a model is asked.

    `limit`: the first so many documents or rows. `context`: how many tokens are read at once, by
    default as many as the model has positions; `stride`: how far the window slides, by default half
    of that. `tokens`: the longest answer. `joint` stands between a prompt and a choice where
    neither brings white space. `precision` None is fp32, in which the batch changes nothing.
    """

    batch: int = 8
    limit: int | None = None
    context: int | None = None
    stride: int | None = None
    tokens: int = 64
    sampling: Sampling = Sampling(temperature=0.0)
    stop: tuple[str, ...] = ()
    joint: str = " "
    precision: TrainingPrecision | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "evaluate", "batch", "limit", "stride", "tokens")
        at_least(2, self, "evaluate", "context")
        at_least(0, self, "evaluate", "seed")


class Item(Record):
    """A document, a row or a sample: what it adds to each metric, and the answer where one was
    written. `number` is its place among them, from 1.
    """

    number: int
    sums: dict[str, tuple[float, ...]]
    task: str | None = None
    answer: str | None = None


class Metric(Record):
    """A number over all items that add to it; `low` and `high` hold 95 of 100 drawings of items,
    absent where there are too few items, as is `form` where no item tells what it adds.
    """

    name: str
    form: Form | None = None
    better: Better
    value: float
    items: int
    low: float | None = None
    high: float | None = None


class Difference(Record):
    """A metric of the first model minus that of the second, over the same items."""

    metric: str
    first: float
    second: float
    value: float
    low: float | None = None
    high: float | None = None
    verdict: Literal["better", "worse", "undecided"]


class Comparison(Record):
    """Differences to another model; metrics that cannot be compared are named with the reason."""

    against: str
    checkpoint: str | None = None
    differences: tuple[Difference, ...]
    left_out: dict[str, str] = {}


class Taken(Record):
    """What the passes of a model took, or are predicted to: seconds, and the process's bytes."""

    seconds: float
    memory: float


class Assessment(Record):
    """A model, the data by their hash, how it was asked, and what came out.

    `bytes` are those of UTF-8 text; `notes` what a reader must know to trust the numbers. `labels`
    are those of a model that says classes, in the order that its confusions have. `measured` is
    what the model's own passes took, as they were `predicted` to on a machine that was probed.
    """

    model: str
    checkpoint: str | None = None
    precision: TrainingPrecision
    data: Data
    sha256: str
    manner: Manner
    metrics: tuple[Metric, ...]
    items: tuple[Item, ...]
    tokens: int
    bytes: int | None = None
    seconds: float
    predicted: Taken | None = None
    measured: Taken | None = None
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    narrows: str
    comparisons: tuple[Comparison, ...] = ()


class Kind(Record):
    """What a metric is, before it has a value."""

    name: str
    form: Form
    better: Better


class Found(NamedTuple):
    """What came of the data: of `tokens` that were read and written, the `bytes` of their text."""

    items: tuple[Item, ...]
    metrics: tuple[Metric, ...]
    sha256: str
    tokens: int
    bytes: int | None = None
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def metrics(kinds: tuple[Kind, ...], items: tuple[Item, ...], seed: int) -> tuple[Metric, ...]:
    """The value of each kind that any item adds to."""
    found = []
    for kind in kinds:
        sums_MX = sums(items, kind.name)
        if not len(sums_MX):
            continue
        around = interval(kind.form, sums_MX, seed)
        found.append(
            Metric(
                name=kind.name, form=kind.form, better=kind.better,
                value=float(value(kind.form, sums_MX.sum(0))), items=len(sums_MX),
                low=around and around.low, high=around and around.high,
            )
        )  # fmt: skip
    return tuple(found)


def sums(items: tuple[Item, ...], name: str) -> Array:
    """What the items that add to the metric `name` add [M,X]."""
    return np.array([each.sums[name] for each in items if name in each.sums])
