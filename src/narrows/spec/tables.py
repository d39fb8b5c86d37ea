"""A TOML file as the texts of its top-level tables, each parsed when it is asked for: a catalogue
is long, and a question is of one entry.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_HEADER = re.compile(r'^\[+\s*(?:"([^"]+)"|([\w-]+))', re.MULTILINE)


class Tables(Mapping[str, dict[str, Any]]):
    """The tables by name, with those within them. All of the file is in tables, whose headers begin
    their lines as nothing else does (tests/spec/test_tables.py holds all catalogues to tomllib).
    """

    def __init__(self, text: str) -> None:
        heads = list(_HEADER.finditer(text))
        ends = [head.start() for head in heads[1:]] + [len(text)]
        self._texts: dict[str, str] = {}
        for head, end in zip(heads, ends, strict=True):
            name = head[1] or head[2]
            self._texts[name] = self._texts.get(name, "") + text[head.start() : end]

    @classmethod
    def of(cls, path: Path) -> Tables:
        """Those of a file."""
        return cls(path.read_text(encoding="utf-8"))

    def __getitem__(self, name: str) -> dict[str, Any]:
        table: dict[str, Any] = tomllib.loads(self._texts[name])[name]
        return table

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)
