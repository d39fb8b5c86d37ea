"""Attention beyond one fused kernel: caches, masks, biases, sinks, common vectors, an encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.kernels.interface import Heads, Kernels, Rotation
from narrows.kernels.past import Cache, attend_one
from narrows.kernels.reference import rotate, split_heads
from narrows.model.dropout import dropped, elsewhere
from narrows.model.weights import NormWeights, Weights
from narrows.spec.model import ModelSpec


class Place(NamedTuple):
    """Where queries stand: the first one's position, their rotation, what they may attend to.

    `mask_TS` has True where allowed, or is added to the scores [N,T,S]; None where causality alone
    rules from position 0 on, or nothing does. `encoded_BSD` is what an encoder made of its tokens.
    `numbers_BT` are what dropout is drawn from, where there is any. Where rows hold documents of
    `lengths` side by side, `apart` is the place of each.
    """

    start: int = 0
    rotation: Rotation | None = None
    mask_TS: Tensor | None = None
    encoded_BSD: Tensor | None = None
    numbers_BT: Tensor | None = None
    apart: tuple[Place, ...] = ()
    lengths: tuple[int, ...] = ()

    def of_layer(self, layer: int) -> Place:
        """The same with numbers of a layer's own."""
        if self.numbers_BT is None:
            return self
        return self._replace(numbers_BT=elsewhere(self.numbers_BT, 4 * layer))

    def dropped(self, x_BTD: Tensor, site: int, share: float) -> Tensor:
        """x behind the dropout at one of a layer's four sites."""
        if self.numbers_BT is None:
            return x_BTD
        return dropped(x_BTD, elsewhere(self.numbers_BT, site), share)


class Scores(NamedTuple):
    """What products of queries and keys go through on their way to weights."""

    causal: bool
    scale: float | None
    cap: float | None

    @staticmethod
    def of(spec: ModelSpec) -> Scores:
        """As the spec says."""
        return Scores(spec.causal, spec.query_scale, spec.score_cap)


class QueryNorms(nn.Module):
    """RMSNorms of queries and keys before they are turned, over a head or over all of them."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.whole = spec.query_norm == "whole"
        queries, keys = (spec.heads, spec.kv_heads) if self.whole else (1, 1)
        self.query = NormWeights.within(spec, queries * spec.head_width)
        self.key = NormWeights.within(spec, keys * spec.head_width)

    def forward(self, q_BNTH: Tensor, k_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Both, normalised."""
        return self._normalised(self.query, q_BNTH), self._normalised(self.key, k_BKTH)

    def _normalised(self, norm: NormWeights, x_BNTH: Tensor) -> Tensor:
        if not self.whole:
            return norm.alone(x_BNTH)
        together_BTX = norm.alone(x_BNTH.transpose(1, 2).flatten(2))
        return together_BTX.unflatten(2, (x_BNTH.shape[1], -1)).transpose(1, 2)


