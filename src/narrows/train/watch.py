"""Find out that a training hangs, and where: by signs of life that stay away."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from narrows.train.effort import efforts
from narrows.train.pulse import ASK, sign
from narrows.train.silence import Patience, Silence, placed, stacked

_ASKED_S = 3.0
_FEEL_S = 1.0
_FRAME = re.compile(r'^  File "(?P<path>[^"]*)", line (?P<line>\d+) in (?P<name>.*)$')


class Watch:
    """What is known of the processes whose signs are in `folder`."""

    def __init__(self, folder: Path, count: int, patience: Patience) -> None:
        self.folder, self.patience = folder, patience
        self.silences = [Silence() for _ in range(count)]
        self.furthest = 0
        self._looked = self._felt = time.monotonic()

    def look(self, running: dict[int, int]) -> bool:
        """Read all signs; whether every one of the `running` processes, by rank, has been silent
        for too long: as long as one goes on, the others may wait for it.
        """
        now = time.monotonic()
        # Of a pause of the watcher itself (a lid closed) little counts: the others paused as well.
        passed, self._looked = min(1.0, now - self._looked), now
        for rank, silence in enumerate(self.silences):
            silence.hear(sign(self.folder, rank), passed)
            self.furthest = max(self.furthest, silence.sign.step if silence.sign else 0)
        watched = [self.silences[rank] for rank in running]
        silent_s = min((each.seconds for each in watched), default=0.0)
        if silent_s > _FEEL_S and now - self._felt > _FEEL_S:
            self._felt = now
            known = efforts(running.values())
            for rank, process in running.items():
                self.silences[rank].feel(known.get(process))
        return silent_s > max((each.allowed_s(self.patience) for each in watched), default=0.0)

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
        silence, frames = self.silences[rank], self._stack(rank)
        line = placed(rank, silence.sign, silence.seconds)
        return stacked(line if frames else f"{line}: no stack, it is {_state(pid)}", frames)

    def _stack(self, rank: int) -> list[tuple[str, int, str]]:
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
            frames.append((match["path"], int(match["line"]), match["name"]))
        return frames


def _state(pid: int) -> str:
    """In words what the kernel says that a process does, where it says it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone or cannot be seen"
    return {"T": "stopped", "t": "traced", "D": "waiting for a disk", "Z": "dead"}.get(
        letter, "running"
    )
