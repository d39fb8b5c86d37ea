"""What a scheduler did so far: counts, and how long things took."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, final

Outcome = Literal["finished", "cancelled", "failed", "refused"]
_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@final
class Durations:
    """How many took at most each of `bounds_s`, and all of them; one thread counts."""

    def __init__(self, bounds_s: tuple[float, ...] = _BOUNDS_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def count(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds


@final
class Tally:
    """Of requests, tokens and time. `first` is from asking to the first token, `each` between two
    tokens of a text.
    """

    def __init__(self) -> None:
        self.requests: dict[Outcome, int] = dict.fromkeys(
            ("finished", "cancelled", "failed", "refused"), 0
        )
        self.tokens_read = 0
        self.tokens_reused = 0
        self.tokens_written = 0
        self.tokens_guessed = 0
        self.tokens_guessed_right = 0
        self.restarts = 0
        self.first = Durations()
        self.each = Durations()
