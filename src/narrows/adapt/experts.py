"""Experts' matrices that are frozen, and a low-rank product beside each.

y = x Wₑᵀ + scale · (x Aₑᵀ) Bₑᵀ + bₑ of the expert e that a row is given to; rows lie sorted by
expert, so that all experts' A are one grouped product, and all their B another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.model.weights import Weights
from narrows.spec.adapter import LowRank


class AdaptedExperts(nn.Module):
    """It stands in for the `Weights` of all experts: `a.weight` are their A [E,R,D], `b` their B
    [E,X,R].
    """

    def __init__(self, plain: Weights, adapter: LowRank) -> None:
        super().__init__()
        self.adapter, self.weight, self.bias = adapter, plain.weight, plain.bias
        count, rows, columns = plain.weight.shape
        with plain.weight.device:
            self.a = Weights(adapter.ranks, columns, copies=count).to(plain.weight.dtype)
            b = torch.empty(count, rows, adapter.ranks, dtype=plain.weight.dtype)
        self.b = nn.Parameter(b)

    def grouped(self, x_RD: Tensor, expert_R: Tensor, ends_E: Tensor) -> Tensor:
        """The products of rows by their experts."""
        y_RX = F.grouped_mm(x_RD, self.weight.transpose(-1, -2), offs=ends_E)
        low_RP = self.a.grouped(x_RD, expert_R, ends_E)
        b_EPX = self.b.transpose(-1, -2)
        y_RX = y_RX + F.grouped_mm(low_RP * self.adapter.scale, b_EPX, offs=ends_E)
        return y_RX if self.bias is None else y_RX + self.bias[expert_R]

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The one matrix of each expert that computes the same, in fp32 [E,X,D]."""
        low_EXD = self.b.float() @ self.a.weight.float()
        return self.weight.float() + self.adapter.scale * low_EXD
