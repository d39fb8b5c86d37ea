"""What a run says while it runs: metrics.jsonl, TensorBoard files and the line in the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

# At the top, so that what TensorBoard takes is not counted as the training's memory.
try:
    from torch.utils import tensorboard
except ImportError:
    tensorboard = None  # type: ignore[assignment]

_EVERY_S = 5.0


class Metrics:
    """Appends one JSON object a line, and the same numbers to TensorBoard."""

    def __init__(self, run: Path, resumed_at: int | None) -> None:
        self.path = run / "metrics.jsonl"
        if resumed_at is None:
            self.path.unlink(missing_ok=True)
        else:
            self._cut(resumed_at)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _board(run / "tensorboard", resumed_at)

    def write(self, **values: Any) -> None:
        """One line; numbers go to TensorBoard at their step."""
        self._file.write(json.dumps(values, allow_nan=True) + "\n")
        self._file.flush()
        for name, value in values.items():
            if self._board is not None and name != "step" and isinstance(value, float):
                self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _cut(self, step: int) -> None:
        """Drop what comes after `step`: those steps will be trained, and written, again. What
        happened stays.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            if values["step"] <= step or "event" in values:
                kept.append(line + "\n")
        self.path.write_text("".join(kept), encoding="utf-8")


class NoMetrics:
    """Of a process that does not speak for all: it writes nothing."""

    def write(self, **values: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing to close."""


class ProgressLine:
    """One line that is rewritten in a terminal, and printed now and then elsewhere; none where no
    number of steps is given.
    """

    def __init__(self, steps: int | None, stream: TextIO | None = None) -> None:
        self.steps = steps
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._next = 0.0
        self._width = 0

    def show(self, values: dict[str, Any], left_s: float) -> None:
        """`values` as in metrics.jsonl; at the last step always."""
        if self.steps is None:
            return
        now = time.monotonic()
        last = values["step"] >= self.steps
        if not last and now < self._next:
            return
        self._next = now + (0.2 if self.live else _EVERY_S)
        watts = f"{values['watts']:.0f} W" if values.get("watts") else ""
        parts = (
            f"step {values['step']}/{self.steps}", f"loss {values['loss']:.3f}",
            f"{values['tokens_per_s']:,.0f} tok/s", f"MFU {values['mfu']:.0%}",
            f"{values['memory_bytes'] / 1e6:,.0f} MB", watts, f"{clock(left_s)} left",
        )  # fmt: skip
        text = "  ".join(part for part in parts if part)
        if self.live:
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def end(self) -> None:
        """Leave the line behind."""
        if self.live and self._width:
            self.stream.write("\n")


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _board(folder: Path, resumed_at: int | None) -> Any:
    """A TensorBoard writer, or None where the package is not installed."""
    if tensorboard is None:
        return None
    purge = None if resumed_at is None else resumed_at + 1
    return tensorboard.SummaryWriter(str(folder), purge_step=purge)
