"""Train a plan's first steps on random tokens; the last line says what they took, as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
import torch

from narrows.kernels.meter import MemoryMeter
from narrows.spec.plan import Plan
from narrows.spec.record import load
from narrows.train.profiled import profiled_rows
from narrows.train.step import Trainer

_STEPS, _SECONDS = (5, 60), 6.0


class RandomTokens:
    """Sequences that no model can guess: their content does not change what a step costs."""

    def __init__(self, vocabulary: int, context: int) -> None:
        self.vocabulary, self.context = vocabulary, context

    def sequences(self, first: int, count: int) -> np.ndarray:
        """Token ids [count, T+1]."""
        drawn = np.random.default_rng(first)
        return drawn.integers(0, self.vocabulary, (count, self.context + 1))


def main() -> None:
    """Steps until enough were timed, the first two left out; one more, looked into."""
    plan = load(Plan, sys.argv[1])
    tokens = RandomTokens(plan.model.vocabulary, plan.context)
    tokens.sequences(0, 1)  # numpy loads its generators when they are first used
    memory = MemoryMeter("cpu")
    trainer = Trainer(plan, torch.device("cpu"), Path(sys.argv[1]).parent)
    timed: list[float] = []
    number = 0
    while len(timed) < _STEPS[0] or (sum(timed) < _SECONDS and len(timed) < _STEPS[1]):
        begin = time.perf_counter()
        trainer.step(number, tokens)
        number += 1
        if number > 2:
            timed.append(time.perf_counter() - begin)
    peak, seconds = memory.peak(), median(timed)
    kinds: dict[str, float] = defaultdict(float)
    for row in profiled_rows(trainer, lambda: trainer.step(number, tokens)):
        kinds[row.kind] += row.seconds * seconds
    print(json.dumps({"seconds": seconds, "memory_bytes": peak, "kinds": kinds}))


if __name__ == "__main__":
    main()
