"""How a process runs a step's micro-batches: one after the other; a pipeline has its own way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from narrows.model.positions import Documents
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
    """What is read of sequences and what is to be said at each place [B,T]; where a row holds
    documents side by side, their lengths and what is to be said of each.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    documents: Documents | None = None
    values: tuple[tuple[float, ...], ...] | None = None

    @staticmethod
    def of(tokens_BT: Tensor) -> Rows:
        """Of whole sequences [B,T+1]."""
        return Rows(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous())

    def micros(self, size: int) -> list[Rows]:
        """Micro-batches of `size` sequences; the last may be smaller."""
        return [self.part(first, size) for first in range(0, len(self.inputs_BT), size)]

    def part(self, first: int, count: int) -> Rows:
        """So many of the rows from the `first` on."""
        own = slice(first, first + count)
        return Rows(
            self.inputs_BT[own], self.targets_BT[own], self.documents and self.documents[own],
            self.values and self.values[own],
        )  # fmt: skip


class Objective(Protocol):
    """What a model is taught by."""

    def count(self, rows: Rows) -> int:
        """What the sum of the losses is divided by to be their mean."""

    def loss(self, model: Transformer, rows: Rows, loss: Loss) -> Tensor:
        """The sum of the losses, times the scale, to go backward from."""

    def right(self) -> int | None:
        """How many of those it counted the last pass got right; None where that is not asked."""


class Tokens:
    """The cross entropy of the tokens that are to be said; of `some` places, no others' logits are
    made.
    """

    def __init__(self, *, some: bool = False) -> None:
        self.some = some

    def count(self, rows: Rows) -> int:
        """How many there are."""
        return int((rows.targets_BT >= 0).sum())

    def loss(self, model: Transformer, rows: Rows, loss: Loss) -> Tensor:
        """As Objective says."""
        if not self.some:
            return model.loss(rows.inputs_BT, rows.targets_BT, **loss._asdict())
        return model.judged(
            rows.inputs_BT, rows.documents,
            lambda x_BTD: model.head_loss(*_said(x_BTD, rows.targets_BT), **loss._asdict()),
        )  # fmt: skip

    def right(self) -> None:
        """Not asked."""


def _said(x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Of all places, those where something is to be said [1,M,D], [1,M]."""
    places_M = (targets_BT.flatten() >= 0).nonzero().squeeze(1)
    return (
        x_BTD.flatten(0, 1).index_select(0, places_M).unsqueeze(0),
        targets_BT.flatten()[places_M].unsqueeze(0),
    )


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
    objective: Objective

    def step(self, rows: Rows, loss: Loss, beside: Beside) -> Tensor:
        """As Runner says."""
        total = torch.zeros((), dtype=torch.float32, device=rows.inputs_BT.device)
        micros = rows.micros(self.layout.micro_batch)
        for index, micro in enumerate(micros):
            beside.before(index)
            data.micro_batch(self.model, self.layout, last=index == len(micros) - 1)
            with beside.span("forward"):
                value = self.objective.loss(self.model, micro, loss)
            with beside.span("backward"):
                value.backward()
            total += value.detach()
            beside.after()
        return total

    def forward(self, rows: Rows, loss: Loss) -> Tensor:
        """As Runner says."""
        total = self.objective.loss(self.model, rows, loss)
        data.reshard(self.model)
        return total
