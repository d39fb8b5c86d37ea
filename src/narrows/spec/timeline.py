"""What each rank did when, in a few steps of a run: what was hidden behind what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from narrows.spec.record import Record

Track = Literal["compute", "link", "data", "waiting"]
Span = tuple[float, float]
"""Seconds from the first step's beginning: start and end."""


class Lane(Record):
    """One rank: when it computed, exchanged, read data, and waited for an exchange with nothing
    else to do; spans of one track are apart and in order, and drawn no finer than one can see.

    `exchanging_s` are seconds with an exchange under way, `hidden_s` those of them in which it
    computed as well.
    """

    rank: int
    compute: tuple[Span, ...]
    link: tuple[Span, ...]
    data: tuple[Span, ...]
    waiting: tuple[Span, ...]
    exchanging_s: float
    hidden_s: float


class Timeline(Record):
    """`steps` whole steps from `first_step` on, as they began on the first rank, on clocks that
    agree to within `clock_error_s`.
    """

    first_step: int
    begins: tuple[float, ...]
    seconds: float
    clock_error_s: float
    lanes: tuple[Lane, ...]

    @property
    def steps(self) -> int:
        """How many it shows."""
        return len(self.begins)

    @property
    def exchanging_s(self) -> float:
        """Seconds of a step with an exchange under way, the mean of all ranks."""
        return sum(lane.exchanging_s for lane in self.lanes) / (len(self.lanes) * self.steps)

    @property
    def hidden_s(self) -> float:
        """Of these, seconds behind computation."""
        return sum(lane.hidden_s for lane in self.lanes) / (len(self.lanes) * self.steps)


def joined(spans: Iterable[Span], gap: float = 0.0) -> tuple[Span, ...]:
    """Spans apart and in order; those no further apart than `gap` become one."""
    found: list[list[float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1] + gap:
            found[-1][1] = max(found[-1][1], end)
        elif end > start:
            found.append([start, end])
    return tuple((start, end) for start, end in found)


def both(one: Sequence[Span], other: Sequence[Span]) -> tuple[Span, ...]:
    """When spans of both are; each are apart and in order."""
    found: list[Span] = []
    i = j = 0
    while i < len(one) and j < len(other):
        start, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if start < end:
            found.append((start, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def without(one: Sequence[Span], other: Sequence[Span]) -> tuple[Span, ...]:
    """When spans of the one are and none of the other."""
    found: list[Span] = []
    for start, end in one:
        for low, high in both([(start, end)], other):
            if low > start:
                found.append((start, low))
            start = high
        if start < end:
            found.append((start, end))
    return tuple(found)


def length(spans: Iterable[Span]) -> float:
    """Their seconds."""
    return sum(end - start for start, end in spans)
