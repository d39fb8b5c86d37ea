"""Local steps: islands that train apart, and meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from narrows.kernels.interface import Master
from narrows.kernels.reference import TorchKernels
from narrows.parallel.mesh import Axis
from narrows.parallel.split import local
from narrows.spec.errors import BadInput
from narrows.spec.exchange import Bf16, GradientExchange, LocalSteps, PowerSGD
from narrows.spec.plan import Checkpointing, Evaluation, Plan
from narrows.train.checkpoint import Checkpoints, State
from narrows.train.outer import Outer
from narrows.train.state import contents, newest, restore
from narrows.train.step import Trainer, evaluate
from tests.parallel.processes import run

from .conftest import RandomBatches, layout, model, plan

CPU = torch.device("cpu")
PLAIN = LocalSteps(every=1, outer_learning_rate=1.0, outer_momentum=0.0)
THIRD = LocalSteps(every=3)
dist_ = pytest.mark.dist


def of(exchange: GradientExchange, **spread: Any) -> Plan:
    """Eight sequences a step, a dozen steps."""
    made = layout(micro_batch=2, **spread)
    made = msgspec.structs.replace(made, accumulation=4 // made.batches)
    return plan(
        model=model("llama"), layout=made, batch_sequences=8, steps=12, exchange=exchange,
        evaluation=Evaluation(every=6, sequences=6), checkpoints=Checkpointing(every=3, keep=9),
    )  # fmt: skip


class Halves:
    """Of sequences that two ranks read, what one of them does."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def sequences(self, first: int, count: int) -> Any:
        step = first // 4
        return RandomBatches().sequences(8 * step + 4 * self.rank, count)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: local(p).clone() for name, p in trainer.split.parameters().items()}


def test_outer_steps_are_those_of_torchs_sgd() -> None:
    generator = torch.Generator().manual_seed(1)
    begin = torch.randn(5, 4, generator=generator)
    settings = LocalSteps(every=2, outer_learning_rate=0.7, outer_momentum=0.9)
    master = begin.clone()
    outer = Outer(settings, Axis(), TorchKernels(), {"a": Master(master, None)})
    theirs = torch.nn.Parameter(begin.clone())
    sgd = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(4):
        moved = torch.randn(5, 4, generator=generator)
        theirs.grad = -moved
        sgd.step()
        master += moved
        outer.meet()
        torch.testing.assert_close(master, theirs.detach(), rtol=1e-5, atol=1e-6)


def one_step(chosen: Plan) -> tuple[float, dict[str, Tensor]]:
    trainer = Trainer(chosen, CPU)
    return trainer.step(0, RandomBatches()).loss, weights(trainer)


@dist_
def test_plain_meetings_after_each_step_are_the_mean_of_the_weights() -> None:
    together = run(2, one_step, of(PLAIN, data=2))
    alone = []
    for rank in range(2):
        half = plan(model=model("llama"), layout=layout(micro_batch=2, accumulation=2), steps=12)
        trainer = Trainer(half, CPU)
        assert trainer.step(0, Halves(rank)).loss == pytest.approx(together[rank][0], rel=1e-6)
        alone.append(weights(trainer))
    for name, found in together[0][1].items():
        assert torch.equal(found, together[1][1][name])
        torch.testing.assert_close(found, (alone[0][name] + alone[1][name]) / 2)


def one_alone(chosen: Plan) -> list[float]:
    """The first island takes two steps while the others do nothing, then those do."""
    trainer = Trainer(chosen, CPU)
    found = []
    for island in range(trainer.ranks.islands.size):
        if island == trainer.ranks.islands.rank:
            found = [trainer.step(number, RandomBatches()).loss for number in range(2)]
        dist.barrier()
    return found


ISLANDS: dict[str, dict[str, Any]] = {
    "data": {"data": 2},
    "sharded": {"replicas": 2, "data": 2, "sharding": "parameters"},
    "tensor": {"data": 2, "tensor": 2},
}


@dist_
@pytest.mark.parametrize("name", ISLANDS)
def test_between_meetings_islands_ask_nobody(name: str) -> None:
    chosen = of(THIRD, **ISLANDS[name])
    found = run(chosen.layout.processes, one_alone, chosen)
    assert all(found)
    assert len({tuple(each) for each in found}) == 2


