"""Dropout that depends on which token it is, not on where, when or beside what it is computed.

A hash of the step's seed, the sequence's place in the batch and the position is a token's number.
Of it and the place in the model follows a line a · c + b mod 2³² through the hashes c of all
columns, and what lies lowest on it is dropped: pairs of columns are independent, and so are tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B9


class Draws(NamedTuple):
    """What a micro-batch's dropout is drawn from: a seed, and its first sequence's place in the
    batch.
    """

    seed: int
    first: int = 0

    def numbers(self, sequences: int, span: tuple[int, int], device: torch.device) -> Tensor:
        """One for each token at positions of `span`, a first one and how many [B,T] int32."""
        start, count = span
        places_B = torch.arange(self.first, self.first + sequences, device=device)
        positions_T = torch.arange(start, start + count, dtype=torch.int32, device=device)
        low, high = _wrapped(self.seed), _wrapped(self.seed >> 32)
        sequences_B = _hashed(_hashed(places_B.int() + low) + high)
        return _hashed(sequences_B.unsqueeze(1) + positions_T)


def elsewhere(numbers_BT: Tensor, place: int) -> Tensor:
    """Numbers of the same tokens for another place of the model."""
    return numbers_BT + _wrapped(place * _GOLDEN)


def dropped(x_BTD: Tensor, numbers_BT: Tensor, share: float) -> Tensor:
    """x without a share of its values, and the rest larger by as much."""
    out_BTD: Tensor = _Dropout.apply(x_BTD, numbers_BT, share)
    return out_BTD


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, numbers_BT: Tensor, share: float) -> Tensor:
        a_BT1 = _hashed(numbers_BT).unsqueeze(-1)
        columns_D = torch.arange(x_BTD.shape[-1], dtype=torch.int32, device=x_BTD.device)
        heights_BTD = torch.addcmul(_hashed(a_BT1), a_BT1 | 1, _hashed(columns_D))
        kept_BTD = heights_BTD >= int(share * 2**32) - 2**31
        ctx.save_for_backward(kept_BTD)
        ctx.scale = 1.0 / (1.0 - share)
        return (x_BTD * kept_BTD).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (kept_BTD,) = ctx.saved_tensors
        return (upstream[0] * kept_BTD).mul_(ctx.scale), None, None


def _hashed(x: Tensor) -> Tensor:
    """Of int32, by lowbias32 (C. Wellons, hash-prospector)."""
    x = x ^ (x >> 16 & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15 & 0x1FFFF)
    x = x * _wrapped(0x846CA68B)
    return x ^ (x >> 16 & 0xFFFF)


def _wrapped(number: int) -> int:
    """Its lowest 32 bits as a signed number."""
    return (number + 2**31) % 2**32 - 2**31
