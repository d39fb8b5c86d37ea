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
"""The variable that names the launcher's process."""
_PARENT_DEATH_SIGNAL = 1
_LOOK_S = 0.2


def attend() -> None:
    """Before anything else that takes time; does nothing in a process that no launcher started.

    Killed is how it ends: a checkpoint is whole or not there at any moment, and whoever resumes
    the run need not wait for a last one.
    """
    launcher, folder = os.environ.get(LAUNCHER), os.environ.get(VARIABLE)
    if launcher is None or folder is None:
        return
    rank = int(os.environ.get("RANK", "0"))
    # faulthandler keeps the file.
    faulthandler.register(ASK, (Path(folder) / f"{rank:05d}.stack").open("w"), all_threads=True)
    if not _killed_with_parent():
        threading.Thread(target=_follow, args=(int(launcher),), daemon=True).start()
    elif os.getppid() != int(launcher):  # It ended before it could be followed.
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
