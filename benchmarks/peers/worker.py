"""What every worker shares: its task, its clock and its memory. Standard library and numpy only.

A worker runs in its contestant's own environment, reads one task as JSON from its first argument
and prints one line of JSON as its last.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy


class Done(Exception):
    """Every step asked for was measured: leaves a peer's loop from inside it."""


class Task:
    """What to train: the work's numbers, the contestant's setting, the tokens, how many steps."""

    def __init__(self) -> None:
        asked = json.loads(sys.argv[1])
        self.work: dict = asked["work"]
        self.setting: dict = asked["setting"]
        self.warmup: int = asked["warmup"]
        self.measured: int = asked["measured"]
        self.seconds_most: float = asked["seconds_most"]
        self.scratch = Path(asked["scratch"])
        self.sequences = numpy.load(asked["tokens"], mmap_mode="r")

    @property
    def micro_batch(self) -> int:
        """Sequences that go through the model at once."""
        return self.setting.get("micro_batch") or self.work["batch"]

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimizer step."""
        return self.work["batch"] // self.micro_batch


class Clock:
    """Times optimizer steps and reads the resident set; `start` is called after the imports."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.memory_bytes_start = memory("VmRSS")
        self.memory_bytes_warm = self.memory_bytes_steady = 0
        self.began = time.perf_counter()
        self.ends: list[float] = []

    def step_done(self) -> bool:
        """Note the end of an optimizer step; true once all that were asked for are measured.

        `seconds_most` ends a slow contestant early, after two measured steps at the least.
        """
        self.ends.append(time.perf_counter())
        measured = len(self.ends) - self.task.warmup
        if measured == 0:
            self.memory_bytes_warm = memory("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")
        # Read with each step: what a worker does after the last is not the training's.
        self.memory_bytes_steady = memory("VmHWM")
        late = measured >= 2 and self.ends[-1] - self.began > self.task.seconds_most
        return late or measured >= self.task.measured

    def report(self, **more: object) -> None:
        """Print the result: seconds of each measured step, memory above the start."""
        ends = self.ends[self.task.warmup - 1 :]
        seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
        steady = self.memory_bytes_steady
        answer = {
            "step_seconds": seconds,
            "start_seconds": self.ends[self.task.warmup - 1] - self.began,
            "memory_bytes_start": self.memory_bytes_start,
            "memory_bytes_steady": steady - self.memory_bytes_start,
            "memory_bytes_peak": max(steady, self.memory_bytes_warm) - self.memory_bytes_start,
        }
        print("\n" + json.dumps(answer | more), flush=True)


def memory(field: str) -> int:
    """Bytes of one line of /proc/self/status: VmRSS now, VmHWM the most since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
