from __future__ import annotations

import pytest

from narrows.hardware.measure import answering
from narrows.hardware.measure.device import target
from narrows.kernels.trials import CachedShape

SMALL = CachedShape(1, 2, 1, 16, 1, 8)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_ROWS", (1, 4))
    monkeypatch.setattr(answering, "_WEIGHTS", ((64, 32),))
    monkeypatch.setattr(answering, "_HEAD", (256, 32))
    monkeypatch.setattr(answering, "_HEAD_ROWS", (1,))
    monkeypatch.setattr(answering, "_WORKING_SETS", (1 << 14, 1 << 16))
    monkeypatch.setattr(answering, "_CACHES_SETS", (1 << 13, 1 << 16))
    monkeypatch.setattr(answering, "_DECODES", (SMALL,))
    monkeypatch.setattr(answering, "_PREFILLS", (SMALL._replace(queries=8),))
    blocks = (answering._Block(64, 32, 1, 1, 8), answering._Block(64, 32, 2, 8, 8))
    monkeypatch.setattr(answering, "_BLOCKS", blocks)
    monkeypatch.setattr(answering, "_VOCABULARIES", (64,))


def test_all_that_answering_needs_is_measured_in_both_precisions() -> None:
    found = answering.curves(target(), ("fp32", "bf16"), seconds=0.5, memory_bytes=1e9)
    for curves in (found.streamed, found.cached, found.draw):
        assert [curve.precision for curve in curves] == ["fp32", "bf16"]
    assert [(curve.kind, curve.precision) for curve in found.extended] == [
        ("gpt2", "fp32"), ("llama", "fp32"), ("gpt2", "bf16"), ("llama", "bf16"),
    ]  # fmt: skip
    for one in (*found.streamed, *found.cached, *found.extended):
        assert one.points and all(point.seconds > 0 for point in one.points)
    assert len(found.samples) == 10 + 8 + 8 + 2


def test_working_sets_are_whole_weights_of_their_size() -> None:
    (fp32, bf16), *_ = answering.curves(target(), ("fp32", "bf16"), seconds=0.1, memory_bytes=1e9)
    weights = 64 * 32
    assert {p.working_set for p in fp32.points if p.n == 64} == {2 * 4 * weights, 8 * 4 * weights}
    assert {p.working_set for p in bf16.points if p.n == 64} == {4 * 2 * weights, 16 * 2 * weights}


def test_caches_are_among_all_that_their_set_holds() -> None:
    found = answering.curves(target(), ("fp32", "bf16"), seconds=0.1, memory_bytes=1e9)
    for curve, value in zip(found.cached, (4, 2), strict=True):
        one = 2 * SMALL.values * value
        assert {p.working_set for p in curve.points} == {1 << 13, 1 << 16}
        assert all(p.working_set % one == 0 for p in curve.points)


def test_little_memory_leaves_large_working_sets_out() -> None:
    found = answering.curves(target(), ("fp32", "bf16"), seconds=0.1, memory_bytes=1e5)
    assert all(point.working_set <= 1 << 15 for point in found.streamed[0].points)
    none = answering.curves(target(), ("fp32", "bf16"), seconds=0.1, memory_bytes=1e4)
    assert none.streamed[0].points == ()


def test_what_is_not_worth_it_is_left_out() -> None:
    found = answering.curves(target(), ("fp32",), seconds=0.1, memory_bytes=1e5)
    for curves in (found.streamed, found.cached, found.extended, found.draw):
        assert {curve.precision for curve in curves} == {"fp32"}
