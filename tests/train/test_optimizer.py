"""Every rule trains, is saved and resumed bit for bit, and what stands around rules holds."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from narrows.infer.checkpoint import weights
from narrows.kernels.load import available
from narrows.spec.errors import BadInput
from narrows.spec.exchange import LocalSteps
from narrows.spec.optimizer import RULES, Optimizer, ScheduleFree
from narrows.spec.plan import Checkpointing, Plan
from narrows.train.checkpoint import Checkpoints, State
from narrows.train.state import contents, restore
from narrows.train.step import Trainer, evaluate
from tests.parallel.processes import run as processes

from .conftest import RandomBatches, layout, plan
from .test_step import CPU, Counting

RATES = {
    "adamw": 3e-3, "adam": 3e-3, "adagrad": 1e-2, "sgd": 0.3, "adafactor": 0.05, "lion": 1e-3,
    "muon": 3e-3, "schedule_free": 5e-3,
}  # fmt: skip
NARROW = [(name, bits) for name in RULES if name not in ("adafactor", "schedule_free")
          for bits in (16, 8)]  # fmt: skip
KEPT = [*((name, 32) for name in RULES), *NARROW]


def optimizer(name: str = "adamw", bits: int = 32, **changes: object) -> Optimizer:
    values = {"rule": RULES[name](), "learning_rate": RATES[name], "state_bits": bits, **changes}
    return Optimizer(**values)  # type: ignore[arg-type]


def losses(trainer: Trainer, first: int, last: int) -> list[float]:
    return [trainer.step(number, Counting()).loss for number in range(first, last)]


@pytest.mark.parametrize(("name", "bits"), KEPT)
def test_every_rule_learns_to_count(name: str, bits: int) -> None:
    chosen = plan(optimizer=optimizer(name, bits, weight_decay=0.0), steps=60)
    found = losses(Trainer(chosen, CPU), 0, 60)
    assert found[0] > 4.0
    assert found[-1] < 0.6 * found[0]


def beside(trainer: Trainer, folder: Path) -> Checkpoints:
    everyone = trainer.ranks.everyone
    return Checkpoints(folder, 9, print, everyone.rank, everyone.size)


def saved(trainer: Trainer, checkpoints: Checkpoints) -> Path:
    state = State(step=5, tokens=0.0, elapsed_s=0.0, sha256={})
    checkpoints.save(contents(trainer), state, False)
    checkpoints.wait()
    return checkpoints.folder / "step-00000005"


def goes_on_alike(chosen: Plan, folder: Path) -> bool:
    """Whether a checkpoint that is taken up leads to the same bits."""
    straight = Trainer(chosen, CPU)
    checkpoints = beside(straight, folder)
    losses(straight, 0, 5)
    path = saved(straight, checkpoints)
    straight.split.total(1.0, straight.ranks.everyone)
    resumed = Trainer(chosen, CPU)
    restore(resumed, path, print)
    same = losses(straight, 5, 9) == losses(resumed, 5, 9)
    one, other = straight.optimizer, resumed.optimizer
    tensors = {**one.state(), **one.parameters}, {**other.state(), **other.parameters}
    return same and all(torch.equal(each, tensors[1][key]) for key, each in tensors[0].items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "bits"), KEPT)
def test_every_rule_is_saved_and_resumed_bit_for_bit(
    name: str, bits: int, precision: str, tmp_path: Path
) -> None:
    chosen = plan(optimizer=optimizer(name, bits), layout=layout(precision=precision))
    assert goes_on_alike(chosen, tmp_path)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "bits", "spread"),
    [
        ("muon", 32, {"data": 2}),
        ("adafactor", 32, {"data": 2}),
        ("adamw", 8, {"data": 2}),
        ("lion", 16, {"data": 2, "sharding": "parameters"}),
        ("schedule_free", 32, {"data": 2, "sharding": "optimizer"}),
        ("muon", 8, {"pipeline": 2, "accumulation": 2}),
    ],
)
def test_several_processes_save_and_resume_bit_for_bit(
    name: str, bits: int, spread: dict[str, object], tmp_path: Path
) -> None:
    chosen = plan(optimizer=optimizer(name, bits), layout=layout(**{"micro_batch": 2, **spread}))
    assert processes(2, goes_on_alike, chosen, tmp_path) == [True, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RULES)
def test_a_step_within_the_backward_pass_is_the_same_step(name: str, precision: str) -> None:
    found = []
    for fused in (False, True):
        chosen = plan(
            optimizer=optimizer(name, clip=0.0, fused=fused), layout=layout(precision=precision)
        )
        trainer = Trainer(chosen, CPU)
        found.append([trainer.step(number, RandomBatches())[:3] for number in range(4)])
        assert all(each.grad is None for each in trainer.model.parameters())
    for apart, within in zip(*found, strict=True):
        assert within[0] == apart[0] and within[2] == apart[2]
        # The norm's terms come in another order.
        assert within[1] == pytest.approx(apart[1], rel=1e-5)


def test_gradients_within_the_backward_pass_are_freed_at_once() -> None:
    trainer = Trainer(plan(optimizer=optimizer(clip=0.0, fused=True)), CPU)
    most: list[int] = []
    update = trainer.optimizer._update

    def counted(name: str, gradient: torch.Tensor, step: object) -> None:
        most.append(sum(p.grad is not None for p in trainer.model.parameters()))
        update(name, gradient, step)  # type: ignore[arg-type]

    trainer.optimizer._update = counted  # type: ignore[method-assign]
    trainer.step(0, RandomBatches())
    assert len(most) == len(list(trainer.model.parameters())) and max(most) == 0


def test_a_checkpoint_is_waited_for_before_weights_change_within_the_backward_pass() -> None:
    trainer = Trainer(plan(optimizer=optimizer(clip=0.0, fused=True)), CPU)
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    settled: list[bool] = []
    trainer.settle = lambda: settled.append(
        all(torch.equal(each, before[name]) for name, each in trainer.model.named_parameters())
    )
    trainer.step(0, RandomBatches())
    assert settled == [True]


def test_an_average_is_evaluated_kept_and_answers(tmp_path: Path) -> None:
    trainer = Trainer(plan(optimizer=optimizer(ema=0.9), layout=layout(precision="bf16")), CPU)
    values, masters = trainer.model.kernels.values, trainer.optimizer.masters()
    expected = {name: values(each).clone() for name, each in masters.items()}
    for number in range(5):
        trainer.step(number, RandomBatches())
        keeps = min(0.9, (2.0 + number) / (11.0 + number))
        for name, each in masters.items():
            expected[name] = keeps * expected[name] + (1 - keeps) * values(each)
    training = {name: each.clone() for name, each in trainer.optimizer.parameters.items()}
    with trainer.optimizer.answering():
        for name, each in trainer.optimizer.parameters.items():
            torch.testing.assert_close(each, expected[name].bfloat16(), rtol=1e-2, atol=1e-4)
        averaged = evaluate(trainer, RandomBatches(), 4).loss
    assert averaged != evaluate(trainer, RandomBatches(), 4).loss
    after = trainer.optimizer.parameters
    assert all(torch.equal(after[name], each) for name, each in training.items())
    path = saved(trainer, beside(trainer, tmp_path))
    answers = weights(path)
    kept = load_file(path / "optimizer.safetensors")
    for name, each in answers.items():
        assert torch.equal(each, kept[f"average.{name}"].bfloat16())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_schedule_free_mean_answers(precision: str, tmp_path: Path) -> None:
    chosen = plan(optimizer=optimizer("schedule_free"), layout=layout(precision=precision))
    trainer = Trainer(chosen, CPU)
    losses(trainer, 0, 8)
    training = {name: each.clone() for name, each in trainer.optimizer.parameters.items()}
    with trainer.optimizer.answering():
        answering = {name: each.clone() for name, each in trainer.optimizer.parameters.items()}
    assert all(torch.equal(trainer.optimizer.parameters[n], each) for n, each in training.items())
    assert not all(torch.equal(answering[name], each) for name, each in training.items())
    found = weights(saved(trainer, beside(trainer, tmp_path)))
    assert all(torch.equal(found[name], each) for name, each in answering.items())


@pytest.mark.parametrize(
    ("changes", "decaying"),
    [
        ({}, {"blocks.0.up.weight", "tokens.weight"}),
        ({"undecayed": ("tokens.*",)}, {"blocks.0.up.weight"}),
        ({"decayed": "all"}, {"blocks.0.up.weight", "tokens.weight", "blocks.0.up.bias"}),
    ],
)
def test_matrices_decay_and_vectors_where_asked(
    changes: dict[str, object], decaying: set[str]
) -> None:
    chosen = optimizer(weight_decay=0.5, **changes)
    trainer, plain = (
        Trainer(plan(optimizer=each, model=_biased()), CPU)
        for each in (chosen, msgspec.structs.replace(chosen, weight_decay=0.0))
    )
    with torch.no_grad():
        for each in (trainer, plain):
            each.optimizer.parameters["blocks.0.up.bias"].fill_(0.3)
    for each in (trainer, plain):
        each.step(0, RandomBatches())
    names = {"blocks.0.up.weight", "tokens.weight", "blocks.0.up.bias"}
    one, other = trainer.optimizer.parameters, plain.optimizer.parameters
    assert {name for name in names if not torch.equal(one[name], other[name])} == decaying


def _biased() -> object:
    from .conftest import model

    return model("gpt2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": optimizer(fused=True)}, "norm of all gradients"),
        (
            {"optimizer": optimizer(fused=True, clip=0.0),
             "layout": layout(micro_batch=2, accumulation=2)},
            "2 micro-batches are added up",
        ),
        ({"optimizer": optimizer(fused=True, clip=0.0), "on_spike": "skip"}, "cannot be left out"),
        ({"optimizer": optimizer(fused=True, clip=0.0),
          "layout": layout(micro_batch=2, data=2)}, "behind the backward pass"),
        ({"optimizer": optimizer("muon"),
          "layout": layout(micro_batch=2, data=2, sharding="parameters")}, "whole parameters"),
        ({"optimizer": optimizer("adafactor"), "layout": layout(tensor=2)}, "whole parameters"),
        ({"optimizer": optimizer(bits=8), "layout": layout(tensor=2)}, "whole parameters"),
        ({"optimizer": optimizer("adafactor", bits=8)}, "rows and columns"),
        ({"optimizer": optimizer("schedule_free", ema=0.9)}, "a mean of its own"),
        ({"optimizer": optimizer(ema=0.9), "exchange": LocalSteps(every=5),
          "checkpoints": Checkpointing(every=5, keep=2),
          "layout": layout(micro_batch=2, data=2)}, "in common"),
    ],
)  # fmt: skip
def test_what_excludes_each_other_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        Trainer(plan(**changes), CPU)
    assert caught.value.hint


def test_a_gradient_that_is_no_number_changes_nothing_within_the_backward_pass() -> None:
    trainer = Trainer(plan(optimizer=optimizer(clip=0.0, fused=True)), CPU)
    usual = trainer.model.loss
    trainer.model.loss = lambda *a, **k: usual(*a, **k) * math.nan  # type: ignore[method-assign]
    before = {name: each.clone() for name, each in trainer.optimizer.parameters.items()}
    assert not trainer.step(0, RandomBatches()).taken
    after = trainer.optimizer.parameters
    assert all(torch.equal(after[name], each) for name, each in before.items())


@pytest.mark.skipif("native" not in available(), reason="native kernels cannot run here")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_native_kernels_step_eight_bits_as_torch_does(name: str) -> None:
    found = [
        losses(
            Trainer(
                plan(
                    optimizer=optimizer(name, 8),
                    layout=layout(kernels=kernels, precision="bf16"), steps=6,
                ), CPU,
            ), 0, 6,
        )
        for kernels in ("torch", "native")
    ]  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=2e-2)


def test_the_mean_s_weight_is_kept_once_for_a_parameter() -> None:
    trainer = Trainer(plan(optimizer=optimizer("schedule_free")), CPU)
    trainer.step(0, RandomBatches())
    masses = [float(each.states["mass"].values) for each in trainer.optimizer.own.values()]
    assert isinstance(trainer.optimizer.settings.rule, ScheduleFree)
    assert masses == pytest.approx([(RATES["schedule_free"] / 2) ** 2] * len(masses))
