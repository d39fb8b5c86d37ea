"""Values on a grid of 4 or 8 bits: which grid for 32 of them, and which code for each.

A value is scale · code + least, as in `model.grouped`; grids are such as a file of the type can
have, so that what was chosen here is what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from narrows.adapt.method import Type
from narrows.model.blocks import BLOCKS, Block, Groups
from narrows.model.grouped import GROUP, Bits, as_ggml_rounds

BY_NAME: dict[str, Block] = {block.name.lower(): block for block in BLOCKS.values()}
_SHRUNK = tuple(1.0 - 0.02 * step for step in range(16))
"""Shares of the full range that are tried: what is cut off may cost less than coarser steps."""


class Grid(NamedTuple):
    """Scale and least value of each group [N,G], in fp32 and yet fp16's, for so many bits."""

    bits: Bits
    scales_NG: Tensor
    least_NG: Tensor

    def codes(self, values_NGC: Tensor) -> Tensor:
        """The codes of the nearest values [N,G,C], whole numbers in fp32."""
        scales = self.scales_NG.unsqueeze(2)
        steps = (values_NGC - self.least_NG.unsqueeze(2)) / torch.where(scales == 0, 1.0, scales)
        # Eight bits are signed ones, of which the lowest is not used.
        return steps.round_().clamp_(*(1, 255) if self.bits == 8 else (0, 15))

    def values(self, codes_NGC: Tensor) -> Tensor:
        """What codes stand for."""
        return self.scales_NG.unsqueeze(2) * codes_NGC + self.least_NG.unsqueeze(2)

    def of(self, group: int) -> Grid:
        """One group's."""
        return Grid(self.bits, *(each[:, group : group + 1] for each in self[1:]))

    def groups(self, codes_ND: Tensor, type: Type) -> Groups:
        """A matrix of those codes; only of q4_1 have the least values a place of their own."""
        scales, least = self.scales_NG.half(), self.least_NG.half() if type == "q4_1" else None
        return Groups(self.bits, codes_ND.to(torch.uint8), scales, least)


def rounded(weight_ND: Tensor, type: Type) -> Groups:
    """By ggml's own rule."""
    return as_ggml_rounds(weight_ND, BY_NAME[type])


def clipped(weight_ND: Tensor, type: Type, curvature_GCC: Tensor) -> Groups:
    """The nearest values of the grid that is fitted to the inputs."""
    grid = fitted(weight_ND, type, curvature_GCC)
    return grid.groups(grid.codes(grouped(weight_ND)).flatten(1), type)


def fitted(weight_ND: Tensor, type: Type, curvature_GCC: Tensor) -> Grid:
    """Of grids over the full range of each group and less, that with the least error e H eᵀ, where
    H [G,C,C] is of the group's inputs.
    """
    values = grouped(weight_ND)
    best, least_error = None, None
    for grid in _grids(values, type):
        error_NGC = grid.values(grid.codes(values)) - values
        error_NG = torch.einsum("ngc,gcd,ngd->ng", error_NGC, curvature_GCC, error_NGC)
        if best is None or least_error is None:
            best, least_error = grid, error_NG
            continue
        better = error_NG < least_error
        least_error = torch.where(better, error_NG, least_error)
        pairs = zip(grid[1:], best[1:], strict=True)
        best = Grid(grid.bits, *(torch.where(better, new, old) for new, old in pairs))
    assert best is not None
    return best


def grouped(weight_ND: Tensor) -> Tensor:
    """[N,G,C] of a matrix."""
    return weight_ND.unflatten(1, (-1, GROUP))


def _grids(values_NGC: Tensor, type: Type) -> Iterator[Grid]:
    least, most = values_NGC.amin(2), values_NGC.amax(2)
    largest = torch.maximum(most, -least)
    for share in _SHRUNK:
        if type == "q8_0":
            scales = _half(share * largest / 127.0)
            yield Grid(8, scales, -128.0 * scales)
        elif type == "q4_1":
            middle, reach = (most + least) / 2.0, share * (most - least) / 2.0
            yield Grid(4, _half(2.0 * reach / 15.0), _half(middle - reach))
        else:
            # Eight steps on one side of nought and seven on the other, either way.
            for eighth in (-8.0, 8.0):
                scales = _half(share * largest / eighth)
                yield Grid(4, scales, -8.0 * scales)


def _half(numbers: Tensor) -> Tensor:
    return numbers.half().float()
