from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from narrows.kernels.load import load
from narrows.parallel.mesh import ranks_of
from narrows.parallel.running import Beside, Rows
from narrows.parallel.split import Making, Split, local, split
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import stages
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec

from .equality import CPU, DENSE, MODELS, SEQUENCES, T, assert_equal, layout_of, tokens
from .processes import run

pytestmark = pytest.mark.dist
SCHEDULES: dict[str, dict[str, Any]] = {
    "gpipe": {"schedule": "gpipe"},
    "1f1b": {},
    "interleaved": {"interleave": 2},
    "zero_bubble": {"schedule": "zero_bubble", "interleave": 2},
}
OTHERS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor": 2},
    "whole": {"tensor": 2, "sequence_parallel": False},
    "replicated": {"data": 2, "micro_batch": 1},
    "optimizer": {"data": 2, "micro_batch": 1, "sharding": "optimizer"},
    "gradients": {"data": 2, "micro_batch": 1, "sharding": "gradients"},
    "parameters": {"data": 2, "micro_batch": 1, "sharding": "parameters"},
    "kept": {"data": 2, "micro_batch": 1, "sharding": "parameters", "reshard": False},
}
every = pytest.mark.parametrize("name", MODELS)
scheduled = pytest.mark.parametrize("schedule", SCHEDULES)


def pipeline_of(stages: int, schedule: str, **given: Any) -> Layout:
    return layout_of(pipeline=stages, **SCHEDULES[schedule], **given)


def deep(name: str) -> ModelSpec:
    return msgspec.structs.replace(MODELS[name], layers=8)


@every
@scheduled
def test_two_stages_find_the_gradients_of_one(name: str, schedule: str) -> None:
    assert_equal(MODELS[name], pipeline_of(2, schedule))


@pytest.mark.parametrize(
    ("name", "schedule", "other"),
    [
        ("gpt", "1f1b", "tensor"),
        ("experts", "zero_bubble", "tensor"),
        ("gpt", "zero_bubble", "parameters"),
        ("experts", "interleaved", "gradients"),
        ("dense", "gpipe", "optimizer"),
    ],
)
def test_stages_of_tensor_and_data_ranks_do_too(name: str, schedule: str, other: str) -> None:
    assert_equal(MODELS[name], pipeline_of(2, schedule, **OTHERS[other]))


@pytest.mark.slow
@every
@scheduled
@pytest.mark.parametrize("other", OTHERS)
def test_every_combination_does(name: str, schedule: str, other: str) -> None:
    if (name, other) == ("experts", "whole"):
        pytest.skip("tensor ranks would all send the same tokens to the experts")
    assert_equal(MODELS[name], pipeline_of(2, schedule, **OTHERS[other]))


@pytest.mark.slow
@every
@scheduled
def test_four_stages_do(name: str, schedule: str) -> None:
    assert_equal(deep(name), pipeline_of(4, schedule, micro_batch=1))


@pytest.mark.slow
@every
@scheduled
def test_eight_processes_do(name: str, schedule: str) -> None:
    layout = pipeline_of(2, schedule, tensor=2, data=2, micro_batch=1, sharding="parameters")
    assert_equal(MODELS[name], layout)


@scheduled
def test_blocks_computed_again_do(schedule: str) -> None:
    assert_equal(MODELS["experts"], pipeline_of(2, schedule, recompute="full"))


@scheduled
def test_what_is_dropped_does_not_depend_on_stages(schedule: str) -> None:
    spec = msgspec.structs.replace(MODELS["gpt"], dropout=0.2)
    assert_equal(spec, pipeline_of(2, schedule, recompute="full"))


@pytest.mark.slow
@every
@scheduled
@pytest.mark.parametrize("exchange", ["ring", "all_to_all"])
def test_stages_of_context_ranks_do(name: str, schedule: str, exchange: str) -> None:
    assert_equal(MODELS[name], pipeline_of(2, schedule, context=2, exchange=exchange))


@pytest.mark.slow
@scheduled
@pytest.mark.parametrize(
    "other",
    [
        {"data": 2, "micro_batch": 1, "sharding": "parameters"},
        {"data": 2, "micro_batch": 1},
        {"tensor": 2},
    ],
)
def test_stages_of_expert_ranks_do(schedule: str, other: dict[str, Any]) -> None:
    assert_equal(MODELS["experts"], pipeline_of(2, schedule, expert=2, **other))


