"""Frozen matrices in 8 or 4 bits, made whole again for each product.

int8: a byte a value and a scale a row. nf4: two values a byte, each one of 16 quantiles of a normal
distribution, and a scale for 64 neighbours of a row (arXiv:2305.14314, section 3).
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from narrows.spec.adapter import BLOCK, Base

_LEVELS = 127.0
_OUTERMOST = 0.9677083
"""The quantile that is scaled to one: as the paper's authors computed theirs."""


def packed_shapes(shape: tuple[int, int], base: Base) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the codes and scales of a matrix."""
    rows, columns = shape
    if base == "int8":
        return (rows, columns), (rows, 1)
    return (rows, -(-columns // 2)), (rows, -(-columns // BLOCK))


def packed_types(base: Base) -> tuple[torch.dtype, torch.dtype]:
    """Of both."""
    return (torch.int8, torch.float32) if base == "int8" else (torch.uint8, torch.bfloat16)


def pack(weight_ED: Tensor, base: Base) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix; rows do not depend on each other."""
    wide_ED = weight_ED.detach().float()
    if base == "int8":
        scales_E1 = wide_ED.abs().amax(dim=1, keepdim=True).div_(_LEVELS).clamp_min_(1e-30)
        return (wide_ED / scales_E1).round_().to(torch.int8), scales_E1
    E, D = wide_ED.shape
    padded_ED = torch.nn.functional.pad(wide_ED, (0, -D % BLOCK)).view(E, -1, BLOCK)
    scales = padded_ED.abs().amax(dim=2, keepdim=True).clamp_min_(1e-30).to(torch.bfloat16)
    quantiles = torch.tensor(nf4_quantiles(), device=weight_ED.device)
    between = (quantiles[1:] + quantiles[:-1]) / 2
    codes_ED = torch.bucketize(padded_ED / scales.float(), between).view(E, -1).to(torch.uint8)
    pairs = codes_ED[:, : D + D % 2].unflatten(1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4, scales.squeeze(2)


def unpack(codes: Tensor, scales: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The matrix [rows, columns] that codes and scales stand for."""
    if codes.dtype == torch.int8:
        return codes.to(dtype).mul_(scales)
    rows = codes.shape[0]
    table = _pairs(dtype, codes.device)
    weight_ED = torch.nn.functional.embedding(codes.int(), table).view(rows, -1)
    if columns % BLOCK:
        spread = scales.to(dtype).repeat_interleave(BLOCK, dim=1)[:, :columns]
        return weight_ED[:, :columns].mul_(spread)
    weight_ED.view(rows, -1, BLOCK).mul_(scales.to(dtype).unsqueeze(2))
    return weight_ED


@cache
def nf4_quantiles() -> tuple[float, ...]:
    """The 16 values of a code: quantiles at even distances on either side of zero, eight of them
    below it and seven above, zero itself, all over the largest.
    """
    inverse = NormalDist().inv_cdf

    def half(count: int) -> list[float]:
        step = (_OUTERMOST - 0.5) / count
        return [inverse(_OUTERMOST - step * index) for index in range(count)]

    above, below = half(8), half(7)
    values = [*(-each for each in below), 0.0, *reversed(above)]
    return tuple(each / above[0] for each in values)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Both values of every byte [256, 2]."""
    quantiles = torch.tensor(nf4_quantiles(), device=device)
    codes = torch.arange(256, device=device)
    return torch.stack([quantiles[codes & 15], quantiles[codes >> 4]], dim=1).to(dtype)
