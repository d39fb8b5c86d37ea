"""Matrices in groups of 32 columns, each with a scale of its own: codes of 4 to 8 bits.

Files that lie so (GGUF's Q and K types) are taken as they are: what was rounded once is not
rounded again; `to_blocks` makes the bytes of such a file again.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from narrows.model.blocks import Block, Groups, packed

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


def of_blocks(lying: memoryview, block: Block, columns: int) -> Groups:
    """Rows of a matrix as its file has them."""
    assert block.groups is not None
    bytes_n = torch.frombuffer(lying, dtype=torch.uint8).view(-1, block.size)
    bits, codes, *beside = block.groups(bytes_n)
    rows = codes.numel() // columns
    scales, least, units = (each if each is None else each.reshape(rows, -1) for each in beside)
    assert scales is not None
    return Groups(bits, codes.reshape(rows, columns), scales, least, units)


def to_blocks(groups: Groups, block: Block) -> Tensor:
    """The bytes of a matrix in a file that packs it so: `of_blocks` the other way round."""
    codes, beside = groups.codes_ND.reshape(-1, GROUP), [_bytes(groups.scales_NG)]
    if block.name == "Q8_0":
        assert groups.bits == 8 and groups.least_NG is None
        return torch.cat([*beside, codes ^ 0x80], dim=1)
    assert groups.bits == 4 and block.name in ("Q4_0", "Q4_1"), block.name
    assert (groups.least_NG is None) == (block.name == "Q4_0"), "least values are Q4_1's alone"
    if groups.least_NG is not None:
        beside.append(_bytes(groups.least_NG))
    lower, upper = codes.chunk(2, dim=1)
    return torch.cat([*beside, lower | upper << 4], dim=1)


def as_ggml_rounds(weight_ND: Tensor, block: Block) -> Groups:
    """A matrix rounded to blocks of groups by ggml's own rule."""
    bytes_n = torch.cat(list(packed(weight_ND, block)))
    return of_blocks(memoryview(bytes_n.numpy().data), block, weight_ND.shape[1])


def joined(pieces: list[Groups]) -> Groups | None:
    """One below the other; None where they are not of one kind, or in superblocks."""
    kinds = {(each.bits, each.least_NG is None) for each in pieces}
    if len(kinds) != 1 or any(each.units_NU is not None for each in pieces):
        return None
    least = [each.least_NG for each in pieces if each.least_NG is not None]
    return Groups(
        pieces[0].bits, torch.cat([each.codes_ND for each in pieces]),
        torch.cat([each.scales_NG for each in pieces]), torch.cat(least) if least else None,
    )  # fmt: skip


def _bytes(halves_NG: Tensor) -> Tensor:
    return halves_NG.reshape(-1, 1).contiguous().view(torch.uint8)


def _divisor(scales_NG: Tensor) -> Tensor:
    """The scales as codes are multiplied by them; of a group of noughts anything."""
    wide = scales_NG.float()
    return torch.where(wide == 0.0, 1.0, wide).unsqueeze(2)
