"""What any layout saved, any other takes up, and goes on as the one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan
from narrows.train.checkpoint import Checkpoints, State
from narrows.train.state import contents, newest, restore
from narrows.train.step import Trainer
from tests.parallel.processes import run

from .test_twenty_steps import KINDS, MODELS, SPREAD, TOGETHER, Short, plan_of

pytestmark = pytest.mark.dist
ALONE: dict[str, Any] = {}
LAYOUTS: dict[str, dict[str, Any]] = {
    "alone": ALONE,
    **{name: spread for name, spread in KINDS.items() if name not in ("kept", "whole stream")},
    "tensor, parameters": TOGETHER["tensor, parameters"],
    "interleaved, parameters": TOGETHER["interleaved, parameters"],
    "zero bubble, tensor": TOGETHER["zero bubble, tensor"],
    "expert, parameters": SPREAD["expert, parameters"],
    "expert, zero bubble": SPREAD["expert, zero bubble"],
}


def layouts_of(name: str) -> dict[str, dict[str, Any]]:
    """Those that a model can have."""
    experts = MODELS[name].experts is not None
    return {kind: each for kind, each in LAYOUTS.items() if experts or "expert" not in each}


def begun(chosen: Plan, folder: Path) -> tuple[Trainer, Checkpoints]:
    ModelSpec.writes = True  # type: ignore[assignment, method-assign]
    trainer = Trainer(chosen, torch.device("cpu"))
    everyone = trainer.ranks.everyone
    return trainer, Checkpoints(folder, 9, print, everyone.rank, everyone.size)


def three_steps(chosen: Plan, folder: Path, begin: int) -> list[float]:
    """Losses of three steps, from a checkpoint where `begin` is one; the state is saved."""
    trainer, checkpoints = begun(chosen, folder)
    if begin:
        found = newest(trainer, checkpoints)
        assert found is not None and found[1].step == begin
        restore(trainer, found[0], print)
    losses = [trainer.step(number, Short()).loss for number in range(begin, begin + 3)]
    state = State(step=begin + 3, tokens=0.0, elapsed_s=0.0, sha256={})
    checkpoints.save(contents(trainer), state, False)
    checkpoints.wait()
    return losses


def told_by_all(chosen: Plan, function: Any, *given: Any) -> list[float]:
    """What all processes of a layout found alike."""
    told = run(chosen.layout.processes, function, chosen, *given)
    assert all(each == pytest.approx(told[0], rel=1e-6) for each in told)
    found: list[float] = told[0]
    return found


def losses(kinds: list[str], name: str, folder: Path) -> list[float]:
    """Three steps in each of the layouts, one after the other."""
    found: list[float] = []
    for index, kind in enumerate(kinds):
        found += told_by_all(plan_of(MODELS[name], **LAYOUTS[kind]), three_steps, folder, 3 * index)
    return found


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("dense", ["zero bubble", "parameters", "ring"]),
        ("masked", ["interleaved", "alone", "tensor"]),
        ("experts", ["expert, parameters", "1f1b", "expert"]),
    ],
)
def test_every_layout_goes_on_where_another_stopped(
    name: str, kinds: list[str], tmp_path: Path
) -> None:
    straight = losses(["alone"] * len(kinds), name, tmp_path / "straight")
    assert losses(kinds, name, tmp_path / "changed") == pytest.approx(straight, rel=1e-6)


def resumed(chosen: Plan, folders: list[Path]) -> list[float]:
    """Losses of three steps behind the checkpoint in each of the folders."""
    found = []
    for folder in folders:
        trainer, checkpoints = begun(chosen, folder)
        known = newest(trainer, checkpoints)
        assert known is not None and known[1].step == 3
        restore(trainer, known[0], print)
        found += [trainer.step(number, Short()).loss for number in range(3, 6)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "masked", "experts"])
def test_every_layout_goes_on_where_any_other_stopped(name: str, tmp_path: Path) -> None:
    straight = losses(["alone", "alone"], name, tmp_path / "straight")
    kinds = layouts_of(name)
    for kind in kinds:
        losses([kind], name, tmp_path / kind)
    folders = [tmp_path / kind for kind in kinds]
    for kind, spread in kinds.items():
        found = told_by_all(plan_of(MODELS[name], **spread), resumed, folders)
        for index, source in enumerate(kinds):
            own = found[3 * index : 3 * index + 3]
            assert own == pytest.approx(straight[3:], rel=1e-6), f"{source} in {kind}"
