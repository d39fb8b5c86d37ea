from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from narrows.kernels.interface import OPERATIONS
from narrows.kernels.load import available
from narrows.kernels.trials import (
    CachedShape,
    attention_trial,
    cached_trial,
    streamed_trial,
    trial,
)
from narrows.spec.errors import BadInput

SETS = [("torch", "fp32"), ("torch", "bf16"), ("native", "bf16")]
WITHOUT_BACKWARD = {"cross_entropy", "column_sum", "adamw", "accumulate", "squared_norm"}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("kernels", "precision"), SETS)
def test_every_operation_can_be_timed(operation: str, kernels: str, precision: str) -> None:
    if kernels not in available():
        pytest.skip("no native kernels here")
    forward, backward = trial(operation, kernels=kernels, precision=precision, elements=20_000)
    for _ in range(2):
        result = forward()
        gradients = backward()
    if operation in WITHOUT_BACKWARD:
        assert gradients is None
    else:
        assert all(torch.isfinite(each).all() for each in gradients)
        assert sum(each.numel() for each in result if each.numel()) >= 19_000


@pytest.mark.parametrize(("kernels", "precision"), SETS)
def test_attention_can_be_timed(kernels: str, precision: str) -> None:
    if kernels not in available():
        pytest.skip("no native kernels here")
    forward, backward = attention_trial(
        kernels=kernels, precision=precision, rows=3, positions=70, head_width=32
    )
    forward()
    backward()
    backward()


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(BadInput, match="no trial is known for the operation conv"):
        trial("conv", kernels="torch", precision="fp32", elements=100)


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_over_a_cache_can_be_timed(queries: int, precision: Any) -> None:
    shape = CachedShape(2, kv_heads=2, group=3, head_width=8, queries=queries, keys=9)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    out_BTX = cached_trial(shape, torch.zeros(2 * shape.values, dtype=kind))()
    assert isinstance(out_BTX, torch.Tensor) and out_BTX.shape == (2, queries, 48)
    assert out_BTX.dtype == kind


def test_caches_are_taken_in_turn() -> None:
    shape = CachedShape(1, kv_heads=1, group=1, head_width=4, queries=1, keys=3)
    room = torch.zeros(3 * 2 * shape.values)
    run = cached_trial(shape, room)
    written = []
    for _ in range(3):
        run()
        written.append(int(room.view(3, -1).any(dim=1).sum()))
    assert written == [1, 2, 3]


def test_products_take_their_weights_in_turn() -> None:
    weights = torch.arange(3.0).repeat_interleave(12)
    count, run = streamed_trial((2, 4, 3), weights)
    assert count == 3
    assert [float(run()[0, 0]) for _ in range(4)] == [0.0, 3.0, 6.0, 0.0]  # type: ignore[index]


def test_no_weight_is_next_to_the_one_before() -> None:
    weights = torch.arange(10.0)
    _, run = streamed_trial((1, 1, 1), weights)
    taken = [int(run()[0, 0]) for _ in range(10)]  # type: ignore[index]
    assert sorted(taken) == list(range(10))
    assert all(abs(b - a) > 1 for a, b in itertools.pairwise(taken))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_drawing_a_token_can_be_timed(precision: Any) -> None:
    draw, _ = trial("draw", kernels="torch", precision=precision, elements=40)
    assert draw() in range(40)
