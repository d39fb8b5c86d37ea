"""Find out that a training hangs, and where: by signs of life that stay away."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from narrows.train.pulse import ASK, Sign, sign

_ASKED_S = 3.0
_FRAMES = 10
_FRAME = re.compile(r'^  File "(?P<path>[^"]*)", line (?P<line>\d+) in (?P<name>.*)$')


class Patience(NamedTuple):
    """A step may take so many times the usual one, but at least some seconds; whatever else is
    done, and the first steps, which compile, may take `other_s`.
    """

    times: float = 20.0
    least_s: float = 15.0
    other_s: float = 600.0


class Watch:
    """What is known of the processes whose signs are in `folder`."""

    def __init__(self, folder: Path, count: int, patience: Patience) -> None:
        self.folder, self.patience = folder, patience
        self.signs: list[Sign | None] = [None] * count
        self.silent_s = [0.0] * count
        self.furthest = 0
        self._looked = time.monotonic()

    def look(self, running: Sequence[int]) -> list[int]:
        """Read all signs; returns those of the `running` processes that have been silent for too
        long.
        """
        now = time.monotonic()
        # Of a pause of the watcher itself (a lid closed) little counts: the others paused as well.
        passed, self._looked = min(1.0, now - self._looked), now
        for rank, known in enumerate(self.signs):
            self.signs[rank] = found = sign(self.folder, rank) or known
            self.silent_s[rank] = 0.0 if found != known else self.silent_s[rank] + passed
            self.furthest = max(self.furthest, found.step if found else 0)
        allowed = max((self._allowed(rank) for rank in running), default=0.0)
        return [rank for rank in running if self.silent_s[rank] > allowed]

    def _allowed(self, rank: int) -> float:
        found = self.signs[rank]
        if found is None or found.doing != "training" or not found.usual_s:
            return self.patience.other_s
        return max(self.patience.least_s, self.patience.times * found.usual_s)

    def told(self, processes: dict[int, int]) -> list[str]:
        """Where each of the processes, by rank, is: what it does and its stack."""
        for pid in processes.values():
            with suppress(ProcessLookupError):
                os.kill(pid, ASK)
        until = time.monotonic() + _ASKED_S
        while time.monotonic() < until and not all(self._stack(rank) for rank in processes):
            time.sleep(0.05)
        time.sleep(0.05)
        return [self._one(rank, pid) for rank, pid in processes.items()]

    def _one(self, rank: int, pid: int) -> str:
        found, frames = self.signs[rank], self._stack(rank)
        where = f"step {found.step}, {found.doing}" if found else "not begun"
        lines = [f"process {rank} ({where}, silent for {self.silent_s[rank]:.0f} s)"]
        if not frames:
            lines[0] += f": no stack, it is {_state(pid)}"
        return "\n    ".join(lines + frames[:_FRAMES])

    def _stack(self, rank: int) -> list[str]:
        """The frames of the thread that trains, innermost first."""
        try:
            text = (self.folder / f"{rank:05d}.stack").read_text(errors="replace")
        except FileNotFoundError:
            return []
        _, _, own = text.partition("Current thread")
        frames = []
        for line in own.splitlines()[1:]:
            if (match := _FRAME.match(line)) is None:
                break
            frames.append(f"{_short(match['path'])}:{match['line']} {match['name']}")
        return frames


def _short(path: str) -> str:
    """What of a file's path tells it from others."""
    return "/".join(Path(path).parts[-3:])


def _state(pid: int) -> str:
    """In words what the kernel says that a process does, where it says it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone or cannot be seen"
    return {"T": "stopped", "t": "traced", "D": "waiting for a disk", "Z": "dead"}.get(
        letter, "running"
    )
