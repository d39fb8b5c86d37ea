"""The shape of a model. Choices are types: a rotary position is another record, not a flag."""

from __future__ import annotations

from typing import Literal

from narrows.spec.errors import BadInput
from narrows.spec.record import Record


class Learned(Record, tag="learned", tag_field="type"):
    """A position embedding per position, added to the token embedding (GPT-2); `extra` rows more
    than positions, as OPT keeps two.
    """

    extra: int = 0


class Rotary(Record, tag="rotary", tag_field="type"):
    """Queries and keys turned by an angle that grows with the position (arXiv:2104.09864)."""

    base: float = 10_000.0


class Alibi(Record, tag="alibi", tag_field="type"):
    """A penalty on distance added to the scores, without parameters (arXiv:2108.12409)."""


class Relative(Record, tag="relative", tag_field="type"):
    """A learned number per head and bucket of distance, shared by all layers (arXiv:1910.10683)."""

    buckets: int = 32


class LayerNorm(Record, tag="layer_norm", tag_field="type"):
    """Centre and scale (arXiv:1607.06450).

    `scale` False: no parameters at all (OLMo). `biases` None: where the projections have them.
    """

    epsilon: float = 1e-5
    scale: bool = True
    biases: bool | None = None


class RMSNorm(Record, tag="rms_norm", tag_field="type"):
    """Scale only (arXiv:1910.07467)."""

    epsilon: float = 1e-5


class GELU(Record, tag="gelu", tag_field="type"):
    """One matrix up, the tanh form of GELU, one matrix down (arXiv:1606.08415)."""


class ReLU(Record, tag="relu", tag_field="type"):
    """One matrix up, max(0, x), one matrix down (arXiv:1706.03762)."""


class SwiGLU(Record, tag="swiglu", tag_field="type"):
    """Gate and up, silu(gate) · up, one matrix down (arXiv:2002.05202)."""


class GeGLU(Record, tag="geglu", tag_field="type"):
    """Gate and up, gelu(gate) · up, one matrix down (arXiv:2002.05202)."""


class Experts(Record):
    """Feed-forward as a choice: each token goes through `chosen` of `count` experts of `width`, and
    through all `shared` ones (arXiv:1701.06538, arXiv:2401.06066).

    The first `dense_layers` keep the dense feed-forward. With `capacity` an expert takes at most
    capacity · tokens · chosen / count tokens and drops the rest; without, it takes all.
    """

    count: int
    chosen: int
    width: int
    shared: int = 0
    shared_width: int | None = None
    dense_layers: int = 0
    capacity: float | None = None
    router_biases: bool = False
    biases: bool = False

    @property
    def shared_total(self) -> int:
        """Width of all shared experts together."""
        return self.shared * (self.shared_width or self.width)


class Latent(Record):
    """Keys and values from a common vector of `kv_rank`, beside `rope_width` turned dimensions that
    all heads share; values of `value_width` (arXiv:2405.04434). `query_rank` None: full queries.
    """

    kv_rank: int
    rope_width: int
    value_width: int
    query_rank: int | None = None


class Window(Record):
    """Attention to the last `size` positions only, but in every `full_every`-th layer to all."""

    size: int
    full_every: int | None = None


Positions = Learned | Rotary | Alibi | Relative
Norm = LayerNorm | RMSNorm
FeedForward = GELU | ReLU | SwiGLU | GeGLU


class ModelSpec(Record):
    """A transformer. MHA, GQA and MQA differ in `kv_heads` only.

    By default a pre-norm decoder. `block_norms`: 1 where attention and feed-forward run side by
    side, 2, or 4 with norms behind both as well. `query_norm`: a norm of queries and keys over each
    head, or over all heads. `encoder_layers` beside `layers` of a decoder that attends to them.
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
    query_norm: Literal["head", "whole"] | None = None
    block_norms: int = 2
    final_norm: bool = True
    embedding_norm: bool = False
    causal: bool = True
    token_types: int = 0
    pooler: bool = False
    sinks: bool = False
    encoder_layers: int = 0

    def __post_init__(self) -> None:
        counts = (
            "layers", "width", "heads", "kv_heads", "head_width", "feed_forward_width",
            "vocabulary", "context",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name} is {getattr(self, name)}", hint="use at least 1")
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
    def gated(self) -> bool:
        """Whether the feed-forward has a gate beside its first matrix."""
        return isinstance(self.feed_forward, SwiGLU | GeGLU)

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
    def layers_of_experts(self) -> int:
        """Decoder layers whose feed-forward is a choice of experts."""
        return self.layers - self.experts.dense_layers if self.experts else 0

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; the hinge test holds it to the real module."""
        dense = self.layers - self.layers_of_experts
        norms = self.block_norms * self._norm_parameters
        total = self.layers * (self._attention_parameters + norms)
        total += dense * self._dense_parameters + self.layers_of_experts * self._expert_parameters
        encoder = self._attention_parameters + norms + self._dense_parameters
        crossing = self._attention_parameters + self._norm_parameters
        total += self.encoder_layers * encoder
        if self.encoder_layers:
            total += self.layers * crossing + self._norm_parameters
        return total + self.final_norm * self._norm_parameters + self.embedding_parameters

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
        return total + self.vocabulary * self.width

    @property
    def embedding_parameters(self) -> int:
        """Token embeddings (once where tied), head, positions, types and what stands beside."""
        D = self.width
        total = self.vocabulary * D * (1 if self.tied_embeddings else 2)
        match self.positions:
            case Learned(extra=extra):
                total += (self.context + extra) * D
            case Relative(buckets=buckets):
                total += buckets * self.heads * (2 if self.encoder_layers else 1)
            case _:
                pass
        total += self.token_types * D + self.embedding_norm * self._norm_parameters
        return total + self.pooler * (D * D + D) + self.head_bias * self.vocabulary

    @property
    def flop_per_token(self) -> float:
        """Model FLOP of forward and backward for a token: 6 per weight used in a product, and
        12 L N H T / 2 for causal attention (arXiv:2001.08361, with the causal half left out).
        """
        keys = sum(self.keys_mean(self.context, layer) for layer in range(self.layers))
        scores = keys * self.heads * (self.score_width + self.value_width)
        return 6.0 * self.product_parameters_active + 6.0 * scores

    @property
    def score_width(self) -> int:
        """Width over which a query meets a key."""
        return self.head_width + (self.latent.rope_width if self.latent else 0)

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
    def _norm_parameters(self) -> int:
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
