"""The noise scale of gradients that are drawn with a known one."""

from __future__ import annotations

import numpy as np
import pytest

from narrows.train.noise import NoiseScale
from narrows.train.step import Trainer

from .conftest import CONTEXT, RandomBatches, layout, plan
from .test_step import CPU


def test_a_known_noise_is_found() -> None:
    """|G|² = 4 and a noise of S = 6000 in 2,000 values: the scale is 1,500 tokens."""
    drawn = np.random.default_rng(0)
    true, found = np.full(2000, np.sqrt(4 / 2000)), NoiseScale()
    for _ in range(200):
        parts = [true + drawn.normal(0, np.sqrt(6000 / 64 / 2000), 2000) for _ in range(8)]
        small = float(np.mean([part @ part for part in parts]))
        whole = np.mean(parts, axis=0)
        found.seen((64.0, small), (512.0, float(whole @ whole)))
    assert found.tokens == pytest.approx(1500.0, rel=0.15)


def test_nothing_is_said_before_anything_was_seen() -> None:
    found = NoiseScale()
    assert found.tokens is None
    found.seen((1.0, 2.0), (4.0, float("nan")))
    assert found.tokens is None


def test_what_a_checkpoint_keeps_goes_on_alike() -> None:
    straight = NoiseScale()
    straight.seen((64.0, 9.0), (256.0, 4.0))
    other = NoiseScale(straight.known())
    for each in (straight, other):
        each.seen((64.0, 8.0), (256.0, 5.0))
    assert straight.tokens == other.tokens is not None


def test_a_step_s_micro_batches_tell_it() -> None:
    trainer = Trainer(plan(layout=layout(micro_batch=1, accumulation=4)), CPU)
    first = trainer.step(0, RandomBatches())
    norms = []
    for index in range(4):
        alone = Trainer(plan(layout=layout(micro_batch=1), batch_sequences=1), CPU)
        batches = RandomBatches()
        rows = batches.sequences(index, 1)
        batches.sequences = lambda first, count, rows=rows: rows  # type: ignore[method-assign]
        norms.append(alone.step(0, batches).gradient_norm ** 2)
    expected = NoiseScale()
    whole = first.gradient_norm**2
    expected.seen((float(CONTEXT), float(np.mean(norms))), (4.0 * CONTEXT, whole))
    assert trainer.noise.known() == pytest.approx(expected.known(), rel=1e-3)
    assert Trainer(plan(), CPU).step(0, RandomBatches()).noise_tokens is None
