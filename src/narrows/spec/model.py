"""The shape of a model, and what follows from it: parameters, and FLOP of a token."""

from __future__ import annotations

from typing import Literal

from narrows.spec.errors import BadInput
from narrows.spec.objective import Pooling
from narrows.spec.parts import (
    GELU,
    Alibi,
    Banded,
    ClampedSwiGLU,
    Experts,
    FeedForward,
    Gate,
    GeGLU,
    Latent,
    LayerNorm,
    Learned,
    Linear,
    Norm,
    Norms,
    Paired,
    Positions,
    Relative,
    ReLU,
    RMSNorm,
    Rotary,
    Scaling,
    Sigmoid,
    Softmax,
    SquaredReLU,
    SwiGLU,
    Window,
    Yarn,
)
from narrows.spec.record import Record, at_least

__all__ = [
    "GELU",
    "Alibi",
    "Banded",
    "ClampedSwiGLU",
    "Experts",
    "FeedForward",
    "Gate",
    "GeGLU",
    "Latent",
    "LayerNorm",
    "Learned",
    "Linear",
    "Norm",
    "Norms",
    "Paired",
    "Positions",
    "Relative",
    "ReLU",
    "RMSNorm",
    "Rotary",
    "Scaling",
    "Sigmoid",
    "Softmax",
    "SquaredReLU",
    "SwiGLU",
    "Window",
    "Yarn",
    "ModelSpec",
    "gpt2",
    "llama",
]


LAYERS_MOST = 16_384
"""Beyond what anybody made, and still few enough to search the layouts of."""


