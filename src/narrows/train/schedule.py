"""The learning rate at a step."""

from __future__ import annotations

import math

from narrows.spec.plan import Schedule
from narrows.spec.record import Record


class Heard(Record):
    """What a plateau remembers: the lowest validation loss, how many evaluations ago it was, and
    what the rate has shrunk to.
    """

    best: float | None = None
    since: int = 0
    factor: float = 1.0


def rate_factor(schedule: Schedule, step: int, steps: int, heard: Heard | None = None) -> float:
    """Share of the peak learning rate at `step` (from 0) of `steps`: warm-up, shape, floor.

    `wsd` keeps the peak and falls linearly over the last `decay_steps` (arXiv:2404.06395). Cosines
    come one after the other (arXiv:1608.03983). A sweep grows by the same factor each step.
    """
    floor = schedule.floor
    if schedule.shape == "sweep":
        return float(floor ** (1.0 - step / max(1, steps - 1)))
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.shape == "constant":
        return 1.0
    if schedule.shape == "plateau":
        return max(floor, heard.factor if heard else 1.0)
    if schedule.shape == "wsd":
        left = steps - step
        return 1.0 if left > schedule.decay_steps else max(floor, left / schedule.decay_steps)
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    if schedule.shape == "linear":
        fall = 1.0 - progress
    else:
        turns = progress * schedule.cycles
        fall = (1.0 + math.cos(math.pi * (turns - min(int(turns), schedule.cycles - 1)))) / 2
    return floor + (1.0 - floor) * fall


def listened(schedule: Schedule, heard: Heard, loss: float) -> Heard:
    """What a plateau remembers once it has heard of another validation loss."""
    if schedule.shape != "plateau":
        return heard
    if heard.best is None or loss < heard.best:
        return Heard(best=loss, factor=heard.factor)
    if heard.since + 1 < schedule.patience:
        return Heard(best=heard.best, since=heard.since + 1, factor=heard.factor)
    return Heard(best=heard.best, factor=heard.factor * schedule.shrink)
