"""The command that goes on with a run, as errors name it."""

from __future__ import annotations

import shlex
from pathlib import Path


def resuming(run: Path) -> str:
    """As a shell takes it, whatever the folder is called."""
    return f"narrows train {shlex.quote(str(run))} --resume"
