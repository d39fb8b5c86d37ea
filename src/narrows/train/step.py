"""One optimizer step: micro-batches forward and backward, then the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from narrows.kernels.allocator import keep_pages
from narrows.kernels.load import load
from narrows.model.dropout import Draws
from narrows.model.transformer import Transformer, Wrapper, initialise
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.plan import Plan
from narrows.train.optimizer import Optimizer
from narrows.train.schedule import rate_factor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Batches(Protocol):
    """What a step reads: sequences by their place in the global order."""

    def sequences(self, first: int, count: int) -> np.ndarray:
        """Token ids [count, T+1]; the last column is the last target."""


class StepResult(NamedTuple):
    """Mean loss over the step's counted tokens, and the gradient's norm before clipping."""

    loss: float
    gradient_norm: float
    learning_rate: float


class Trainer:
    """The model, its optimizer and how a step is laid out, all as the plan says."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.model = build_model(plan, device)
        self.optimizer = Optimizer(self.model, plan.optimizer, self.model.kernels)
        self.span: Callable[[str], AbstractContextManager[object]] = no_span

    def step(self, number: int, batches: Batches) -> StepResult:
        """Step `number`, from 0. Equal for equal number, weights and data, on equal hardware."""
        plan, layout = self.plan, self.plan.layout
        with self.span("data"):
            rows = batches.sequences(number * plan.batch_sequences, plan.batch_sequences)
            tokens_BT = torch.from_numpy(rows).to(self.device)
        counted = int((tokens_BT[:, 1:] >= 0).sum())
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for index, part_BT in enumerate(tokens_BT.split(layout.micro_batch)):
            if plan.model.dropout:
                first = index * layout.micro_batch
                self.model.draws = Draws(_mixed(plan.seed, number), first)
            total += self._micro_batch(part_BT, 1.0 / max(1, counted))
            if layout.accumulation > 1:
                with self.span("accumulate"):
                    self.optimizer.accumulate()
        with self.span("optimizer"):
            factor = rate_factor(plan.schedule, number, plan.steps)
            norm = self.optimizer.step(number + 1, factor)
        return StepResult(float(total), norm, plan.optimizer.learning_rate * factor)

    def _micro_batch(self, tokens_BT: Tensor, scale: float) -> Tensor:
        with self.span("forward"):
            inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
            chunk = self.plan.layout.loss_chunk
            loss = self.model.loss(inputs_BT, targets_BT, chunk=chunk, scale=scale)
        with self.span("backward"):
            loss.backward()
        return loss.detach()


def no_span(name: str) -> AbstractContextManager[object]:
    """Nothing looks: a part of a step has no span."""
    return nullcontext()


@torch.no_grad()
def evaluation_loss(trainer: Trainer, batches: Batches, sequences: int) -> float:
    """Mean loss over the first `sequences` of `batches`, in nats a token."""
    layout, model = trainer.plan.layout, trainer.model
    model.eval()
    total, counted = 0.0, 0
    for first in range(0, sequences, layout.micro_batch):
        rows = batches.sequences(first, min(layout.micro_batch, sequences - first))
        tokens_BT = torch.from_numpy(rows).to(trainer.device)
        targets_BT = tokens_BT[:, 1:].contiguous()
        inputs_BT = tokens_BT[:, :-1].contiguous()
        total += float(model.loss(inputs_BT, targets_BT, chunk=layout.loss_chunk, scale=1.0))
        counted += int((targets_BT >= 0).sum())
    model.train()
    return total / max(1, counted)


def build_model(plan: Plan, device: torch.device) -> Transformer:
    """The plan's model with its first weights, threads and allocator set as the plan says."""
    layout = plan.layout
    if not plan.model.writes:
        raise BadInput(
            "a model that sees what follows, or reads by an encoder, cannot learn the next token",
            hint="train a causal decoder: model.causal = true and model.encoder_layers = 0",
        )
    if layout.kernels == "native" and (layout.precision != "bf16" or device.type != "cpu"):
        raise BadInput(
            f"native kernels compute bf16 on a CPU, not {layout.precision} on {device.type}",
            hint="--set layout.kernels=torch",
        )
    if device.type == "cpu":
        torch.set_num_threads(layout.threads)
        keep_pages()
    with device, _default_dtype(DTYPES[layout.precision]):
        model = Transformer(plan.model, load(layout.kernels), wrap=_wrapper(layout))
    initialise(model, plan.seed)
    return model.train()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _wrapper(layout: Layout) -> Wrapper | None:
    """Compile a block, compute it twice, both, or neither."""
    wrappers: list[Wrapper] = []
    if layout.compile:
        wrappers.append(lambda block: torch.compile(block, dynamic=False))
    if layout.recompute == "full":
        from torch.utils.checkpoint import checkpoint

        wrappers.append(lambda block: lambda *args: checkpoint(block, *args, use_reentrant=False))
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
