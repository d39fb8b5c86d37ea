"""Learning rate: up, then the shape, never below the floor."""

from __future__ import annotations

import msgspec
import pytest

from narrows.spec.plan import Schedule
from narrows.train.schedule import Heard, listened, rate_factor


def schedule(shape: str, floor: float = 0.1) -> Schedule:
    values = {"shape": shape, "warmup_steps": 10, "decay_steps": 20, "floor": floor}
    return msgspec.convert(values, Schedule)


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(shape: str) -> None:
    factors = [rate_factor(schedule(shape), step, 100) for step in range(11)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[10] == 1.0


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.55), ("linear", 0.55), ("wsd", 1.0)])
def test_the_middle(shape: str, middle: float) -> None:
    assert rate_factor(schedule(shape), 55, 100) == pytest.approx(middle)


def test_wsd_falls_over_its_last_steps() -> None:
    factors = [rate_factor(schedule("wsd", 0.0), step, 100) for step in (79, 80, 90, 99)]
    assert factors == pytest.approx([1.0, 1.0, 0.5, 0.05])


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd"])
def test_never_below_the_floor(shape: str) -> None:
    assert min(rate_factor(schedule(shape), step, 100) for step in range(10, 100)) >= 0.1 - 1e-9


def test_cosines_come_one_after_the_other() -> None:
    twice = Schedule(shape="cosine", warmup_steps=0, decay_steps=100, floor=0.0, cycles=2)
    assert rate_factor(twice, 0, 100) == rate_factor(twice, 50, 100) == 1.0
    assert rate_factor(twice, 25, 100) == pytest.approx(0.5)
    assert rate_factor(twice, 49, 100) < 0.01 > rate_factor(twice, 100, 100)


def test_a_sweep_grows_by_the_same_factor_each_step() -> None:
    sweep = Schedule(shape="sweep", warmup_steps=0, decay_steps=0, floor=1e-4)
    found = [rate_factor(sweep, step, 5) for step in range(5)]
    assert found == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_a_plateau_shrinks_the_rate_once_the_loss_has_stood_still() -> None:
    plateau = Schedule(
        shape="plateau", warmup_steps=2, decay_steps=0, floor=0.1, patience=2, shrink=0.5
    )
    heard, factors = Heard(), []
    for loss in (3.0, 2.0, 2.5, 2.0, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9):
        heard = listened(plateau, heard, loss)
        factors.append(rate_factor(plateau, 50, 100, heard))
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.1]
    assert rate_factor(plateau, 0, 100, heard) == 0.5


def test_other_shapes_do_not_listen() -> None:
    cosine = Schedule(shape="cosine", warmup_steps=0, decay_steps=9, floor=0.1)
    assert listened(cosine, Heard(), 2.0) == Heard()
