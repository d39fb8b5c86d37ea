"""The signs of life that a training's processes leave in a folder, for a watcher to read.

Of process 3 there are 00003.pulse (how far it is), 00003.stack (where it is, written when a signal
asks) and 00003.json (why it ended). NARROWS_PULSE names the folder; without it nothing is left.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from narrows.spec.errors import (
    BadInput,
    Diverged,
    DoesNotFit,
    Interrupted,
    LostOthers,
    NarrowsError,
)
from narrows.spec.record import Record, load, save

VARIABLE = "NARROWS_PULSE"
_WINDOW = 20
ASK = signal.SIGUSR1
"""The signal that asks a process where it is."""

Doing = Literal["starting", "training", "evaluating", "saving", "ending"]
Kind = Literal["input", "fit", "asked", "diverged", "others", "else"]


class Sign(NamedTuple):
    """What a process does at which step, and how long a step usually takes it, 0 before that is
    known; `beat` counts its signs.
    """

    step: int
    doing: Doing
    beat: int
    usual_s: float


class Failure(Record):
    """Why a process ended: what it was given, what does not fit, that it was asked to, that the
    training diverged, that others were gone, or else.
    """

    what: str
    causes: tuple[str, ...] = ()
    hint: str | None = None
    kind: Kind


_KINDS: tuple[tuple[type[NarrowsError], Kind], ...] = (
    (BadInput, "input"), (DoesNotFit, "fit"), (Interrupted, "asked"), (Diverged, "diverged"),
    (LostOthers, "others"),
)  # fmt: skip


class Pulse:
    """What this process tells of itself."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        path = None if folder is None else folder / f"{rank:05d}.pulse"
        self._file = None if path is None else path.open("wb", buffering=0)
        self._sign = Sign(0, "starting", 0, 0.0)
        self._steps: deque[float] = deque(maxlen=_WINDOW)
        self._began = time.monotonic()
        self.beat(0, "starting")

    @property
    def last(self) -> Sign:
        """Its newest sign."""
        return self._sign

    def beat(self, step: int, doing: Doing = "training") -> None:
        """It goes on, now with this."""
        before, now = self._sign, time.monotonic()
        usual_s = before.usual_s
        if step != before.step:
            if before.doing == "training":
                self._steps.append(now - self._began)
                # The first one compiles.
                usual_s = median(self._steps) if len(self._steps) > 1 else 0.0
            self._began = now
        self._sign = Sign(step, doing, before.beat + 1, usual_s)
        if self._file is not None:
            # Always as long, over what is there: whole for a reader, and a full disk has the room.
            text = f"{step:12d} {doing:>10} {before.beat + 1:12d} {usual_s:12.6f}"
            os.pwrite(self._file.fileno(), text.encode(), 0)

    def again(self) -> None:
        """It goes on with the same."""
        self.beat(self._sign.step, self._sign.doing)

    def close(self) -> None:
        """No more signs."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def alive() -> Iterator[Pulse]:
    """Within it this process shows signs of life, and leaves the reason when it fails."""
    named, rank = os.environ.get(VARIABLE), int(os.environ.get("RANK", "0"))
    if not named:
        yield Pulse(None, rank)
        return
    folder = Path(named)
    pulse = Pulse(folder, rank)
    try:
        yield pulse
    except Exception as error:
        # The disk may be what failed.
        with suppress(OSError):
            save(_failure(error), folder / f"{rank:05d}.json")
            if isinstance(error, NarrowsError):
                # Whoever watches says it once, for all processes.
                error.told = True
        raise
    finally:
        pulse.close()


def sign(folder: Path, rank: int) -> Sign | None:
    """The last one of a process; None before its first."""
    try:
        words = (folder / f"{rank:05d}.pulse").read_text().split()
    except FileNotFoundError:
        return None
    if len(words) != 4:
        return None
    step, doing, beat, usual_s = words
    return Sign(int(step), doing, int(beat), float(usual_s))  # type: ignore[arg-type]


def failure(folder: Path, rank: int) -> Failure | None:
    """Why a process ended, where it could still say it."""
    path = folder / f"{rank:05d}.json"
    try:
        return load(Failure, path) if path.exists() else None
    except BadInput:
        return None


def _failure(error: Exception) -> Failure:
    if isinstance(error, BrokenPipeError):
        return Failure(what="whoever read what was said went away", kind="asked")
    if not isinstance(error, NarrowsError):
        first = (str(error).splitlines() or [""])[0]
        return Failure(what=f"{type(error).__name__}: {first}", kind="else")
    for known, kind in _KINDS:
        if isinstance(error, known):
            return Failure(what=error.what, causes=error.causes, hint=error.hint, kind=kind)
    return Failure(what=error.what, causes=error.causes, hint=error.hint, kind="else")
