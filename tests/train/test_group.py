"""Under torchrun: what it starts again meets again, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from narrows.hardware.find import fingerprint
from narrows.spec.dataset import Dataset
from narrows.spec.plan import Checkpointing
from narrows.spec.record import save
from narrows.train.group import started

from .conftest import layout, tiny_machine, with_text

RESTARTS = ("--standalone", "--max-restarts", "3", "--nproc-per-node", "2")


def worker(run: Path, rank: int) -> int | None:
    """The process of a rank that trains in `run`."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            told = (entry / "environ").read_bytes().split(b"\0")
            if str(run).encode() in words and f"RANK={rank}".encode() in told:
                return int(entry.name)
    return None


@pytest.mark.dist
@pytest.mark.slow
def test_torchrun_starts_a_killed_worker_again(dataset: Dataset, tmp_path: Path) -> None:
    plan = with_text(
        dataset, layout=layout(micro_batch=1, accumulation=2, data=2), steps=200,
        checkpoints=Checkpointing(every=20, keep=2),
    )  # fmt: skip
    run, home = tmp_path / "run", tmp_path / "home"
    save(plan, tmp_path / "plan.toml")
    save(msgspec.structs.replace(tiny_machine(), fingerprint=fingerprint()), home / "machine.toml")
    words = [sys.executable, "-m", "torch.distributed.run", *RESTARTS, "-m", "--", "narrows"]
    words += ["train", str(tmp_path / "plan.toml"), "--run", str(run)]
    environment = os.environ | {"NARROWS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, env=environment) as torchrun:
        until = time.monotonic() + 600.0
        while not list(run.glob("checkpoints/step-????????")):
            assert time.monotonic() < until and torchrun.poll() is None
            time.sleep(0.05)
        killed = worker(run, 1)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        try:
            assert torchrun.wait(timeout=600.0) == 0
        finally:
            torchrun.kill()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line.get("event") == "resume"] == ["resume"]
    assert {line["step"] for line in lines if "loss" in line} == set(range(1, 201))


@pytest.mark.dist
@pytest.mark.parametrize(
    ("rank", "what"),
    [(1, "sleep"), pytest.param(1, "SIGSTOP", marks=pytest.mark.slow),
     pytest.param(0, "SIGSTOP", marks=pytest.mark.slow)],
)  # fmt: skip
def test_torchrun_starts_again_what_hung(
    dataset: Dataset, tmp_path: Path, rank: int, what: str
) -> None:
    plan = with_text(dataset, layout=layout(micro_batch=1, accumulation=2, data=2))
    run = tmp_path / "run"
    save(plan, run / "plan.toml")
    save(tiny_machine(), run / "machine.toml")
    (run / "fault.json").write_text(
        json.dumps({"rank": rank, "when": "step", "at": 8, "what": what})
    )
    words = [sys.executable, "-m", "torch.distributed.run", *RESTARTS]
    words += [str(Path(__file__).with_name("faulty.py")), "train", str(run), "--resume"]
    done = subprocess.run(
        words, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600.0, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    said = done.stderr.partition("error: the training hangs: no sign of life for ")[2]
    assert said.partition(" at ")[2].startswith("step 8\n  process 0 (step")
    stopped = said.partition(f"process {rank} (step")[2]
    assert ("faulty.py" if what == "sleep" else "no stack, it does not answer") in stopped
    assert "all_reduce" in said.partition(f"process {1 - rank} (step 8, training")[2]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if "event" in line] == ["hang", "resume"]
    assert {line["step"] for line in lines if "loss" in line} == set(range(1, 13))


def test_a_lone_process_was_started_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert started() is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started() == 2
