from __future__ import annotations

import msgspec
import pytest

from narrows.plan import recipe, scaling
from narrows.spec.errors import BadInput
from narrows.spec.job import TrainIntent
from narrows.spec.machine import Machine
from narrows.spec.model import llama
from narrows.spec.units import Tokens

MODEL = llama(layers=4, width=256, heads=4, vocabulary=4096, context=256)
PACE = recipe.Pace(
    step_seconds=0.2, sequence_seconds=0.002, save_bytes=50e6, validation_sequences=290, context=256
)


def test_a_batch_follows_the_law_and_has_many_divisors() -> None:
    why: dict[str, str] = {}
    assert recipe.batch_sequences(TrainIntent(), 1024, 1e11, why) == 1024  # 1.11M tokens by the law
    assert "arXiv:2503.04715" in why["train.batch_sequences"]
    assert recipe.batch_sequences(TrainIntent(), 256, 1e7, {}) == 24  # 5.8k tokens


def test_a_short_training_keeps_enough_steps() -> None:
    assert recipe.batch_sequences(TrainIntent(), 256, 200 * 512, {}) == 2


def test_a_batch_that_is_asked_for_stands() -> None:
    assert recipe.batch_sequences(TrainIntent(batch_sequences=7), 256, 1e8, {}) == 7
    half = TrainIntent(batch_tokens=Tokens(0.5e6))
    assert recipe.batch_sequences(half, 1024, 1e8, {}) == 488


@pytest.mark.parametrize(
    ("intent", "message"),
    [
        (TrainIntent(batch_tokens=Tokens(100)), "less than one sequence of 256"),
        (TrainIntent(batch_sequences=4, batch_tokens=Tokens(4096)), "is 1024 tokens"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(intent: TrainIntent, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        recipe.batch_sequences(intent, 256, 1e8, {})


def test_the_learning_rate_follows_size_tokens_and_batch() -> None:
    large = llama(layers=24, width=1024, heads=16, vocabulary=32768, context=1024)
    tokens = 1e10
    right = scaling.batch_tokens(tokens)
    plain = recipe.optimizer(TrainIntent(), large, tokens, right, {}).learning_rate
    size = large.parameters - large.vocabulary * large.width
    assert plain == pytest.approx(1.79 * size**-0.713 * tokens**0.307, rel=0.01)
    larger = recipe.optimizer(TrainIntent(), large, tokens, 4 * right, {}).learning_rate
    assert larger == pytest.approx(2 * plain, rel=0.01)


def test_tiny_models_do_not_follow_the_law_beyond_what_was_measured() -> None:
    why: dict[str, str] = {}
    assert recipe.optimizer(TrainIntent(), MODEL, 1e7, 8192, why).learning_rate == 0.004
    assert "held at 0.004" in why["optimizer.learning_rate"]


def test_a_learning_rate_that_is_asked_for_stands() -> None:
    why: dict[str, str] = {}
    given = TrainIntent(learning_rate=3e-4)
    assert recipe.optimizer(given, MODEL, 1e8, 8192, why).learning_rate == 3e-4
    assert why == {}


def test_warm_up_is_long_enough_for_adam_and_no_tenth_of_the_run() -> None:
    long = recipe.schedule(TrainIntent(), MODEL, 100_000, 1_000_000, {})
    assert (long.warmup_steps, long.decay_steps, long.floor) == (40, 99_960, 0.1)
    assert recipe.schedule(TrainIntent(), MODEL, 100, 8192, {}).warmup_steps == 10


def test_shapes_decay_over_their_own_part() -> None:
    wsd = recipe.schedule(TrainIntent(schedule="wsd"), MODEL, 1000, 8192, {})
    assert (wsd.decay_steps, wsd.floor) == (200, 0.0)
    constant = recipe.schedule(TrainIntent(schedule="constant"), MODEL, 1000, 8192, {})
    assert constant.decay_steps == 0


def test_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(BadInput, match="leave nothing of 50"):
        recipe.schedule(TrainIntent(warmup_steps=50), MODEL, 50, 8192, {})


@pytest.mark.parametrize("steps", [30, 300, 3000, 300_000])
def test_evaluating_and_saving_take_their_shares_at_most(steps: int, machine: Machine) -> None:
    found = recipe.cadence(TrainIntent(), machine, PACE, steps)
    training = steps * PACE.step_seconds
    # Four evaluations of sixteen sequences and one checkpoint come in any case.
    assert found.seconds_evaluating <= max(0.035 * training, 4 * 16 * PACE.sequence_seconds)
    assert found.seconds_saving <= max(0.025 * training, 50e6 / 500e6)
    assert max(found.checkpoints.every, found.evaluation.every) % found.checkpoints.every == 0
    assert found.evaluation.sequences <= PACE.validation_sequences


def test_no_half_hour_passes_without_a_checkpoint(machine: Machine) -> None:
    found = recipe.cadence(TrainIntent(), machine, PACE, 1_000_000)
    assert found.checkpoints.every * PACE.step_seconds <= 1800


def test_cadences_that_are_asked_for_stand(machine: Machine) -> None:
    intent = TrainIntent(evaluate_every=7, evaluate_sequences=11, checkpoint_every=13)
    found = recipe.cadence(intent, machine, PACE, 1000)
    assert (found.evaluation.every, found.evaluation.sequences, found.checkpoints.every) == (
        7, 11, 13,
    )  # fmt: skip


def test_slow_disks_are_written_to_less_often(machine: Machine) -> None:
    slow = msgspec.structs.replace(PACE, save_bytes=5e9)
    often = recipe.cadence(TrainIntent(), machine, PACE, 10_000).checkpoints.every
    assert recipe.cadence(TrainIntent(), machine, slow, 10_000).checkpoints.every > often
