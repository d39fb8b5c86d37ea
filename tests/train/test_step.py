"""A step must not depend on how it is laid out."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from narrows.kernels.load import available
from narrows.spec.errors import BadInput
from narrows.spec.plan import Plan
from narrows.train.step import Trainer, evaluate
from tests.parallel.processes import run as processes

from .conftest import CONTEXT, VOCABULARY, RandomBatches, layout, model, plan

CPU = torch.device("cpu")
NATIVE = pytest.mark.skipif("native" not in available(), reason="native kernels cannot run here")


def run(steps: int, **changes: object) -> tuple[list[float], dict[str, torch.Tensor]]:
    trainer = Trainer(plan(**changes), CPU)
    losses = [trainer.step(number, RandomBatches()).loss for number in range(steps)]
    return losses, {n: p.detach().float() for n, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch": 1, "accumulation": 4},
        {"micro_batch": 2, "accumulation": 2, "loss_chunk": 24},
        {"recompute": "full"},
        {"loss_chunk": 7},
    ],
)
def test_layouts_learn_the_same(kind: str, change: dict[str, object]) -> None:
    losses, weights = run(4, model=model(kind))
    other_losses, other = run(4, model=model(kind), layout=layout(**change))
    assert other_losses == pytest.approx(losses, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_block_learns_the_same() -> None:
    losses, _ = run(3)
    compiled, _ = run(3, layout=layout(compile=True))
    assert compiled == pytest.approx(losses, rel=1e-5)


@NATIVE
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_native_kernels_follow_fp32(kind: str) -> None:
    losses, _ = run(6, model=model(kind))
    native, _ = run(6, model=model(kind), layout=layout(kernels="native", precision="bf16"))
    readable, _ = run(6, model=model(kind), layout=layout(precision="bf16"))
    assert native == pytest.approx(losses, rel=5e-3)
    assert native == pytest.approx(readable, rel=5e-3)


def test_the_same_seed_gives_the_same_bits() -> None:
    dropped = model(dropout=0.2)
    first, weights = run(3, model=dropped)
    second, again = run(3, model=dropped)
    assert first == second
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_dropout_changes_with_the_seed() -> None:
    assert run(1, model=model(dropout=0.5))[0] != run(1, model=model(dropout=0.5), seed=2)[0]


def test_evaluation_leaves_training_untouched() -> None:
    trainer = Trainer(plan(model=model(dropout=0.3)), CPU)
    one = evaluate(trainer, RandomBatches(), 6).loss
    assert one == evaluate(trainer, RandomBatches(), 6).loss
    assert trainer.model.training
    assert all(p.grad is None for p in trainer.model.parameters())


class Counting:
    """Sequences that count upwards: what follows is certain."""

    def sequences(self, first: int, count: int) -> np.ndarray:
        starts = np.arange(first, first + count)[:, None] * 7
        return (starts + np.arange(CONTEXT + 1)) % VOCABULARY


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_to_count(precision: str) -> None:
    trainer = Trainer(plan(layout=layout(precision=precision), steps=90), CPU)
    losses = [trainer.step(number, Counting()).loss for number in range(90)]
    assert losses[0] > 4.0
    assert losses[-1] < 0.5


@pytest.mark.parametrize("change", [{"causal": False}, {"encoder_layers": 1}])
def test_only_a_causal_decoder_learns_the_next_token(change: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="cannot learn the next token"):
        Trainer(plan(model=msgspec.structs.replace(model("llama"), **change)), CPU)


def validation(chosen: Plan, sequences: int) -> float:
    return evaluate(Trainer(chosen, CPU), RandomBatches(), sequences).loss


@pytest.mark.dist
@pytest.mark.parametrize("sequences", [1, 5, 7])
def test_ranks_that_have_no_sequence_left_count_none(sequences: int) -> None:
    alone = plan(layout=layout(micro_batch=2, accumulation=2))
    shared = plan(layout=layout(micro_batch=2, accumulation=1, data=2))
    expected = validation(alone, sequences)
    assert processes(2, validation, shared, sequences) == pytest.approx([expected] * 2, rel=1e-6)


def test_a_step_computes_all_before_it_waits_for_what_reads_the_weights() -> None:
    trainer = Trainer(plan(), torch.device("cpu"))
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    found: list[bool] = []

    def settle() -> None:
        for name, parameter in trainer.model.named_parameters():
            found.append(torch.equal(parameter, before[name]) and parameter.grad is not None)

    trainer.settle = settle
    trainer.step(0, RandomBatches())
    assert found and all(found)
    after = dict(trainer.model.named_parameters())
    assert not any(torch.equal(after[name], each) for name, each in before.items())
