from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest

from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.render import text
from narrows.plan.fleet.variants import Wanted
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Forecast
from narrows.spec.job import budget
from narrows.spec.machine import Basis
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]
Ask = Callable[..., Forecast]


@pytest.fixture(scope="module")
def ask(small: ModelSpec, fleet: Fleet) -> Ask:
    """A forecast: by default of the small model over the fleet, with an end."""

    def asked(**changes: Any) -> Forecast:
        usual: dict[str, Any] = {
            "name": "small", "model": small, "fleet": fleet, "batch": 64, "wanted": Wanted(),
            "budget": budget("1T tokens"),
        }  # fmt: skip
        return forecast(Question(**{**usual, **changes}))

    return asked


def test_every_number_says_its_basis(ask: Ask) -> None:
    answer = ask()
    told = {each.name: each for each in (*answer.answers, *answer.facts)}
    assert all(each.basis in get_args(Basis) and each.source for each in told.values())
    for name in (
        "step", "memory of a device", "power", "goodput", "whole training", "energy", "money",
        "carbon", "loss", "peak bf16", "memory bandwidth", "bus", "wire", "wire, latency",
        "power idle", "power full", "price of a device", "carbon of electricity",
        "power usage effectiveness", "reach",
    ):  # fmt: skip
        assert name in told, name
    assert answer.run is not None and told["money"].value == f"${answer.run.dollars:,.0f}"
    assert told["peak bf16"].value == "100 TFLOP/s"
    shown = " ".join(text(answer).split())
    for each in told.values():
        assert f"{each.name}: {each.value} (" in shown, each.name


def test_only_formats_that_are_used_are_told(ask: Ask) -> None:
    names = [each.name for each in ask(wanted=Wanted(precision="fp8")).facts]
    assert [name for name in names if name.startswith("peak")] == ["peak fp8", "peak bf16"]


def test_what_is_not_known_has_no_basis(ask: Ask, make_fleet: MakeFleet) -> None:
    bare = ask(fleet=make_fleet(price=None, power_full=None, power_idle=None))
    names = {each.name for each in (*bare.answers, *bare.facts)}
    unknown = {"power", "energy", "money", "carbon", "price of a device", "power full"}
    assert not names & unknown


def test_a_prediction_from_what_was_measured_is_no_measurement(
    ask: Ask, make_fleet: MakeFleet
) -> None:
    known = make_fleet()
    for basis, said in (("measured", "estimated"), ("fitted", "fitted"), ("assumed", "assumed")):
        reach = msgspec.structs.replace(known.reach, basis=basis)
        found = ask(fleet=msgspec.structs.replace(known, reach=reach))
        assert found.answers[0].name == "step" and found.answers[0].basis == said
        assert found.facts[-1].basis == basis
