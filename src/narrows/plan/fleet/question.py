"""What is asked of a fleet: to train a model of a known size, or of the size that a budget buys."""

from __future__ import annotations

import msgspec

from narrows.plan.fleet.search import Goal
from narrows.plan.fleet.variants import Wanted
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Sizing
from narrows.spec.job import Budget
from narrows.spec.model import ModelSpec


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A model, a fleet and a batch; the budget bounds the whole training, and chose the model's
    size where there is a `sizing`. The fleet is set `against` others, and `ladder` is of its own
    devices in other numbers.
    """

    name: str
    model: ModelSpec
    fleet: Fleet
    batch: int
    wanted: Wanted
    goal: Goal = "time"
    budget: Budget | None = None
    against: tuple[Fleet, ...] = ()
    ladder: tuple[Fleet, ...] = ()
    sizing: Sizing | None = None


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A budget for a model of no given size; `batch` None: by the law."""

    fleet: Fleet
    budget: Budget
    context: int
    batch: int | None
    wanted: Wanted
    goal: Goal = "time"
    against: tuple[Fleet, ...] = ()
    ladder: tuple[Fleet, ...] = ()
