"""A model as what a layout divides: matrices, scores, elements; one model at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from narrows.spec.model import Alibi, ModelSpec

Cut = Literal["out", "in", "whole"]


class Matrix(NamedTuple):
    """A weight [out, in] that every token of its layer meets; `cut` is the side that tensor
    parallelism divides (arXiv:1909.08053).
    """

    name: str
    out: float
    inner: float
    cut: Cut

    @property
    def parameters(self) -> float:
        """Its weights."""
        return self.out * self.inner


class Halves(NamedTuple):
    """Σ (out' + h)(in' + h) over matrices as `whole` + `cut` / tensor."""

    whole: float
    cut: float

    def over(self, ranks: float) -> float:
        """Of one of so many tensor ranks."""
        return self.whole + self.cut / ranks


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What one token costs, layer by layer; parameters by how they are divided."""

    spec: ModelSpec
    positions: int
    attention: tuple[Matrix, ...]
    dense: tuple[Matrix, ...]
    routed: tuple[Matrix, ...]
    expert: tuple[Matrix, ...]
    layers: float
    layers_dense: float
    layers_experts: float
    keys: float

    @classmethod
    def of(cls, spec: ModelSpec, positions: int) -> Work:
        """`spec` on sequences of `positions`."""
        keys = spec.keys_total(positions) / (spec.layers + spec.encoder_layers)
        D, gates = float(spec.width), 2.0 if spec.gated else 1.0
        routed: tuple[Matrix, ...] = ()
        expert: tuple[Matrix, ...] = ()
        if spec.experts is not None:
            F = float(spec.experts.width)
            expert = (Matrix("expert up", gates * F, D, "whole"),
                      Matrix("expert down", D, F, "whole"))  # fmt: skip
            routed = (Matrix("router", float(spec.experts.count), D, "whole"),)
            if shared := float(spec.experts.shared_total):
                routed += (Matrix("shared up", gates * shared, D, "out"),
                           Matrix("shared down", D, shared, "in"))  # fmt: skip
        return cls(
            spec=spec,
            positions=positions,
            attention=tuple(_attention(spec)),
            dense=(
                Matrix("up", float(spec.up_width), D, "out"),
                Matrix("down", D, float(spec.feed_forward_width), "in"),
            ),
            routed=routed,
            expert=expert,
            layers=float(spec.layers + spec.encoder_layers),
            layers_dense=float(spec.layers - spec.layers_of_experts + spec.encoder_layers),
            layers_experts=float(spec.layers_of_experts),
            keys=keys,
        )  # fmt: skip

    def average_block(self, half: float) -> Halves:
        """`halves` of all that a block has but its experts, the mean of dense and routed ones."""
        attention, dense, routed = (
            halves(each, half) for each in (self.attention, self.dense, self.routed)
        )
        share, routing = self.layers_dense / self.layers, self.layers_experts / self.layers
        return Halves(
            attention.whole + share * dense.whole + routing * routed.whole,
            attention.cut + share * dense.cut + routing * routed.cut,
        )

    @property
    def score_flop(self) -> float:
        """FLOP of a query's forward pass over its keys, all heads."""
        spec = self.spec
        return 2.0 * self.keys * spec.heads * (spec.score_width + spec.value_width)

    @property
    def attentions(self) -> float:
        """Attentions of an average block: a decoder's to its encoder, spread over all blocks, is
        another.
        """
        return 1.0 + (self.spec.layers if self.spec.encoder_layers else 0) / self.layers

    @property
    def attention_kept(self) -> float:
        """Values of a token that an average block's attention keeps for its backward pass, its
        output apart: what it reads, and what norms before it read.
        """
        spec, latent = self.spec, self.spec.latent
        if latent is None:
            turned = (spec.heads + spec.kv_heads) * spec.head_width if spec.query_norm else 0
            return spec.qkv_width * self.attentions + turned
        ranks = latent.kv_rank + (latent.query_rank or 0)
        return 2.0 * ranks + spec.heads * (2.0 * spec.score_width + latent.value_width)

    @property
    def streams_kept(self) -> tuple[float, float]:
        """Streams that an average block's norms keep, and those that its products do."""
        read = {"both": 4.0, "shared": 1.0, "apart": 1.0}.get(self.spec.block_norms, 2.0)
        given = 1.0 if self.spec.block_norms == "shared" else 2.0
        return read + self.attentions - 1.0, given + self.attentions - 1.0

    @property
    def biased_scores(self) -> bool:
        """Whether a bias is added to the scores, which few attention kernels are fast at."""
        return isinstance(self.spec.positions, Alibi)


def halves(matrices: Iterable[Matrix], half: float) -> Halves:
    """The products' sizes with their ramp, ready to be divided by any tensor parallelism."""
    whole = cut = 0.0
    for matrix in matrices:
        if matrix.cut == "whole":
            whole += (matrix.out + half) * (matrix.inner + half)
            continue
        divided, kept = matrix.out, matrix.inner
        if matrix.cut == "in":
            divided, kept = kept, divided
        whole += half * (kept + half)
        cut += divided * (kept + half)
    return Halves(whole, cut)


def parameters(matrices: Iterable[Matrix]) -> Halves:
    """Weights that tensor parallelism leaves whole, and those that it divides."""
    return halves(matrices, 0.0)


def adapter_share(work: Work, rank: int) -> float:
    """Parameters of adapters of `rank` beside every matrix, as a share of the matrices'
    (arXiv:2106.09685): R (in + out) for in · out.
    """
    experts = float(work.spec.experts.count) if work.spec.experts else 0.0
    groups = (
        (work.layers, work.attention, 1.0), (work.layers_dense, work.dense, 1.0),
        (work.layers_experts, work.routed, 1.0), (work.layers_experts, work.expert, experts),
    )  # fmt: skip
    adapters = whole = 0.0
    for layers, matrices, copies in groups:
        for matrix in matrices:
            adapters += layers * copies * rank * (matrix.out + matrix.inner)
            whole += layers * copies * matrix.parameters
    return adapters / whole


def _attention(spec: ModelSpec) -> Iterable[Matrix]:
    D = float(spec.width)
    crossing = spec.layers if spec.encoder_layers else 0
    # A decoder's second attention, to its encoder, spread evenly over all layers.
    often = 1.0 + crossing / (spec.layers + spec.encoder_layers)
    N = spec.heads * often
    latent = spec.latent
    if latent is None:
        yield Matrix("qkv", spec.qkv_width * often, D, "out")
    else:
        wide = N * spec.score_width
        if latent.query_rank is None:
            yield Matrix("query", wide, D, "out")
        else:
            yield Matrix("query down", float(latent.query_rank), D, "whole")
            yield Matrix("query up", wide, float(latent.query_rank), "out")
        yield Matrix("key value down", float(latent.kv_rank + latent.rope_width), D, "whole")
        up = N * (spec.head_width + latent.value_width)
        yield Matrix("key value up", up, float(latent.kv_rank), "out")
    yield Matrix("out", D, N * spec.value_width, "in")
