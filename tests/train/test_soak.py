"""Random harm, as long as NARROWS_SOAK_MINUTES says (one): the end is the undisturbed run's.

Processes are killed or stopped, and bytes of the newest checkpoint flipped, at whatever moment.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from narrows.spec.dataset import Dataset
from narrows.spec.plan import Checkpointing, Evaluation
from narrows.train.watch import Patience

from .conftest import layout, with_text
from .test_survive import assert_same, events, survived

pytestmark = [pytest.mark.dist, pytest.mark.slow]
STEPS = 800
MINUTES = float(os.environ.get("NARROWS_SOAK_MINUTES", "1"))


def of(run: Path) -> list[int]:
    """The processes that train in `run`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if str(run).encode() in words and b"--resume" in words:
                found.append(int(entry.name))
    return found


class Harm(threading.Thread):
    """Does something to `run` again and again, `usual_s` being what it takes undisturbed."""

    def __init__(self, run: Path, seed: int, usual_s: float) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.chance, self.usual_s = run, random.Random(seed), usual_s
        self.over = threading.Event()
        self.done: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        while not self.over.wait(self.usual_s * self.chance.uniform(0.1, 0.6)):
            kind = self.chance.choices(["kill", "stop", "flip"], [7, 1, 2])[0]
            if kind == "flip" and not self.flip():
                continue
            alive = of(self.run_folder)
            if alive:
                what = signal.SIGSTOP if kind == "stop" else signal.SIGKILL
                with suppress(ProcessLookupError):
                    os.kill(self.chance.choice(alive), what)
                    self.done[kind] += 1

    def flip(self) -> bool:
        """One bit of one file of the newest checkpoint; the one before it stays whole."""
        folders = sorted(self.run_folder.glob("checkpoints/step-????????"))
        with suppress(OSError):
            path = self.chance.choice(sorted(folders[-1].iterdir())) if folders[1:] else None
            if path is not None:
                content = bytearray(path.read_bytes())
                content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
                path.write_bytes(content)
                return True
        return False


def test_random_harm_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(
        with_text(dataset, layout=layout(micro_batch=1, accumulation=2, data=2)),
        steps=STEPS, checkpoints=Checkpointing(every=20, keep=3),
        evaluation=Evaluation(every=100, sequences=4),
    )  # fmt: skip
    straight, began = tmp_path / "straight", time.monotonic()
    survived(plan, straight, None)
    usual_s = time.monotonic() - began
    until, rounds, restarts = time.monotonic() + 60.0 * MINUTES, 0, 0
    done: collections.Counter[str] = collections.Counter()
    while time.monotonic() < until:
        run = tmp_path / f"round-{rounds}"
        harm = Harm(run, rounds, usual_s)
        harm.start()
        try:
            survived(plan, run, None, most=20, patience=Patience(least_s=5.0))
        finally:
            harm.over.set()
            harm.join()
        assert_same(run, straight, STEPS)
        rounds, restarts = rounds + 1, restarts + len(events(run, "restart"))
        done += harm.done
    told = ", ".join(f"{count} x {kind}" for kind, count in sorted(done.items()))
    print(
        f"\n{rounds} runs of {STEPS} steps, {told}, {restarts} restarts: all bit for bit the same"
    )
    assert restarts
