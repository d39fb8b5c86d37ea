from __future__ import annotations

from collections.abc import Callable

import pytest

from narrows.plan.fleet.failures import goodput
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]


def test_failures_take_more_of_more_devices(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work = Work.of(small, small.context)
    found = [goodput(work, make_fleet(devices=devices)) for devices in (16, 1024, 16_384, 10**7)]
    assert [each.share for each in found] == sorted((e.share for e in found), reverse=True)
    assert 0.99 < found[0].share < 1.0 and found[-1].share == 0.0
    # 419 interruptions of 16,384 devices in 54 days (arXiv:2407.21783).
    assert found[2].mean_time_between_failures_s == pytest.approx(54 * 86_400 / 419, rel=0.02)


def test_the_interval_between_checkpoints_loses_least(small: ModelSpec, fleet: Fleet) -> None:
    kept = goodput(Work.of(small, small.context), fleet)

    def lost(interval: float) -> float:
        return kept.checkpoint_seconds / interval + interval / 2 / kept.mean_time_between_failures_s

    least = lost(kept.checkpoint_interval_s)
    assert least < lost(1.1 * kept.checkpoint_interval_s)
    assert least < lost(0.9 * kept.checkpoint_interval_s)
    assert kept.share == pytest.approx(1 - least - 600 / kept.mean_time_between_failures_s)
    # Weights, masters and two moments of each parameter, over four nodes of 2 GB/s.
    assert kept.checkpoint_seconds == pytest.approx(14 * small.parameters / 8e9, rel=1e-3)
