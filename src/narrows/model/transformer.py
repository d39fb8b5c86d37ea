"""The transformer: a decoder, pre-norm, with GPT-2's and Llama's choices as types of its spec.

Data flows down this file: tokens → embedding → L × (attention, feed-forward) → norm → logits or
loss. Each block hands on the residual stream and the last addition to it, not yet added, so that
adding and normalising are one operation. How an operation is done is the kernels' business; how
the model is spread over devices is `parallel`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.kernels.interface import Activation, Heads, Kernels, Rotation
from narrows.kernels.loss import linear_cross_entropy
from narrows.kernels.reference import rotate, split_heads
from narrows.spec.errors import BadInput
from narrows.spec.model import GELU, LayerNorm, Learned, ModelSpec, Rotary, SwiGLU

Wrapper = Callable[[Callable[..., "Stream"]], Callable[..., "Stream"]]


class Stream(NamedTuple):
    """The residual stream x [B,T,D] and what is still to be added to it."""

    x_BTD: Tensor
    delta_BTD: Tensor | None


class Cache(NamedTuple):
    """Keys and values of one block, [B,K,S,H] with room for every position to come."""

    keys_BKSH: Tensor
    values_BKSH: Tensor


class Transformer(nn.Module):
    """`spec` says what is computed, `kernels` how; `wrap` may compile or recompute a block."""

    def __init__(self, spec: ModelSpec, kernels: Kernels, *, wrap: Wrapper | None = None) -> None:
        super().__init__()
        _refuse_unbuildable(spec)
        self.spec, self.kernels = spec, kernels
        self.tokens = Weights(spec.vocabulary, spec.width)
        learned = isinstance(spec.positions, Learned)
        self.positions = Weights(spec.context, spec.width) if learned else None
        self.blocks = nn.ModuleList(Block(spec, kernels, wrap=wrap) for _ in range(spec.layers))
        self.norm = NormWeights(spec)
        tied = spec.tied_embeddings
        self.head = None if tied else Weights(spec.vocabulary, spec.width)
        self._rotations: dict[tuple[int, str], Rotation] = {}

    @property
    def head_VD(self) -> Tensor:
        """Weights that turn the last hidden state into logits."""
        return self.tokens.weight if self.head is None else self.head.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B,T,V]."""
        return F.linear(self.hidden(tokens_BT), self.head_VD)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, *, chunk: int, scale: float) -> Tensor:
        """Sum of the cross entropies times `scale`; negative targets count for nothing."""
        x_MD = self.hidden(tokens_BT).flatten(0, 1)
        return linear_cross_entropy(
            x_MD, self.head_VD, targets_BT.flatten(), kernels=self.kernels, chunk=chunk, scale=scale
        )

    def hidden(
        self, tokens_BT: Tensor, caches: list[Cache] | None = None, start: int = 0
    ) -> Tensor:
        """Normalised last hidden states [B,T,D]; with caches, of positions from `start` on."""
        T = tokens_BT.shape[1]
        x_BTD = F.embedding(tokens_BT, self.tokens.weight)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[start : start + T]
        rotation = self._rotation(start, T, tokens_BT.device)
        stream = Stream(self._dropped(x_BTD), None)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if caches is None:
                stream = block(*stream, rotation)
            else:
                stream = block.extend(stream, rotation, caches[index], start)
        return self.norm(self.kernels, stream)[1]

    def caches(self, sequences: int, positions: int) -> list[Cache]:
        """Empty caches for every block."""
        spec, like = self.spec, self.tokens.weight
        shape = (sequences, spec.kv_heads, positions, spec.head_width)
        return [Cache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.blocks]

    def _dropped(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.spec.dropout, self.training) if self.spec.dropout else x_BTD

    def _rotation(self, start: int, count: int, device: torch.device) -> Rotation | None:
        if not isinstance(self.spec.positions, Rotary):
            return None
        key = (self.spec.context, str(device))
        if key not in self._rotations:
            self._rotations[key] = _angles(self.spec, device)
        cos_TH, sin_TH = self._rotations[key]
        return Rotation(cos_TH[start : start + count], sin_TH[start : start + count])


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, spec: ModelSpec, kernels: Kernels, *, wrap: Wrapper | None) -> None:
        super().__init__()
        self.spec, self.kernels = spec, kernels
        self.heads = Heads(spec.heads, spec.kv_heads, spec.head_width)
        self.norm_attention = NormWeights(spec)
        self.qkv = Weights(spec.qkv_width, spec.width, biased=spec.biases)
        self.out = Weights(spec.width, spec.heads * spec.head_width, biased=spec.biases)
        self.norm_feed_forward = NormWeights(spec)
        self.up = Weights(spec.up_width, spec.width, biased=spec.biases)
        self.down = Weights(spec.width, spec.feed_forward_width, biased=spec.biases)
        self._run = wrap(self._compute) if wrap else self._compute

    def forward(self, x_BTD: Tensor, delta_BTD: Tensor | None, rotation: Rotation | None) -> Stream:
        """Causal, over whole sequences."""
        return self._run(x_BTD, delta_BTD, rotation)

    def _compute(
        self, x_BTD: Tensor, delta_BTD: Tensor | None, rotation: Rotation | None
    ) -> Stream:
        kernels = self.kernels
        x_BTD, y_BTD = self.norm_attention(kernels, Stream(x_BTD, delta_BTD))
        qkv_BTX = kernels.linear(y_BTD, self.qkv.weight, self.qkv.bias)
        y_BTX = kernels.attention(qkv_BTX, self.heads, rotation)
        return self._feed_forward(x_BTD, y_BTX)

    def extend(self, stream: Stream, rotation: Rotation | None, cache: Cache, start: int) -> Stream:
        """The same for new positions from `start` on, whose keys and values join the cache."""
        x_BTD, y_BTD = self.norm_attention(self.kernels, stream)
        qkv_BTX = self.kernels.linear(y_BTD, self.qkv.weight, self.qkv.bias)
        q_BNTH, k_BKTH, v_BKTH = split_heads(qkv_BTX, self.heads)
        if rotation is not None:
            q_BNTH, k_BKTH = rotate(q_BNTH, rotation), rotate(k_BKTH, rotation)
        end = start + x_BTD.shape[1]
        cache.keys_BKSH[:, :, start:end] = k_BKTH
        cache.values_BKSH[:, :, start:end] = v_BKTH
        past = Cache(cache.keys_BKSH[:, :, :end], cache.values_BKSH[:, :, :end])
        out_BNTH = _attend_one(q_BNTH, past) if end == start + 1 else _attend(q_BNTH, past, start)
        return self._feed_forward(x_BTD, out_BNTH.transpose(1, 2).flatten(2))

    def _feed_forward(self, x_BTD: Tensor, y_BTX: Tensor) -> Stream:
        kernels, spec = self.kernels, self.spec
        delta_BTD = self._dropped(kernels.linear(y_BTX, self.out.weight, self.out.bias))
        x_BTD, y_BTD = self.norm_feed_forward(kernels, Stream(x_BTD, delta_BTD))
        h_BTX = kernels.linear(y_BTD, self.up.weight, self.up.bias)
        activation: Activation = "gelu" if isinstance(spec.feed_forward, GELU) else "swiglu"
        delta_BTD = kernels.activated_linear(h_BTX, self.down.weight, self.down.bias, activation)
        return Stream(x_BTD, self._dropped(delta_BTD))

    def _dropped(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.spec.dropout, self.training) if self.spec.dropout else x_BTD


