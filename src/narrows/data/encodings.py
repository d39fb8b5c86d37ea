"""Which encoding a text that is not UTF-8 may be in, so that a hint turns it into what it says."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

_LOOKED = 1 << 16
_EVEN = 0.9
_HIGH = re.compile(rb"[\x80-\xff]+")


def recoded(path: Path, into: str) -> str:
    """The command that writes the file `into` another one in UTF-8, as a hint."""
    with path.open("rb") as file:
        encoding = guessed(file.read(_LOOKED))
    if encoding is None:
        return "it looks like no text at all: take it out"
    command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(into)}"
    return f"if it is text in another encoding: {command}"


def guessed(beginning: bytes) -> str | None:
    """What iconv calls it; None where it is no text. Characters of GB18030 are mostly two bytes
    above 0x7f and come in rows, those of Big5 have one in three below, those of the west are alone.
    """
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if b"\0" in beginning:
        return None
    runs = [len(each) for each in _HIGH.findall(beginning)]
    even = sum(length % 2 == 0 for length in runs) / max(1, len(runs))
    if even >= _EVEN and _reads(beginning, "gb18030"):
        return "GB18030"
    if sum(runs) >= 2 * len(runs) and _reads(beginning, "big5"):
        return "BIG5"
    return "WINDOWS-1252"


def _reads(beginning: bytes, encoding: str) -> bool:
    """Whether it is of that encoding, up to a character that is cut at the end."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(beginning)
    except UnicodeDecodeError:
        return False
    return True
