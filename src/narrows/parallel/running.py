"""How a process runs a step's micro-batches: one after the other; a pipeline has its own way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from narrows.model.transformer import Transformer
from narrows.parallel import data
from narrows.spec.layout import Layout


def nothing(*_: object) -> None:
    """What stands beside a micro-batch by default."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a trainer does beside micro-batches: before each, by its place in the whole batch; after
    each, when its gradients are there; and around their parts, by name.
    """

    before: Callable[[int], None] = nothing
    after: Callable[[], None] = nothing
    span: Callable[[str], AbstractContextManager[object]] = nullcontext

    def behind(self, first: int) -> Beside:
        """The same where the own batch begins with the `first` micro-batch of the whole."""
        return replace(self, before=lambda index: self.before(first + index))


class Loss(NamedTuple):
    """How a loss is taken: so many positions at once, and what sums are multiplied with."""

    chunk: int
    scale: float


class Rows(NamedTuple):
    """What is read of sequences and what is to be written next [B,T]."""

    inputs_BT: Tensor
    targets_BT: Tensor

    @staticmethod
    def of(tokens_BT: Tensor) -> Rows:
        """Of whole sequences [B,T+1]."""
        return Rows(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous())

    def micros(self, size: int) -> list[Rows]:
        """Micro-batches of `size` sequences; the last may be smaller."""
        return [Rows(*each) for each in zip(*(rows.split(size) for rows in self), strict=True)]


class Runner(Protocol):
    """Computes this process's share of losses."""

    def step(self, rows: Rows, loss: Loss, beside: Beside) -> Tensor:
        """Forward and backward; the sum of the losses."""

    def forward(self, rows: Rows, loss: Loss) -> Tensor:
        """Forward only."""


class InTurn(NamedTuple):
    """One micro-batch after the other."""

    model: Transformer
    layout: Layout

    def step(self, rows: Rows, loss: Loss, beside: Beside) -> Tensor:
        """As Runner says."""
        total = torch.zeros((), dtype=torch.float32, device=rows.inputs_BT.device)
        micros = rows.micros(self.layout.micro_batch)
        for index, micro in enumerate(micros):
            beside.before(index)
            data.micro_batch(self.model, self.layout, last=index == len(micros) - 1)
            with beside.span("forward"):
                value = self.model.loss(*micro, **loss._asdict())
            with beside.span("backward"):
                value.backward()
            total += value.detach()
            beside.after()
        return total

    def forward(self, rows: Rows, loss: Loss) -> Tensor:
        """As Runner says."""
        total = self.model.loss(*rows, **loss._asdict())
        data.reshard(self.model)
        return total
