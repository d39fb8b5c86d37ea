from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest

from narrows.hardware.measure import operations
from narrows.hardware.measure.device import target
from narrows.kernels.interface import OPERATIONS
from narrows.kernels.load import available


def _sample_all(sample: Callable[..., Any], trials: Any, **limits: Any) -> Any:
    return sample(trials, **{**limits, "longest": math.inf})


def test_launching_takes_microseconds() -> None:
    assert 1e-7 < operations.launch(target(), seconds=0.2).value < 1e-3


def test_attention_forward_and_backward_by_every_set(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((4, 64, 64), (4, 128, 64))
    monkeypatch.setattr(operations, "_ATTENTION", shapes)
    curves, _ = operations.attention(target(), available(), seconds=0.4)
    assert {curve.kernels for curve in curves} == set(available())
    for curve in curves:
        assert [(p.rows, p.positions, p.head_width) for p in curve.points] == list(shapes)
        assert all(point.forward > 0 and point.backward > 0 for point in curve.points)


def test_every_operation_by_every_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # On cores that others hold a trial may take longer than its share, and be left out.
    patient = functools.partial(_sample_all, operations.sample)
    monkeypatch.setattr(operations, "sample", patient)
    monkeypatch.setattr(operations, "_ELEMENTS", (1 << 14, 1 << 16))
    monkeypatch.setattr(operations, "_ELEMENTS_PARAMETERS", 1 << 17)
    curves, _ = operations.pointwise(target(), available(), seconds=0.9, memory_bytes=1e10)
    assert {curve.operation for curve in curves} == set(OPERATIONS)
    for curve in curves:
        parameters = curve.operation in ("adamw", "accumulate", "squared_norm")
        sizes = [1 << 14, 1 << 16, *([1 << 17] if parameters else [])]
        assert [point.elements for point in curve.points] == sizes
        assert all(point.forward > 0 for point in curve.points)
        has_backward = curve.operation in ("norm", "gelu", "swiglu", "embedding")
        assert all((point.backward > 0) == has_backward for point in curve.points)


def test_little_memory_leaves_the_large_sizes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "OPERATIONS", ("squared_norm",))
    curves, _ = operations.pointwise(target(), ("torch",), seconds=0.1, memory_bytes=1e8)
    assert all(point.elements < 1 << 20 for curve in curves for point in curve.points)


def test_native_kernels_are_measured_in_what_they_train() -> None:
    assert operations.trained(("torch", "native")) == [
        ("torch", "fp32"), ("torch", "bf16"), ("native", "bf16"),
    ]  # fmt: skip
