"""Models to start from that were opened before: what they are, told again without opening them.

A plan needs no weights, and what reads them takes a second and 150 MB to load. Files count as the
same by their names, sizes and times; training looks into them again, by the digest of the Start.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import narrows
from narrows.data.tokenizers import FILE
from narrows.spec.errors import BadInput
from narrows.spec.home import narrows_home
from narrows.spec.plan import Start
from narrows.spec.record import load, to_json, write_atomically

_RUN = "plan.toml"


def recall(path: Path) -> Start | None:
    """What the files at `path` were, where they are as they were then and the words still lie where
    they were laid out. A run's are never: it goes on.
    """
    place = _place(path)
    if place is None or not place.is_file():
        return None
    try:
        start = load(Start, place)
    except BadInput:
        return None
    return start if (Path(start.words) / FILE).is_file() else None


def remember(path: Path, start: Start) -> None:
    """Keep what the files at `path` are."""
    place = _place(path)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, to_json(start).encode())


def _place(path: Path) -> Path | None:
    """Where it is kept; None of what is not there, or is a run."""
    path = path.expanduser()
    if not path.exists() or (path / _RUN).is_file():
        return None
    said = hashlib.sha256(f"{narrows.__version__}\0{path.resolve()}\0".encode())
    for file in sorted(path.iterdir()) if path.is_dir() else (path,):
        if file.is_file():
            known = file.stat()
            said.update(f"{file.name}\0{known.st_size}\0{known.st_mtime_ns}\0".encode())
    return narrows_home() / "starts" / f"{said.hexdigest()[:24]}.json"
