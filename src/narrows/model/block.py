"""A block of the transformer: attention and feed-forward, each with its norm, on the stream.

Each hands on the residual stream and the last addition to it, not yet added, so that adding and
normalising are one operation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from narrows.kernels.interface import Heads, Kernels, Spans
from narrows.kernels.past import Cache, Kept
from narrows.model.attention import (
    Crossing,
    LatentWeights,
    Place,
    QueryNorms,
    Scores,
    attend,
    grouped,
)
from narrows.model.feed_forward import Routed, activated_linear
from narrows.model.weights import NormWeights, Stream, Weights
from narrows.spec.model import ModelSpec, Rotary

Wrapper = Callable[[Callable[..., Stream]], Callable[..., Stream]]


class Block(nn.Module):
    """Attention and feed-forward, each with its norm and added to the stream."""

    def __init__(
        self, spec: ModelSpec, kernels: Kernels, *, layer: int, wrap: Wrapper | None
    ) -> None:
        super().__init__()
        self.spec, self.kernels = spec, kernels
        self.heads = Heads(spec.heads, spec.kv_heads, spec.head_width)
        self.attend = attend
        self.scores, self.window, self.layer = Scores.of(spec), spec.window_of(layer), layer
        D, twice = spec.width, spec.block_norms == "both"
        self.norm_attention = NormWeights.of_stream(spec)
        biased = spec.biases or spec.qkv_biases
        fused = None if spec.latent else Weights(spec.qkv_width, D, biased=biased)
        self.qkv = fused or LatentWeights(spec)
        self.query_norms = QueryNorms(spec) if spec.query_norm else None
        self.sinks = nn.Parameter(torch.empty(spec.heads)) if spec.sinks else None
        self.out = Weights(D, spec.heads * spec.value_width, biased=spec.biases)
        self.norm_attention_out = NormWeights.of_stream(spec) if twice else None
        crossing = spec.encoder_layers > 0
        self.norm_crossing = NormWeights.of_stream(spec) if crossing else None
        self.crossing = Crossing(spec) if crossing else None
        shared = spec.block_norms == "shared"
        self.norm_feed_forward = None if shared else NormWeights.of_stream(spec)
        dense = spec.experts is None or layer < spec.experts.dense_layers
        self.experts = None if dense else Routed(spec)
        self.up = Weights(spec.up_width, D, biased=spec.biases) if dense else None
        self.down = Weights(D, spec.feed_forward_width, biased=spec.biases) if dense else None
        self.norm_feed_forward_out = NormWeights.of_stream(spec) if twice else None
        # Where no score is masked for itself, the kernels' own attention computes the same.
        turned = not isinstance(spec.positions, Rotary) or spec.positions.share == 1.0
        plain = self.scores.scale is None and self.scores.cap is None and turned
        self.fused = plain and not (spec.query_norm or spec.sinks)
        self._run = wrap(self._compute) if wrap else self._compute

    def forward(self, x_BTD: Tensor, delta_BTD: Tensor | None, place: Place) -> Stream:
        """Over whole sequences."""
        # A block that knew its layer's number when it is compiled would be compiled for each.
        return self._run(x_BTD, delta_BTD, place.of_layer(self.layer))

    def extend(self, stream: Stream, place: Place, cache: Kept) -> Stream:
        """The same for new positions, whose keys and values join the cache."""
        return self._compute(*stream, place, cache)

    def _compute(
        self, x_BTD: Tensor, delta_BTD: Tensor | None, place: Place, cache: Kept | None = None
    ) -> Stream:
        stream = Stream(x_BTD, delta_BTD)

        def attention(y_BTD: Tensor) -> Tensor:
            return place.dropped(self._attention(y_BTD, place, cache), 1, self.spec.dropout)

        def feed_forward(y_BTD: Tensor) -> Tensor:
            return place.dropped(self._feed_forward(y_BTD), 2, self.spec.dropout)

        if self.spec.block_norms in ("shared", "apart"):
            x_BTD, y_BTD = self.norm_attention(self.kernels, stream)
            norm = self.norm_feed_forward
            z_BTD = y_BTD if norm is None else norm.alone(x_BTD)
            return Stream(x_BTD, attention(y_BTD) + feed_forward(z_BTD))
        stream = self._added(stream, attention, self.norm_attention, self.norm_attention_out)
        if self.crossing is not None:
            crossing, encoded_BSD = self.crossing, place.encoded_BSD
            assert encoded_BSD is not None and self.norm_crossing is not None

            def cross(y_BTD: Tensor) -> Tensor:
                crossed_BTD = crossing(self.kernels, y_BTD, encoded_BSD)
                return place.dropped(crossed_BTD, 3, self.spec.dropout)

            stream = self._added(stream, cross, self.norm_crossing, None)
        assert self.norm_feed_forward is not None
        return self._added(stream, feed_forward, self.norm_feed_forward, self.norm_feed_forward_out)

    def _added(
        self, stream: Stream, compute: Callable[[Tensor], Tensor], norm: NormWeights,
        second: NormWeights | None,
    ) -> Stream:  # fmt: skip
        """The stream and what `compute` adds to it, with norms where the spec has them."""
        kernels, order = self.kernels, self.spec.block_norms
        if order in ("before", "both"):
            x_BTD, y_BTD = norm(kernels, stream)
        else:
            x_BTD = y_BTD = stream.sum()
        delta_BTD = compute(y_BTD)
        if order == "stream":
            return Stream(norm(kernels, Stream(x_BTD, delta_BTD))[1], None)
        if order == "behind":
            delta_BTD = norm.alone(delta_BTD)
        if second is not None:
            delta_BTD = second.alone(delta_BTD)
        return Stream(x_BTD, delta_BTD)

    def _attention(self, y_BTD: Tensor, place: Place, cache: Kept | None) -> Tensor:
        qkv_BTX = y_BTD
        if not isinstance(self.qkv, LatentWeights):
            qkv_BTX = self.qkv.linear(self.kernels, y_BTD)
        if place.apart and self.fused and all(own.mask_TS is None for own in place.apart):
            spans = Spans(self.scores.causal, place.lengths)
            y_BTX = self.kernels.attention(qkv_BTX, self.heads, place.rotation, spans)
        elif place.apart:
            # Documents side by side in a row: nothing is computed between them.
            each = qkv_BTX.flatten(0, 1).split(list(place.lengths))
            given = [
                self._attended(qkv_TX.unsqueeze(0), own, None).squeeze(0)
                for qkv_TX, own in zip(each, place.apart, strict=True)
            ]
            y_BTX = torch.cat(given).unflatten(0, y_BTD.shape[:2])
        else:
            y_BTX = self._attended(qkv_BTX, place, cache)
        return self.out.linear(self.kernels, y_BTX)

    def _attended(self, qkv_BTX: Tensor, place: Place, cache: Kept | None) -> Tensor:
        """Weighted values of all heads [B,T,N·H], of queries, keys and values in one, or of what
        they are made of.
        """
        if isinstance(self.qkv, LatentWeights):
            q_BNTH, k_BKTH, v_BKTH = self.qkv(self.kernels, qkv_BTX, place.rotation)
        elif cache is None and place.mask_TS is None and self.fused:
            spans = Spans(self.scores.causal)
            return self.kernels.attention(qkv_BTX, self.heads, place.rotation, spans)
        else:
            q_BNTH, k_BKTH, v_BKTH = grouped(
                qkv_BTX, self.heads, self.query_norms, place.rotation
            )  # fmt: skip
        past = Cache(k_BKTH, v_BKTH)
        if cache is not None:
            past = cache.extended(k_BKTH, v_BKTH, place.start)
        out_BNTH = self.attend(q_BNTH, past, self.scores, place.mask_TS, self.sinks)
        return out_BNTH.transpose(1, 2).flatten(2)

    def _feed_forward(self, y_BTD: Tensor) -> Tensor:
        if self.experts is not None:
            given_BTD: Tensor = self.experts(self.kernels, y_BTD)
            return given_BTD
        assert self.up is not None and self.down is not None
        h_BTX = self.up.linear(self.kernels, y_BTD)
        return activated_linear(self.kernels, h_BTX, self.down, self.spec.feed_forward)
