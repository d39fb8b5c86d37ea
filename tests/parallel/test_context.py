from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from narrows.kernels.load import load
from narrows.model.transformer import Transformer
from narrows.parallel import context
from narrows.parallel.mesh import Axis
from narrows.parallel.running import Rows
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.model import Alibi, Latent, ModelSpec, Relative, Window

from .equality import DENSE, MODELS, T, assert_equal, layout_of

changed = msgspec.structs.replace
RINGS: dict[str, ModelSpec] = {
    **MODELS,
    "latent": changed(DENSE, kv_heads=8, latent=Latent(kv_rank=16, rope_width=4, value_width=12)),
    "normed": changed(DENSE, query_norm="head", query_scale=0.2),
}
MASKS: dict[str, ModelSpec] = {
    "windows": changed(DENSE, window=Window(size=7, full_every=2)),
    "windowed": changed(DENSE, causal=False, window=Window(size=9)),
    "alibi": changed(DENSE, positions=Alibi()),
    "relative": changed(DENSE, positions=Relative(buckets=8, distance=16), causal=False),
    "sinks": changed(DENSE, sinks=True),
    "caps": changed(DENSE, score_cap=5.0),
    "shared keys": changed(DENSE, kv_heads=1),
}
TOGETHER: dict[str, dict[str, Any]] = {
    "tensor": {"tensor": 2},
    "tensor, whole stream": {"tensor": 2, "sequence_parallel": False},
    "replicas": {"data": 2},
    "sharded": {"data": 2, "sharding": "parameters"},
    "optimizer": {"data": 2, "sharding": "optimizer"},
    "tensor, sharded": {"tensor": 2, "data": 2, "sharding": "parameters"},
}
dist = pytest.mark.dist
either = pytest.mark.parametrize("exchange", ["ring", "all_to_all"])


@dist
@pytest.mark.parametrize("name", MODELS)
def test_a_ring_finds_the_gradients_of_one(name: str) -> None:
    assert_equal(RINGS[name], layout_of(context=2))


@dist
@pytest.mark.parametrize("name", ["dense", "windows", "relative", "shared keys"])
def test_trading_heads_finds_the_gradients_of_one(name: str) -> None:
    assert_equal((RINGS | MASKS)[name], layout_of(context=2, exchange="all_to_all"))


@dist
def test_context_goes_with_tensor_ranks() -> None:
    assert_equal(MODELS["dense"], layout_of(context=2, tensor=2))


@dist
def test_context_goes_with_sharded_parameters() -> None:
    assert_equal(MODELS["gpt"], layout_of(context=2, data=2, sharding="parameters"))


@dist
@pytest.mark.slow
@either
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", RINGS | MASKS)
def test_every_model_finds_the_gradients_of_one(name: str, ranks: int, exchange: Any) -> None:
    if name in MASKS and name != "shared keys" and exchange == "ring":
        pytest.skip("refused, as test_what_a_ring_cannot_mask_is_refused shows")
    assert_equal((RINGS | MASKS)[name], layout_of(context=ranks, exchange=exchange))


@dist
@pytest.mark.slow
@either
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("other", TOGETHER)
def test_context_goes_with_every_other_kind(other: str, name: str, exchange: Any) -> None:
    if name == "experts" and other == "tensor, whole stream":
        pytest.skip("refused, as test_split shows")
    assert_equal(MODELS[name], layout_of(context=2, exchange=exchange, **TOGETHER[other]))


@dist
@pytest.mark.slow
@either
def test_masks_of_heads_go_with_tensor_ranks(exchange: Any) -> None:
    spec = MASKS["alibi"] if exchange == "all_to_all" else RINGS["latent"]
    assert_equal(spec, layout_of(context=2, tensor=2, exchange=exchange))


@dist
@pytest.mark.slow
@either
def test_blocks_computed_twice_exchange_twice(exchange: Any) -> None:
    assert_equal(MODELS["dense"], layout_of(context=2, exchange=exchange, recompute="full"))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_parts_are_the_whole_and_in_order(size: int, balanced: bool) -> None:
    parts = [context.positions(16, Axis(size, rank), balanced=balanced) for rank in range(size)]
    assert torch.cat(parts).sort().values.equal(torch.arange(16))
    for part in parts:
        assert part.equal(part.sort().values) and len(part) == 16 // size
        assert not balanced or part.sum() == parts[0].sum()


def test_targets_follow_their_tokens() -> None:
    tokens_BT = torch.arange(17).expand(3, -1)
    layout = layout_of(context=2)
    inputs_BT, targets_BT = context.share(Rows.of(tokens_BT)[:2], Axis(2, 1), DENSE, layout)
    assert inputs_BT[2].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert targets_BT.equal(inputs_BT + 1)


def applied(spec: ModelSpec, ranks: int, layout: Layout) -> None:
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    context.apply(model, Axis(ranks, 0), layout)


@pytest.mark.parametrize("name", ["windows", "alibi", "relative", "sinks", "caps"])
def test_what_a_ring_cannot_mask_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="a ring of context ranks knows no") as caught:
        applied(MASKS[name], 2, layout_of(context=2))
    assert caught.value.hint == 'layout.exchange = "all_to_all"'


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(BadInput, match="8 heads cannot be dealt to 16 context ranks"):
        applied(DENSE, 16, layout_of(context=16, exchange="all_to_all"))
    with pytest.raises(BadInput, match=f"a sequence of {T} cannot be cut into 6 pieces"):
        applied(DENSE, 3, layout_of(context=3))
    with pytest.raises(BadInput, match="no encoder beside the decoder"):
        applied(changed(DENSE, encoder_layers=1), 2, layout_of(context=2))


def test_a_window_as_wide_as_the_context_is_none() -> None:
    applied(changed(DENSE, window=Window(size=T)), 2, layout_of(context=2))
