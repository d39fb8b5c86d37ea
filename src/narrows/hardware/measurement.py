"""What the measuring process is asked and what it hands back."""

from __future__ import annotations

from narrows.spec.machine import Device, Disk, KernelSet, Link
from narrows.spec.record import Record

SPOT_SHAPE = (512, 1536, 384)
"""(m, n, k) of the product that `Spot` times: ordinary, and quick enough to repeat."""


REFUSED = "refused: "
"""Before what and before the hint of a BadInput, on the last line that the process writes."""


class Request(Record):
    """What to measure: `folder` is where the disk is tried, `seconds` the time for all of it.

    Of several counts in `threads` the fastest is taken. `processes` is how many a link joins here;
    None where they are started already.
    """

    folder: str
    seconds: float
    threads: tuple[int, ...]
    processes: int | None = None


class Measurement(Record):
    """Everything of a Machine that had to be run to be known, but for the compiler.

    `other_load` is the number of cores that other work kept busy meanwhile; `settled` the share of
    the timings whose best repetitions agreed.
    """

    device: Device
    devices: int
    disk: Disk
    kernel_sets: tuple[KernelSet, ...]
    links: tuple[Link, ...]
    other_load: float
    settled: float


class Spot(Record):
    """FLOP/s of one product timed now, in fp32 and bf16, and what other work used meanwhile."""

    fp32: float
    bf16: float
    other_load: float
