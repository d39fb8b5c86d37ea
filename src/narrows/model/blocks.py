"""How GGUF packs values: blocks of bytes, each with its own scale, and what they stand for.

The layouts are those of github.com/ggml-org/ggml, ggml-common.h; names as there. Values come in
groups of 32 of a block or, in the K types, of eight groups in a superblock of 256 whose scales are
packed themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 1 << 14
"""Blocks unpacked at once: what they need in between stays in the caches."""


class Groups(NamedTuple):
    """Rows in codes of `bits` bits [N,D] uint8: a value is scale · code + least, and without least
    values scale · (code - half of the codes' range).

    Scales and least values are fp16, one for each group of 32 [N,D/32]. With `units`, fp16, one or
    two for each superblock of 256, they are whole numbers of such units: the scales of the first,
    of 6 bits one for each sixteen columns [N,D/16]; what is *subtracted* of the second.
    """

    bits: int
    codes_ND: Tensor
    scales_NG: Tensor
    least_NG: Tensor | None = None
    units_NU: Tensor | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> Groups:
        """With other rows, or others' order."""
        beside = (None if each is None else move(each) for each in (self.least_NG, self.units_NU))
        return Groups(self.bits, move(self.codes_ND), move(self.scales_NG), *beside)

    def whole(self) -> Tensor:
        """The values [N,D] in fp32."""
        scales_NG, least_NG = self.scales_NG.float(), self.least_NG
        codes_NGX = self.codes_ND.float().unflatten(1, (scales_NG.shape[1], -1))
        if self.units_NU is not None:
            units_NU1 = self.units_NU.float().view(len(codes_NGX), -1, 1 + (least_NG is not None))
            each = 8 if self.bits < 6 else 16
            scales_NG = scales_NG * units_NU1[..., 0].repeat_interleave(each, 1)
            if least_NG is not None:
                least_NG = -least_NG.float() * units_NU1[..., 1].repeat_interleave(each, 1)
        if least_NG is None:
            centred_NGX = codes_NGX - (1 << self.bits - 1)
            return (scales_NG.unsqueeze(2) * centred_NGX).flatten(1)
        return (scales_NG.unsqueeze(2) * codes_NGX + least_NG.float().unsqueeze(2)).flatten(1)


class Block(NamedTuple):
    """A type: `values` numbers in `size` bytes, numbers of `dtype` where they are not packed;
    `groups` makes [n, size] bytes n rows of groups, and `pack` the bytes again where we can.
    """

    name: str
    values: int
    size: int
    groups: Callable[[Tensor], Groups] | None = None
    dtype: torch.dtype | None = None
    pack: Callable[[Tensor], Tensor] | None = None

    def bytes_of(self, values: int) -> int:
        """Bytes that so many values take, whole blocks of them."""
        return values // self.values * self.size


def unpack(packed: memoryview, block: Block, into: Tensor) -> None:
    """Write the values of packed blocks to `into`, contiguous, of its own type."""
    bytes_n = torch.frombuffer(packed, dtype=torch.uint8)
    if block.dtype is not None:
        into.view(-1).copy_(bytes_n.view(block.dtype))
        return
    assert block.groups is not None
    packed_n, values_n = bytes_n.view(-1, block.size), into.view(-1, block.values)
    for start in range(0, len(packed_n), _ROWS):
        rows = slice(start, start + _ROWS)
        values_n[rows].copy_(block.groups(packed_n[rows]).whole())


def packed(values: Tensor, block: Block) -> Iterator[Tensor]:
    """The bytes of values of any shape, a part of the whole each."""
    if block.dtype is not None:
        yield values.to(block.dtype).contiguous().view(-1).view(torch.uint8)
        return
    assert block.pack is not None, f"{block.name} is read alone"
    values_n = values.contiguous().view(-1, block.values)
    for start in range(0, len(values_n), _ROWS):
        yield block.pack(values_n[start : start + _ROWS].float()).flatten()


def _plain(name: str, dtype: torch.dtype) -> Block:
    return Block(name, 1, dtype.itemsize, dtype=dtype)


def _q4_0(block: Tensor) -> Groups:
    return Groups(4, _nibbles(block[:, 2:]), _halves(block, 0, 1))


def _q4_1(block: Tensor) -> Groups:
    scale, least = _halves(block, 0, 2).split(1, 1)
    return Groups(4, _nibbles(block[:, 4:]), scale, least)


def _q5_0(block: Tensor) -> Groups:
    return Groups(5, _nibbles(block[:, 6:]) | _bits(block[:, 2:6]) << 4, _halves(block, 0, 1))


def _q5_1(block: Tensor) -> Groups:
    scale, least = _halves(block, 0, 2).split(1, 1)
    return Groups(5, _nibbles(block[:, 8:]) | _bits(block[:, 4:8]) << 4, scale, least)


def _q8_0(block: Tensor) -> Groups:
    return Groups(8, block[:, 2:] ^ 0x80, _halves(block, 0, 1))


def _to_q4_0(values: Tensor) -> Tensor:
    extreme = values.gather(1, values.abs().argmax(1, keepdim=True))
    scale = extreme / -8.0
    # In fp64, as products and sums that are rounded once come out.
    steps = (values.double() * _inverse(scale).double() + 8.5).trunc().clamp(0, 15)
    return torch.cat([_to_halves(scale), _to_nibbles(steps)], 1)


def _to_q4_1(values: Tensor) -> Tensor:
    least = values.amin(1, keepdim=True)
    scale = (values.amax(1, keepdim=True) - least) / 15.0
    steps = ((values - least) * _inverse(scale) + 0.5).trunc().clamp(0, 15)
    return torch.cat([_to_halves(torch.cat([scale, least], 1)), _to_nibbles(steps)], 1)


def _to_q8_0(values: Tensor) -> Tensor:
    scale = values.abs().amax(1, keepdim=True) / 127.0
    steps = values * _inverse(scale)
    # Halves go away from zero.
    steps = (steps.abs() + 0.5).floor() * steps.sign()
    return torch.cat([_to_halves(scale), steps.to(torch.int8).view(torch.uint8)], 1)


def _q4_k(block: Tensor) -> Groups:
    return Groups(4, _pairs(block[:, 16:]).flatten(1), *_sixes(block), _halves(block, 0, 2))


def _q5_k(block: Tensor) -> Groups:
    high = block[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    codes = (_pairs(block[:, 48:]) | high << 4).flatten(1)
    return Groups(5, codes, *_sixes(block), _halves(block, 0, 2))


def _q6_k(block: Tensor) -> Groups:
    low = block[:, :128].reshape(-1, 2, 1, 2, 32)
    low = torch.cat([low & 15, low >> 4], 2).reshape(-1, 2, 4, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = block[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    scales = block[:, 192:208].contiguous().view(torch.int8)
    return Groups(6, (low | high << 4).flatten(1), scales, None, _halves(block, 208, 1))


def _pairs(bytes_n: Tensor) -> Tensor:
    """Lower halves of 32 bytes, then their upper ones, and so on [n, 8, 32]."""
    pairs = bytes_n.reshape(-1, 4, 1, 32)
    return torch.cat([pairs & 15, pairs >> 4], 2).reshape(-1, 8, 32)


def _halves(block: Tensor, at: int, count: int) -> Tensor:
    """fp16 numbers in the block [n, count]."""
    return block[:, at : at + 2 * count].contiguous().view(torch.float16)


def _to_halves(numbers: Tensor) -> Tensor:
    return numbers.half().view(torch.uint8)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0.0, 0.0, 1.0 / scale)


def _nibbles(bytes_n: Tensor) -> Tensor:
    """Lower halves of all bytes, then the upper ones."""
    return torch.cat([bytes_n & 15, bytes_n >> 4], 1)


def _to_nibbles(steps: Tensor) -> Tensor:
    lower, upper = steps.to(torch.uint8).chunk(2, 1)
    return lower | upper << 4


def _bits(bytes_n: Tensor) -> Tensor:
    """All bits, the lowest of the first byte first."""
    return (bytes_n[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def _sixes(block: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and what is subtracted, six bits each, of the eight groups of a superblock [n, 8]."""
    low, middle, high = block[:, 4:16].split(4, 1)
    scales = torch.cat([low & 63, (high & 15) | (low >> 6 << 4)], 1)
    return scales, torch.cat([middle & 63, (high >> 4) | (middle >> 6 << 4)], 1)


BLOCKS: dict[int, Block] = {
    0: _plain("F32", torch.float32),
    1: _plain("F16", torch.float16),
    2: Block("Q4_0", 32, 18, _q4_0, pack=_to_q4_0),
    3: Block("Q4_1", 32, 20, _q4_1, pack=_to_q4_1),
    6: Block("Q5_0", 32, 22, _q5_0),
    7: Block("Q5_1", 32, 24, _q5_1),
    8: Block("Q8_0", 32, 34, _q8_0, pack=_to_q8_0),
    12: Block("Q4_K", 256, 144, _q4_k),
    13: Block("Q5_K", 256, 176, _q5_k),
    14: Block("Q6_K", 256, 210, _q6_k),
    30: _plain("BF16", torch.bfloat16),
}
"""By the number that files give them."""
