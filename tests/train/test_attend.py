"""A launcher that is killed leaves no process behind, and the folder free."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from narrows.spec.dataset import Dataset
from narrows.train import attend, pulse
from narrows.train.lock import locked

from .conftest import layout, with_text
from .test_survive import survived

PATIENCE_S = 60.0
CHILD = """
import sys, time
from narrows.train import attend
if sys.argv[1] == "looks":
    attend._killed_with_parent = lambda: False
attend.attend()
print("attends", flush=True)
time.sleep(60)
"""


def until(true: Callable[[], bool]) -> float:
    """Wait for it; how long that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + PATIENCE_S
        time.sleep(0.05)
    return time.monotonic() - began


def lives(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("how", ["is told", "looks"])
def test_a_process_ends_with_its_launcher(how: str, tmp_path: Path) -> None:
    launcher = (
        "import os, subprocess, sys; "
        f"os.environ[{attend.LAUNCHER!r}] = str(os.getpid()); "
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]]); "
        "print(child.pid, flush=True); child.wait()"
    )
    environment = os.environ | {pulse.VARIABLE: str(tmp_path), "RANK": "3"}
    with subprocess.Popen(
        [sys.executable, "-c", launcher, CHILD, how], env=environment, stdout=subprocess.PIPE,
        text=True,
    ) as started:  # fmt: skip
        assert started.stdout is not None
        said = [started.stdout.readline(), started.stdout.readline()]
        said.remove("attends\n")
        assert lives(int(said[0]))
        started.kill()
        assert until(lambda: not lives(int(said[0]))) < 5.0


def test_a_process_that_nobody_launched_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(attend.LAUNCHER, raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(attend, "_killed_with_parent", lambda: pytest.fail("it attends"))
    attend.attend()


@pytest.mark.dist
def test_the_run_of_a_killed_launcher_can_be_resumed(dataset: Dataset, tmp_path: Path) -> None:
    plan, run = with_text(dataset, layout=layout(micro_batch=1, accumulation=2, data=2)), tmp_path
    fault = {"rank": 1, "when": "step", "at": 5, "what": "sleep"}
    launcher = multiprocessing.get_context("fork").Process(target=survived, args=(plan, run, fault))
    launcher.start()
    until((run / "met").exists)
    launcher.kill()
    launcher.join()

    def free() -> bool:
        try:
            with locked(run):
                return True
        except Exception:
            return False

    assert until(free) < 5.0
    assert survived(plan, run, None) == []
    assert (run / "checkpoints" / "step-00000012").exists()
