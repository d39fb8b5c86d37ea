from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from narrows.plan import scaling
from narrows.plan.fleet import dial
from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question, Wish
from narrows.plan.fleet.variants import Wanted
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Forecast
from narrows.spec.job import budget
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]
Ask = Callable[..., Forecast]


@pytest.fixture(scope="module")
def ask(small: ModelSpec, fleet: Fleet) -> Ask:
    """A forecast of the small model within a budget."""

    def asked(*bounds: str, on: Fleet = fleet) -> Forecast:
        return forecast(Question(
            name="small", model=small, fleet=on, batch=64, wanted=Wanted(), budget=budget(*bounds)
        ))  # fmt: skip

    return asked


@pytest.fixture(scope="module")
def size(fleet: Fleet) -> Callable[..., Question]:
    """The size that a budget buys over the fleet."""

    def sized(*bounds: str, on: Fleet = fleet, **changes: Any) -> Question:
        usual: dict[str, Any] = {"context": 512, "batch": None, "wanted": Wanted()}
        return dial.dial(Wish(fleet=on, budget=budget(*bounds), **{**usual, **changes}))

    return sized


@pytest.mark.parametrize(
    ("bound", "most", "spent"),
    [("2h", 7200.0, "seconds"), ("30 kWh", 30 * 3.6e6, "joules"), ("$100", 100.0, "dollars")],
)
def test_a_budget_is_spent_and_not_overspent(ask: Ask, bound: str, most: float, spent: str) -> None:
    answer = ask(bound)
    assert answer.run is not None and answer.dial is not None
    value, step = getattr(answer.run, spent), 1.0 / answer.run.steps
    assert most * (1.0 - 2.0 * step) < value <= most
    assert answer.dial.tokens == answer.tokens == answer.run.tokens


def test_tokens_are_all_trained_on(ask: Ask) -> None:
    answer = ask("1000001 tokens")
    assert answer.run is not None and answer.run.steps == 8
    assert answer.run.tokens == 8 * 64 * 2048 > 1_000_001


def test_the_tightest_bound_binds(ask: Ask) -> None:
    answer = ask("1h", "1T tokens", "$1", "1 GWh")
    assert answer.dial is not None
    assert [each.bound for each in answer.dial.limits] == [
        "$1", "1 h", "1 T tokens", "1 GWh"
    ]  # fmt: skip
    bought = [each.tokens for each in answer.dial.limits]
    assert bought == sorted(bought) and answer.dial.tokens <= bought[0]


def test_what_is_not_known_or_too_little_is_refused(ask: Ask, make_fleet: MakeFleet) -> None:
    with pytest.raises(BadInput, match="power of made-up is not known"):
        ask("1 kWh", on=make_fleet(power_full=None))
    with pytest.raises(BadInput, match="price of made-up is not known"):
        ask("$1", on=make_fleet(price=None))
    # Before it is told what would make the job fit, which would be refused in turn.
    with pytest.raises(BadInput, match="price of made-up is not known"):
        ask("$1", on=make_fleet(price=None, gigabytes=1.0, devices=1))
    with pytest.raises(BadInput, match="over before the end of the first step"):
        ask("10 ms")


def test_loss_is_told_only_where_the_law_was_fitted(ask: Ask, size: Any) -> None:
    answer = ask("1B tokens")
    assert answer.dial is not None
    law = float(scaling.loss(np.array(answer.model.parameters), answer.dial.tokens, None))
    assert answer.dial.loss == pytest.approx(law)
    tiny = forecast(size("100M tokens"))
    assert tiny.dial is not None and tiny.dial.loss is None
    assert tiny.model.parameters < scaling.FITTED_PARAMETERS[0]


def test_no_other_size_has_a_lower_loss_for_the_budget(size: Any, fleet: Fleet) -> None:
    best = forecast(size("1 day"))
    assert best.dial is not None and best.dial.loss is not None
    models = dial._family(512)
    place = models.index(best.model)
    for other in (place // 2, place - 2, place - 1, place + 1, place + 2, place + 6):
        answer = forecast(Question(
            name="other", model=models[other], fleet=fleet, batch=best.batch_sequences,
            wanted=Wanted(), budget=budget("1 day"),
        ))  # fmt: skip
        assert answer.dial is not None and answer.dial.loss is not None
        assert best.dial.loss < answer.dial.loss


def test_more_never_makes_a_smaller_model_and_twice_is_what_twice_would_be(size: Any) -> None:
    found = [size(bound) for bound in ("1h", "1 day", "2 days", "60 days")]
    sizes = [each.model.parameters for each in found]
    assert sizes == sorted(sizes) and sizes[-1] > 20 * sizes[0]
    assert found[1].sizing.twice_parameters == found[2].model.parameters


def test_tokens_alone_choose_the_size_they_are_optimal_for(size: Any) -> None:
    answer = forecast(size("20B tokens"))
    assert answer.dial is not None and answer.dial.sizing is not None
    assert answer.dial.tokens_optimal == pytest.approx(20e9, rel=0.3)
    assert answer.dial.sizing.twice_parameters is None


def test_what_does_not_fit_is_passed_over(size: Any, make_fleet: MakeFleet) -> None:
    tight = size("1000 days", on=make_fleet(devices=1, gigabytes=10.0))
    assert tight.sizing.largest and tight.model.parameters < 1e9
    assert size("1000 days").model.parameters > 10 * tight.model.parameters
    least = size("20B tokens", on=make_fleet(devices=1, gigabytes=10.0))
    assert least.model.parameters <= tight.model.parameters
    with pytest.raises(DoesNotFit, match="no model of this kind fits"):
        size("1 day", on=make_fleet(devices=1, gigabytes=0.5))


@pytest.mark.parametrize("devices", [1, 12, 16, 36])
def test_the_batch_divides_among_the_devices(
    size: Any, make_fleet: MakeFleet, devices: int
) -> None:
    chosen = size("1 day", on=make_fleet(devices=devices))
    assert chosen.batch % (devices // (devices & -devices)) == 0
    law = scaling.batch_tokens(float(scaling.optimal_tokens(chosen.model.parameters)))
    assert 0.5 < chosen.batch * 512 / law < 2.0
    assert size("1 day", batch=48).batch == 48


def test_what_no_size_can_be_laid_out_as_is_bad_input(size: Any, make_fleet: MakeFleet) -> None:
    with pytest.raises(BadInput, match="has no fp4 figures"):
        size("1 day", wanted=Wanted(precision="fp4"))
    with pytest.raises(BadInput, match="cannot be divided"):
        size("1B tokens", batch=3, wanted=Wanted(tensor=1, pipeline=1, context=1))
