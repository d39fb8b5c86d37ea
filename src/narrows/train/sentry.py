"""Find out that a training hangs where others started its processes: torchrun, Slurm, Ray.

Each process writes into the group's store, once a second, how long it has given no sign and how
long it may. One that has been silent for a while reads what all wrote. When all have been silent
for too long each leaves its stack there, the first that can says them all, and every process ends,
so that whoever started them starts them again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from narrows.spec.errors import RunFailed
from narrows.train import pulse
from narrows.train.effort import Effort, effort_of
from narrows.train.events import note
from narrows.train.pulse import Pulse
from narrows.train.silence import Patience, Silence, placed, stacked

if TYPE_CHECKING:
    from torch.distributed import Store

_LOOK_S = 1.0
_CALM_S = 2.0
_STALE_S = 5.0
"""Who has written nothing for so long leaves no stack: it is stopped, or its host is gone."""
_GONE_S = 60.0
"""And for so long does not work, whatever it wrote last."""
_TOLD_S = 6.0
_ANSWER = timedelta(seconds=10)
_LEFT = "left"
_HANGS = "hangs"
_TOLD = "told"


class Line(NamedTuple):
    """What a process wrote of itself, and since when nothing newer was read of it."""

    where: str
    silent_s: float
    allowed_s: float
    written: int
    read: float

    def stale_s(self, now: float) -> float:
        """Seconds in which it should have written again, and did not."""
        return now - self.read

    def silence_s(self, now: float) -> float:
        """How long it has given no sign, whether or not it could still say so."""
        return self.silent_s + self.stale_s(now)

    def patience_s(self, now: float, patience: Patience) -> float:
        """How long it may be silent: what long cannot say that it works does not."""
        return self.allowed_s if self.stale_s(now) < _GONE_S else patience.least_s


@contextmanager
def watched(
    own: Pulse, store: Store | None, run: Path, talk: Callable[[str], None]
) -> Iterator[None]:  # fmt: skip
    """Within it the processes that share `store` end, saying where each is, once all hang; not so
    where the one that started them reads their signs itself.
    """
    if store is None or pulse.VARIABLE in os.environ:
        yield
        return
    sentry = Sentry(own, store, Patience())
    thread = threading.Thread(target=sentry.keep, args=(run, talk), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sentry.over.set()
        thread.join(_STALE_S)


class Sentry:
    """What this process knows of its own silence and, while it is silent, of the others'."""

    def __init__(self, own: Pulse, store: Store, patience: Patience) -> None:
        self.own, self.patience = own, patience
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # Of its own: the training's connection may be waiting for an answer.
        self.store: Store = store.clone()  # type: ignore[attr-defined]
        self.store.set_timeout(_ANSWER)
        self.silence = Silence()
        self.lines: dict[int, Line] = {}
        self.over = threading.Event()
        self._answered = True
        self._written = 0
        self._looked = time.monotonic()

    def keep(self, run: Path, talk: Callable[[str], None]) -> None:
        """Watch until the training is over, or end this process."""
        from torch.distributed import DistError

        self.store.set(_HANGS, "")
        with suppress(DistError):
            while not self.over.wait(_LOOK_S):
                if self.look():
                    self._end(run, talk)
            self.store.set(str(self.rank), _LEFT)

    def look(self) -> bool:
        """Write how it is; whether all processes, as far as they are known, hang."""
        from torch.distributed import DistError

        now = time.monotonic()
        # A pause of this thread (a lid closed) was one of the training, too.
        passed, self._looked = min(2 * _LOOK_S, now - self._looked), now
        silence = self.silence
        silence.hear(self.own.last, passed)
        if silence.seconds > _CALM_S:
            silence.feel(_own_effort())
        where = placed(self.rank, silence.sign, silence.seconds)
        allowed_s = silence.allowed_s(self.patience)
        self._written += 1
        mine = Line(where, silence.seconds, allowed_s, self._written, now)
        self.store.set(str(self.rank), json.dumps(mine[:-1]))
        if silence.seconds <= _CALM_S:
            self.lines.clear()
            self._answered = True
            return False
        try:
            if self._answered and self._read(now):
                return True
        except DistError:
            self._answered = False
        if not self._answered:
            # Whoever keeps the store is stopped.
            return silence.seconds > allowed_s
        silent_s = min(line.silence_s(now) for line in self.lines.values())
        longest = max(line.patience_s(now, self.patience) for line in self.lines.values())
        return silent_s > longest

    def _read(self, now: float) -> bool:
        """What every process wrote; whether one of them has found that all hang."""
        *texts, hangs = self.store.multi_get([*map(str, range(self.count)), _HANGS])
        for rank, text in enumerate(texts):
            if text.decode() == _LEFT:
                self.lines.pop(rank, None)
                continue
            where, silent_s, allowed_s, written = json.loads(text)
            if rank not in self.lines or self.lines[rank].written != written:
                self.lines[rank] = Line(where, silent_s, allowed_s, written, now)
        return bool(hangs)

    def _end(self, run: Path, talk: Callable[[str], None]) -> None:
        """Leave the stack; say all of them, unless one of those before does; and end."""
        from torch.distributed import DistError

        with suppress(DistError):
            self.store.set(_stack_key(self.rank), self._stack())
            self.store.set(_HANGS, str(self.rank))
        now = time.monotonic()
        able = [rank for rank, line in self.lines.items() if line.stale_s(now) < _STALE_S]
        before = sum(rank < self.rank for rank in able)
        if not (before and self._is_told(before * _TOLD_S)):
            failure = self._failure(able)
            talk(f"error: {failure}")
            with suppress(OSError):
                note(run, self.own.last.step, "hang", "\n".join([failure.what, *failure.causes]))
            with suppress(DistError):
                self.store.set(_TOLD, "")
        sys.stderr.flush()
        os._exit(RunFailed.exit_code)

    def _is_told(self, seconds: float) -> bool:
        """Whether another process says it within so long."""
        from torch.distributed import DistError

        try:
            self.store.wait([_TOLD], timedelta(seconds=seconds))
        except DistError:
            return False
        return True

    def _failure(self, able: list[int]) -> RunFailed:
        from torch.distributed import DistError

        with suppress(DistError):
            self.store.wait([_stack_key(rank) for rank in able], timedelta(seconds=_STALE_S))
        return RunFailed(
            f"the training hangs: no sign of life for {self.silence.seconds:.0f} s at step "
            f"{self.own.last.step}",
            causes=[self._told(rank) for rank in range(self.count)],
        )

    def _told(self, rank: int) -> str:
        """Where a process is: what it does and its stack, as far as it could say it."""
        from torch.distributed import DistError

        if rank == self.rank:
            return self._stack()
        with suppress(DistError):
            if self.store.check([_stack_key(rank)]):
                return self.store.get(_stack_key(rank)).decode()
        line = self.lines.get(rank)
        where = line.where if line else f"process {rank}"
        return f"{where}: no stack, it does not answer"

    def _stack(self) -> str:
        line = placed(self.rank, self.silence.sign, self.silence.seconds)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        frames = reversed(traceback.extract_stack(frame)) if frame else ()
        return stacked(line, [(each.filename, each.lineno or 0, each.name) for each in frames])


def _stack_key(rank: int) -> str:
    return f"stack-{rank}"


def _own_effort() -> Effort | None:
    """Of the training: this thread's own work is not counted."""
    found = effort_of(os.getpid())
    return found and found._replace(processor_s=found.processor_s - time.thread_time())
