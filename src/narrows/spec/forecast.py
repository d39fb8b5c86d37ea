"""What a plan says of a fleet: the best layout, what it takes, what holds it back, what comes next.

A fleet is planned for before one has it, so nothing here can be run as it is: `plan.Plan` is what a
run needs.
"""

from __future__ import annotations

from typing import Literal

from narrows.spec.fleet import Fleet, Spread
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Basis
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Doubling
from narrows.spec.record import Record

Moment = Literal["first stage", "middle stage", "loss"]
"""When memory is fullest: on a stage without the head, its forwards in flight kept and its first
backward about to begin; or at the loss, on the stage that has it. Nothing is allocated for the
optimizer's step, and activations are gone by then: it is never the peak.
"""


class Option(Record):
    """A layout that was evaluated: seconds of a step, bytes of a device, joules of the fleet."""

    spread: Spread
    step_seconds: float
    memory_peak: float
    joules: float
    verdict: str


class Elsewhere(Record):
    """The best layout of the same step on one of several fleets; None where nothing fits there."""

    fleet: str
    devices: int
    spread: Spread | None = None
    step_seconds: float | None = None
    tokens_per_s: float | None = None
    memory_peak: float | None = None
    dollars_per_billion_tokens: float | None = None
    joules_per_token: float | None = None
    verdict: str = ""


class Goodput(Record):
    """What failures leave of the time, at the best interval between checkpoints (Daly 2006,
    doi:10.1016/j.future.2004.11.016).
    """

    mean_time_between_failures_s: float
    checkpoint_interval_s: float
    checkpoint_seconds: float
    share: float


class Evidence(Record):
    """A number that a forecast rests on or says, how it is known, and from where."""

    name: str
    value: str
    basis: Basis
    source: str


class Bend(Record):
    """T = a n/p + b p fitted to steps on p devices: `work_seconds` is a n, `device_seconds` b.

    The formula bends at `devices` = sqrt(a n / b), where half of the devices' time no longer
    divides; the model's own curve at `devices_real`, where a step takes twice as many
    device-seconds as at best. None: not within these counts. `error` is the largest of the fit.
    """

    work_seconds: float
    device_seconds: float
    devices: float | None = None
    devices_real: float | None = None
    error: float

    def step_seconds(self, devices: float) -> float:
        """The formula's step on so many devices."""
        return self.work_seconds / devices + self.device_seconds * devices


class Limit(Record):
    """One bound of a budget, and the tokens that it buys."""

    bound: str
    tokens: float


class Sizing(Record):
    """How a budget chose the size: the lowest loss by the law (arXiv:2404.10102) of so many
    `sizes`, each at the throughput of its own best layout; `largest`: the next one does not fit.

    `twice` the budget would choose so many parameters on so many tokens; None where tokens alone
    bound it, and it is the size that they are compute-optimal for.
    """

    sizes: int
    largest: bool = False
    twice_parameters: float | None = None
    twice_tokens: float | None = None


class Dial(Record):
    """What a budget buys: its bounds, the tightest first, and the tokens of whole steps within it.

    `tokens_optimal` are those for which the size is compute-optimal. `loss` is the scaling law's
    (arXiv:2404.10102), of its own text and tokenizer; None beyond the sizes it was fitted on.
    `sizing` where no model was given.
    """

    limits: tuple[Limit, ...]
    tokens: float
    tokens_optimal: float
    loss: float | None = None
    sizing: Sizing | None = None


class Run(Record):
    """The whole training, with the time, energy and money that failures and checkpoints take.

    None where the fleet's power or price is not known.
    """

    steps: int
    tokens: float
    seconds: float
    joules: float | None = None
    dollars: float | None = None
    carbon_grams: float | None = None


class Forecast(Record):
    """A model's training on a fleet, predicted; `tokens` None: no amount was given.

    `predicted.total` is of undisturbed steps; `run` is what is really waited and paid for, None
    where failures leave no time to train. `elsewhere` has the fleet itself among those it is set
    against, the best for the goal first; `scaling` is the same batch on fewer and more devices.
    `answers` says of its main numbers, `facts` of what they were made from, how they are known.
    """

    model_name: str
    model: ModelSpec
    fleet: Fleet
    positions: int
    batch_sequences: int
    goal: str
    spread: Spread
    predicted: Ledger
    memory_limit: float
    peak_at: Moment
    layouts_evaluated: int
    layouts_fitting: int
    bottleneck: str
    doubling: tuple[Doubling, ...]
    front: tuple[Option, ...]
    runners_up: tuple[Option, ...]
    techniques: tuple[Option, ...]
    goodput: Goodput
    run: Run | None = None
    dial: Dial | None = None
    answers: tuple[Evidence, ...]
    facts: tuple[Evidence, ...]
    elsewhere: tuple[Elsewhere, ...] = ()
    scaling: tuple[Elsewhere, ...] = ()
    bend: Bend | None = None
    tokens: float | None = None

    @property
    def flop_per_s_device(self) -> float:
        """Model work of one device; what is frozen has no gradient of its own to work for."""
        return self.predicted.mfu * self.fleet.peak_of(self.spread.precision)
