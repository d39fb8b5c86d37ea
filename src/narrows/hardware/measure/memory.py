"""Memory: the rate of copying by working set, and of filling pages the system has yet to give."""

from __future__ import annotations

import math

import torch

from narrows.hardware.measure.device import Target
from narrows.hardware.measure.sampling import Sample, Trial, sample
from narrows.spec.machine import BandwidthPoint, Fact
from narrows.spec.units import Bytes, BytesPerSecond

_WORKING_SETS = tuple(1 << power for power in (15, 17, 19, 20, 21, 22, 23, 24, 25, 26, 28))
_FRESH_BYTES = 64 << 20
"""Above the largest block that glibc recycles (32 MiB), so that it is mapped anew each time."""


def copying(
    where: Target, *, seconds: float
) -> tuple[tuple[BandwidthPoint, ...], Fact[BytesPerSecond], list[Sample]]:
    """Bytes read plus bytes written each second, by the size of source and destination together.

    The second value is the rate of the largest working set, which no cache holds.
    """
    source = torch.ones(max(_WORKING_SETS) // 2, dtype=torch.uint8, device=where.torch_name)
    target = torch.zeros_like(source)

    def trial(working_set: int) -> Trial:
        half = working_set // 2
        read, written = source[:half], target[:half]
        return lambda: written.copy_(read)

    trials = {size: trial(size) for size in _WORKING_SETS}
    taken = sample(trials, seconds=seconds, longest=math.inf, finish=where.finish)
    points = tuple(
        BandwidthPoint(working_set=Bytes(size), rate=BytesPerSecond(size / found.seconds).rounded())
        for size, found in taken.items()
    )
    largest = points[-1]
    rate = Fact(
        value=largest.rate,
        basis="measured",
        source=f"copying {largest.working_set.text()} (read and written), "
        f"{torch.get_num_threads()} threads",
    )
    return points, rate, list(taken.values())


def host_link(where: Target, *, seconds: float) -> Fact[BytesPerSecond] | None:
    """Rate of copies between a device and its host's pinned memory, the slower of both ways; None
    where they share one.
    """
    if where.torch_name in ("cpu", "mps"):
        return None
    here = torch.zeros(_FRESH_BYTES, dtype=torch.uint8, pin_memory=True)
    there = here.to(where.torch_name)
    ways: dict[str, Trial] = {"up": lambda: there.copy_(here), "down": lambda: here.copy_(there)}
    taken = sample(ways, seconds=seconds, longest=math.inf, finish=where.finish)
    slower = max(each.seconds for each in taken.values())
    return Fact(
        value=BytesPerSecond(_FRESH_BYTES / slower).rounded(),
        basis="measured",
        source=f"copying {Bytes(_FRESH_BYTES).text()} of pinned memory",
    )


def fresh_pages(where: Target, *, seconds: float) -> Fact[BytesPerSecond]:
    """Rate at which newly allocated memory is first written, page faults included.

    To be called while the allocator still gives large blocks back.
    """

    def trial() -> None:
        torch.empty(_FRESH_BYTES, dtype=torch.uint8, device=where.torch_name).fill_(1)

    taken = sample({0: trial}, seconds=seconds, longest=math.inf, finish=where.finish)[0]
    return Fact(
        value=BytesPerSecond(_FRESH_BYTES / taken.seconds).rounded(),
        basis="measured",
        source=f"allocating and filling {Bytes(_FRESH_BYTES).text()}",
    )
