"""What any layout saved, any other takes up, and goes on as the one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.spec.layout import Layout
from narrows.spec.model import Experts
from narrows.spec.plan import Plan
from narrows.train.checkpoint import Checkpoints, State
from narrows.train.state import contents, newest, restore
from narrows.train.step import Trainer
from tests.parallel.processes import run

from .conftest import RandomBatches, layout, model, plan

pytestmark = pytest.mark.dist
CPU = torch.device("cpu")
ALONE: dict[str, Any] = {}
DATA = {"data": 2, "sharding": "parameters"}
TENSOR = {"tensor": 2}
BOTH = {"tensor": 2, "data": 2, "sharding": "gradients"}


def of(spread: dict[str, Any], kind: str, precision: str = "fp32") -> Plan:
    """Eight sequences a step in the layout."""
    spec = model("llama")
    if kind == "experts":
        spec = msgspec.structs.replace(spec, experts=Experts(count=4, chosen=2, width=32))
    made: Layout = layout(micro_batch=2, precision=precision, **spread)
    made = msgspec.structs.replace(made, accumulation=4 // made.batches)
    return plan(model=spec, layout=made, batch_sequences=8)


def three_steps(chosen: Plan, folder: Path, begin: int) -> list[float]:
    """Losses of three steps, from a checkpoint where `begin` is one; the state is saved."""
    trainer = Trainer(chosen, CPU)
    everyone = trainer.ranks.everyone
    checkpoints = Checkpoints(folder, 9, print, everyone.rank, everyone.size)
    if begin:
        found = newest(trainer, checkpoints)
        assert found is not None and found[1].step == begin
        restore(trainer, found[0], print)
    found_losses = [trainer.step(n, RandomBatches()).loss for n in range(begin, begin + 3)]
    state = State(step=begin + 3, tokens=0.0, elapsed_s=0.0, sha256={})
    checkpoints.save(contents(trainer), state, False)
    checkpoints.wait()
    return found_losses


def losses(layouts: list[dict[str, Any]], kind: str, folder: Path) -> list[float]:
    """Three steps in each of the layouts, one after the other."""
    found: list[float] = []
    for index, spread in enumerate(layouts):
        chosen = of(spread, kind)
        told = run(chosen.layout.processes, three_steps, chosen, folder, 3 * index)
        assert all(each == pytest.approx(told[0], rel=1e-6) for each in told)
        found += told[0]
    return found


@pytest.mark.parametrize(
    ("kind", "layouts"),
    [
        ("dense", [DATA, TENSOR, ALONE]),
        ("dense", [BOTH, ALONE, DATA]),
        ("dense", [ALONE, BOTH, TENSOR]),
        ("experts", [DATA, ALONE, BOTH]),
    ],
)
def test_every_layout_goes_on_where_another_stopped(
    kind: str, layouts: list[dict[str, Any]], tmp_path: Path
) -> None:
    straight = losses([ALONE] * len(layouts), kind, tmp_path / "straight")
    assert losses(layouts, kind, tmp_path / "changed") == pytest.approx(straight, rel=1e-6)
