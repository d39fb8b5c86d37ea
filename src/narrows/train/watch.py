"""Find out that a training hangs, and where: by signs of life that stay away."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from narrows.train.effort import Effort, efforts
from narrows.train.pulse import ASK, Sign, sign

_ASKED_S = 3.0
_FEEL_S = 1.0
_WORK_S = 0.05
"""Seconds of a processor: what waits for others spends less while a step is waited for."""
_FRAMES = 10
_FRAME = re.compile(r'^  File "(?P<path>[^"]*)", line (?P<line>\d+) in (?P<name>.*)$')


class Patience(NamedTuple):
    """A step may take so many times the usual one, but at least some seconds. Whatever else is
    done, and the first steps, which compile, may take `other_s` as long as work is done, on
    processors or a disk; without any, no longer than a short step.
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
        self._efforts: list[Effort | None] = [None] * count
        self._worked_s = [0.0] * count
        self._looked = self._felt = time.monotonic()

    def look(self, running: dict[int, int]) -> bool:
        """Read all signs; whether every one of the `running` processes, by rank, has been silent
        for too long: as long as one goes on, the others may wait for it.
        """
        now = time.monotonic()
        # Of a pause of the watcher itself (a lid closed) little counts: the others paused as well.
        passed, self._looked = min(1.0, now - self._looked), now
        for rank, known in enumerate(self.signs):
            self.signs[rank] = found = sign(self.folder, rank) or known
            if found != known:
                self.silent_s[rank] = self._worked_s[rank] = 0.0
            else:
                self.silent_s[rank] += passed
            self.furthest = max(self.furthest, found.step if found else 0)
        silent_s = min((self.silent_s[rank] for rank in running), default=0.0)
        if silent_s > _FEEL_S and now - self._felt > _FEEL_S:
            self._felt = now
            self._feel(running)
        return silent_s > max(map(self._allowed, running), default=0.0)

    def _feel(self, running: dict[int, int]) -> None:
        """Notice which of the silent ones work."""
        known = efforts(running.values())
        for rank, process in running.items():
            found, before = known.get(process), self._efforts[rank]
            # Where nothing can be known all of them may.
            if (
                found is None or before is None or found.disk
                or found.processor_s - before.processor_s > _WORK_S
            ):  # fmt: skip
                self._efforts[rank], self._worked_s[rank] = found, self.silent_s[rank]

    def _allowed(self, rank: int) -> float:
        found, patience = self.signs[rank], self.patience
        if found is not None and found.doing == "training" and found.usual_s:
            return max(patience.least_s, patience.times * found.usual_s)
        idle_s = self.silent_s[rank] - self._worked_s[rank]
        return patience.least_s if idle_s > patience.least_s else patience.other_s

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
