"""kill -9 at a random step of every objective, and of a growing batch: the end is the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file

from narrows.kernels.load import load as kernels
from narrows.model import safetensors
from narrows.model.folder import OWN, Own
from narrows.model.initial import initialise
from narrows.model.naming import OURS
from narrows.model.transformer import Transformer
from narrows.model.writing import outgoing
from narrows.spec.dataset import Dataset
from narrows.spec.model import ModelSpec
from narrows.spec.objective import Distil, Masked
from narrows.spec.plan import Checkpointing, Evaluation, Plan
from narrows.spec.ramp import BatchRamp
from narrows.spec.record import save
from narrows.train.run import train

from .conftest import layout, model, tiny_machine, with_text
from .test_objectives import ROWS, planned, prepared
from .test_run import kill_at, losses, silent

STEPS = 60
SLOW = {"regress", "prefer", "ramp"}


def published(folder: Path, spec: ModelSpec) -> Path:
    """A model with random weights as a folder that another can start from, or learn from."""
    made = Transformer(spec, kernels("torch"))
    initialise(made, 7)
    folder.mkdir()
    weights = dict(made.named_parameters())
    safetensors.write(folder, outgoing(weights, spec, OURS), made.tokens.weight.dtype)
    save(Own(family="llama", model=spec), folder / OWN)
    return folder


def of_text(name: str, dataset: Dataset, folder: Path) -> Plan:
    words = dataset.vocabulary
    changes: dict[str, Any] = {"layout": layout(micro_batch=2, accumulation=2)}
    match name:
        case "masked":
            spec = model("llama", vocabulary=words + 1, causal=False, dropout=0.1)
            changes |= {"objective": Masked(share=0.3), "model": spec}
        case "distil":
            teacher = published(folder / "teacher", model("llama", vocabulary=words, layers=3))
            changes |= {"objective": Distil(teacher=str(teacher))}
        case "ramp":
            changes |= {
                "layout": layout(micro_batch=1, accumulation=2), "batch_sequences": 2,
                "batch_ramp": BatchRamp(most_sequences=4),
            }  # fmt: skip
    return with_text(dataset, **changes)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in (*ROWS, "masked", "distil", "ramp")
])  # fmt: skip
def test_killed_at_a_random_step_it_ends_the_same(
    name: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    made = planned(name, prepared(name, tmp_path)) if name in ROWS else of_text(
        name, dataset, tmp_path
    )  # fmt: skip
    steps = 2 * STEPS if name == "ramp" else STEPS
    made = msgspec.structs.replace(
        made, steps=steps, checkpoints=Checkpointing(every=7, keep=2),
        evaluation=Evaluation(every=20, sequences=2),
    )  # fmt: skip
    save(made, tmp_path / "plan.toml")
    save(tiny_machine(), tmp_path / "machine.toml")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(made, straight, machine=tiny_machine(), resume=False, talk=silent)
    taken = sorted(losses(straight))
    alive = random.choice(taken[:-10])
    kill_at(alive, tmp_path, broken)
    train(made, broken, machine=tiny_machine(), resume=True, talk=silent)
    assert losses(broken) == losses(straight), f"killed at {alive}"
    last = f"checkpoints/step-{steps:08d}"
    for file in ("weights.safetensors", "optimizer.safetensors"):
        expected, found = load_file(straight / last / file), load_file(broken / last / file)
        assert expected.keys() == found.keys()
        equal = all((found[key] == value).all() for key, value in expected.items())
        assert equal, f"killed at {alive}"


def test_a_growing_batch_grew(dataset: Dataset, tmp_path: Path) -> None:
    made = of_text("ramp", dataset, tmp_path)
    made = msgspec.structs.replace(made, steps=2 * STEPS)
    train(made, tmp_path / "run", machine=tiny_machine(), resume=False, talk=silent)
    assert len(losses(tmp_path / "run")) < 2 * STEPS
