"""The plan: a lockfile of a run. Every value resolved, each derived one with its why."""

from __future__ import annotations

from typing import Literal

from narrows.spec.adapter import Adapter, Learning
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.job import OnSpike, Shape
from narrows.spec.layout import Layout
from narrows.spec.ledger import Ledger
from narrows.spec.model import ModelSpec
from narrows.spec.objective import NextToken, Objective
from narrows.spec.optimizer import Optimizer
from narrows.spec.ramp import BatchRamp
from narrows.spec.record import Record


class Schedule(Record):
    """Learning rate over steps: linear warm-up, then the shape, down to `floor` of the peak.

    `cycles` cosines follow each other. A plateau is `patience` evaluations that found no lower
    loss: the rate then shrinks to `shrink` of what it was. A sweep rises from the floor to the
    peak.
    """

    shape: Shape | Literal["sweep"]
    warmup_steps: int
    decay_steps: int
    floor: float
    cycles: int = 1
    patience: int = 0
    shrink: float = 1.0


class Evaluation(Record):
    """When validation loss is measured, and on how many sequences."""

    every: int
    sequences: int


class Checkpointing(Record):
    """When a checkpoint is written."""

    every: int
    keep: int


class Data(Record):
    """The prepared dataset a run reads."""

    folder: str
    digest: str
    tokens_train: int
    tokens_validation: int
    bytes_per_token: float


class Start(Record):
    """The published model that training starts from, or that teaches: where it is, its family by
    transformers' name, a digest of its files, the shape it has, and the folder of its tokenizer and
    template.
    """

    path: str
    family: str
    digest: str
    model: ModelSpec
    words: str


class Doubling(Record):
    """What doubling one resource would do to the step."""

    resource: str
    step_seconds: float
    saving: float


class Offer(Record):
    """What another exchange of gradients would do to the step; it changes what is learned."""

    exchange: GradientExchange
    step_seconds: float
    saving: float


class Alternative(Record):
    """A layout that was considered, and why it was not taken."""

    layout: Layout
    step_seconds: float
    memory_peak: float
    total_seconds: float
    verdict: str


class Provenance(Record):
    """Hashes of what the plan was made from."""

    job: str
    machine: str
    machine_name: str
    dataset: str | None = None
    narrows: str


class Plan(Record):
    """Everything a run needs: the metal wing guesses nothing."""

    name: str
    seed: int
    objective: Objective = NextToken()
    start: Start | None = None
    teacher: Start | None = None
    model: ModelSpec
    layout: Layout
    optimizer: Optimizer
    schedule: Schedule
    batch_sequences: int
    context: int
    steps: int
    on_spike: OnSpike = "stop"
    batch_ramp: BatchRamp | None = None
    exchange: GradientExchange = EXACT
    adapter: Adapter | None = None
    frozen: tuple[str, ...] = ()
    evaluation: Evaluation
    checkpoints: Checkpointing
    data: Data | None = None
    power_watts: float
    peak_flop_per_s: float
    why: dict[str, str]
    made_from: Provenance
    bottleneck: str
    doubling: tuple[Doubling, ...]
    offers: tuple[Offer, ...] = ()
    alternatives: tuple[Alternative, ...]
    predicted: Ledger

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_sequences * self.context

    @property
    def learning(self) -> Learning:
        """What of the model is trained."""
        return Learning(adapter=self.adapter, frozen=self.frozen)
