"""How far an evaluation is, said now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from narrows.spec.units import Seconds

Talk = Callable[[str], None]
_EVERY_S = 5.0


@final
class Progress:
    """Counts what is done of `total`, None where that is not known before."""

    def __init__(self, talk: Talk, unit: str, total: int | None = None) -> None:
        self._talk, self._unit, self._total = talk, unit, total
        self._began = self._told = time.monotonic()
        self._done = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if self._done != self._total and time.monotonic() - self._told >= _EVERY_S:
            self._told = time.monotonic()
            self._talk(self._line())

    def _line(self) -> str:
        rate = self._done / max(self.seconds, 1e-9)
        if self._total is None:
            return f"{self._done:,} {self._unit}, {rate:,.1f} a second"
        left = Seconds((self._total - self._done) / max(rate, 1e-9))
        return f"{self._done:,} of {self._total:,} {self._unit}, {left.text()} left"
