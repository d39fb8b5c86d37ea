"""What every worker that answers shares: its task, and what it prints. Standard library alone."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Task:
    """A model file, a prompt of 512 tokens, the numbers of streams, and tokens that each writes."""

    def __init__(self) -> None:
        told = json.loads(sys.argv[1])
        self.model, self.prompt = Path(told["model"]), told["prompt"]
        self.streams, self.tokens, self.threads = told["streams"], told["tokens"], told["threads"]
        self.began = time.perf_counter()

    def beginnings(self, count: int) -> list[list[int]]:
        """Short prompts, each another."""
        return [self.prompt[7 * i : 7 * i + 16] for i in range(count)]


def rate(count: int, run: Callable[[], object], times: int = 3) -> float:
    """The median of `count` over the seconds that `run` takes, once warm."""
    run()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return count / statistics.median(taken)


def report(task: Task, **figures: object) -> None:
    """The last line: figures, and the most memory that this process had."""
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    memory = int(peak.split()[1]) * 1024
    print(json.dumps({**figures, "memory_bytes_peak": memory}))
