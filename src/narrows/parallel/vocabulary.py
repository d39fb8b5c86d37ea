"""Embeddings and loss with the vocabulary cut among tensor ranks (arXiv:1909.08053, section 3).

A rank looks up the tokens whose rows it has, and the ranks' finds are added up. Of the logits each
has its columns; a row's largest, the sum of its exponentials and its target's are what they share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from narrows.kernels.interface import Kernels
from narrows.model.transformer import Transformer
from narrows.model.weights import Stream
from narrows.parallel.collectives import add_up, most, summed
from narrows.parallel.mesh import Axis
from narrows.parallel.tensor import entered
from narrows.spec.pieces import even


def apply(model: Transformer, axis: Axis, *, sequence: bool) -> None:
    """Make `model`, whose tables are cut already, look up and take the loss together."""
    if axis.size == 1:
        return
    start, stop = even(model.spec.vocabulary, axis.size, axis.rank)
    rows, ended = model.tokens.rows, model.ended

    def looked_up(index: Tensor) -> Tensor:
        own = (index >= start) & (index < stop)
        found = rows((index - start).clamp(0, stop - start - 1))
        return summed(found * own.unsqueeze(-1), axis)

    def ended_whole(stream: Stream) -> Tensor:
        return entered(ended(stream), axis, sequence=sequence)

    model.tokens.rows = looked_up  # type: ignore[method-assign]
    model.ended = ended_whole  # type: ignore[method-assign]
    model.kernels = _Together(model.kernels, axis, start, stop)  # type: ignore[assignment]


class _Together:
    """Kernels whose logits are this rank's columns `start` to `stop`; the rest as `inner` does it.

    It stands in for a Kernels by what a model calls of one.
    """

    def __init__(self, inner: Kernels, axis: Axis, start: int, stop: int) -> None:
        self.inner, self.axis, self.start, self.stop = inner, axis, start, stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def cross_entropy_(self, logits_MV: Tensor, targets_M: Tensor, scale: float) -> Tensor:
        """As in Kernels; the logits become the gradient of this rank's columns."""
        wide_MV = logits_MV.float()
        largest_M = most(wide_MV.amax(dim=-1), self.axis)
        exponentials_MV = wide_MV.sub_(largest_M.unsqueeze(-1)).exp()
        counted_M = targets_M >= 0
        own_M = (targets_M >= self.start) & (targets_M < self.stop)
        rows_M = torch.arange(targets_M.shape[0], device=targets_M.device)
        column_M = (targets_M - self.start).clamp(0, self.stop - self.start - 1)
        shared_2M = torch.stack(
            [exponentials_MV.sum(dim=-1), torch.where(own_M, wide_MV[rows_M, column_M], 0.0)]
        )
        sums_M, target_M = add_up(shared_2M, self.axis)
        gradient_MV = exponentials_MV.div_(sums_M.unsqueeze(-1))
        gradient_MV[rows_M, column_M] -= own_M.float()
        gradient_MV.mul_((counted_M * scale).unsqueeze(-1))
        logits_MV.copy_(gradient_MV)
        return torch.where(counted_M, sums_M.log() - target_M, 0.0)
