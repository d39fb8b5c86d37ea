"""Runs a measurement in a process of its own, with a deadline, and brings its record back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import narrows
from narrows.hardware.measurement import REFUSED, Request
from narrows.spec import record
from narrows.spec.errors import BadInput, RunFailed

R = TypeVar("R", bound=record.Record)
What = Literal["everything", "compiler", "spot", "link"]

_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_THREAD_LIMIT")
_LINES_KEPT = 8


class TooLong(Exception):
    """The measuring process neither finished nor went on in time and was ended."""


def run(
    what: What,
    request: Request,
    kind: type[R],
    *,
    seconds: float,
    talk: Callable[[str], None] = lambda line: None,
) -> R:
    """The record `what` gives for `request`; its progress goes to `talk`.

    The process sees the caller's environment but for limits on threads, which a request names
    itself, and torch.compile's caches, which would hide what compiling costs. Raises TooLong where
    a part of it takes more than `seconds`, BadInput as the process raised it, RunFailed with its
    last words where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="narrows-probe-") as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "result.json"
        record.save(request, asked)
        command = [sys.executable, "-W", "ignore", "-m", "narrows.hardware.measure"]
        process = subprocess.Popen(
            [*command, what, str(asked), str(answer)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(Path(folder)),
            start_new_session=True,
        )
        said, late = _listen(process, seconds, talk)
        if late:
            raise TooLong(f"{what} took more than {seconds:.0f} s")
        if said and said[-1].startswith(REFUSED):
            _, what_refused, hint = said[-1].split(REFUSED)
            raise BadInput(what_refused, hint=hint or None)
        if process.returncode or not answer.exists():
            raise RunFailed(
                f"measuring {what} failed (exit {process.returncode})",
                causes=said,
                hint="narrows doctor",
            )
        return record.load(kind, answer)


def _listen(
    process: subprocess.Popen[str], seconds: float, talk: Callable[[str], None]
) -> tuple[list[str], bool]:
    """The process's last lines, and whether it had to be ended; nothing of it is left running."""
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    def waiting() -> threading.Timer:
        timer = threading.Timer(seconds, end)
        timer.start()
        return timer

    timer, said = waiting(), list[str]()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said = [*said, line.rstrip()][-_LINES_KEPT:]
            if line.startswith("measuring "):
                talk(line.rstrip())
                timer.cancel()
                timer = waiting()
        process.wait()
    finally:
        timer.cancel()
        _kill(process)
    return said, late.is_set()


def _kill(process: subprocess.Popen[str]) -> None:
    """End the whole group: torch.compile starts workers, and they start compilers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _THREAD_LIMITS}
    source = str(Path(narrows.__file__).parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
