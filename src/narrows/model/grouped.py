"""Matrices in groups of 32 columns, each with a scale of its own: codes of 4 to 8 bits.

Files that lie so (GGUF's Q and K types) are taken as they are: what was rounded once is not
rounded again.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from narrows.model.blocks import Block, Groups

GROUP = 32
Bits = Literal[4, 8]


def grouped(weight_ND: Tensor, bits: Bits) -> Groups:
    """A matrix rounded: in 8 bits evenly about nought, in 4 from the least value of a group to its
    largest.
    """
    values = weight_ND.float().unflatten(1, (-1, GROUP))
    if bits == 8:
        scales = (values.abs().amax(2) / 127.0).half()
        codes = (values / _divisor(scales)).round_().clamp_(-127, 127) + 128
        return Groups(8, codes.flatten(1).to(torch.uint8), scales)
    least = values.amin(2).half()
    scales = ((values.amax(2) - least.float()) / 15.0).half()
    codes = ((values - least.float().unsqueeze(2)) / _divisor(scales)).round_().clamp_(0, 15)
    return Groups(4, codes.flatten(1).to(torch.uint8), scales, least)


def of_blocks(packed: memoryview, block: Block, columns: int) -> Groups:
    """Rows of a matrix as its file has them."""
    assert block.groups is not None
    bytes_n = torch.frombuffer(packed, dtype=torch.uint8).view(-1, block.size)
    bits, codes, *beside = block.groups(bytes_n)
    rows = codes.numel() // columns
    scales, least, units = (each if each is None else each.reshape(rows, -1) for each in beside)
    assert scales is not None
    return Groups(bits, codes.reshape(rows, columns), scales, least, units)


def _divisor(scales_NG: Tensor) -> Tensor:
    """The scales as codes are multiplied by them; of a group of noughts anything."""
    wide = scales_NG.float()
    return torch.where(wide == 0.0, 1.0, wide).unsqueeze(2)
