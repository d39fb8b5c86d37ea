"""One training a folder, and what a full disk says."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.resuming import resuming
from narrows.train import pulse
from narrows.train.group import speaks


@contextmanager
def locked(run: Path) -> Iterator[IO[str] | None]:
    """Only one training a folder. The lock goes with the processes that have the file open, killed
    or not; None where this process has it from the one that started it, or leaves it to the first.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not speaks() or pulse.VARIABLE in os.environ:
            yield None
            return
        file = (run / "lock").open("w")
    except OSError as error:
        raise BadInput(f"{run} cannot be written: {error}", hint="choose another --run") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(
                f"another training is running in {run}", hint="wait for it, or choose another --run"
            ) from None
        yield file


@contextmanager
def disk_errors(run: Path) -> Iterator[None]:
    """Within it a full disk is a failed run."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunFailed(
            f"no space is left on the device under {run}",
            hint=f"free some, then: {resuming(run)}",
        ) from None
