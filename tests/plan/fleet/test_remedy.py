from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from narrows.plan.fleet.question import Question
from narrows.plan.fleet.remedy import Change, Remedy, remedies
from narrows.plan.fleet.search import search
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.machine import Fact
from narrows.spec.model import ModelSpec
from narrows.spec.units import BytesPerSecond

MakeFleet = Callable[..., Any]
Mend = Callable[..., list[Remedy]]


@pytest.fixture(scope="module")
def mend(small: ModelSpec, make_fleet: MakeFleet) -> Mend:
    """Remedies of the small model over few devices of few gigabytes."""

    def mended(
        *, devices: int = 1, gigabytes: float = 8.0, large: float = 80.0, **wanted: Any
    ) -> list[Remedy]:
        link = Fact(value=BytesPerSecond(25e9), basis="assumed", source="made up for a test")
        fleet = make_fleet(devices=devices, gigabytes=gigabytes, host_link=link)
        question = Question(
            name="small", model=small, fleet=fleet, batch=16, wanted=Wanted(**wanted)
        )

        def changed(change: Change) -> Question:
            option, value = change
            if option == "machine":
                size = large if value == "large" else gigabytes
                count = devices if value == "large" else int(value.partition("x")[0])
                return replace(question, fleet=make_fleet(devices=count, gigabytes=size))
            if option == "context":
                model = replace(small, context=int(value))
                return replace(question, model=model)
            if option == "tune":
                bits = 4.0 if value == "qlora" else None
                return replace(
                    question,
                    wanted=replace(question.wanted, trained=0.01, stored_bits=bits),
                )
            key, _, to = value.removeprefix("layout.").partition("=")
            set_to: Any = {"true": True, "": None}.get(to, int(to) if to.isdigit() else to)
            return replace(question, wanted=replace(question.wanted, **{key: set_to}))

        return remedies(question, changed, ["large"])

    return mended


def test_layouts_come_first_then_machines_then_other_trainings(mend: Mend) -> None:
    found = [remedy.change for remedy in mend()]
    kinds = [option for option, _ in found]
    assert kinds == sorted(kinds, key=["set", "machine", "context", "tune"].index) or (
        kinds.index("set") < kinds.index("machine") < min(kinds.index("tune"), len(kinds))
    )
    assert ("set", "layout.offload=host") in found and ("machine", "large") in found
    assert ("machine", "2xmade-up") in found and ("tune", "qlora") in found


def test_of_one_kind_the_cheapest_comes_first(mend: Mend) -> None:
    costs: dict[str, list[float]] = {}
    for remedy in mend():
        option = "learn" if remedy.change[0] in ("tune", "context") else remedy.change[0]
        costs.setdefault(option, []).append(remedy.devices / remedy.tokens_per_s)
    assert all(each == sorted(each) for each in costs.values()) and len(costs) == 3


def test_what_was_fixed_is_set_to_what_is_best(mend: Mend) -> None:
    found = mend(devices=4, micro_batch=4, recompute="none", gigabytes=6.0)
    changes = [value for option, value in (remedy.change for remedy in found) if option == "set"]
    assert "layout.micro_batch=1" in changes
    assert not [value for value in changes if value.endswith(("=", "None"))]


def test_each_remedy_fits_and_goes_at_the_pace_it_says(
    mend: Mend, small: ModelSpec, make_fleet: MakeFleet
) -> None:
    remedy = next(each for each in mend() if each.change == ("machine", "large"))
    found = search(Work.of(small, 2048), make_fleet(devices=1, gigabytes=80.0), 16, Wanted())
    best = found.best()
    assert best is not None and remedy.tokens_per_s == pytest.approx(
        16 * 2048 / found.seconds[best]
    )
    assert remedy.memory_bytes == found.bytes[best] <= found.limit


def test_where_nothing_helps_there_is_no_remedy(mend: Mend) -> None:
    assert mend(gigabytes=0.5, large=0.6, tensor=1, pipeline=1, context=1) == []


def test_a_change_that_cannot_be_asked_is_passed_over(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    def refused(change: Change) -> Question:
        raise BadInput(f"no {change}")

    question = Question(
        name="small", model=small, fleet=make_fleet(devices=1, gigabytes=8.0), batch=16,
        wanted=Wanted(),
    )  # fmt: skip
    assert remedies(question, refused, ["large"]) == []