def six_steps(chosen: Plan) -> tuple[list[dict[str, Tensor]], float]:
    trainer = Trainer(chosen, CPU)
    found = []
    for number in range(6):
        trainer.step(number, RandomBatches())
        found.append(weights(trainer))
    return found, evaluate(trainer, RandomBatches(), 6).loss


@dist_
def test_islands_part_and_meet_and_their_shape_does_not_matter() -> None:
    plain, sharded = ({"data": 2}, {"replicas": 2, "data": 2, "sharding": "parameters"})
    one, other = run(2, six_steps, of(THIRD, **plain))
    for number, (mine, theirs) in enumerate(zip(one[0], other[0], strict=True)):
        same = all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert same == (number in (2, 5))
    assert one[1] == other[1]
    apart = run(4, six_steps, of(THIRD, **sharded))
    assert [each[1] for each in apart] == pytest.approx([one[1]] * 4, rel=1e-5)


def some_steps(chosen: Plan, folder: Path, begin: int, end: int) -> tuple[list[str], Any]:
    """From a checkpoint where `begin` is one; the state is saved."""
    trainer = Trainer(chosen, CPU)
    everyone = trainer.ranks.everyone
    checkpoints = Checkpoints(folder, 9, print, everyone.rank, everyone.size)
    said: list[str] = []
    if begin:
        found = newest(trainer, checkpoints)
        assert found is not None and found[1].step == begin
        restore(trainer, found[0], said.append)
    for number in range(begin, end):
        trainer.step(number, RandomBatches())
    state = State(step=end, tokens=0.0, elapsed_s=0.0, sha256={})
    checkpoints.save(contents(trainer), state, False)
    checkpoints.wait()
    return said, contents(trainer)[:2]


EXCHANGES: dict[str, tuple[GradientExchange, dict[str, Any]]] = {
    "bf16": (Bf16(), {"data": 2, "sharding": "gradients"}),
    "powersgd": (PowerSGD(rank=2, start_step=4), {"data": 2}),
    "powersgd begun": (PowerSGD(rank=2, start_step=2), {"data": 2, "precision": "bf16"}),
    "local": (THIRD, {"data": 2}),
    "local bf16": (THIRD, {"data": 2, "precision": "bf16"}),
    "local sharded": (THIRD, ISLANDS["sharded"]),
}


@dist_
@pytest.mark.parametrize("name", EXCHANGES)
def test_what_goes_on_from_a_checkpoint_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    exchange, spread = EXCHANGES[name]
    chosen = of(exchange, **spread)
    count = chosen.layout.processes
    straight = run(count, some_steps, chosen, tmp_path / "straight", 0, 9)
    run(count, some_steps, chosen, tmp_path / "broken", 0, 3)
    run(count, some_steps, chosen, tmp_path / "broken", 3, 6)
    resumed = run(count, some_steps, chosen, tmp_path / "broken", 6, 9)
    for (_, wanted), (said, found) in zip(straight, resumed, strict=True):
        assert said == []
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@dist_
@pytest.mark.parametrize(
    ("exchange", "told"),
    [
        (THIRD, "2 islands saved this, and 4 go on"),
        (PowerSGD(rank=2, start_step=2), "what PowerSGD left out of their last gradients is lost"),
    ],
)
def test_other_ranks_that_go_on_say_what_is_lost(
    exchange: GradientExchange, told: str, tmp_path: Path
) -> None:
    run(2, some_steps, of(exchange, data=2), tmp_path, 0, 3)
    said, _ = zip(*run(4, some_steps, of(exchange, data=4), tmp_path, 3, 6), strict=True)
    assert all(told in each[0] for each in said)


def test_what_is_due_between_meetings_is_refused() -> None:
    chosen = of(LocalSteps(every=5), data=2)
    with pytest.raises(BadInput, match="train.evaluate_every is 6") as caught:
        Trainer(chosen, CPU)
    assert "train.evaluate_every=10" in str(caught.value.hint)
