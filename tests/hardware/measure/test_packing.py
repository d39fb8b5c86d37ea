from __future__ import annotations

import pytest

from narrows.hardware.measure import packing
from narrows.hardware.measure.device import processor
from narrows.kernels.build import obstacle

needs_native = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


@needs_native
def test_steps_of_both_models_are_measured_in_all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ((1, 1, 0), (2, 1, 0), (1, 8, 0), (1, 1, 32), (1, 8, 32))
    monkeypatch.setattr(packing, "_MODELS", ((1, 64), (2, 128)))
    monkeypatch.setattr(packing, "_STEPS", steps)
    found, samples = packing.curves(processor(), seconds=0.1, memory_bytes=1e10)
    assert [curve.bits for curve in found] == [4, 8, 16]
    for curve in found:
        assert [(p.layers, p.width) for p in curve.points] == [(1, 64)] * 5 + [(2, 128)] * 5
        assert [(p.sequences, p.queries, p.past) for p in curve.points] == [*steps, *steps]
        assert all(point.seconds > 0 for point in curve.points)
    assert len(samples) == 30


def test_little_memory_leaves_them_out() -> None:
    assert packing.curves(processor(), seconds=0.1, memory_bytes=1e8) == ((), [])
