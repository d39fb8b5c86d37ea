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


class Runner(Protocol):
    """Computes this process's share of losses over sequences [b,T+1]."""

    def step(self, tokens_BT: Tensor, loss: Loss, beside: Beside) -> Tensor:
        """Forward and backward; the sum of the losses."""

    def forward(self, tokens_BT: Tensor, loss: Loss) -> Tensor:
        """Forward only."""


class InTurn(NamedTuple):
    """One micro-batch after the other."""

    model: Transformer
    layout: Layout

    def step(self, tokens_BT: Tensor, loss: Loss, beside: Beside) -> Tensor:
        """As Runner says."""
        total = torch.zeros((), dtype=torch.float32, device=tokens_BT.device)
        micros = tokens_BT.split(self.layout.micro_batch)
        for index, micro_BT in enumerate(micros):
            beside.before(index)
            data.micro_batch(self.model, self.layout, last=index == len(micros) - 1)
            with beside.span("forward"):
                value = self.model.loss(*divided(micro_BT), **loss._asdict())
            with beside.span("backward"):
                value.backward()
            total += value.detach()
            beside.after()
        return total

    def forward(self, tokens_BT: Tensor, loss: Loss) -> Tensor:
        """As Runner says."""
        return self.model.loss(*divided(tokens_BT), **loss._asdict())


def divided(tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What is read and what is to be written next of sequences [B,T+1]."""
    return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
