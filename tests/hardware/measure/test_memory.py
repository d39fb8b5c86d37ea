from __future__ import annotations

import pytest

from narrows.hardware.measure import memory
from narrows.hardware.measure.device import processor, target


def test_copying_at_every_working_set() -> None:
    points, rate, samples = memory.copying(target(), seconds=0.5)
    assert [point.working_set for point in points] == sorted(p.working_set for p in points)
    assert len(points) == len(samples) >= 8
    assert rate.value == points[-1].rate and points[-1].working_set > 1e8
    assert all(point.rate > 1e8 for point in points)


def test_fresh_pages_cost_more_than_a_copy_in_the_cache() -> None:
    fresh = memory.fresh_pages(target(), seconds=0.3)
    points, _, _ = memory.copying(target(), seconds=0.3)
    assert 1e8 < fresh.value < max(point.rate for point in points)


def test_a_processor_has_no_link_to_its_host() -> None:
    assert memory.host_link(processor(), seconds=0.1) is None


@pytest.mark.gpu
def test_a_device_has_one() -> None:
    found = memory.host_link(target(), seconds=0.1)
    assert found is not None and 1e8 < found.value < 1e13
