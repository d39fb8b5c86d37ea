from __future__ import annotations

import pytest

from narrows.hardware.measure import packing
from narrows.hardware.measure.device import processor
from narrows.kernels.build import obstacle

needs_native = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


@needs_native
def test_steps_of_both_models_are_measured_in_all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    past = tuple((1, n, 32, cache, 1) for cache in ("bf16", "int8") for n in (1, 8))
    shared = ((1, 1, 0, "bf16", 2), (1, 1, 32, "bf16", 2), (1, 1, 32, "int8", 2))
    steps = ((1, 1, 0, "bf16", 1), (2, 1, 0, "bf16", 1), (1, 8, 0, "bf16", 1), *past, *shared)
    monkeypatch.setattr(packing, "_MODELS", ((1, 128), (2, 256)))
    monkeypatch.setattr(packing, "_STEPS", steps)
    found, samples = packing.curves(processor(), seconds=0.1, memory_bytes=1e10)
    assert [curve.bits for curve in found] == [4, 8, 16]
    for curve in found:
        assert [(p.layers, p.width) for p in curve.points] == [(1, 128)] * 10 + [(2, 256)] * 10
        told = [(p.sequences, p.queries, p.past, p.cache, p.group) for p in curve.points]
        assert told == [*steps, *steps]
        assert all(point.seconds > 0 for point in curve.points)
    assert len(samples) == 60


def test_little_memory_leaves_them_out() -> None:
    assert packing.curves(processor(), seconds=0.1, memory_bytes=1e8) == ((), [])
