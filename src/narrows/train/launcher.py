"""The processes of one attempt at a layout on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from narrows.train import attend, pulse
from narrows.train.pulse import Failure, Kind
from narrows.train.signals import StopRequest
from narrows.train.silence import Patience
from narrows.train.watch import Watch

NARROWS = (sys.executable, "-m", "narrows")
_LOOK_S = 0.1
_LAST_WORDS_S = 1.0
_CODES: dict[int, Kind] = {2: "input", 3: "fit", 130: "asked"}
_WEIGHT: tuple[Kind, ...] = ("input", "fit", "diverged", "else", "asked", "others")
"""Of processes that ended for different reasons, the first of these is the cause."""


class Start(NamedTuple):
    """How processes are started: `command` in so many `processes`, the folder that their signs of
    life go to, and the descriptor of the lock that all of them keep.
    """

    command: Sequence[str]
    processes: int
    folder: Path
    lock: int


class Workers:
    """Started together, on a port of their own, in a session that no terminal interrupts."""

    def __init__(self, start: Start, patience: Patience) -> None:
        start.folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.told = start.folder, False
        self.watch = Watch(start.folder, start.processes, patience)
        port = _free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(start.processes):
            environment = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(start.processes),
                "LOCAL_WORLD_SIZE": str(start.processes), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), pulse.VARIABLE: str(start.folder),
                attend.LAUNCHER: str(os.getpid()),
            }  # fmt: skip
            self.processes.append(subprocess.Popen(
                start.command, env=environment, pass_fds=(start.lock,), start_new_session=True
            ))  # fmt: skip

    def wait(self, stop: StopRequest) -> Failure | None:
        """Until all have ended well, or one badly: then why."""
        while True:
            codes = [process.poll() for process in self.processes]
            if any(codes):
                return self._failure()
            if all(code == 0 for code in codes):
                return None
            if stop.asked and not self.told:
                self.told = True
                self._tell(signal.SIGINT)
            running = {r: p.pid for r, p in enumerate(self.processes) if codes[r] is None}
            if self.watch.look(running):
                return self._hung(running)
            time.sleep(_LOOK_S)

    def kill(self) -> None:
        """End those that still run, at once."""
        self._tell(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def _tell(self, what: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(what)

    def _failure(self) -> Failure:
        """The reason of the first cause: others end because one did."""
        until = time.monotonic() + _LAST_WORDS_S
        while True:
            ended = [(r, p.poll()) for r, p in enumerate(self.processes) if p.poll()]
            found = [self._reason(rank, code) for rank, code in ended if code]
            first = [each for each in found if each.kind != "others"]
            if first or time.monotonic() > until:
                break
            time.sleep(_LOOK_S)
        self.watch.look({})
        return min(first or found, key=lambda each: _WEIGHT.index(each.kind))

    def _reason(self, rank: int, code: int) -> Failure:
        by = f"by signal {-code}" if code < 0 else f"with code {code}"
        ended = f"process {rank} of {len(self.processes)} ended {by}"
        said = pulse.failure(self.folder, rank)
        if said is None:
            return Failure(what=ended, kind=_CODES.get(code, "else"))
        causes = (ended, *said.causes) if said.kind == "else" else said.causes
        return Failure(what=said.what, causes=causes, hint=said.hint, kind=said.kind)

    def _hung(self, running: dict[int, int]) -> Failure:
        silent = min(self.watch.silences[rank].seconds for rank in running)
        return Failure(
            what=f"the training hangs: no sign of life for {silent:.0f} s at step "
            f"{self.watch.furthest}",
            causes=tuple(self.watch.told(running)),
            kind="else",
        )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
