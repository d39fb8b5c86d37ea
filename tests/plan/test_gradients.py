from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from narrows.plan.gradients import check, due, gradient_bytes, islands, settled
from narrows.spec.errors import BadInput
from narrows.spec.exchange import EXACT, Bf16, GradientExchange, LocalSteps, PowerSGD
from narrows.spec.job import TrainIntent
from narrows.spec.plan import Checkpointing, Evaluation, Schedule
from tests.layouts import layout_of

LOCAL = LocalSteps(every=10)
layout = partial(layout_of, micro_batch=4)
SHAPES = [(1000, 64), (64, 64), (64,)]


@pytest.mark.parametrize(
    ("exchange", "spread", "count"),
    [
        (EXACT, {"data": 4, "tensor": 2}, 1),
        (Bf16(), {"data": 4, "sharding": "parameters"}, 1),
        (PowerSGD(), {"data": 4, "context": 2}, 1),
        (LOCAL, {"data": 4}, 4),
        (LOCAL, {"data": 2, "tensor": 2, "pipeline": 2}, 2),
        (LOCAL, {"data": 4, "replicas": 2, "sharding": "parameters"}, 2),
        (LOCAL, {"data": 4, "replicas": 2, "expert": 4}, 2),
    ],
)
def test_ranks_that_train_apart(
    exchange: GradientExchange, spread: dict[str, Any], count: int
) -> None:
    assert islands(exchange, layout(**spread)) == count


@pytest.mark.parametrize(
    ("exchange", "spread", "what", "hint"),
    [
        (LOCAL, {}, "here is one", "layout.data=2"),
        (LOCAL, {"tensor": 2}, "here is one", "layout.data=2"),
        (LOCAL, {"data": 2, "sharding": "optimizer"}, "a share of the optimizer", "sharding=none"),
        (LOCAL, {"data": 2, "expert": 2}, "experts spread over data ranks", "layout.expert=1"),
        (PowerSGD(), {"data": 2, "sharding": "gradients"}, "gradients are sharded", "bf16"),
        (PowerSGD(), {"data": 2, "expert": 2}, "layout.expert is 2", "layout.expert=1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    exchange: GradientExchange, spread: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        islands(exchange, layout(**spread))
    assert hint in str(caught.value.hint)


def test_evaluations_and_checkpoints_are_where_all_meet() -> None:
    assert (due(LOCAL, 1), due(LOCAL, 10), due(LOCAL, 11), due(EXACT, 11)) == (10, 10, 20, 11)
    often, seldom = Evaluation(every=20, sequences=4), Checkpointing(every=30, keep=2)
    check(LOCAL, "skip", often, seldom)
    with pytest.raises(BadInput, match="do not roll back together"):
        check(LOCAL, "rollback", often, seldom)
    with pytest.raises(BadInput, match="checkpoint_every is 15"):
        check(LOCAL, "skip", often, Checkpointing(every=15, keep=2))
    check(Bf16(), "rollback", often, Checkpointing(every=15, keep=2))


def test_powersgd_begins_after_the_warm_up() -> None:
    why: dict[str, str] = {}
    schedule = Schedule(shape="cosine", warmup_steps=30, decay_steps=70, floor=0.1)
    found = settled(TrainIntent(exchange=PowerSGD(rank=2)), schedule, why)
    assert found == PowerSGD(rank=2, start_step=30) and "exchange" in why
    asked = PowerSGD(start_step=5)
    assert settled(TrainIntent(exchange=asked), schedule, {}) == asked


@pytest.mark.parametrize(
    ("exchange", "values"),
    [
        (EXACT, 4 * (64_000 + 4096 + 64)),
        (Bf16(), 2 * (64_000 + 4096 + 64)),
        (LOCAL, 0.4 * (64_000 + 4096 + 64)),
        (PowerSGD(rank=4), 4 * (4 * 1064 + 4 * 128 + 64)),
        # A square of 64 in factors of rank 20 is 2560 values: 1.6 times fewer are too few.
        (PowerSGD(rank=20), 4 * (20 * 1064 + 4096 + 64)),
    ],
)
def test_bytes_of_a_step(exchange: GradientExchange, values: float) -> None:
    assert gradient_bytes(exchange, SHAPES) == pytest.approx(values)
