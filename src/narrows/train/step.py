"""One optimizer step: micro-batches forward and backward, then the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from narrows.adapt.apply import apply
from narrows.data.batch import Batch
from narrows.kernels.allocator import keep_pages
from narrows.kernels.load import load
from narrows.model.beginning import values_of
from narrows.model.block import Wrapper
from narrows.model.dropout import Draws
from narrows.parallel.collectives import add_up
from narrows.parallel.mesh import ranks_of
from narrows.parallel.recompute import recomputed
from narrows.parallel.running import Beside, Rows, nothing
from narrows.parallel.split import Making, Split, split
from narrows.plan import gradients, ramp
from narrows.plan import optimizer as updates
from narrows.spec.adapter import LowRank
from narrows.spec.errors import BadInput
from narrows.spec.exchange import LocalSteps
from narrows.spec.layout import Layout
from narrows.spec.plan import Plan
from narrows.train.noise import EVERY, NoiseScale
from narrows.train.objectives import objective
from narrows.train.offload import place
from narrows.train.optimizer import Optimizer
from narrows.train.outer import Outer
from narrows.train.ramp import Ramp
from narrows.train.schedule import Heard, rate_factor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Batches(Protocol):
    """What a step reads: sequences by their place in the global order."""

    def sequences(self, first: int, count: int) -> np.ndarray | Batch:
        """Token ids [count, T+1], of which the last column is the last target; or what is read and
        said of rows that are no running text.
        """


class StepResult(NamedTuple):
    """Mean loss over the step's counted tokens, and the gradient's norm before clipping. Not
    `taken`, nothing was changed by it. `noise_tokens` is the gradient's noise scale, where it is
    known; `steps`, of how many the data were read.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    taken: bool
    noise_tokens: float | None = None
    steps: int = 1


class Trainer:
    """The model, its optimizer and how a step is laid out, all as the plan says.

    `accept` says of a step's loss and norm whether to take it; of the data, what `skipped` steps
    would have read is left out; `sign` is called before each micro-batch, `settle` before weights
    change. With local steps losses, norms and what is accepted are an island's own; its weights are
    all islands' where it `meets`. What is offloaded to a disk goes to the `folder`.
    """

    def __init__(self, plan: Plan, device: torch.device, folder: Path | None = None) -> None:
        self.plan, self.device = plan, device
        gradients.check(plan.exchange, plan.on_spike, plan.evaluation, plan.checkpoints)
        updates.check(plan.optimizer, plan.layout, plan.exchange, plan.on_spike)
        ramp.check(plan.layout, plan.batch_ramp, plan.exchange)
        self.split = build(plan, device)
        self.model, self.ranks = self.split.model, self.split.ranks
        away = place(plan.layout, device, folder, self.ranks.everyone.rank)
        self.optimizer = Optimizer(self.split, plan.optimizer, away)
        self.outer: Outer | None = None
        if isinstance(plan.exchange, LocalSteps):
            kernels, masters = self.model.kernels, self.optimizer.masters()
            self.outer = Outer(plan.exchange, self.ranks.islands, kernels, masters)
        self.span: Callable[[str], AbstractContextManager[object]] = no_span
        self.optimizer.span = lambda name: self.span(name)
        self.heard, self.noise, self.ramp = Heard(), NoiseScale(), Ramp()
        self.accept: Callable[[float, float], bool] = all_finite
        self.sign: Callable[[], None] = nothing
        self.settle: Callable[[], None] = nothing
        self.skipped = 0

    def step(self, number: int, batches: Batches) -> StepResult:
        """The update at step `number`, from 0, which may be several steps'. Equal for equal number,
        weights and data, on equal hardware.
        """
        plan, layout = self.plan, self.plan.layout
        steps = min(self.ramp.times, plan.steps - number)
        update = number + 1 - self.ramp.ahead
        first, count = self.split.own(steps * plan.batch_sequences)
        adapter_dropout = isinstance(plan.adapter, LowRank) and plan.adapter.dropout
        with self.span("data"):
            start = (number + self.skipped) * plan.batch_sequences
            rows = read(batches, start + first, count, self.device)

        def seed(index: int) -> None:
            self.sign()
            if plan.model.dropout or adapter_dropout:
                draws = Draws(_mixed(plan.seed, number), index * layout.micro_batch)
                self.model.draws = draws

        def accumulate() -> None:
            if layout.accumulation > 1:
                with self.span("accumulate"):
                    self.optimizer.accumulate()

        factor = rate_factor(plan.schedule, number, plan.steps, self.heard)
        micros = steps * layout.accumulation
        self.optimizer.watching = micros > 1 and (update - 1) % EVERY == 0
        if plan.optimizer.fused:
            self.settle()
        self.optimizer.begin(update, factor)
        beside = Beside(before=seed, after=accumulate, span=self.span)
        loss = float(self.split.run(rows, layout.loss_chunk, beside))
        taken = False

        def accept(norm: float) -> bool:
            nonlocal taken
            taken = self.accept(loss, norm)
            return taken

        if not plan.optimizer.fused:
            self.settle()
        with self.span("optimizer"):
            norm = self.optimizer.step(update, factor, accept)
            if self.outer is not None and self.meets(number + 1):
                self.outer.meet()
        self.ramp = self.ramp.updated(steps)
        if taken and self.optimizer.watching:
            self._listen(norm, micros)
        rate = plan.optimizer.learning_rate * factor
        return StepResult(loss, norm, rate, taken, self.noise.tokens, steps)

    def _listen(self, norm: float, micros: int) -> None:
        """To one process's micro-batches and their sum, which each is a share of; and read more at
        once where they ask for it.
        """
        layout = self.plan.layout
        if layout.processes > 1:
            return
        tokens = float(layout.micro_batch * self.plan.context)
        mean = micros * self.optimizer.squares
        self.noise.seen((tokens, mean), (tokens * micros, norm**2))
        self.ramp = self.ramp.grown(self.plan, self.noise)

    def meets(self, step: int) -> bool:
        """Whether all processes have the same model after `step` steps."""
        exchange, steps = self.plan.exchange, self.plan.steps
        return not isinstance(exchange, LocalSteps) or exchange.meets(step, steps)


