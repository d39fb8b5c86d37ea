from __future__ import annotations

import pytest

from narrows.hardware.measure import blocks
from narrows.hardware.measure.device import target


def test_every_kind_and_precision_is_timed_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_SHAPES", ((64, 32, 1, 16), (64, 32, 16, 256)))
    curves = blocks.curves(target(), ("torch",), ("fp32", "bf16"), seconds=0.1)
    assert [(c.kind, c.kernels, c.precision) for c in curves] == [
        ("gpt2", "torch", "fp32"), ("llama", "torch", "fp32"),
        ("gpt2", "torch", "bf16"), ("llama", "torch", "bf16"),
    ]  # fmt: skip
    for curve in curves:
        small, large = curve.points
        assert (small.sequences, small.positions, small.width) == (1, 16, 64)
        assert 0 < small.seconds < large.seconds
