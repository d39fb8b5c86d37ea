"""What twice as much of each resource would do to the step; the bottleneck saves most."""

from __future__ import annotations

from narrows.plan.cost import Scales
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.together import step_seconds
from narrows.spec.machine import Machine
from narrows.spec.plan import Doubling

_RESOURCES: tuple[tuple[str, Scales], ...] = (
    ("compute", Scales(compute=2.0)),
    ("memory bandwidth", Scales(bandwidth=2.0)),
    ("launch overhead", Scales(launch=2.0)),
    ("storage", Scales(storage=2.0)),
)
_OF_LINKS: tuple[tuple[str, Scales], ...] = (
    ("link bandwidth", Scales(link_bandwidth=2.0)),
    ("link latency", Scales(link_latency=2.0)),
)
MEMORY_CAPACITY = "memory capacity"


def doubling(
    shapes: Shapes, layouts: Layouts, machine: Machine, seconds_more_memory: float
) -> tuple[Doubling, ...]:
    """Resources by what doubling them saves, most first.

    Twice the launch overhead, or the link's latency, means half as long to wait.
    `seconds_more_memory` is the best step of a search with twice the memory.
    """
    now = float(step_seconds(shapes, layouts, machine)[0, 0])
    steps = {
        name: float(step_seconds(shapes, layouts, machine, scales)[0, 0])
        for name, scales in (*_RESOURCES, *(_OF_LINKS if layouts.spread else ()))
    }
    steps[MEMORY_CAPACITY] = min(now, seconds_more_memory)
    rows = [
        Doubling(resource=name, step_seconds=seconds, saving=1 - seconds / now)
        for name, seconds in steps.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.saving))