class LatentWeights(nn.Module):
    """Queries, keys and values by way of vectors that the heads have in common."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        latent = spec.latent
        assert latent is not None
        self.heads, self.latent, self.width = spec.heads, latent, spec.head_width
        wide, rank = spec.heads * spec.score_width, latent.query_rank
        self.query = Weights(wide, spec.width) if rank is None else None
        self.query_down = None if rank is None else Weights(rank, spec.width)
        self.query_norm = None if rank is None else NormWeights.within(spec, rank)
        self.query_up = None if rank is None else Weights(wide, rank)
        self.key_value_down = Weights(latent.kv_rank + latent.rope_width, spec.width)
        self.key_value_norm = NormWeights.within(spec, latent.kv_rank)
        up = spec.heads * (spec.head_width + latent.value_width)
        self.key_value_up = Weights(up, latent.kv_rank)

    def forward(
        self, kernels: Kernels, y_BTD: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B,N,T,H+R], whose last R are turned, and values [B,N,T,Hv]."""
        H, latent = self.width, self.latent
        q_BNTX = self._queries(kernels, y_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        plain_BNTH, q_BNTR = q_BNTX.split([H, latent.rope_width], dim=-1)
        c_BTX = self.key_value_down.linear(kernels, y_BTD)
        c_BTC, k_BTR = c_BTX.split([latent.kv_rank, latent.rope_width], dim=-1)
        kv_BTX = self.key_value_up.linear(kernels, self.key_value_norm.alone(c_BTC))
        kv_BNTX = kv_BTX.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BNTH, v_BNTH = kv_BNTX.split([H, latent.value_width], dim=-1)
        q_BNTR, k_B1TR = turned(q_BNTR, rotation), turned(k_BTR.unsqueeze(1), rotation)
        k_BNTR = k_B1TR.expand(-1, self.heads, -1, -1)
        return (
            torch.cat([plain_BNTH, q_BNTR], dim=-1), torch.cat([k_BNTH, k_BNTR], dim=-1), v_BNTH,
        )  # fmt: skip

    def _queries(self, kernels: Kernels, y_BTD: Tensor) -> Tensor:
        if self.query is not None:
            return self.query.linear(kernels, y_BTD)
        assert self.query_down and self.query_norm and self.query_up
        c_BTC = self.query_down.linear(kernels, y_BTD)
        return self.query_up.linear(kernels, self.query_norm.alone(c_BTC))


class Crossing(nn.Module):
    """A decoder's attention to what its encoder made."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads = Heads(spec.heads, spec.kv_heads, spec.head_width)
        self.scores = Scores.of(spec)._replace(causal=False)
        N, K, H = self.heads
        self.query = Weights(N * H, spec.width, biased=spec.biases)
        self.key_value = Weights(2 * K * H, spec.width, biased=spec.biases)
        self.out = Weights(spec.width, N * H, biased=spec.biases)

    def forward(self, kernels: Kernels, y_BTD: Tensor, encoded_BSD: Tensor) -> Tensor:
        """What is to be added to the stream [B,T,D]."""
        N, K, H = self.heads
        q_BTX = self.query.linear(kernels, y_BTD)
        kv_BSX = self.key_value.linear(kernels, encoded_BSD)
        q_BNTH = q_BTX.unflatten(-1, (N, H)).transpose(1, 2)
        k_BKSH, v_BKSH = kv_BSX.unflatten(-1, (2 * K, H)).transpose(1, 2).chunk(2, dim=1)
        out_BNTH = attend(q_BNTH, Cache(k_BKSH, v_BKSH), self.scores)
        out_BTX = out_BNTH.transpose(1, 2).flatten(2)
        return self.out.linear(kernels, out_BTX)


def grouped(
    qkv_BTX: Tensor, heads: Heads, norms: QueryNorms | None, rotation: Rotation | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B,N,T,H], keys and values [B,K,T,H] of a fused projection, normalised and turned."""
    q_BNTH, k_BKTH, v_BKTH = split_heads(qkv_BTX, heads)
    if norms is not None:
        q_BNTH, k_BKTH = norms(q_BNTH, k_BKTH)
    return turned(q_BNTH, rotation), turned(k_BKTH, rotation), v_BKTH


def turned(x_BNTH: Tensor, rotation: Rotation | None) -> Tensor:
    """x with as many of its first dimensions turned as the rotation has."""
    if rotation is None:
        return x_BNTH
    width = 2 * rotation.cos.shape[-1]
    if width == x_BNTH.shape[-1]:
        return rotate(x_BNTH, rotation)
    return torch.cat([rotate(x_BNTH[..., :width], rotation), x_BNTH[..., width:]], dim=-1)


def attend(
    q_BNTH: Tensor, past: Cache, scores: Scores, mask: Tensor | None = None,
    sinks_N: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Weighted values [B,N,T,H]; `mask` and its absence as in Place, of the newest query alone
    where there is one.
    """
    if scores.cap is not None or sinks_N is not None:
        return _attend_openly(q_BNTH, past, scores, mask, sinks_N)
    plain = scores.scale is None and mask is None
    if plain and scores.causal and q_BNTH.shape[2] == 1:
        return attend_one(q_BNTH, past)
    return F.scaled_dot_product_attention(
        q_BNTH, *past, attn_mask=mask, is_causal=_causal(q_BNTH, scores, mask),
        scale=scores.scale, enable_gqa=q_BNTH.shape[1] != past.keys_BKSH.shape[1],
    )  # fmt: skip


def _causal(q_BNTH: Tensor, scores: Scores, mask: Tensor | None) -> bool:
    return scores.causal and mask is None and q_BNTH.shape[2] > 1


def _attend_openly(
    q_BNTH: Tensor, past: Cache, scores: Scores, mask: Tensor | None, sinks_N: Tensor | None
) -> Tensor:
    """With all scores in memory, where no fused kernel caps them or knows sinks: one number a head
    more in the softmax, for which no value is (arXiv:2309.17453).
    """
    k_BKSH, v_BKSH = past
    T, S = q_BNTH.shape[2], k_BKSH.shape[2]
    q_BKGTH = q_BNTH.unflatten(1, (k_BKSH.shape[1], -1))
    scale = q_BNTH.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    products_BNTS = (q_BKGTH @ k_BKSH.unsqueeze(2).transpose(-1, -2)).flatten(1, 2).float() * scale
    if scores.cap is not None:
        products_BNTS = scores.cap * (products_BNTS / scores.cap).tanh()
    if _causal(q_BNTH, scores, mask):
        mask = torch.ones(T, S, dtype=torch.bool, device=q_BNTH.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        products_BNTS = products_BNTS.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        products_BNTS = products_BNTS + mask
    if sinks_N is not None:
        sinks_BNT1 = sinks_N.float()[:, None, None].expand(q_BNTH.shape[0], -1, T, 1)
        products_BNTS = torch.cat([products_BNTS, sinks_BNT1], dim=-1)
    weights_BNTS = products_BNTS.softmax(dim=-1)[..., :S].to(v_BKSH.dtype)
    weights_BKGTS = weights_BNTS.unflatten(1, (v_BKSH.shape[1], -1))
    return (weights_BKGTS @ v_BKSH.unsqueeze(2)).flatten(1, 2)