def read(batches: Batches, first: int, count: int, device: torch.device) -> Rows:
    """So many rows from the `first` on, where the model is."""
    given = batches.sequences(first, count)
    return rows_of(given if isinstance(given, Batch) else Batch.of(given), device)


def rows_of(batch: Batch, device: torch.device) -> Rows:
    """The rows as tensors."""
    inputs_BT, targets_BT = (
        torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in batch[:2]
    )
    return Rows(inputs_BT, targets_BT, batch.documents, batch.values)


def all_finite(*values: float) -> bool:
    """Whether none is infinite or not a number."""
    return all(map(math.isfinite, values))


def no_span(name: str) -> AbstractContextManager[object]:
    """Nothing looks: a part of a step has no span."""
    return nullcontext()


class Evaluated(NamedTuple):
    """The mean loss, in nats a token, and the share that was right, of what can be."""

    loss: float
    right: float | None


def evaluate(trainer: Trainer, batches: Batches, sequences: int) -> Evaluated:
    """Over the first `sequences` of `batches`."""
    layout, model, axis = trainer.plan.layout, trainer.model, trainer.ranks.batches
    model.eval()
    total, asked = torch.zeros(3, dtype=torch.float64, device=trainer.device), False
    for first in range(0, sequences, layout.micro_batch * axis.size):
        # All ranks compute as often; what those do that have no sequence left does not count.
        start = first + axis.rank * layout.micro_batch
        count = min(layout.micro_batch, max(0, sequences - start))
        rows = read(batches, start if count else first, count or 1, trainer.device)
        loss, counted, right = trainer.split.loss(rows, layout.loss_chunk)
        asked = right is not None
        if count:
            total += total.new_tensor([float(loss), counted, right or 0])
    model.train()
    loss, counted, right = add_up(total, axis).tolist()
    share = right / max(1.0, counted) if asked else None
    return Evaluated(loss / max(1.0, counted), share)


def build(plan: Plan, device: torch.device) -> Split:
    """This process's part of the plan's model with its first weights, or those it starts from,
    threads and allocator set as the plan says.
    """
    layout, taught = plan.layout, objective(plan, device)
    if layout.kernels == "native" and (layout.precision != "bf16" or device.type != "cpu"):
        raise BadInput(
            f"native kernels compute bf16 on a CPU, not {layout.precision} on {device.type}",
            hint="--set layout.kernels=torch",
        )
    if device.type == "cpu":
        torch.set_num_threads(layout.threads)
        keep_pages()
    dtype, learning = DTYPES[layout.precision], plan.learning
    making = Making(
        load(layout.kernels), _wrapper(layout), device, dtype, plan.exchange, taught,
        first=None if plan.start is None else values_of(plan.start),
        prepare=None if learning.everything else partial(apply, learning=learning),
    )  # fmt: skip
    ranks = ranks_of(layout, device, plan.exchange)
    made = split(plan.model, layout, ranks, making, seed=plan.seed)
    made.model.train()
    return made


def _wrapper(layout: Layout) -> Wrapper | None:
    """Compile a block, compute it twice, both, or neither."""
    wrappers: list[Wrapper] = []
    if layout.compile:
        wrappers.append(lambda block: torch.compile(block, dynamic=False))
    if (again := recomputed(layout.recompute)) is not None:
        wrappers.append(again)
    if not wrappers:
        return None

    def wrap(block: Callable[..., object]) -> Callable[..., object]:
        for wrapper in wrappers:
            block = wrapper(block)  # type: ignore[arg-type]
        return block

    return wrap  # type: ignore[return-value]


def _mixed(*numbers: int) -> int:
    """A seed that differs for different numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
