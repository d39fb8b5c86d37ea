"""Write into a run folder what happened while no process was training in it."""

from __future__ import annotations

import json
from pathlib import Path


def note(run: Path, step: int, event: str, message: str) -> None:
    """Append an event to metrics.jsonl; nobody else may be writing there."""
    line = json.dumps({"step": step, "event": event, "message": message})
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        # A killed writer may have left half a line.
        file.write(line + "\n" if _ends_a_line(run / "metrics.jsonl") else f"\n{line}\n")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"
