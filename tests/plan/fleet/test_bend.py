from __future__ import annotations

import math

import pytest

from narrows.plan.fleet.bend import bend
from narrows.spec.forecast import Elsewhere


def steps(seconds: dict[int, float | None]) -> list[Elsewhere]:
    return [Elsewhere(fleet="x", devices=n, step_seconds=value) for n, value in seconds.items()]


def test_the_formula_is_found_again_where_the_curve_is_one() -> None:
    found = bend(steps({n: 100.0 / n + 0.04 * n for n in (4, 8, 16, 32, 64, 128)}))
    assert found is not None
    assert found.work_seconds == pytest.approx(100.0)
    assert found.device_seconds == pytest.approx(0.04)
    assert found.devices == pytest.approx(math.sqrt(100.0 / 0.04)) == pytest.approx(50.0)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.step_seconds(10) == pytest.approx(10.4)
    # Twice the device-seconds of the best point, which is a little above a n itself.
    assert found.devices_real is not None and 45.0 < found.devices_real < 56.0


def test_a_curve_that_divides_evenly_does_not_bend() -> None:
    found = bend(steps({1: None, 2: 50.0, 4: 24.9, 8: 12.4, 16: 6.2}))
    assert found is not None and found.device_seconds == 0.0
    assert found.devices is None and found.devices_real is None
    assert found.error < 0.01


def test_a_cliff_bends_the_curve_where_the_formula_is_late() -> None:
    found = bend(steps({1: 8.0, 2: 4.0, 4: 4.0, 8: 4.0}))
    assert found is not None and found.devices_real == pytest.approx(4.0)
    assert found.devices is not None and found.devices > found.devices_real
    assert found.error > 0.1


@pytest.mark.parametrize(
    "seconds", [{}, {1: 1.0, 2: 0.5}, {1: 1.0, 2: None, 4: 0.3}, {1: 1.0, 2: 3.0, 4: 9.0}]
)
def test_too_few_points_or_no_gain_is_no_bend(seconds: dict[int, float | None]) -> None:
    assert bend(steps(seconds)) is None
