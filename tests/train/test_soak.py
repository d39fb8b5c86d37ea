"""Random kills, as long as NARROWS_SOAK_MINUTES says (one): the end is the undisturbed run's."""

from __future__ import annotations

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


def kill_now_and_then(run: Path, chance: random.Random, done: threading.Event) -> None:
    """One process of `run` each few seconds, at whatever moment that is."""
    while not done.wait(chance.uniform(2.0, 9.0)):
        if alive := of(run):
            with suppress(ProcessLookupError):
                os.kill(chance.choice(alive), signal.SIGKILL)


def test_random_kills_change_nothing(dataset: Dataset, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(
        with_text(dataset, layout=layout(micro_batch=1, accumulation=2, data=2)),
        steps=STEPS, checkpoints=Checkpointing(every=20, keep=2),
        evaluation=Evaluation(every=100, sequences=4),
    )  # fmt: skip
    straight = tmp_path / "straight"
    survived(plan, straight, None)
    until, rounds, restarts = time.monotonic() + 60.0 * MINUTES, 0, 0
    while time.monotonic() < until:
        run, done = tmp_path / f"round-{rounds}", threading.Event()
        killer = threading.Thread(
            target=kill_now_and_then, args=(run, random.Random(rounds), done), daemon=True
        )
        killer.start()
        try:
            survived(plan, run, None, most=20)
        finally:
            done.set()
            killer.join()
        assert_same(run, straight, STEPS)
        rounds, restarts = rounds + 1, restarts + len(events(run, "restart"))
    print(f"{rounds} runs of {STEPS} steps, {restarts} restarts, all bit for bit the same")
    assert restarts
