"""Several processes, and what happens to them: killed, hung, full disks; the end is the same."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from narrows.infer.checkpoint import join, weights
from narrows.spec.dataset import Dataset
from narrows.spec.errors import RunFailed
from narrows.spec.exchange import GradientExchange, LocalSteps, PowerSGD
from narrows.spec.plan import Evaluation, Plan
from narrows.spec.record import load, save
from narrows.train.checkpoint import State
from narrows.train.silence import Patience
from narrows.train.survive import Survival, train_together

from .conftest import layout, tiny_machine, with_text

pytestmark = pytest.mark.dist
COMMAND = (sys.executable, str(Path(__file__).with_name("faulty.py")))


@pytest.fixture(scope="module")
def plan(dataset: Dataset) -> Plan:
    return with_text(dataset, layout=layout(micro_batch=1, accumulation=2, data=2))


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    assert survived(plan, run, None) == []
    return run


def survived(plan: Plan, run: Path, fault: dict[str, Any] | None, **how: Any) -> list[str]:
    """Train with a fault; returns what was said."""
    run.mkdir(exist_ok=True)
    save(tiny_machine(), run / "machine.toml")
    if fault is not None:
        (run / "fault.json").write_text(json.dumps(fault))
    said: list[str] = []
    train_together(plan, run, said.append, Survival(**how), command=COMMAND)
    return said


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run) if "loss" in line}


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines(run) if line.get("event") == kind]


def assert_same(run: Path, other: Path, step: int = 12) -> None:
    """Losses of all steps and the last weights are equal, bit for bit."""
    assert losses(run) == losses(other)
    found, wanted = (weights(r / "checkpoints" / f"step-{step:08d}") for r in (run, other))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_killed_process_is_survived_and_nothing_is_lost(
    plan: Plan, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = survived(plan, run, {"rank": 1, "when": "step", "at": 7, "what": "SIGKILL"})
    assert said == [
        "warning: process 1 of 2 ended by signal 9; starting again from step 6"
    ] or said == ["warning: process 1 of 2 ended by signal 9; starting again from step 3"]
    assert events(run, "restart")[0]["step"] == 7
    assert_same(run, undisturbed)


def test_what_two_processes_saved_is_joined_to_one_file(undisturbed: Path, tmp_path: Path) -> None:
    newest = undisturbed / "checkpoints" / "step-00000012"
    assert len(list(newest.glob("weights-*"))) == 2
    found, wanted = load_file(join(newest, tmp_path / "out")), weights(newest)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_a_flipped_byte_in_one_part_leads_to_the_checkpoint_before(
    plan: Plan, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    part = run / "checkpoints" / "step-00000012" / "optimizer-00001-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    survived(plan, run, None)
    told = capfd.readouterr().err
    assert "optimizer-00001-of-00002.safetensors does not match its checksum" in told
    assert "resuming at step 9 of 12" in told
    assert_same(run, undisturbed)


def test_a_process_that_sleeps_is_found_with_every_stack(
    plan: Plan, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fault = {"rank": 1, "when": "step", "at": 8, "what": "sleep"}
    said = survived(plan, run, fault, patience=Patience(least_s=2.0))
    # Busy cores look later.
    told = r"hangs: no sign of life for [2-9] s at step 8; starting again from step 6"
    assert len(said) == 1 and re.search(told, said[0])
    assert "process 0 (step 8, training" in said[0] and "process 1 (step 8" in said[0]
    assert "faulty.py" in said[0].partition("process 1")[2]
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_a_process_that_is_stopped_is_found(plan: Plan, undisturbed: Path, tmp_path: Path) -> None:
    fault = {"rank": 0, "when": "step", "at": 8, "what": "SIGSTOP"}
    said = survived(plan, tmp_path / "run", fault, patience=Patience(least_s=2.0))
    assert "no stack, it is stopped" in said[0]
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("when", "where", "began"),
    [
        ("start", "process 0 (step 0, starting", 0),
        pytest.param("save", "process 0 (step 9, saving", 6, marks=pytest.mark.slow),
    ],
)
def test_so_is_one_that_sleeps_elsewhere(
    plan: Plan, undisturbed: Path, tmp_path: Path, when: str, where: str, began: int
) -> None:
    run = tmp_path / "run"
    fault = {"rank": 1, "when": when, "at": 9, "what": "sleep"}
    said = survived(plan, run, fault, patience=Patience(least_s=4.0))
    assert len(said) == 1 and "hangs: no sign of life for" in said[0]
    assert f"starting again from step {began}" in said[0] and where in said[0]
    assert "no stack" not in said[0]
    assert_same(run, undisturbed)


@pytest.mark.parametrize("what", ["full", pytest.param("SIGKILL", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_save_that_fails_leaves_the_checkpoint_before(
    plan: Plan, undisturbed: Path, tmp_path: Path, rank: int, what: str
) -> None:
    run = tmp_path / "run"
    said = survived(plan, run, {"rank": rank, "when": "save", "at": 9, "what": what})
    assert len(said) == 1 and said[0].startswith("warning: ")
    assert "starting again from step 6" in said[0]
    assert ("No space left" if what == "full" else "signal 9") in said[0]
    assert events(run, "resume")[0]["message"] == "from step-00000006"
    assert not list(run.glob("checkpoints/*.partial"))
    assert_same(run, undisturbed)


def test_a_process_that_never_starts_ends_the_training(plan: Plan, tmp_path: Path) -> None:
    fault = {"rank": 1, "when": "start"}
    with pytest.raises(RunFailed, match="saved nothing new; the last: .* with code 9") as caught:
        survived(plan, tmp_path / "run", fault, most=2)
    assert "--survive shrink" in str(caught.value.hint)


@pytest.mark.slow
def test_or_the_training_goes_on_without_it(plan: Plan, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = survived(plan, run, {"rank": 1, "when": "start"}, most=2, mode="shrink")
    assert "going on in 1 processes, the batch as large as before" in said[-1]
    smaller = load(Plan, run / "plan.toml").layout
    assert (smaller.data, smaller.accumulation) == (1, 4)
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-6)
    assert events(run, "shrink")


def test_none_stops_at_the_first(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="process 1 of 2 ended with code 9"):
        survived(plan, tmp_path / "run", {"rank": 1, "when": "start"}, mode="none")


@pytest.mark.parametrize("policy", ["skip", pytest.param("rollback", marks=pytest.mark.slow)])
def test_a_step_that_is_no_number_is_left_out_by_all(
    plan: Plan, tmp_path: Path, policy: str
) -> None:
    run = tmp_path / "run"
    plan = msgspec.structs.replace(plan, on_spike=policy)
    said = survived(plan, run, {"rank": 1, "when": "loss", "at": 7})
    assert said == []
    event = events(run, policy)[0]
    assert "the loss was not finite at step 7" in event["message"]
    every = set(range(1, 13))
    assert set(losses(run)) == (every - {8} if policy == "skip" else every)
    state = load(State, run / "checkpoints" / "step-00000012" / "state.json")
    assert state.skipped == (2 if policy == "rollback" else 0)


def test_a_run_that_diverges_is_not_started_again(
    plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunFailed, match="the loss was not finite at step 7"):
        survived(plan, tmp_path / "run", {"rank": 1, "when": "loss", "at": 7})
    assert not events(tmp_path / "run", "restart")
    # What is raised here, the processes do not say, too.
    assert "error:" not in capfd.readouterr().err


EXCHANGES: dict[str, GradientExchange] = {
    "powersgd": PowerSGD(rank=2, start_step=2),
    "local_steps": LocalSteps(every=3),
}


@pytest.mark.parametrize("name", ["powersgd", pytest.param("local_steps", marks=pytest.mark.slow)])
def test_a_kill_changes_nothing_of_what_gradients_left_out(
    plan: Plan, tmp_path: Path, name: str
) -> None:
    plan = msgspec.structs.replace(
        plan, exchange=EXCHANGES[name], evaluation=Evaluation(every=6, sequences=4)
    )
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert survived(plan, straight, None) == []
    survived(plan, run, {"rank": 1, "when": "step", "at": 7, "what": "SIGKILL"})
    assert events(run, "restart") and events(run, "resume")
    assert_same(run, straight)


def test_islands_hear_what_another_left_out(plan: Plan, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(
        plan, exchange=LocalSteps(every=3), evaluation=Evaluation(every=6, sequences=4),
        on_spike="skip",
    )  # fmt: skip
    survived(plan, tmp_path / "run", {"rank": 1, "when": "loss", "at": 7})
    skips = events(tmp_path / "run", "skip")
    assert [each["step"] for each in skips] == [9]
    assert "other islands left out 1 updates" in skips[0]["message"]
    assert set(losses(tmp_path / "run")) == set(range(1, 13))
