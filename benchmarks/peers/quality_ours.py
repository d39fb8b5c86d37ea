"""Worker: our training of the character task, by its plan; prints the loss curve."""

from __future__ import annotations

import numpy
import torch
from ours import Stream
from quality_curve import follow
from worker import Task

from narrows.spec.plan import Plan
from narrows.spec.record import load
from narrows.train.step import Trainer, evaluate


def main() -> None:
    """Train and follow the curve."""
    task = Task()
    trainer = Trainer(load(Plan, task.setting["plan"]), torch.device("cpu"))
    batches = Stream(task.sequences)

    def validate(windows: numpy.ndarray) -> float:
        return evaluate(trainer, Stream(windows), len(windows)).loss

    follow(task, lambda number: trainer.step(number, batches).loss, validate)


if __name__ == "__main__":
    main()
