"""Worker: narrows' own training step, laid out by the plan, and the ledger of one step of it."""

from __future__ import annotations

import numpy
import torch
from worker import Clock, Task

from narrows.spec.plan import Plan
from narrows.spec.record import load, to_builtins
from narrows.train.profiled import profiled_rows
from narrows.train.step import Trainer


def main() -> None:
    """Train the plan's steps on the task's tokens and print what was measured."""
    task = Task()
    plan = load(Plan, task.setting["plan"])
    clock = Clock(task)
    trainer = Trainer(plan, torch.device("cpu"))
    batches = Stream(task.sequences)
    losses, number = [], 0
    while True:
        losses.append(trainer.step(number, batches).loss)
        number += 1
        if clock.step_done():
            break
    clock.report(
        losses=losses,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        rows=ledger(trainer, number, batches),
        versions={"torch": torch.__version__},
    )


def ledger(trainer: Trainer, number: int, batches: Stream) -> list[dict]:
    """Rows of one more step."""
    rows = profiled_rows(trainer, lambda: trainer.step(number, batches))
    return [to_builtins(row) for row in rows]


class Stream:
    """The token stream as the trainer reads it."""

    def __init__(self, sequences: numpy.ndarray) -> None:
        self.stored = sequences

    def sequences(self, first: int, count: int) -> numpy.ndarray:
        """Token ids [count, T+1], by their place in the order."""
        return self.stored[first : first + count].astype(numpy.int64)


if __name__ == "__main__":
    main()
