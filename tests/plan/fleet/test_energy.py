from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from narrows.plan.fleet.energy import COMPUTING, IDLE_SHARE, MOVING, WAITING, joules
from narrows.plan.fleet.time import Step
from narrows.spec.fleet import Fleet

MakeFleet = Callable[..., Fleet]
TakeStep = Callable[..., Step]


def watts(taken: Step, fleet: Fleet) -> float:
    """Mean power of one device."""
    return float((joules(taken, fleet) / taken.seconds)[0]) / fleet.devices


def test_a_device_draws_between_idle_and_full_power(take: TakeStep, fleet: Fleet) -> None:
    assert 400 < watts(take(data=16, micro_batch=4), fleet) < 500
    stalled = take(tensor=16)
    assert 100 + WAITING * 400 < watts(stalled, fleet) < 370


@pytest.mark.parametrize("part", list(Step.__struct_fields__))
def test_each_part_draws_by_what_it_keeps_busy(take: TakeStep, fleet: Fleet, part: str) -> None:
    taken = take()
    nothing = dict.fromkeys(taken.__struct_fields__, 0.0 * taken.gemm)
    alone = Step(**{**nothing, part: 2.0 + nothing[part]})
    share = WAITING
    if part in ("gemm", "attention", "head"):
        share = COMPUTING
    elif part in ("pointwise", "optimizer"):
        share = MOVING
    assert watts(alone, fleet) == pytest.approx(100 + share * 400)


def test_power_that_is_not_published_is_not_made_up(take: TakeStep, make_fleet: MakeFleet) -> None:
    assert joules(take(), make_fleet(power_full=None)) == 0.0


def test_idle_power_is_a_share_of_the_full_where_unknown(
    take: TakeStep, fleet: Fleet, make_fleet: MakeFleet
) -> None:
    assert fleet.power_idle is not None and fleet.power_full is not None
    same = msgspec.structs.replace(
        fleet.power_idle, value=IDLE_SHARE * float(fleet.power_full.value)
    )
    told, unknown = make_fleet(power_idle=same), make_fleet(power_idle=None)
    assert joules(take(), unknown) == pytest.approx(joules(take(), told))
