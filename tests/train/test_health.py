"""A loss that jumps or is not a number stops training and names its cause."""

from __future__ import annotations

import torch

from narrows.parallel.running import Rows
from narrows.train.health import LossWatch, first_non_finite, non_finite
from narrows.train.step import Trainer

from .conftest import plan

TOKENS = Rows.of(torch.arange(33).view(1, 33))


def trainer() -> Trainer:
    return Trainer(plan(), torch.device("cpu"))


def test_a_jump_is_refused_and_noise_is_not() -> None:
    watch = LossWatch()
    for step in range(40):
        loss = 3.0 + 0.1 * (step % 3)
        assert watch.accepts(loss, 1.0)
        watch.took(loss)
    assert watch.accepts(3.6, 1.0)
    assert not watch.accepts(9.0, 55.0)
    assert "jumped to 9.000 at step 41" in watch.jump(41, 9.0, 55.0).what


def test_of_few_values_a_loss_may_scatter_more() -> None:
    strict, loose = LossWatch(), LossWatch(few=True)
    for watch in (strict, loose):
        for step in range(40):
            watch.took(0.67 + 0.02 * (step % 3))
    assert not strict.accepts(1.07, 10.0) and loose.accepts(2.1, 10.0)
    assert not loose.accepts(3.5, 10.0) and not loose.accepts(float("nan"), 1.0)


def test_what_is_no_number_is_refused_from_the_first_step() -> None:
    assert not LossWatch().accepts(float("nan"), 1.0)
    assert not LossWatch().accepts(3.0, float("inf"))


def test_spikes_are_pardoned_five_times_unless_all_went_well_since() -> None:
    watch = LossWatch()
    assert [watch.pardons() for _ in range(6)] == [True] * 5 + [False]
    for _ in range(50):
        watch.took(3.0)
    assert watch.pardons()


def test_a_poisoned_parameter_is_named() -> None:
    split = trainer().split
    with torch.no_grad():
        split.parameters()["blocks.1.up.weight"][0, 0] = float("nan")
    said = non_finite(split, TOKENS, 7, float("nan"))
    assert said.causes == ("first: parameter blocks.1.up.weight",)


def test_an_overflow_is_traced_to_its_module() -> None:
    split = trainer().split
    with torch.no_grad():
        for name in ("blocks.0.up.weight", "blocks.0.down.weight"):
            split.parameters()[name].mul_(1e30)
    assert first_non_finite(split, TOKENS) == "output of blocks.0"


def test_finite_values_pass() -> None:
    split = trainer().split
    assert first_non_finite(split, TOKENS) is None
