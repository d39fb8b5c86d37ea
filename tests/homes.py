"""A NARROWS_HOME of a test's own."""

from __future__ import annotations

from pathlib import Path

from narrows.spec.home import narrows_home

_COMPILED = narrows_home() / "native"


def new_home(folder: Path) -> Path:
    """`folder`, with nothing in it but the native kernels, which all tests compile once: half a
    minute of an old processor each time.
    """
    folder.mkdir(parents=True)
    _COMPILED.mkdir(parents=True, exist_ok=True)
    (folder / "native").symlink_to(_COMPILED)
    return folder