@scheduled
def test_as_few_micro_batches_as_stages_do(schedule: str) -> None:
    assert_equal(MODELS["gpt"], pipeline_of(2, schedule, micro_batch=4))


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [("1f1b", 1, 1), ("1f1b", 7, 0), ("interleaved", 0, 1), ("zero_bubble", 1, 1)],
)
def test_uneven_stages_do(schedule: str, first: int, last: int) -> None:
    spec = msgspec.structs.replace(MODELS["masked"], layers=7)
    assert_equal(spec, pipeline_of(2, schedule, first_fewer=first, last_fewer=last))


def built(spec: ModelSpec, layout: Layout) -> Split:
    making = Making(load("torch"), None, CPU, torch.float32)
    return split(spec, layout, ranks_of(layout, CPU), making, seed=3)


def trained(spec: ModelSpec, layout: Layout) -> list[float]:
    """Losses of steps down the gradient, each behind a look at the first sequence alone."""
    mine = built(spec, layout)
    first, count = mine.own(SEQUENCES)
    losses = []
    for _ in range(4):
        looked, counted, _ = mine.loss(Rows.of(tokens()[:3]), layout.loss_chunk)
        assert counted == 3 * T
        losses.append(float(looked) / 3 / T)
        losses.append(float(mine.run(Rows.of(tokens()[first : first + count]), layout.loss_chunk)))
        held = mine.parameters()
        gradients = {name: local(each.grad) for name, each in held.items() if each.grad is not None}
        mine.complete(gradients)
        for name, gradient in gradients.items():
            local(held[name]).sub_(gradient, alpha=0.3)
            held[name].grad = None
    return losses


@pytest.mark.parametrize(
    ("schedule", "other"),
    [("1f1b", "parameters"), ("interleaved", "tensor"), ("zero_bubble", "replicated")],
)
def test_steps_and_looks_in_between_follow_those_of_one(schedule: str, other: str) -> None:
    alone = trained(MODELS["gpt"], layout_of())
    assert alone[-2] < alone[0] - 0.05
    layout = pipeline_of(2, schedule, **OTHERS[other])
    for losses in run(layout.processes, trained, MODELS["gpt"], layout):
        assert losses == pytest.approx(alone, rel=1e-6)


def flown(spec: ModelSpec, layout: Layout) -> int:
    """Of how many pieces activations are kept at once."""
    flying = most = 0

    def begun(_: int) -> None:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)

    def ended() -> None:
        nonlocal flying
        flying -= 1

    built(spec, layout).run(Rows.of(tokens()), layout.loss_chunk, Beside(before=begun, after=ended))
    return most


@scheduled
def test_as_many_micro_batches_are_in_flight_as_the_plan_says(schedule: str) -> None:
    layout = pipeline_of(4, schedule, micro_batch=1)
    found = run(4, flown, deep("dense"), layout)
    spread = Spread(pipeline=4, accumulation=SEQUENCES, **SCHEDULES[schedule])
    planned = stages(Work.of(deep("dense"), T), Spreads.of([spread])).flight[:, 0]
    assert [found[0], found[1]] == list(planned[:2] * layout.interleave)
    if schedule != "zero_bubble":
        assert found[3] == planned[2] * layout.interleave


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"micro_batch": 8}, "1 micro-batches a step are too few for 2 stages"),
        ({"interleave": 3}, "4 layers cannot be divided into 6 pieces"),
        ({"last_fewer": 5}, "4 layers .* into 2 pieces, with 0 fewer in the first and 5 fewer"),
        (
            {"schedule": "zero_bubble", "interleave": 2, "compile": True},
            "cannot run backward in two passes",
        ),
    ],
)
def test_what_cannot_run_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run(2, built, DENSE, layout_of(pipeline=2, **given))


def stepped(spec: ModelSpec, layout: Layout) -> None:
    built(spec, layout).run(Rows.of(tokens()[:7]), layout.loss_chunk)


def test_a_smaller_last_micro_batch_is_refused() -> None:
    with pytest.raises(AssertionError, match="7 sequences are no micro-batches of 2"):
        run(2, stepped, DENSE, pipeline_of(2, "1f1b"))