def _refuse_unbuildable(spec: ModelSpec) -> None:
    """Raise BadInput where the spec says what can be planned and not yet built here."""
    norm = spec.norm
    absent = (
        "experts", "latent", "window", "qkv_biases", "head_bias", "query_norm", "embedding_norm",
        "token_types", "pooler", "sinks", "encoder_layers",
    )  # fmt: skip
    buildable = {
        "positions": isinstance(spec.positions, Rotary) or spec.positions == Learned(),
        "norm": not isinstance(norm, LayerNorm)
        or (norm.scale and norm.biases in (None, spec.biases)),
        "feed_forward": isinstance(spec.feed_forward, GELU | SwiGLU),
        "block_norms": spec.block_norms == 2,
        "final_norm": spec.final_norm,
        "causal": spec.causal,
        **{name: not getattr(spec, name) for name in absent},
    }
    for name, fine in buildable.items():
        if not fine:
            what = f"model.{name} = {getattr(spec, name)} cannot be built yet"
            raise BadInput(what, hint="narrows plan can plan such a model")


def _attend(q_BNTH: Tensor, past: Cache, start: int) -> Tensor:
    """Attention of queries at positions from `start` on to all keys up to their own."""
    grouped = q_BNTH.shape[1] != past.keys_BKSH.shape[1]
    if start == 0:
        return F.scaled_dot_product_attention(q_BNTH, *past, is_causal=True, enable_gqa=grouped)
    T, S = q_BNTH.shape[2], past.keys_BKSH.shape[2]
    allowed_TS = torch.ones(T, S, dtype=torch.bool, device=q_BNTH.device).tril(start)
    return F.scaled_dot_product_attention(q_BNTH, *past, attn_mask=allowed_TS, enable_gqa=grouped)


def _attend_one(q_BN1H: Tensor, past: Cache) -> Tensor:
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
    return out_BKGH.reshape(q_BN1H.shape).to(q_BN1H.dtype)


class Weights(nn.Module):
    """Weight [rows, columns] and bias [rows] of a product, or a table of `rows` embeddings.

    Unlike nn.Linear it draws no first values: `initialise` does, or a checkpoint is read; and on
    the meta device drawing would load 75 MB of torch's tracing code.
    """

    def __init__(self, rows: int, columns: int, *, biased: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.bias = nn.Parameter(torch.empty(rows)) if biased else None


class NormWeights(nn.Module):
    """Weight, and where the spec has biases the bias, of a LayerNorm or RMSNorm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.centre = isinstance(spec.norm, LayerNorm)
        self.epsilon = spec.norm.epsilon
        self.weight = nn.Parameter(torch.empty(spec.width))
        self.bias = nn.Parameter(torch.empty(spec.width)) if self.centre and spec.biases else None

    def forward(self, kernels: Kernels, stream: Stream) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        return kernels.add_norm(
            *stream, self.weight, self.bias, epsilon=self.epsilon, centre=self.centre
        )


def initialise(model: Transformer, seed: int) -> None:
    """Normal weights of deviation 0.02, divided by √(2L) where a block writes to the residual
    stream (Radford et al. 2019); biases zero, norms one. Equal for equal seeds on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / math.sqrt(2 * model.spec.layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            deviation = residual if name.endswith(("out.weight", "down.weight")) else 0.02
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(drawn.normal_(0.0, deviation, generator=generator))


def _angles(spec: ModelSpec, device: torch.device) -> Rotation:
    assert isinstance(spec.positions, Rotary)
    half = spec.head_width // 2
    # Kept for training too, which cannot use what was made in inference mode.
    with torch.inference_mode(False):
        exponents_H = torch.arange(half, dtype=torch.float64, device=device) / half
        frequencies_H = spec.positions.base**-exponents_H
        positions_T = torch.arange(spec.context, dtype=torch.float64, device=device)
        angles_TH = positions_T[:, None] * frequencies_H
        return Rotation(angles_TH.cos().float(), angles_TH.sin().float())
