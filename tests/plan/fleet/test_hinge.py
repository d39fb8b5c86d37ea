"""The paper wing's FLOP, bytes and parameters against the real module, for every kind of model.

Published models are shrunk to sizes that compute in milliseconds and keep their kind: every choice,
a dense first layer, windows beside full layers, more heads than key heads. Those that become equal
are one kind.

Conventions. Torch counts attention as the whole square of scores, masked or not, so products and
scores are compared apart, and the keys that masks really leave are counted. Experts' rows are as
many as tokens times chosen, however they are spread. An encoder-decoder's token stands for one that
each of the two reads. A pooler's product, one a sequence, and embeddings, which are looked up, are
not of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from narrows.kernels.load import load
from narrows.model.block import Block
from narrows.model.initial import initialise
from narrows.model.positions import mask
from narrows.model.presets import presets
from narrows.model.transformer import Transformer
from narrows.plan.fleet import constants
from narrows.plan.fleet.memory import kept_bytes
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import parameters_of, stages
from narrows.plan.fleet.work import Matrix, Work
from narrows.spec.fleet import Spread
from narrows.spec.model import (
    Alibi,
    ClampedSwiGLU,
    LayerNorm,
    ModelSpec,
    Relative,
    ReLU,
    Rotary,
    Window,
)

SEQUENCES, T, CHUNK = 2, 32, 24


def shrunk(spec: ModelSpec) -> ModelSpec:
    """The same kind of model at tiny sizes, all multiples of 8 as grouped products want."""
    K = {spec.heads: 4, 1: 1}.get(spec.kv_heads, 2)
    gpt = spec.feed_forward_width == 4 * spec.width
    experts, latent, window = spec.experts, spec.latent, spec.window
    if experts is not None:
        experts = msgspec.structs.replace(
            experts, count=8, chosen=min(experts.chosen, 3), width=24,
            dense_layers=min(experts.dense_layers, 1), groups=min(experts.groups, 4),
            groups_open=min(experts.groups_open, 2),
        )  # fmt: skip
    if latent is not None:
        rank = None if latent.query_rank is None else 40
        latent = msgspec.structs.replace(
            latent, kv_rank=24, rope_width=8, value_width=24, query_rank=rank
        )
    if window is not None:
        window = Window(size=8, full_every=None if window.full_every is None else 2)
    return msgspec.structs.replace(
        spec, layers=4 if window else 3, encoder_layers=min(spec.encoder_layers, 2), width=64,
        heads=4, kv_heads=K, head_width=16, feed_forward_width=256 if gpt else 96, vocabulary=112,
        context=T, experts=experts, latent=latent, window=window,
    )  # fmt: skip


def kinds() -> dict[str, ModelSpec]:
    """One model of each kind, by the name of the first preset of it."""
    found: dict[ModelSpec, str] = {}
    for name, preset in presets().items():
        found.setdefault(shrunk(preset.spec), name)
    return {name: spec for spec, name in found.items()}


KINDS = kinds()
each = pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS.keys())


def built(spec: ModelSpec, device: str = "meta") -> Transformer:
    with torch.device(device):
        return Transformer(spec, load("torch")).to(torch.bfloat16)


def loss(model: Transformer, device: str = "meta") -> Tensor:
    tokens_BT = torch.zeros(SEQUENCES, T, dtype=torch.int64, device=device)
    source_BS = tokens_BT if model.spec.encoder_layers else None
    return model.loss(tokens_BT, tokens_BT, chunk=CHUNK, scale=1.0, source_BS=source_BS)


def counted_flop(spec: ModelSpec) -> tuple[int, int]:
    """Products of weights, and of scores, forward and backward, by torch's own counter."""

    def in_place(total: Any, left: Any, right: Any, **_: Any) -> int:
        return int(2 * left[0] * left[1] * right[1])

    def by_expert(left: Any, right: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        # [R,D] by [E,D,F], or backward [D,R] by [R,F] into [E,D,F].
        return int(2 * left[0] * left[1] * right[-1])

    mapping = {torch.ops.aten.addmm_: in_place, torch.ops.aten._grouped_mm: by_expert}
    model = built(spec)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        loss(model).backward()
    sums = [0, 0]
    for operation, flop in counter.get_flop_counts()["Global"].items():
        sums["bmm" in str(operation)] += flop
    return sums[0], sums[1]


@each
def test_the_kind_is_kept(spec: ModelSpec) -> None:
    model = built(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters


@each
def test_products_and_scores_equal_what_torch_counts(spec: ModelSpec) -> None:
    tokens = SEQUENCES * T
    work = Work.of(spec, T)
    products, scores = counted_flop(spec)
    assert products == 6 * tokens * spec.product_parameters_active
    chosen = spec.experts.chosen if spec.experts else 0
    planned = work.layers * weights(work.attention) + work.layers_dense * weights(work.dense)
    planned += work.layers_experts * (weights(work.routed) + chosen * weights(work.expert))
    assert products == pytest.approx(6 * tokens * (planned + spec.vocabulary * spec.width))
    square = work.layers * work.score_flop * T / work.keys
    if spec.encoder_layers:
        # Spread over all layers is a second attention in the decoder's.
        square *= (work.layers + spec.layers) / work.layers
    assert scores == pytest.approx(3 * tokens * square)
    assert spec.flop_per_token == pytest.approx(
        products / tokens + 3 * work.layers * work.score_flop, rel=1e-12
    )


def weights(matrices: tuple[Matrix, ...]) -> float:
    return sum(matrix.parameters for matrix in matrices)


@each
def test_masks_leave_the_keys_that_the_plan_counts(spec: ModelSpec) -> None:
    """The plan's T / 2 of T queries is (T + 1) / 2, and a window's mean as much more of its share:
    a query meets itself.
    """
    model = built(spec, "cpu").float()
    whole_TT = torch.ones(T, T, dtype=torch.bool)
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        found = mask(spec, (0, T), block.window, _table(model), model.tokens.weight)
        if found is None:
            allowed_TT = whole_TT.tril() if spec.causal else whole_TT
        else:
            allowed_TT = found if found.dtype == torch.bool else found[0] > -torch.inf
        size = T if block.window is None else block.window
        itself = size / (2 * T) if spec.causal else 0.0
        keys = float(allowed_TT.sum()) / T
        assert keys == pytest.approx(spec.keys_mean(T, layer) + itself)


def _table(model: Transformer) -> Tensor | None:
    return None if model.relative is None else torch.zeros_like(model.relative.weight)


def blocks_of_one_kind(spec: ModelSpec) -> Iterator[ModelSpec]:
    """Models whose blocks are all alike: with a window or without, dense or of experts."""
    change = msgspec.structs.replace
    experts = spec.experts
    feeds = [] if experts is None else [change(experts, dense_layers=0)]
    if experts is None or experts.dense_layers:
        feeds.append(None)
    for feed in feeds:
        yield change(spec, experts=feed, window=None)
        if spec.window is not None:
            yield change(spec, experts=feed, window=change(spec.window, full_every=None))


@each
def test_what_a_block_keeps_is_the_plan_s_and_what_readable_kernels_keep_beside(
    spec: ModelSpec,
) -> None:
    for alike in blocks_of_one_kind(spec):
        layers, encoders = alike.layers, alike.encoder_layers
        found = layers * one_block_more(alike, "layers")
        if encoders:
            found += encoders * one_block_more(alike, "encoder_layers")
        found /= layers + encoders
        work = Work.of(alike, T)
        planned = float(kept_bytes(work, Spreads.of([Spread()]))[0])
        assert found / (SEQUENCES * T) == pytest.approx(planned + beside(alike, work), rel=1e-12)


def one_block_more(spec: ModelSpec, stack: str) -> int:
    """Bytes that autograd keeps of three blocks and not of two."""
    sizes = [saved(msgspec.structs.replace(spec, **{stack: layers})) for layers in (2, 3)]
    return sizes[1] - sizes[0]


def saved(spec: ModelSpec) -> int:
    model = built(spec, "cpu")
    initialise(model, 0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model, "cpu")
    return sum(size for place, size in storages.items() if place not in own)


def beside(spec: ModelSpec, work: Work) -> float:
    """Bytes of a token that torch's own operations keep in a block beyond fused ones, which
    `kept_bytes` speaks of; each term is one reason.
    """
    N, K, H = spec.heads, spec.kv_heads, spec.head_width
    crossings = work.attentions - 1.0
    norms = spec.norms_per_block + crossings
    # Dropout's masks, which no block of ours has while nothing is dropped.
    total = -2.0 * spec.width * constants.STREAMS_MORE
    # LayerNorm keeps two statistics; RMSNorm is spelt in fp32, its input and its result.
    total += norms * (4.0 if isinstance(spec.norm, LayerNorm) else rms_norm(spec.width))
    if spec.query_norm:
        # What was normalised stays beside it, within the fused projection.
        total += 8.0 * (N + K) * H + 4.0 * (2 if spec.query_norm == "whole" else N + K)
    if spec.latent:
        total += rms_norm(spec.latent.kv_rank)
        total += rms_norm(spec.latent.query_rank) if spec.latent.query_rank else 0.0
    return total + attention_beside(spec, work) + feed_forward_beside(spec)


def rms_norm(width: int) -> float:
    return (4.0 + 4.0 - 2.0) * width + 4.0


def attention_beside(spec: ModelSpec, work: Work) -> float:
    """Where scores get a bias, a cap or sinks they are all written, and queries, keys and values
    are copied, one of each a head; the fused projection and the sums are not kept then.
    """
    N, K, H = spec.heads, spec.kv_heads, spec.head_width
    self_only = 2.0 * spec.qkv_width + 4.0 * N
    if isinstance(spec.positions, Alibi | Relative):
        return 4.0 * N * T + 3 * 4.0 * N * H - self_only
    if spec.sinks or spec.score_cap:
        weights, mask = (4.0 + 2.0) * N * T, T / SEQUENCES
        capped, sinks = 4.0 * N * T * bool(spec.score_cap), 4.0 * N * spec.sinks
        return weights + mask + capped + sinks + 3 * 2.0 * N * H - self_only
    # A window's mask is made a number for each score, once a layer.
    mask = 2.0 * T / SEQUENCES if spec.window else 0.0
    if spec.latent:
        # Keys lie beside the values until they are joined with what is turned.
        return mask + 2.0 * N * H + 2.0 * N * spec.value_width
    if not isinstance(spec.positions, Rotary):
        return mask
    # Turned queries and keys beside the projection, and the output in their order.
    turned = 0.0 if spec.query_norm else 2.0 * (N + K) * H
    return mask + turned + 2.0 * N * H


def feed_forward_beside(spec: ModelSpec) -> float:
    experts = spec.experts
    widths = spec.feed_forward_width
    total = 0.0
    if experts is not None:
        C, E = experts.chosen, experts.count
        widths = C * experts.width + experts.shared_total
        # What experts gave, for the gradient of its weight; places there and back, the choice.
        total += C * (2.0 * spec.width + 3 * 8.0)
        # Shares of all in fp32, those chosen and their sum, the weight, and the experts' ends.
        total += 4.0 * E + (4.0 * C + 4.0) * experts.gate.normalised + 2.0 * C
        total += 4.0 * E / (SEQUENCES * T)
        # The expert of each row, for its biases.
        total += 8.0 * C * experts.biases
    if spec.gated:
        # The activated gate; of a clamped one also its clamp, its sigmoid and the other factor.
        total += 2.0 * widths * (4 if isinstance(spec.feed_forward, ClampedSwiGLU) else 1)
    if isinstance(spec.feed_forward, ReLU):
        # Its result is its own mask.
        total -= 2.0 * widths
    return total


CUTS = {
    "qkv": "qkv", "qkv.query": "query", "qkv.query_down": "query down", "qkv.query_up": "query up",
    "qkv.key_value_down": "key value down", "qkv.key_value_up": "key value up", "out": "out",
    "crossing.query": "qkv", "crossing.key_value": "qkv", "crossing.out": "out", "up": "up",
    "down": "down", "experts.router": "router", "experts.shared_up": "shared up",
    "experts.shared_down": "shared down", "experts.each.up": "expert up",
    "experts.each.down": "expert down",
}  # fmt: skip
"""The plan's name of each of a block's weights."""


def rank_parameters(spec: ModelSpec, tensor: int) -> tuple[float, float]:
    """What a tensor rank has of all blocks' matrices, and of their experts'."""
    work = Work.of(spec, T)
    plans = {m.name: m for m in (*work.attention, *work.dense, *work.routed, *work.expert)}
    common = own = 0.0
    for name, parameter in built(spec).named_parameters():
        stack, _, place = name.removeprefix("encoder.").partition(".")
        if stack != "blocks" or parameter.ndim < 2 or not name.endswith(".weight"):
            continue
        matrix = plans[CUTS[place.partition(".")[2].removesuffix(".weight")]]
        rows, columns = parameter.shape[-2:]
        if not spec.encoder_layers:
            assert (matrix.out, matrix.inner) == (rows, columns)
        if parameter.ndim == 3:
            own += parameter.numel()
            continue
        if matrix.cut == "out":
            rows /= tensor
        elif matrix.cut == "in":
            columns /= tensor
        common += rows * columns
    return common, own


@each
@pytest.mark.parametrize(
    ("tensor", "pipeline", "expert"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)]
)
def test_a_rank_has_what_the_cuts_leave_of_the_module(
    spec: ModelSpec, tensor: int, pipeline: int, expert: int
) -> None:
    """A stage has its share of the layers, and where there are several one of the tables; norms,
    biases and what positions, types and poolers have the plan leaves out.
    """
    spread = Spread(tensor=tensor, pipeline=pipeline, expert=expert)
    work, spreads = Work.of(spec, T), Spreads.of([spread])
    # A share of the layers, however they are spread.
    layers = np.array([work.layers / pipeline])
    common, own = parameters_of(work, spreads, layers, stages(work, spreads).tables[0])
    cut, routed = rank_parameters(spec, tensor)
    tables = 1 if spec.tied_embeddings or pipeline > 1 else 2
    table = tables * spec.vocabulary * spec.width / tensor
    assert float(common[0]) == pytest.approx(cut / pipeline + table, rel=1e-12)
    assert float(own[0]) == pytest.approx(routed / pipeline / expert, rel=1e-12)


@pytest.mark.parametrize("name", presets())
def test_what_the_plan_leaves_out_of_a_rank_is_small(name: str) -> None:
    spec = presets()[name].spec
    work = Work.of(spec, spec.context)
    held = stages(work, Spreads.of([Spread()]))
    common, own = parameters_of(work, Spreads.of([Spread()]), held.layers[0], held.tables[0])
    rest = spec.parameters - float(common[0] + own[0])
    positions = spec.embedding_parameters - spec.vocabulary * spec.width * (
        1 if spec.tied_embeddings else 2
    )
    assert 0 <= rest - positions < 2e-3 * spec.parameters
    assert rest < 0.02 * spec.parameters
