"""Checkpoints: whole or not at all, and a damaged one is passed over aloud."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from narrows.spec.errors import LostOthers, RunFailed
from narrows.train import checkpoint
from narrows.train.checkpoint import Checkpoints, Contents, State, write_tensors
from narrows.train.step import Trainer

from .conftest import RandomBatches, layout, plan


def state(step: int, loss: float | None = None) -> State:
    return State(step=step, tokens=0.0, elapsed_s=0.0, validation_loss=loss, sha256={})


def tensors(seed: int) -> Contents:
    drawn = torch.Generator().manual_seed(seed)
    weights = {
        "a": torch.randn(5, 3, generator=drawn),
        "b": torch.randn(7, generator=drawn).bfloat16(),
    }
    return Contents(weights, {}, {})


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, said: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2, talk=said.append)


def save(checkpoints: Checkpoints, step: int, best: bool = False) -> None:
    checkpoints.save(tensors(step), state(step), best)
    checkpoints.wait()


def test_tensors_come_back_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    written = {"a": torch.randn(5, 3), "b": torch.randn(7).bfloat16(), "c": torch.arange(3)}
    write_tensors(path, written)
    for name, tensor in load_file(path).items():
        assert tensor.dtype == written[name].dtype
        assert torch.equal(tensor, written[name])


def test_the_newest_is_found_and_old_ones_go(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3, 4):
        save(checkpoints, step, best=step == 1)
    found = checkpoints.newest()
    assert found is not None and found[1].step == 4
    assert [p.name for p in sorted(checkpoints.folder.glob("step-*"))] == [
        "step-00000001", "step-00000003", "step-00000004"
    ]  # fmt: skip
    assert (checkpoints.folder / "best").read_text() == "step-00000001"


@pytest.mark.parametrize("damage", ["flip", "truncate", "no state", "empty state", "another state"])
def test_a_damaged_checkpoint_is_passed_over(
    checkpoints: Checkpoints, said: list[str], damage: str
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    newest = checkpoints.folder / "step-00000002"
    weights = newest / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(content[:-8])
    elif damage == "no state":
        (newest / "state.json").unlink()
    elif damage == "another state":
        text = (newest / "state.json").read_text()
        (newest / "state.json").write_text(text.replace('"step":2', '"step":3'))
        assert '"step":2' in text
    else:
        (newest / "state.json").write_text("")
    found = checkpoints.newest()
    assert found is not None and found[1].step == 1
    assert "step-00000002" in said[0]


def test_the_best_is_known_or_none_is(checkpoints: Checkpoints) -> None:
    assert checkpoints.best() == math.inf
    for step, loss in ((1, 2.0), (2, 1.5)):
        checkpoints.save(tensors(step), state(step, loss), True)
    checkpoints.wait()
    assert checkpoints.best() == 1.5
    (checkpoints.folder / "step-00000002" / "state.json").write_text("{")
    assert checkpoints.best() == math.inf


def test_a_write_that_fails_is_told_and_the_last_good_one_stays(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)

    def full(path: Path, *_: object) -> str:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    checkpoints.save(tensors(2), state(2), False)
    with pytest.raises(RunFailed, match="No space left"):
        checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None and found[1].step == 1
    assert not list(checkpoints.folder.glob("*.partial"))


def test_where_the_first_process_gave_up_the_cause_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, *given: object) -> str:
        path.parent.rmdir()
        return write_tensors(path, {})

    monkeypatch.setattr(checkpoint, "write_tensors", write)
    second = Checkpoints(tmp_path, keep=2, talk=print, rank=1, ranks=2)
    second.save(Contents({}, {}, {}), state(1), False)
    with pytest.raises(LostOthers, match="the first process gave the checkpoint up"):
        second.wait()


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    partial = tmp_path / "step-00000009.partial"
    partial.mkdir()
    checkpoints = Checkpoints(tmp_path, keep=2, talk=lambda text: None)
    assert checkpoints.newest() is None
    assert not partial.exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trainer_goes_on_bit_for_bit(tmp_path: Path, precision: str) -> None:
    chosen = plan(layout=layout(precision=precision))
    straight = Trainer(chosen, torch.device("cpu"))
    losses = [straight.step(number, RandomBatches()).loss for number in range(6)]

    first = Trainer(chosen, torch.device("cpu"))
    for number in range(3):
        first.step(number, RandomBatches())
    write_tensors(tmp_path / "o", first.optimizer.state())
    write_tensors(tmp_path / "w", {n: p.detach() for n, p in first.model.named_parameters()})

    second = Trainer(chosen, torch.device("cpu"))
    weights = load_file(tmp_path / "w")
    with torch.no_grad():
        for name, parameter in second.model.named_parameters():
            parameter.copy_(weights[name])
    second.optimizer.load(load_file(tmp_path / "o").__getitem__)
    assert [second.step(number, RandomBatches()).loss for number in range(3, 6)] == losses[3:]
    for one, other in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