class ModelSpec(Record):
    """A transformer. MHA, GQA and MQA differ in `kv_heads` only.

    By default a pre-norm decoder. `query_norm`: a norm of queries and keys over each head, or over
    all heads. `encoder_layers` beside `layers` of a decoder that attends to them. Embeddings are
    multiplied by `embedding_scale`, scores by `query_scale` (None: 1 / √ of the head's width) and
    logits by `logit_scale`; a cap c makes x of them c · tanh(x / c). With `head_transform` the head
    reads a product of the last states, activated and normalised, as BERT's does. With `classes` it
    says one of them, or where there is one class a number, of each document by the state that
    `pooling` names, and has no other head.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward_width: int
    vocabulary: int
    context: int
    positions: Positions
    norm: Norm
    feed_forward: FeedForward
    biases: bool
    tied_embeddings: bool
    dropout: float = 0.0
    experts: Experts | None = None
    latent: Latent | None = None
    window: Window | None = None
    qkv_biases: bool = False
    head_bias: bool = False
    head_transform: bool = False
    query_norm: Literal["head", "whole"] | None = None
    block_norms: Norms = "before"
    final_norm: bool = True
    embedding_norm: bool = False
    causal: bool = True
    token_types: int = 0
    pooler: bool = False
    sinks: bool = False
    encoder_layers: int = 0
    embedding_scale: float = 1.0
    query_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    logit_scale: float = 1.0
    classes: int = 0
    pooling: Pooling = "last"

    def __post_init__(self) -> None:
        counts = (
            "layers", "width", "heads", "kv_heads", "head_width", "feed_forward_width",
            "vocabulary", "context",
        )  # fmt: skip
        at_least(1, self, "model", *counts)
        if self.layers > LAYERS_MOST:
            raise BadInput(
                f"model.layers is {self.layers}", hint=f"no model has more than {LAYERS_MOST}"
            )
        if self.heads % self.kv_heads:
            raise BadInput(
                f"{self.heads} heads cannot share {self.kv_heads} kv_heads evenly",
                hint="choose kv_heads that divides heads",
            )
        if isinstance(self.positions, Rotary) and self.head_width % 2:
            raise BadInput(
                f"rotary positions turn pairs, and head_width is {self.head_width}",
                hint="use an even head_width",
            )
        experts = self.experts
        if experts is not None and (
            experts.count % experts.groups or not 1 <= experts.groups_open <= experts.groups
        ):
            raise BadInput(
                f"{experts.groups_open} of {experts.groups} groups of {experts.count} experts "
                "cannot be open",
                hint="use groups that divide model.experts.count, and open at least 1 of them",
            )
        if self.head_transform and self.gated:
            raise BadInput(
                "a head that reads a product of the last states has no gate beside it",
                hint="use a feed_forward without a gate, such as gelu, or no head_transform",
            )
        if self.latent is not None and (self.biases or self.qkv_biases or self.query_norm):
            raise BadInput(
                "latent attention has no biases and no query_norm",
                hint="set model.biases and model.qkv_biases to false, and leave out query_norm",
            )
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"dropout is {self.dropout}", hint="use 0 <= dropout < 1")
        if self.experts is not None and not 1 <= self.experts.chosen <= self.experts.count:
            raise BadInput(
                f"{self.experts.chosen} of {self.experts.count} experts cannot be chosen",
                hint="use 1 <= model.experts.chosen <= model.experts.count",
            )
        if self.experts is not None and not 0 <= self.experts.dense_layers <= self.layers:
            raise BadInput(
                f"{self.experts.dense_layers} of {self.layers} layers cannot be dense",
                hint="use 0 <= model.experts.dense_layers <= model.layers",
            )

    @property
    def writes(self) -> bool:
        """Whether it goes on with a text by itself: causal, and without an encoder."""
        return self.causal and not self.encoder_layers

    @property
    def classes_biased(self) -> bool:
        """Whether the head for classes has a bias: that of causal models has none, as others' has
        none.
        """
        return not self.causal

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate beside its first matrix."""
        return isinstance(self.feed_forward, SwiGLU | GeGLU | ClampedSwiGLU)

    @property
    def value_width(self) -> int:
        """Width of a head's values."""
        return self.latent.value_width if self.latent else self.head_width

    @property
    def qkv_width(self) -> int:
        """Columns of the fused query, key and value projection: (N + 2K) H."""
        return (self.heads + 2 * self.kv_heads) * self.head_width

    @property
    def up_width(self) -> int:
        """Columns of the first feed-forward matrix: F, or 2F where a gate is fused in."""
        return self.feed_forward_width * (2 if self.gated else 1)

    @property
    def norms_per_block(self) -> int:
        """How many norms of the stream a block has."""
        return {"both": 4, "shared": 1}.get(self.block_norms, 2)

    @property
    def layers_of_experts(self) -> int:
        """Decoder layers whose feed-forward is a choice of experts."""
        return self.layers - self.experts.dense_layers if self.experts else 0

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; the hinge test holds it to the real module."""
        dense = self.layers - self.layers_of_experts
        norms = self.norms_per_block * self.norm_parameters
        total = self.layers * (self._attention_parameters + norms)
        total += dense * self._dense_parameters + self.layers_of_experts * self._expert_parameters
        encoder = self._attention_parameters + norms + self._dense_parameters
        crossing = self._attention_parameters + self.norm_parameters
        total += self.encoder_layers * encoder
        if self.encoder_layers:
            total += self.layers * crossing + self.norm_parameters
        return total + self.final_norm * self.norm_parameters + self.embedding_parameters

    @property
    def product_parameters_active(self) -> int:
        """Weights of matrix products that one token meets, head included, embeddings not."""
        feed = 3 if self.gated else 2
        dense = self.layers - self.layers_of_experts
        total = self.layers * self._attention_products
        total += dense * feed * self.width * self.feed_forward_width
        if self.experts is not None:
            each = self.experts.chosen * self.experts.width + self.experts.shared_total
            routed = feed * self.width * each + self.width * self.experts.count
            total += self.layers_of_experts * routed
        if self.encoder_layers:
            total += self.layers * self._attention_products
            block = self._attention_products + feed * self.width * self.feed_forward_width
            total += self.encoder_layers * block
        if self.classes:
            return total
        return total + self.width * (self.vocabulary + self.head_transform * self.width)

    @property
    def embedding_parameters(self) -> int:
        """Token embeddings (once where tied), head, positions, types and what stands beside."""
        D = self.width
        total = self.vocabulary * D * (1 if self.tied_embeddings or self.classes else 2)
        match self.positions:
            case Learned(extra=extra):
                total += (self.context + extra) * D
            case Relative(buckets=buckets):
                total += buckets * self.heads * (2 if self.encoder_layers else 1)
            case _:
                pass
        total += self.token_types * D + self.embedding_norm * self.norm_parameters
        if self.classes:
            return total + self.pooler * (D * D + D) + self.classes * (D + self.classes_biased)
        total += self.head_transform * (D * D + 3 * D)
        return total + self.pooler * (D * D + D) + self.head_bias * self.vocabulary

    @property
    def flop_per_token(self) -> float:
        """Model FLOP of forward and backward for a token: 6 per weight used in a product, and
        12 L N H T / 2 for causal attention (arXiv:2001.08361, with the causal half left out). With
        an encoder a token stands for one that it reads and one that the decoder does.
        """
        scores = self.keys_total(self.context) * self.heads * (self.score_width + self.value_width)
        return 6.0 * self.product_parameters_active + 6.0 * scores

    @property
    def score_width(self) -> int:
        """Width over which a query meets a key."""
        return self.head_width + (self.latent.rope_width if self.latent else 0)

    def keys_total(self, positions: int) -> float:
        """Keys that a query meets on average, summed over all attentions: the decoder's, its
        second one to the encoder's `positions`, and the encoder's own.
        """
        crossing = self.layers if self.encoder_layers else 0
        keys = sum(self.keys_mean(positions, layer) for layer in range(self.layers))
        return keys + positions * float(crossing + self.encoder_layers)

    def keys_mean(self, positions: int, layer: int) -> float:
        """Keys that a query of `positions` attends to on average, in this layer."""
        size = self.window_of(layer)
        if not self.causal:
            return float(positions if size is None else min(positions, size))
        if size is None or size >= positions:
            return positions / 2
        return size - size * size / (2 * positions)

    def window_of(self, layer: int) -> int | None:
        """The window of a layer, or None where it attends to all."""
        if self.window is None:
            return None
        every = self.window.full_every
        full = every is not None and (layer + 1) % every == 0
        return None if full else self.window.size

    @property
    def norm_parameters(self) -> int:
        """Parameters of a norm of the stream."""
        if not isinstance(self.norm, LayerNorm):
            return self.width
        biases = self.biases if self.norm.biases is None else self.norm.biases
        return self.width * (1 + biases) if self.norm.scale else 0

    @property
    def _attention_products(self) -> int:
        D, N = self.width, self.heads
        out = N * self.value_width * D
        if self.latent is None:
            return D * self.qkv_width + out
        latent = self.latent
        wide = N * self.score_width
        query = D * wide
        if latent.query_rank is not None:
            query = D * latent.query_rank + latent.query_rank * wide
        down = D * (latent.kv_rank + latent.rope_width)
        return query + down + latent.kv_rank * N * (self.head_width + latent.value_width) + out

    @property
    def _attention_parameters(self) -> int:
        total = self._attention_products
        if self.biases or self.qkv_biases:
            total += self.qkv_width
        if self.biases:
            total += self.width
        if self.latent is not None:
            total += self.latent.kv_rank + (self.latent.query_rank or 0)
        if self.query_norm == "head":
            total += 2 * self.head_width
        elif self.query_norm == "whole":
            total += (self.heads + self.kv_heads) * self.head_width
        return total + (self.heads if self.sinks else 0)

    @property
    def _dense_parameters(self) -> int:
        biases = self.up_width + self.width if self.biases else 0
        return self.width * self.up_width + self.feed_forward_width * self.width + biases

    @property
    def _expert_parameters(self) -> int:
        experts = self.experts
        if experts is None:
            return 0
        D, gates = self.width, 2 if self.gated else 1
        each = (gates + 1) * D * experts.width
        each += (gates * experts.width + D) if experts.biases else 0
        router = D * experts.count + (experts.count if experts.router_biases else 0)
        return experts.count * each + router + (gates + 1) * D * experts.shared_total


def gpt2(
    *, layers: int, width: int, heads: int, vocabulary: int, context: int, dropout: float = 0.0
) -> ModelSpec:
    """GPT-2's choices (Radford et al. 2019)."""
    return ModelSpec(
        layers=layers, width=width, heads=heads, kv_heads=heads,
        head_width=width // heads, feed_forward_width=4 * width,
        vocabulary=vocabulary, context=context, positions=Learned(), norm=LayerNorm(),
        feed_forward=GELU(), biases=True, tied_embeddings=True, dropout=dropout,
    )  # fmt: skip


def llama(
    *, layers: int, width: int, heads: int, vocabulary: int, context: int,
    kv_heads: int | None = None, feed_forward_width: int | None = None,
    tied_embeddings: bool = True,
) -> ModelSpec:  # fmt: skip
    """Llama's choices (arXiv:2302.13971); F is 8/3 of the width rounded up to 32s."""
    return ModelSpec(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads or heads,
        head_width=width // heads,
        feed_forward_width=feed_forward_width or -(-8 * width // 3 // 32) * 32,
        vocabulary=vocabulary, context=context, positions=Rotary(), norm=RMSNorm(),
        feed_forward=SwiGLU(), biases=False, tied_embeddings=tied_embeddings,
    )  # fmt: skip
