from __future__ import annotations

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
    out_BTX = cached_trial(shape, precision)()
    assert isinstance(out_BTX, torch.Tensor) and out_BTX.shape == (2, queries, 48)


def test_products_take_their_weights_in_turn() -> None:
    weights = torch.arange(3.0).repeat_interleave(12)
    count, run = streamed_trial((2, 4, 3), weights)
    assert count == 3
    assert [float(run()[0, 0]) for _ in range(4)] == [0.0, 3.0, 6.0, 0.0]  # type: ignore[index]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_drawing_a_token_can_be_timed(precision: Any) -> None:
    draw, _ = trial("draw", kernels="torch", precision=precision, elements=40)
    assert draw() in range(40)
