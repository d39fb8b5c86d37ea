"""Whole runs on real text: what a folder holds, how it stops, and that a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput, Interrupted, RunFailed
from narrows.spec.ledger import KINDS, Ledger
from narrows.spec.machine import Machine
from narrows.spec.optimizer import RULES, Optimizer
from narrows.spec.plan import Plan
from narrows.spec.record import load, save
from narrows.train.lock import locked
from narrows.train.run import Also, train
from narrows.train.step import Trainer

from .conftest import layout, tiny_machine, with_text

USUAL = Optimizer(learning_rate=3e-3)
OPTIMIZERS = [
    pytest.param(USUAL, id="adamw"),
    *(
        pytest.param(
            Optimizer(rule=rule(), learning_rate=1e-3, ema=None if free else 0.99,
                      state_bits=32 if free or name == "adafactor" else 8),
            id=name, marks=pytest.mark.slow,
        )
        for name, rule in RULES.items() for free in [name == "schedule_free"]
    ),
]  # fmt: skip


@pytest.fixture
def machine() -> Machine:
    return tiny_machine()


@pytest.fixture
def plan(dataset: Dataset) -> Plan:
    return with_text(dataset, layout=layout(micro_batch=2, accumulation=2))


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[object, object]:
    return {line["step"]: line["loss"] for line in lines(run) if "loss" in line}


def silent(text: str) -> None:
    """Nothing to say."""


def test_a_run_leaves_what_the_report_reads(plan: Plan, machine: Machine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ledger = train(plan, run, machine=machine, resume=False, talk=silent,
                   also=Also(sample=lambda model: "O!"))  # fmt: skip
    assert load(Plan, run / "plan.toml") == plan
    assert load(Ledger, run / "ledger.json") == ledger
    assert ledger.basis == "measured"
    assert sum(row.seconds for row in ledger.rows) == pytest.approx(ledger.step_seconds, rel=0.05)
    assert {row.kind for row in ledger.rows} <= set(KINDS)
    assert ledger.seconds_by_kind()["gemm"] > 0
    assert ledger.total.steps == 12
    assert ledger.memory.peak > ledger.memory.weights > 0
    trained = losses(run)
    assert list(trained) == list(range(1, 13))
    evaluated = [line for line in lines(run) if "validation_loss" in line]
    assert [line["step"] for line in evaluated] == [5, 10, 12]
    assert all(float(str(line["bits_per_byte"])) > 0 for line in evaluated)
    assert (run / "checkpoints" / "latest").read_text() == "step-00000012"
    assert json.loads((run / "samples.jsonl").read_text().splitlines()[0])["text"] == "O!"
    assert (run / "tokenizer.json").exists()
    assert list((run / "tensorboard").iterdir())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_killed_at_any_moment_a_run_ends_the_same(
    optimizer: Optimizer, plan: Plan, machine: Machine, tmp_path: Path
) -> None:
    plan = msgspec.structs.replace(plan, steps=40, optimizer=optimizer)
    save(plan, tmp_path / "plan.toml")
    save(machine, tmp_path / "machine.toml")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(plan, straight, machine=machine, resume=False, talk=silent)
    for steps_alive in (4, 17):
        kill_at(steps_alive, tmp_path, broken, resume=steps_alive > 4)
    train(plan, broken, machine=machine, resume=True, talk=silent)
    assert losses(broken) == losses(straight)
    last = "checkpoints/step-00000040"
    names = sorted(each.name for each in (straight / last).glob("*.safetensors"))
    assert len(names) == (3 if optimizer.averages else 2)
    for name in names:
        expected, found = load_file(straight / last / name), load_file(broken / last / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    events = [line["event"] for line in lines(broken) if "event" in line]
    assert "resume" in events


def test_ctrl_c_saves_first(plan: Plan, machine: Machine, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def interrupting(text: str) -> None:
        """Nothing to say."""

    original = Trainer.step

    def step(self: Trainer, number: int, batches: object) -> object:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, number, batches)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Interrupted, match="after step 5 of 12"):
            train(plan, run, machine=machine, resume=False, talk=interrupting)
    assert (run / "checkpoints" / "latest").read_text() == "step-00000005"
    train(plan, run, machine=machine, resume=True, talk=silent)
    assert list(losses(run)) == list(range(1, 13))


def test_two_trainings_in_one_folder_are_refused(
    plan: Plan, machine: Machine, tmp_path: Path
) -> None:
    with locked(tmp_path), pytest.raises(BadInput, match="another training"):
        train(plan, tmp_path, machine=machine, resume=False, talk=silent)


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    plan: Plan, machine: Machine, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    original = Trainer.step

    def step(self: Trainer, number: int, batches: object) -> object:
        if number == 7:
            with torch.no_grad():
                dict(self.model.named_parameters())["blocks.1.qkv.weight"][0, 0] = float("inf")
        return original(self, number, batches)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(RunFailed, match="not finite at step 7") as caught:
            train(plan, run, machine=machine, resume=False, talk=silent)
    assert caught.value.causes == ("first: parameter blocks.1.qkv.weight",)
    assert (run / "checkpoints" / "latest").read_text() == "step-00000006"
    train(plan, run, machine=machine, resume=True, talk=silent)
    assert losses(run)[12]


@pytest.mark.parametrize(("predicted", "event"), [(1e-6, "slow"), (1e3, "quick")])
def test_measured_far_from_predicted_is_said_once(
    plan: Plan, machine: Machine, tmp_path: Path, predicted: float, event: str
) -> None:
    other = msgspec.structs.replace(
        plan, predicted=msgspec.structs.replace(plan.predicted, step_seconds=predicted), steps=14
    )
    said: list[str] = []
    train(other, tmp_path / "run", machine=machine, resume=False, talk=said.append)
    assert len([text for text in said if "predicted" in text]) == 1
    assert [line for line in lines(tmp_path / "run") if line.get("event") == event]


def kill_at(step: int, folder: Path, run: Path, *, resume: bool = False) -> None:
    """Train by the plan in a folder in a process of its own, which ends at that step."""
    child = _start(folder, run, resume=resume)
    _wait_for_step(run, step, child)
    child.send_signal(signal.SIGKILL)
    child.wait()


def _start(folder: Path, run: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(__file__).with_name("runner.py"))]
    command += [str(folder / "plan.toml"), str(folder / "machine.toml"), str(run)]
    return subprocess.Popen([*command, "resume"] if resume else command)


def _wait_for_step(run: Path, step: int, child: subprocess.Popen[bytes]) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.01)
