"""Weights of products, tables and norms, and the stream that norms are taken of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.kernels.interface import Activation, Kernels
from narrows.spec.model import LayerNorm, ModelSpec, Norm, RMSNorm


class Stream(NamedTuple):
    """The residual stream x [B,T,D] and what is still to be added to it."""

    x_BTD: Tensor
    delta_BTD: Tensor | None

    def sum(self) -> Tensor:
        """The stream with the addition."""
        return self.x_BTD if self.delta_BTD is None else self.x_BTD + self.delta_BTD


class Weights(nn.Module):
    """Weight [rows, columns] and bias [rows] of a product, or a table of `rows` embeddings; of
    `copies` experts where given.

    Unlike nn.Linear it draws no first values: `initialise` does, or a checkpoint is read; and on
    the meta device drawing would load 75 MB of torch's tracing code.
    """

    def __init__(
        self, rows: int, columns: int, *, biased: bool = False, copies: int | None = None
    ) -> None:
        super().__init__()
        several = () if copies is None else (copies,)
        self.weight = nn.Parameter(torch.empty(*several, rows, columns))
        self.bias = nn.Parameter(torch.empty(*several, rows)) if biased else None

    def linear(self, kernels: Kernels, x_BTX: Tensor) -> Tensor:
        """The product x Wᵀ + b."""
        return kernels.linear(x_BTX, self.weight, self.bias)

    def activated(self, kernels: Kernels, h_BTX: Tensor, activation: Activation) -> Tensor:
        """The product act(h) Wᵀ + b."""
        return kernels.activated_linear(h_BTX, self.weight, self.bias, activation)

    def grouped(self, x_RD: Tensor, expert_R: Tensor, ends_E: Tensor) -> Tensor:
        """Of experts x Wᵀ + b, each row's by its expert; rows lie sorted by expert up to `ends`."""
        y_RX = F.grouped_mm(x_RD, self.weight.transpose(-1, -2), offs=ends_E)
        return y_RX if self.bias is None else y_RX + self.bias[expert_R]

    def rows(self, index: Tensor) -> Tensor:
        """Of a table, those at `index` [...] → [..., columns]."""
        return F.embedding(index, self.weight)


class Packing(NamedTuple):
    """A matrix of `shape` that a model keeps as other parameters: their names, and what makes their
    values of it.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    pack: Callable[[Tensor], tuple[Tensor, ...]]


class NormWeights(nn.Module):
    """Weight and bias, as far as there are any, of a LayerNorm or RMSNorm over `width`."""

    def __init__(self, norm: Norm, width: int, *, biased: bool = False) -> None:
        super().__init__()
        self.centre, self.epsilon, self.width = isinstance(norm, LayerNorm), norm.epsilon, width
        scaled = not isinstance(norm, LayerNorm) or norm.scale
        if isinstance(norm, LayerNorm) and norm.biases is not None:
            biased = norm.biases
        self.weight = nn.Parameter(torch.empty(width)) if scaled else None
        biased = biased and scaled and self.centre
        self.bias = nn.Parameter(torch.empty(width)) if biased else None

    @staticmethod
    def of_stream(spec: ModelSpec) -> NormWeights:
        """The norm that the spec has wherever the stream is normalised."""
        return NormWeights(spec.norm, spec.width, biased=spec.biases)

    @staticmethod
    def within(spec: ModelSpec, width: int) -> NormWeights:
        """The RMSNorm of queries, keys and their common vectors."""
        return NormWeights(RMSNorm(epsilon=spec.norm.epsilon), width)

    def forward(self, kernels: Kernels, stream: Stream) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        if self.weight is None:
            x_BTD = stream.sum()
            return x_BTD, self.alone(x_BTD)
        return kernels.add_norm(
            *stream, self.weight, self.bias, epsilon=self.epsilon, centre=self.centre
        )

    def alone(self, x: Tensor) -> Tensor:
        """The norm of x [..., width], which nothing is added to."""
        shape = (self.width,)
        if self.centre:
            return F.layer_norm(x, shape, self.weight, self.bias, self.epsilon)
        return F.rms_norm(x, shape, self.weight, self.epsilon)
