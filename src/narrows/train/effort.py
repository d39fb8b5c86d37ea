"""Whether processes that give no sign do something: what Linux tells in /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TIMES = slice(11, 15)
"""Of a stat line behind the name: user and system time, own and of children that ended."""


class Effort(NamedTuple):
    """Seconds that processors worked, and whether a disk is waited for."""

    processor_s: float
    disk: bool


def efforts(leaders: Collection[int]) -> dict[int, Effort]:
    """By the process that leads a session, of all processes in it; of those of which nothing can be
    known, nothing.
    """
    found: dict[int, Effort] = {}
    for process, words in _processes():
        leader = int(words[3])
        if leader in leaders:
            found[leader] = _added(found.get(leader, Effort(0.0, False)), process, words)
    return found


def effort_of(root: int) -> Effort | None:
    """Of a process and of all that it started; None where nothing can be known."""
    found = {int(place.name): (place, words) for place, words in _processes()}
    if root not in found:
        return None
    below, new = set[int](), {root}
    while new:
        below |= new
        new = {pid for pid, (_, words) in found.items() if int(words[1]) in new} - below
    total = Effort(0.0, False)
    for place, words in (found[pid] for pid in below):
        total = _added(total, place, words)
    return total


def _added(effort: Effort, process: Path, words: list[str]) -> Effort:
    seconds = sum(map(int, words[_TIMES])) / os.sysconf("SC_CLK_TCK")
    return Effort(effort.processor_s + seconds, effort.disk or _waits_for_disk(process))


def _processes() -> Iterator[tuple[Path, list[str]]]:
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            yield process, _stat(process)


def _stat(place: Path) -> list[str]:
    return (place / "stat").read_text().rpartition(")")[2].split()


def _waits_for_disk(process: Path) -> bool:
    """Whether one of its threads does: in uninterruptible sleep."""
    for thread in process.glob("task/[0-9]*"):
        with suppress(OSError):
            if _stat(thread)[0] == "D":
                return True
    return False
