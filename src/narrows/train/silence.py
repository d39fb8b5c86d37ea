"""How long a process has given no sign, and how long it may."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from narrows.train.effort import Effort
from narrows.train.pulse import Sign

_WORK_S = 0.05
"""Seconds of a processor: what waits for others spends less while a step is waited for."""
_FRAMES = 10


class Patience(NamedTuple):
    """A step may take so many times the usual one, but at least some seconds. Whatever else is
    done, and the first steps, which compile, may take `other_s` as long as work is done, on
    processors or a disk; without any, no longer than a short step.
    """

    times: float = 20.0
    least_s: float = 15.0
    other_s: float = 600.0


class Silence:
    """Of one process: its last sign, the seconds since then, and when it last worked in them."""

    def __init__(self) -> None:
        self.sign: Sign | None = None
        self.seconds = self._worked_s = 0.0
        self._effort: Effort | None = None

    def hear(self, sign: Sign | None, passed: float) -> None:
        """Its newest sign, `passed` seconds after it was last listened to."""
        if sign is not None and sign != self.sign:
            self.sign, self.seconds, self._worked_s = sign, 0.0, 0.0
        else:
            self.seconds += passed

    def feel(self, found: Effort | None) -> None:
        """Notice whether it works; where nothing can be known it may."""
        before = self._effort
        if (
            found is None or before is None or found.disk
            or found.processor_s - before.processor_s > _WORK_S
        ):  # fmt: skip
            self._effort, self._worked_s = found, self.seconds

    def allowed_s(self, patience: Patience) -> float:
        """How long it may last."""
        if self.sign is not None and self.sign.doing == "training" and self.sign.usual_s:
            return max(patience.least_s, patience.times * self.sign.usual_s)
        idle_s = self.seconds - self._worked_s
        return patience.least_s if idle_s > patience.least_s else patience.other_s


def placed(rank: int, sign: Sign | None, silent_s: float) -> str:
    """In a line which process it is, what it did last and how long ago."""
    where = f"step {sign.step}, {sign.doing}" if sign else "not begun"
    return f"process {rank} ({where}, silent for {silent_s:.0f} s)"


def stacked(line: str, frames: list[tuple[str, int, str]]) -> str:
    """The line, and below it the innermost frames: file, line and function of each."""
    shown = [f"{_short(path)}:{number} {name}" for path, number, name in frames[:_FRAMES]]
    return "\n    ".join([line, *shown])


def _short(path: str) -> str:
    """What of a file's path tells it from others."""
    return "/".join(Path(path).parts[-3:])
