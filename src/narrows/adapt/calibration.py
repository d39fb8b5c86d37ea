"""What a text makes of a model's matrices: the inputs of each, block by block, one in memory.

for each block, the stream of all texts before it ──→ its matrices' inputs, summed
                                                 └──→ the stream behind it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import final

import torch
from torch import Tensor, nn

from narrows.kernels.interface import Activation, Kernels
from narrows.kernels.load import load
from narrows.model.block import Block
from narrows.model.grouped import GROUP
from narrows.model.transformer import Transformer
from narrows.model.weights import Stream, Weights
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec

MATRICES = ("qkv", "out", "up", "down")
"""Of a block, in the order in which they are computed."""
_ROWS = 4
"""Texts that go through a block at once."""


@final
class Inputs:
    """Of a matrix with D columns: Σ x xᵀ [D,D], and the mean of |x| [D], over all positions."""

    def __init__(self, width: int) -> None:
        self.second_DD = torch.zeros(width, width)
        self._absolute_D, self._count = torch.zeros(width), 0

    def add(self, x_BTD: Tensor) -> None:
        """What one product was given."""
        x_MD = x_BTD.flatten(0, -2)
        self.second_DD.addmm_(x_MD.T, x_MD)
        self._absolute_D += x_MD.abs().sum(0)
        self._count += x_MD.shape[0]

    @property
    def absolute_D(self) -> Tensor:
        """The mean of |x|."""
        return self._absolute_D / max(1, self._count)

    @property
    def curvature_GCC(self) -> Tensor:
        """Σ x xᵀ within each group of columns [G,C,C]."""
        groups = self.second_DD.shape[0] // GROUP
        both = self.second_DD.view(groups, GROUP, groups, GROUP)
        return both.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


@final
class Calibration:
    """Texts [B,T] on their way through a model whose weights are read block by block."""

    @torch.no_grad()
    def __init__(self, spec: ModelSpec, weights: Mapping[str, Tensor], tokens_BT: Tensor) -> None:
        refuse_others(spec)
        with torch.device("meta"):
            self.model = Transformer(spec, load("torch")).requires_grad_(False).eval()
        self._weights, self._positions = weights, tokens_BT.shape[1]
        names = [name for name, _ in self.model.named_parameters() if _before_blocks(name)]
        self.model.load_state_dict(
            {name: weights[name].float() for name in names}, strict=False, assign=True
        )
        self._x_BTD = torch.cat([self.model._embedded(each, 0, None)
                                 for each in tokens_BT.split(_ROWS)])  # fmt: skip
        self.model.to("meta")

    def blocks(self) -> Iterator[Block]:
        """Each with its weights in fp32, which may be changed; the stream then goes on by those
        that it has when the next one is asked for.
        """
        for layer, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            within = f"blocks.{layer}."
            block.load_state_dict(
                {name: self._weights[within + name].float().clone()
                 for name, _ in block.named_parameters()}, assign=True,
            )  # fmt: skip
            block.requires_grad_(False)
            yield block
            self._x_BTD = self._through(block)
            block.to("meta")

    @torch.no_grad()
    def inputs(self, block: Block, names: Sequence[str]) -> dict[str, Inputs]:
        """Those of some of the block's matrices, which lie one behind the other; what comes behind
        the last is not computed.
        """
        with _observed(block, names) as found:
            for each in self._x_BTD.split(_ROWS):
                with suppress(_Enough):
                    self._computed(block, each)
        return found

    @torch.no_grad()
    def _through(self, block: Block) -> Tensor:
        return torch.cat([self._computed(block, each) for each in self._x_BTD.split(_ROWS)])

    def _computed(self, block: Block, x_BTD: Tensor) -> Tensor:
        stream = Stream(x_BTD, None)
        return self.model.through([block], stream, (0, self._positions)).sum()


class _Enough(Exception):
    """Nothing more of a block is wanted."""


@final
class _Observed(nn.Module):
    """A matrix that sums what it is given; the `last` one ends the pass."""

    def __init__(self, weights: Weights, *, last: bool) -> None:
        super().__init__()
        self.weights, self.last = weights, last
        self.inputs = Inputs(weights.weight.shape[1])

    def linear(self, kernels: Kernels, x_BTX: Tensor) -> Tensor:
        """The product, as of weights."""
        self.inputs.add(x_BTX)
        if self.last:
            raise _Enough
        return self.weights.linear(kernels, x_BTX)

    def activated(self, kernels: Kernels, h_BTX: Tensor, activation: Activation) -> Tensor:
        """The same behind an activation."""
        return self.linear(kernels, kernels.activation(h_BTX, activation))


@contextmanager
def _observed(block: Block, names: Sequence[str]) -> Iterator[dict[str, Inputs]]:
    own = {name: getattr(block, name) for name in names}
    watching = {name: _Observed(each, last=name == names[-1]) for name, each in own.items()}
    try:
        for name, each in watching.items():
            setattr(block, name, each)
        yield {name: each.inputs for name, each in watching.items()}
    finally:
        for name, each in own.items():
            setattr(block, name, each)


def refuse_others(spec: ModelSpec) -> None:
    """Raises BadInput where blocks have other matrices than the four."""
    kinds = (("experts", spec.experts), ("common vectors of heads", spec.latent),
             ("an encoder beside", spec.encoder_layers), ("classes", spec.classes))  # fmt: skip
    if found := [what for what, there in kinds if there]:
        what = f"a model with {found[0]} is rounded as it lies, and not by what a text makes of it"
        raise BadInput(what, hint="--method round")


def _before_blocks(name: str) -> bool:
    return name.startswith(("tokens.", "positions.", "types.", "norm_embedding."))
