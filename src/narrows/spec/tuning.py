"""A search over a job's keys: what is tried, what each trial found and cost, and what mattered."""

from __future__ import annotations

import math
import re
from typing import Literal

from narrows.spec.errors import BadInput
from narrows.spec.record import Record

_RANGE = re.compile(r"(?P<low>[^.\s][^\s]*?)\.\.(?P<high>[^\s\[]+)(?P<log>\[log\])?")
_EXAMPLE = '--over "train.learning_rate=1e-4..1e-2[log]", or --over train.optimizer=adamw,lion'
_COMPARED = ("data", "name", "seed", "budget")
"""Tables and keys whose change leaves losses that do not compare."""

Outcome = Literal["done", "pruned", "failed"]
Value = float | int | str


class Range(Record, tag="range", tag_field="type"):
    """Numbers from `low` to `high`, whole ones if both are; `log`, as likely in each octave."""

    key: str
    low: float | int
    high: float | int
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def some(self) -> tuple[Value, ...]:
        """Its ends."""
        return self.low, self.high


class Choice(Record, tag="choice", tag_field="type"):
    """One of several values, as a job writes them."""

    key: str
    values: tuple[str, ...]

    @property
    def some(self) -> tuple[Value, ...]:
        """All of them."""
        return self.values


Axis = Range | Choice


class Trial(Record):
    """One training of the job with its own `values`, by key: its validation loss at the end, or
    where it was given up; `message` says why it was.
    """

    number: int
    outcome: Outcome
    values: dict[str, Value]
    loss: float | None = None
    steps: int
    seconds: float
    joules: float
    folder: str
    message: str = ""


class Tuned(Record):
    """A search: `importance` is each key's share of what makes losses differ, `best` the number of
    the trial of the lowest loss.
    """

    name: str
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    importance: dict[str, float]
    best: int | None = None
    ended: str

    @property
    def winner(self) -> Trial | None:
        """The best trial."""
        return next((each for each in self.trials if each.number == self.best), None)


class Swept(Record):
    """A learning rate range test: rates and the training losses at them, smoothed; the rate that
    follows from them, and why.
    """

    name: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggested: float
    why: str


def axis(text: str) -> Axis:
    """What `key=low..high`, `key=low..high[log]` or `key=a,b,c` means; raises BadInput."""
    key, separator, rest = text.partition("=")
    key, rest = key.strip(), rest.strip()
    if not separator or not key or not rest:
        raise BadInput(f'--over "{text}" is not key=low..high or key=a,b,c', hint=_EXAMPLE)
    if key.partition(".")[0] in _COMPARED:
        raise BadInput(
            f"losses of trainings that differ in {key} cannot be compared",
            hint="search over keys of model, train or layout",
        )
    found = _RANGE.fullmatch(rest)
    if found is None:
        values = tuple(each.strip() for each in rest.split(","))
        if len(values) < 2 or not all(values) or len(set(values)) < len(values):
            raise BadInput(f'--over "{text}" does not name several values', hint=_EXAMPLE)
        return Choice(key=key, values=values)
    low, high = (_number(found[end], text) for end in ("low", "high"))
    if not low < high or (found["log"] and low <= 0):
        raise BadInput(f'--over "{text}" has no numbers from {low} to {high}', hint=_EXAMPLE)
    return Range(key=key, low=low, high=high, log=bool(found["log"]))


def assignment(key: str, value: Value) -> str:
    """As `--set` takes it."""
    return f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}"


def _number(text: str, given: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f'--over "{given}": {text} is no number', hint=_EXAMPLE)
    return value
