"""One process of a plan: steps, and steps with a checkpoint written beside them; JSON at the end.

scaling_worker.py PLAN TOKENS STEPS SAVES PROFILE
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from narrows.spec.plan import Plan
from narrows.spec.record import load
from narrows.train.checkpoint import Checkpoints, State
from narrows.train.group import joined
from narrows.train.state import contents
from narrows.train.step import Trainer

WARMUP = 2


class Stream:
    """The token stream as the trainer reads it, again from the front at its end."""

    def __init__(self, path: Path) -> None:
        self.stored = np.load(path, mmap_mode="r")

    def sequences(self, first: int, count: int) -> np.ndarray:
        """Token ids [count, T+1], by their place in the order."""
        return self.stored.take(range(first, first + count), axis=0, mode="wrap").astype(np.int64)


def main() -> None:
    """Measure, and print what the first process found."""
    plan, tokens = load(Plan, sys.argv[1]), Stream(Path(sys.argv[2]))
    steps, saves, looks = map(int, sys.argv[3:])
    with joined("cpu"), tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as own:
        trainer = Trainer(plan, torch.device("cpu"))
        first = trainer.ranks.first
        # Of several processes all write to one folder, which the plan's stands beside.
        folder = Path(sys.argv[1]).with_suffix("") if plan.layout.processes > 1 else Path(own)
        found = measured(trainer, tokens, folder, (steps, saves))
        found["profile"] = profile(trainer, tokens) if looks else []
    if first:
        print(json.dumps(found))


def measured(
    trainer: Trainer, tokens: Stream, folder: Path, counts: tuple[int, int]
) -> dict[str, Any]:
    """Seconds of steps alone, of steps with a checkpoint beside them, and of their waits."""
    everyone = trainer.ranks.everyone
    checkpoints = Checkpoints(folder, 1, lambda said: None, everyone.rank, everyone.size)
    waits = [0.0]

    def settle() -> None:
        began = time.perf_counter()
        checkpoints.wait()
        waits[0] = time.perf_counter() - began

    trainer.settle = settle
    steps, saves = counts
    plain, saving, waited, worked = [], [], [], []
    every = max(1, steps // max(1, saves))
    for number in range(WARMUP + steps + saves):
        beside = number >= WARMUP and (number - WARMUP) % (every + 1) == every
        trainer.split.total(0.0)
        began, spent = time.perf_counter(), time.process_time()
        if beside:
            state = State(step=number, tokens=0.0, elapsed_s=0.0, sha256={})
            checkpoints.save(contents(trainer), state, False)
        trainer.step(number, tokens)
        seconds = time.perf_counter() - began
        if beside:
            saving.append(seconds)
            waited.append(waits[0])
        elif number >= WARMUP:
            plain.append(seconds)
            worked.append(time.process_time() - spent)
    size = sum(file.stat().st_size for file in folder.glob("step-*/*"))
    return {
        "plain": plain, "worked": worked, "saving": saving, "waited": waited, "bytes": size,
    }  # fmt: skip


def profile(trainer: Trainer, tokens: Stream) -> list[str]:
    """Where one step of this process spent its time, the largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as look

    with look(activities=[ProfilerActivity.CPU]) as looked:
        trainer.step(0, tokens)
    rows = sorted(looked.key_averages(), key=lambda row: -row.self_cpu_time_total)[:14]
    return [f"{row.self_cpu_time_total / 1e6:8.3f} s {row.count:6} x {row.key}" for row in rows]


if __name__ == "__main__":
    main()
