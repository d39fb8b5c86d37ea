"""A process that a launcher started ends with it, and shows where it is when asked."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

from narrows.train.pulse import ASK, VARIABLE

LAUNCHER = "NARROWS_LAUNCHER"
"""The variable that names the process whose end is this one's; torchrun's agent needs none."""
_AGENT = "TORCHELASTIC_RUN_ID"
_PARENT_DEATH_SIGNAL = 1
_LOOK_S = 0.2


def attend() -> None:
    """Before anything else that takes time; does nothing in a process that no launcher started.

    Killed is how it ends: a checkpoint is whole or not there at any moment, and whoever resumes
    the run need not wait for a last one.
    """
    folder = os.environ.get(VARIABLE)
    if folder is not None:
        stack = Path(folder) / f"{os.environ['RANK']:0>5}.stack"
        # faulthandler keeps the file.
        faulthandler.register(ASK, stack.open("w"), all_threads=True)
    launcher = int(os.environ.get(LAUNCHER, os.getppid() if _AGENT in os.environ else 0))
    if not launcher:
        return
    if not _killed_with_parent():
        threading.Thread(target=_follow, args=(launcher,), daemon=True).start()
    elif os.getppid() != launcher:  # It ended before it could be followed.
        _end()


def _killed_with_parent() -> bool:
    """Whether Linux was told to end this process with the one that started it."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    return bool(library.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) == 0)


def _follow(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_LOOK_S)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
