from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import Stages, bubble, layers, stages
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread
from narrows.spec.model import ModelSpec


@pytest.fixture(scope="module")
def work(small: ModelSpec) -> Work:
    return Work.of(msgspec.structs.replace(small, layers=62), small.context)


def spreads(**layout: Any) -> Spreads:
    return Spreads.of([Spread(**layout)])


def held(work: Work, **layout: Any) -> Stages:
    return stages(work, spreads(**layout))


def test_all_layers_are_somewhere(work: Work) -> None:
    """Sixteen stages of four, one fewer at both ends: Llama 3.1's way (arXiv:2407.21783)."""
    first, middle, last = layers(work, spreads(pipeline=16, first_fewer=1, last_fewer=1))
    assert (first, middle, last) == (3, 4, 3)
    assert first + 14 * middle + last == 62


def test_one_stage_has_everything(work: Work) -> None:
    alone = held(work)
    assert alone.layers[:, 0].tolist() == [62, 0, 0]
    assert alone.tables[:, 0].tolist() == [2, 0, 0] and alone.losses[:, 0].tolist() == [1, 0, 0]


def test_two_stages_have_no_middle(work: Work) -> None:
    pair = held(work, pipeline=2, accumulation=4)
    assert pair.layers[:, 0].tolist() == [31, 0, 31]
    assert pair.tables[:, 0].tolist() == [1, 0, 1] and pair.losses[:, 0].tolist() == [0, 0, 1]


def test_a_v_has_its_ends_on_one_rank(work: Work) -> None:
    bent = held(work, pipeline=2, schedule="zero_bubble", interleave=2, accumulation=8)
    assert bent.layers[:, 0].tolist() == [31, 31, 0]
    assert bent.tables[:, 0].tolist() == [2, 0, 0] and bent.losses[:, 0].tolist() == [1, 0, 0]
    assert bent.flight[:2, 0].tolist() == [2, 2]
    fewer = {"first_fewer": 1, "last_fewer": 1}
    bent = held(work, pipeline=2, schedule="zero_bubble", interleave=2, accumulation=8, **fewer)
    assert bent.layers[:, 0].tolist() == [30, 32, 0]


@pytest.mark.parametrize(
    ("layout", "flight"),
    [
        ({"schedule": "gpipe"}, [32, 32, 32]),
        ({}, [4, 3, 1]),
        # Megatron's warm-up of rank r: 2 (p - r - 1) + (v - 1) p pieces, and the one that runs.
        ({"interleave": 2}, [(6 + 4 + 1) / 2, (4 + 4 + 1) / 2, (0 + 4 + 1) / 2]),
    ],
)  # fmt: skip
def test_micro_batches_in_flight_are_the_schedules(
    work: Work, layout: dict[str, Any], flight: list[float]
) -> None:
    assert held(work, pipeline=4, accumulation=32, **layout).flight[:, 0].tolist() == flight


def test_no_more_are_in_flight_than_there_are(work: Work) -> None:
    assert np.all(held(work, pipeline=8, accumulation=2).flight <= 2)


def test_weight_gradients_fill_the_bubble() -> None:
    """Forward 1, backward 1, weights 1: nothing is left but the way to the turn."""
    one = np.array([3.0])
    v = spreads(pipeline=4, schedule="zero_bubble", interleave=2, accumulation=4)
    assert bubble(v, one, np.array([1.0])) == pytest.approx(3 * 0.5)
    # Where attention, which has no weights, takes much of the pass, they do not fill it.
    assert bubble(v, one, np.array([0.6])) == pytest.approx(3 * 1.2)
    assert bubble(spreads(pipeline=4), one, np.array([1.0])) == pytest.approx(9.0)
    assert bubble(spreads(pipeline=4, interleave=3), one, one) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("ranks", "micros", "lost"),
    [(3, 1, 3.5), (4, 1, 5.5), (4, 2, 3.5), (8, 1, 13.5), (8, 2, 11.5), (8, 8, 3.5)],
)
def test_fewer_micro_batches_than_stages_wait_for_the_first_one(
    ranks: int, micros: int, lost: float
) -> None:
    """As report/pipelines.py draws them."""
    v = spreads(pipeline=ranks, schedule="zero_bubble", interleave=2, accumulation=micros)
    assert bubble(v, np.array([3.0]), np.array([1.0])) == pytest.approx(lost)
