"""One process of a training that meets what RUN/fault.json says: faulty.py train RUN --resume."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from narrows.spec.errors import NarrowsError
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.spec.record import load
from narrows.train import checkpoint, sentry
from narrows.train.attend import attend
from narrows.train.run import train
from narrows.train.silence import Patience
from narrows.train.step import Trainer


def break_step(at: int, what: str) -> None:
    """At step `at`, counted from 0, this process meets it."""
    original = Trainer.step

    def step(self: Trainer, number: int, batches: Any) -> Any:
        if number == at and once():
            meet(what)
        return original(self, number, batches)

    Trainer.step = step  # type: ignore[method-assign]


def break_loss(at: int) -> None:
    """At step `at`, with the data that belongs there, this process's loss is no number."""
    original = Trainer.step

    def step(self: Trainer, number: int, batches: Any) -> Any:
        usual = self.model.loss
        if number == at and not self.skipped:
            broken = lambda *given, **named: usual(*given, **named) * float("nan")  # noqa: E731
            self.model.loss = broken  # type: ignore[method-assign]
        try:
            return original(self, number, batches)
        finally:
            self.model.loss = usual  # type: ignore[method-assign]

    Trainer.step = step  # type: ignore[method-assign]


def break_save(at: int, what: str) -> None:
    """While the checkpoint of step `at` is written this process meets it."""
    original = checkpoint.write_tensors

    def write(path: Path, *given: Any) -> str:
        if f"{at:08d}" in str(path) and once():
            path.write_bytes(b"half")
            meet(what)
        return original(path, *given)

    checkpoint.write_tensors = write


def meet(what: str) -> None:
    """A disk without room, a long sleep or a signal."""
    if what == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if what == "sleep":
        time.sleep(60)
    else:
        os.kill(os.getpid(), getattr(signal, what))


def once() -> bool:
    """True the first time only, whatever the attempt."""
    mark = run / "met"
    if mark.exists():
        return False
    mark.write_text("")
    return True


if __name__ == "__main__":
    attend()
    # Where torchrun starts it, nobody says how patient it is to be.
    sentry.Patience = partial(Patience, least_s=3.0)  # type: ignore[misc, assignment]
    run = Path(sys.argv[2])
    fault = json.loads((run / "fault.json").read_text()) if (run / "fault.json").exists() else {}
    if fault.get("rank") == int(os.environ.get("RANK", "0")):
        if fault["when"] == "start" and int(os.environ["WORLD_SIZE"]) > 1:
            if "what" not in fault:
                sys.exit(9)
            if once():
                meet(fault["what"])
        if fault["when"] == "step":
            break_step(fault["at"], fault["what"])
        if fault["when"] == "loss":
            break_loss(fault["at"])
        if fault["when"] == "save":
            break_save(fault["at"], fault["what"])
    try:
        train(
            load(Plan, run / "plan.toml"), run, machine=load(Machine, run / "machine.toml"),
            resume=True, talk=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
    except NarrowsError as error:
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
