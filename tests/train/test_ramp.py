"""A batch that grows with the gradients' noise: when, over which data, and after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.plan import Checkpointing, Evaluation, Plan
from narrows.spec.ramp import BatchRamp
from narrows.train.noise import NoiseScale
from narrows.train.ramp import Ramp
from narrows.train.run import train
from narrows.train.step import Trainer

from .conftest import RandomBatches, layout, plan, tiny_machine, with_text

CPU = torch.device("cpu")
RAMP = BatchRamp(most_sequences=16)
STEPS = 160


class Noted(RandomBatches):
    """Remembers which sequences were read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def sequences(self, first: int, count: int) -> Any:
        self.read += range(first, first + count)
        return super().sequences(first, count)


def ramped(dataset: Dataset, **changes: Any) -> Plan:
    made = with_text(
        dataset, layout=layout(micro_batch=1, accumulation=2), batch_sequences=2, batch_ramp=RAMP
    )
    return msgspec.structs.replace(
        made, steps=STEPS, evaluation=Evaluation(every=40, sequences=2),
        checkpoints=Checkpointing(every=30, keep=20), **changes,
    )  # fmt: skip


def run_of(plan: Plan, run: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    train(plan, run, machine=tiny_machine(), resume=resume, talk=lambda text: None)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def believed(tokens: float, looks: int = 5) -> NoiseScale:
    found = NoiseScale()
    for _ in range(looks):
        # |G|² = 1 and S = tokens.
        found.seen((1.0, 1.0 + tokens), (4.0, 1.0 + tokens / 4.0))
    return found


def test_it_doubles_where_the_noise_is_no_smaller_than_what_is_then_read() -> None:
    made = plan(batch_sequences=4, batch_ramp=RAMP)
    twice = 2.0 * made.step_tokens
    assert Ramp().grown(made, believed(twice * 1.01)) == Ramp(times=2)
    assert Ramp().grown(made, believed(twice * 0.99)) == Ramp()
    assert Ramp().grown(made, believed(twice * 9, looks=4)) == Ramp()
    assert Ramp(times=4).grown(made, believed(1e9)) == Ramp(times=4)
    assert Ramp().grown(plan(batch_sequences=4), believed(1e9)) == Ramp()


@pytest.mark.parametrize(("looks", "most"), [(1, 1), (5, 5), (40, 40)])
def test_looks_are_counted(looks: int, most: int) -> None:
    assert NoiseScale(believed(10.0, looks).known()).looks == most


def test_an_update_reads_several_steps_data_in_their_order() -> None:
    made = plan(
        layout=layout(micro_batch=1, accumulation=2), batch_sequences=2, batch_ramp=RAMP, steps=11
    )
    batches, trainer, step, counts = Noted(), Trainer(made, CPU), 0, list[int]()
    while step < made.steps:
        trainer.ramp = Ramp(times=4 if step else 1, ahead=trainer.ramp.ahead)
        result = trainer.step(step, batches)
        step += result.steps
        counts.append(result.steps)
    assert counts == [1, 4, 4, 2]
    assert batches.read == list(range(22))
    assert trainer.ramp.ahead == 11 - 4


def test_an_update_of_two_steps_data_is_one_of_twice_the_batch() -> None:
    small = plan(layout=layout(micro_batch=1, accumulation=2), batch_sequences=2, batch_ramp=RAMP)
    large = plan(layout=layout(micro_batch=1, accumulation=4), batch_sequences=4)
    one, other = Trainer(small, CPU), Trainer(large, CPU)
    one.ramp = Ramp(times=2)
    assert one.step(0, RandomBatches())[:3] == other.step(0, RandomBatches())[:3]
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_writes_how_it_grew_and_goes_on_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    made = ramped(dataset)
    whole = run_of(made, tmp_path / "whole")
    taken = [line for line in whole if "loss" in line]
    sizes = [line["batch_sequences"] for line in taken]
    assert sizes[0] == 2 and max(sizes) > 2 and sizes[:-1] == sorted(sizes[:-1])
    assert sum(sizes) == 2 * STEPS and taken[-1]["step"] == STEPS
    grown = [line for line in whole if line.get("event") == "batch"]
    assert grown and "noise scale" in grown[0]["message"]
    # Evaluations and checkpoints come with every step that is due, though updates pass it over.
    assert len([line for line in whole if "validation_loss" in line]) == STEPS // 40
    run_of(made, tmp_path / "again")
    folders = sorted((tmp_path / "again" / "checkpoints").glob("step-*"))
    for path in folders[2:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (tmp_path / "again" / "ledger.json").unlink()
    resumed = run_of(made, tmp_path / "again", resume=True)
    kept = ("step", "loss", "gradient_norm", "batch_sequences", "noise_tokens")
    assert [tuple(line.get(name) for name in kept) for line in resumed if "loss" in line] == [
        tuple(line.get(name) for name in kept) for line in taken
    ]
    last = f"checkpoints/step-{STEPS:08d}/weights.safetensors"
    assert (tmp_path / "again" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_where_nothing_tells_the_noise_it_is_refused() -> None:
    with pytest.raises(BadInput, match="only one") as caught:
        Trainer(plan(batch_ramp=RAMP), CPU)
    assert "layout.micro_batch" in (caught.value.hint or "")
