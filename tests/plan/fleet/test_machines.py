from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Forecast
from narrows.spec.machine import Fact
from narrows.spec.units import DollarsPerHour, Watts

MakeFleet = Callable[..., Fleet]
Ask = Callable[..., Question]


def fact(value: Any) -> Fact[Any]:
    return Fact(value=value, basis="assumed", source="made up for a test")


@pytest.fixture(scope="module")
def answer(ask: Ask, make_fleet: MakeFleet) -> Forecast:
    tiny, four = make_fleet(devices=1, gigabytes=1.0), make_fleet(devices=4)
    return forecast(ask(
        against=(tiny, four, make_fleet(devices=16, formats=())),
        ladder=tuple(make_fleet(devices=1 << power) for power in range(1, 8)),
    ))  # fmt: skip


def test_elsewhere_is_the_best_of_another_fleet_or_why_not(
    answer: Forecast, ask: Ask, make_fleet: MakeFleet
) -> None:
    own, four, tiny, formless = answer.elsewhere
    assert own.spread == answer.spread and own.step_seconds == answer.predicted.step_seconds
    with pytest.raises(DoesNotFit) as caught:
        forecast(ask(fleet=make_fleet(devices=1, gigabytes=1.0)))
    needed = caught.value.what.removeprefix("the job does not fit: ").partition(" needed")[0]
    assert tiny.spread is None
    assert tiny.verdict == f"does not fit: {needed} of 0.9 GB at the least"
    assert formless.spread is None and "no bf16 figures" in formless.verdict
    there = forecast(ask(fleet=make_fleet(devices=4)))
    assert four.spread == there.spread and four.step_seconds == there.predicted.step_seconds
    assert four.memory_peak == pytest.approx(there.predicted.memory.peak)
    assert four.tokens_per_s == pytest.approx(there.predicted.tokens_per_s)
    # Two dollars an hour for each of four.
    assert four.tokens_per_s is not None
    assert four.dollars_per_billion_tokens == pytest.approx(8 / 3600 / four.tokens_per_s * 1e9)


def test_the_best_of_several_fleets_is_by_the_goal(ask: Ask, make_fleet: MakeFleet) -> None:
    dear = make_fleet(devices=32, price=fact(DollarsPerHour(20.0)), name="dear")
    thrifty = make_fleet(devices=4, power_full=fact(Watts(200.0)), name="thrifty")
    unknown = make_fleet(devices=64, price=None, power_full=None, name="unknown")
    others = (dear, thrifty, unknown)
    first = {
        goal: forecast(ask(goal=goal, against=others)).elsewhere
        for goal in ("time", "money", "energy")
    }
    assert [each.fleet for each in first["time"]] == ["unknown", "dear", "16xmade-up", "thrifty"]
    assert first["money"][0].fleet == "thrifty" and first["energy"][0].fleet == "thrifty"
    for goal in ("money", "energy"):
        assert first[goal][-1].fleet == "unknown" and first[goal][-1].tokens_per_s
        with pytest.raises(BadInput, match="is not known, so no layout is best"):
            forecast(ask(goal=goal, fleet=unknown))


def test_money_is_time_on_one_fleet(ask: Ask) -> None:
    assert forecast(ask(goal="money")).spread == forecast(ask(goal="time")).spread


def test_scaling_is_the_same_batch_on_other_counts(answer: Forecast) -> None:
    devices = [each.devices for each in answer.scaling]
    assert devices == [2, 4, 8, 16, 32, 64, 128]
    # 64 sequences: a sequence of 2048 is cut in two, layers and tensors in more.
    seconds = [each.step_seconds for each in answer.scaling if each.step_seconds]
    assert seconds == sorted(seconds, reverse=True)
    (same,) = (each for each in answer.scaling if each.devices == 16)
    assert same.step_seconds == answer.predicted.step_seconds
    first, last = answer.scaling[0], answer.scaling[-1]
    assert first.tokens_per_s and last.tokens_per_s
    assert last.tokens_per_s / first.tokens_per_s < 64
    assert answer.bend is not None and answer.bend.error < 0.25
