"""Attention of new positions to all before them, whose keys and values were kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.kernels.interface import Heads, Rotation
from narrows.kernels.reference import rotate, split_heads


class Cache(NamedTuple):
    """Keys and values of one block, [B,K,S,H] with room for every position to come."""

    keys_BKSH: Tensor
    values_BKSH: Tensor

    def extended(self, k_BKTH: Tensor, v_BKTH: Tensor, start: int) -> Cache:
        """Store keys and values of positions from `start` on; all up to the last of them."""
        end = start + k_BKTH.shape[2]
        self.keys_BKSH[:, :, start:end] = k_BKTH
        self.values_BKSH[:, :, start:end] = v_BKTH
        return Cache(self.keys_BKSH[:, :, :end], self.values_BKSH[:, :, :end])


class CodedCache(NamedTuple):
    """The same in int8, with a scale [B,K,S,1] in fp32 for each position and head; as the packed
    decoder has it (tests/infer/test_packed_core.py).
    """

    keys_BKSH: Tensor
    values_BKSH: Tensor
    key_scales_BKS1: Tensor
    value_scales_BKS1: Tensor

    def extended(self, k_BKTH: Tensor, v_BKTH: Tensor, start: int) -> Cache:
        """Code keys and values of positions from `start` on; all up to the last, widened."""
        end = start + k_BKTH.shape[2]
        keys_BKSH, values_BKSH, *scales = (each[:, :, :end] for each in self)
        keys_BKSH[:, :, start:], scales[0][:, :, start:] = coded(k_BKTH)
        values_BKSH[:, :, start:], scales[1][:, :, start:] = coded(v_BKTH)
        k_BKSH, v_BKSH = keys_BKSH * scales[0], values_BKSH * scales[1]
        return Cache(k_BKSH.to(k_BKTH.dtype), v_BKSH.to(v_BKTH.dtype))


Kept = Cache | CodedCache


def coded(x_BKTH: Tensor) -> tuple[Tensor, Tensor]:
    """Each head's numbers as whole ones [B,K,T,H] up to 127, and what one of these stands for
    [B,K,T,1], in fp32.
    """
    wide_BKTH = x_BKTH.float()
    scales_BKT1 = wide_BKTH.abs().amax(-1, keepdim=True) / 127
    steps_BKT1 = scales_BKT1.where(scales_BKT1 > 0, 1.0)
    return (wide_BKTH / steps_BKT1).round(), scales_BKT1


def extend(
    qkv_BTX: Tensor, heads: Heads, rotation: Rotation | None, cache: Cache, start: int
) -> Tensor:
    """Causal attention [B,T,N·H] of a fused projection [B,T,(N+2K)H] at positions from `start` on,
    whose keys and values join the cache.
    """
    q_BNTH, k_BKTH, v_BKTH = split_heads(qkv_BTX, heads)
    if rotation is not None:
        q_BNTH, k_BKTH = rotate(q_BNTH, rotation), rotate(k_BKTH, rotation)
    past = cache.extended(k_BKTH, v_BKTH, start)
    alone = qkv_BTX.shape[1] == 1
    out_BNTH = attend_one(q_BNTH, past) if alone else _attend(q_BNTH, past, start)
    return out_BNTH.transpose(1, 2).flatten(2)


def _attend(q_BNTH: Tensor, past: Cache, start: int) -> Tensor:
    """Attention of queries at positions from `start` on to all keys up to their own."""
    grouped = q_BNTH.shape[1] != past.keys_BKSH.shape[1]
    if start == 0:
        return F.scaled_dot_product_attention(q_BNTH, *past, is_causal=True, enable_gqa=grouped)
    T, S = q_BNTH.shape[2], past.keys_BKSH.shape[2]
    allowed_TS = torch.ones(T, S, dtype=torch.bool, device=q_BNTH.device).tril(start)
    return F.scaled_dot_product_attention(q_BNTH, *past, attn_mask=allowed_TS, enable_gqa=grouped)


def attend_one(q_BN1H: Tensor, past: Cache) -> Tensor:
    """Attention of the newest position: the heads that share keys are that many queries of them.

    On the processor keys are widened: torch packs all of them anew for a single bf16 query, which
    takes three times as long as the widening (12 heads of 64, 1000 keys: 579 against 166 µs).
    """
    q_BKGH = q_BN1H.reshape(q_BN1H.shape[0], past.keys_BKSH.shape[1], -1, q_BN1H.shape[-1])
    wide = torch.float32 if q_BN1H.device.type == "cpu" else q_BN1H.dtype
    keys_BKSH, values_BKSH = past
    out_BKGH = F.scaled_dot_product_attention(
        q_BKGH.to(wide), keys_BKSH.to(wide), values_BKSH.to(wide)
    )
    return out_BKGH.flatten(1, 2).unsqueeze(2).to(q_BN1H.dtype)
