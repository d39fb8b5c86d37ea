"""Start the processes of a layout on this machine, and end all where one ends badly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from narrows.spec.errors import Interrupted, RunFailed

_LOOK_S = 0.1
_GRACE_S = 20.0


def launch(processes: int, arguments: Sequence[str], run: Path) -> None:
    """Run `narrows` with `arguments` in so many processes; raises RunFailed where one fails, and
    Interrupted after ctrl-C. What they say goes where this process's words go.
    """
    port = _free_port()
    started = [_start(rank, processes, port, arguments) for rank in range(processes)]
    try:
        _wait(started, run)
    except KeyboardInterrupt:
        # The terminal has told them, too: they save and end.
        _end(started, signal.SIGINT)
        raise Interrupted(
            "stopped; the state is saved", hint=f"narrows train {run} --resume"
        ) from None
    finally:
        _end(started, signal.SIGTERM)


def _start(rank: int, count: int, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "narrows", *arguments], env=environment)


def _wait(started: list[subprocess.Popen[bytes]], run: Path) -> None:
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                by = f"by signal {-code}" if code < 0 else f"with code {code}"
                raise RunFailed(
                    f"process {rank} of {len(started)} ended {by}",
                    hint=f"narrows train {run} --resume",
                )
        if all(code == 0 for code in codes):
            return
        time.sleep(_LOOK_S)


def _end(started: list[subprocess.Popen[bytes]], by: signal.Signals) -> None:
    """Tell those that still run, then end them."""
    for process in started:
        if process.poll() is None:
            process.send_signal(by)
    until = time.monotonic() + _GRACE_S
    for process in started:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
