"""Matrices in groups of 32 columns, each with a scale of its own: codes of 4 or 8 bits.

A value is scale · code + least. Files that lie so (GGUF's Q4_0, Q4_1, Q8_0) are taken as they are:
what was rounded once is not rounded again; `to_blocks` makes the bytes of such a file again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from narrows.model.blocks import Block, packed

GROUP = 32
Bits = Literal[4, 8]


class Groups(NamedTuple):
    """A matrix [N,D]: codes [N,D] uint8, scales and least values [N,D/32] fp16. Codes of 8 bits are
    128 above a signed one, and the least value is what that makes it.
    """

    bits: Bits
    codes_ND: Tensor
    scales_NG: Tensor
    least_NG: Tensor

    def whole(self) -> Tensor:
        """The values [N,D] in fp32."""
        grouped = self.codes_ND.float().unflatten(1, (-1, GROUP))
        scales, least = self.scales_NG.float(), self.least_NG.float()
        return (grouped * scales.unsqueeze(2) + least.unsqueeze(2)).flatten(1)

    def laid(self, lay: Callable[[Tensor], Tensor]) -> Groups:
        """The same with its rows in another order, or some of them."""
        return Groups(self.bits, *(lay(each).contiguous() for each in self[1:]))


def grouped(weight_ND: Tensor, bits: Bits) -> Groups:
    """A matrix rounded: in 8 bits evenly about nought, in 4 from the least value of a group to its
    largest.
    """
    values = weight_ND.float().unflatten(1, (-1, GROUP))
    if bits == 8:
        scales = (values.abs().amax(2) / 127.0).half()
        codes = (values / _divisor(scales)).round_().clamp_(-127, 127) + 128
        return Groups(8, codes.flatten(1).to(torch.uint8), scales, (-128.0 * scales.float()).half())
    least = values.amin(2).half()
    scales = ((values.amax(2) - least.float()) / 15.0).half()
    codes = ((values - least.float().unsqueeze(2)) / _divisor(scales)).round_().clamp_(0, 15)
    return Groups(4, codes.flatten(1).to(torch.uint8), scales, least)


def of_blocks(packed: memoryview, block: Block, shape: tuple[int, ...]) -> Groups | None:
    """A matrix as its file has it; None where that is not in such groups."""
    if block.name not in ("Q4_0", "Q4_1", "Q8_0"):
        return None
    bytes_n = torch.frombuffer(packed, dtype=torch.uint8).view(-1, block.size)
    scales = bytes_n[:, :2].contiguous().view(torch.float16)
    if block.name == "Q8_0":
        signed = bytes_n[:, 2:]
        codes, least = signed ^ 0x80, (-128.0 * scales.float()).half()
        return _shaped(8, codes, scales, least, shape)
    if block.name == "Q4_1":
        least, both = bytes_n[:, 2:4].contiguous().view(torch.float16), bytes_n[:, 4:]
    else:
        least, both = -8.0 * scales, bytes_n[:, 2:]
    return _shaped(4, torch.cat([both & 15, both >> 4], dim=1), scales, least, shape)


def to_blocks(groups: Groups, block: Block) -> Tensor:
    """The bytes of a matrix in a file that packs it so: `of_blocks` the other way round."""
    codes, scales = groups.codes_ND.reshape(-1, GROUP), _bytes(groups.scales_NG)
    if block.name == "Q8_0":
        assert groups.bits == 8
        return torch.cat([scales, codes ^ 0x80], dim=1)
    assert groups.bits == 4 and block.name in ("Q4_0", "Q4_1"), block.name
    lower, upper = codes.chunk(2, dim=1)
    if block.name == "Q4_1":
        return torch.cat([scales, _bytes(groups.least_NG), lower | upper << 4], dim=1)
    assert torch.equal(groups.least_NG, -8.0 * groups.scales_NG), "no place for the least values"
    return torch.cat([scales, lower | upper << 4], dim=1)


def as_ggml_rounds(weight_ND: Tensor, block: Block) -> Groups:
    """A matrix rounded to blocks of groups by ggml's own rule."""
    bytes_n = torch.cat(list(packed(weight_ND, block)))
    found = of_blocks(memoryview(bytes_n.numpy().data), block, tuple(weight_ND.shape))
    assert found is not None, block.name
    return found


def joined(pieces: list[Groups]) -> Groups | None:
    """One below the other; None where they have not the same bits."""
    if len({each.bits for each in pieces}) != 1:
        return None
    return Groups(
        pieces[0].bits, *(torch.cat(each) for each in zip(*(p[1:] for p in pieces), strict=True))
    )


def _shaped(
    bits: Bits, codes: Tensor, scales: Tensor, least: Tensor, shape: tuple[int, ...]
) -> Groups:
    rows = shape[0]
    return Groups(bits, codes.reshape(shape), scales.view(rows, -1), least.view(rows, -1))


def _bytes(halves_NG: Tensor) -> Tensor:
    return halves_NG.reshape(-1, 1).contiguous().view(torch.uint8)


def _divisor(scales_NG: Tensor) -> Tensor:
    """The scales as codes are multiplied by them; of a group of noughts anything."""
    wide = scales_NG.float()
    return torch.where(wide == 0.0, 1.0, wide).unsqueeze(2)
