from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.feed_forward import Each
from narrows.model.weights import Weights
from narrows.parallel import expert
from narrows.parallel.mesh import Axis, ranks_of
from narrows.parallel.parts import Part
from narrows.spec.errors import BadInput
from narrows.spec.model import Experts, ModelSpec

from .equality import CPU, DENSE, MODELS, assert_equal, layout_of
from .processes import run

EXPERTS = Experts(count=8, chosen=2, width=32)


def spec(**given: Any) -> ModelSpec:
    return msgspec.structs.replace(DENSE, experts=msgspec.structs.replace(EXPERTS, **given))


SPREADS: dict[str, dict[str, Any]] = {
    "2 of 2": {"data": 2, "expert": 2},
    "2 of 2, parameters": {"data": 2, "expert": 2, "sharding": "parameters"},
    "tensor": {"tensor": 2, "expert": 2},
    "2 of 4, parameters": {"data": 4, "expert": 2, "sharding": "parameters"},
}
MORE: dict[str, dict[str, Any]] = {
    "4 of 4": {"data": 4, "expert": 4},
    "4 of 4, parameters": {"data": 4, "expert": 4, "sharding": "parameters"},
    "2 of 4": {"data": 4, "expert": 2},
    "2 of 4, gradients": {"data": 4, "expert": 2, "sharding": "gradients"},
    "2 of 4, optimizer": {"data": 4, "expert": 2, "sharding": "optimizer"},
    "2 of 2 × 2": {"replicas": 2, "data": 2, "expert": 2, "sharding": "parameters"},
    "over tensor and data": {"tensor": 2, "data": 2, "expert": 4, "sharding": "parameters"},
    "over context": {"context": 2, "data": 2, "expert": 4},
    "twice": {"data": 2, "expert": 2, "recompute": "full"},
    "over all": {"tensor": 2, "context": 2, "data": 2, "expert": 4, "sharding": "parameters"},
}
VARIANTS: dict[str, ModelSpec] = {
    "biased": spec(biases=True, router_biases=True),
    "beside shared and dense": spec(shared=1, dense_layers=1),
    "tight": spec(capacity=0.7),
}
dist = pytest.mark.dist


@dist
@pytest.mark.parametrize("name", SPREADS)
def test_spread_experts_find_the_gradients_of_one(name: str) -> None:
    assert_equal(MODELS["experts"], layout_of(**SPREADS[name]))


@dist
@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_experts_spread_over_more_ranks_do_too(name: str) -> None:
    layout = layout_of(**MORE[name])
    assert_equal(MODELS["experts"], layout)


@dist
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_experts_of_every_kind_can_be_spread(name: str, ranks: int) -> None:
    assert_equal(VARIANTS[name], layout_of(data=ranks, expert=ranks))


@dist
@pytest.mark.parametrize("expert", [1, 2])
def test_ranks_that_share_sequences_fill_experts_together(expert: int) -> None:
    """Which tokens are dropped does not depend on the pieces that sequences are in."""
    assert_equal(VARIANTS["tight"], layout_of(context=2, expert=expert))


@dist
@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["ring", "all_to_all"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_pieces_of_parts_fill_experts_together_too(ranks: int, exchange: Any) -> None:
    layout = layout_of(tensor=2, context=2, expert=ranks, exchange=exchange)
    assert_equal(VARIANTS["tight"], layout)


def each_of(first: int, stop: int) -> Each:
    each = Each(spec())
    generator = torch.Generator().manual_seed(2)
    for weights in (each.up, each.down):
        assert isinstance(weights, Weights)
        whole = torch.randn(weights.weight.shape, generator=generator)
        weights.weight = torch.nn.Parameter(whole[first:stop])
    return each


def all_to_one() -> tuple[Tensor, Tensor, Tensor]:
    """Rows that all belong to experts of the last rank, and their and its weights' gradients."""
    ranks = ranks_of(layout_of(data=2, expert=2), CPU)
    rank = ranks.expert.rank
    each = each_of(4 * rank, 4 * rank + 4)
    expert._apply_each(each, ranks.expert)
    x_RD = torch.randn(6, 64, generator=torch.Generator().manual_seed(rank)).requires_grad_()
    counts_E = torch.tensor([0, 0, 0, 0, 0, 2 + rank, 4 - rank, 0], dtype=torch.int32)
    y_RD = each(load("torch"), x_RD, counts_E)
    y_RD.square().sum().backward()
    assert x_RD.grad is not None and each.up.weight.grad is not None
    return y_RD.detach(), x_RD.grad, each.up.weight.grad


@dist
def test_a_rank_whose_experts_nobody_chose_has_gradients_of_zero() -> None:
    """They must be there: the ranks that share parameters wait for one another's."""
    (_, _, none), (y_RD, x_gradient, gradient) = run(2, all_to_one)
    assert (none == 0).all()
    whole = each_of(0, 8)
    x_RD = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    counts_E = torch.tensor([0, 0, 0, 0, 0, 3, 3, 0], dtype=torch.int32)
    expected_RD = whole(load("torch"), x_RD, counts_E)
    expected_RD.square().sum().backward()
    for found, expected in ((y_RD, expected_RD.detach()), (x_gradient, x_RD.grad)):
        assert expected is not None and (found - expected).norm() / expected.norm() < 1e-6
    assert (gradient[1:3] != 0).any() and (gradient[[0, 3]] == 0).all()


def test_experts_that_cannot_be_divided_are_refused() -> None:
    def cut(model: ModelSpec, ranks: int) -> None:
        parts = {"blocks.0.experts.each.up.weight": Part.whole((8, 64, 64))}
        expert.cut(model, parts, Axis(ranks, 0))

    with pytest.raises(BadInput, match="8 experts cannot be divided among 3 ranks"):
        cut(MODELS["experts"], 3)
    with pytest.raises(BadInput, match="a model without experts has none to divide among 2"):
        cut(DENSE, 2)
