from __future__ import annotations

import mmap
import sys

import pytest

from narrows.kernels.meter import MemoryMeter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
MEGABYTES = 2**20


def fresh_pages(megabytes: int) -> mmap.mmap:
    """Memory that no heap has recycled, written to."""
    taken = mmap.mmap(-1, megabytes * MEGABYTES)
    taken.write(b"\1" * len(taken))
    return taken


def test_the_peak_stays_when_memory_is_given_back() -> None:
    meter = MemoryMeter("cpu")
    fresh_pages(64).close()
    assert meter.peak() > 60 * MEGABYTES


def test_what_is_taken_once_set_aside_does_not_count() -> None:
    meter = MemoryMeter("cpu")
    before = meter.peak()
    meter.set_aside()
    taken = fresh_pages(64)
    assert meter.peak() == before
    taken.close()
