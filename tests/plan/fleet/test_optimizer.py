from __future__ import annotations

from collections.abc import Callable

import pytest

from narrows.plan.fleet import constants
from narrows.plan.fleet.optimizer import state_bytes
from narrows.plan.fleet.time import Step
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet, Spread
from narrows.spec.model import ModelSpec
from narrows.spec.units import BytesPerSecond

from .conftest import fact

MakeFleet = Callable[..., Fleet]
TakeStep = Callable[..., Step]


def seconds(step: Step) -> float:
    return float(step.optimizer[0])


def test_the_optimizer_reads_and_writes_its_share(take: TakeStep, small: ModelSpec) -> None:
    whole = small.product_parameters_active + small.vocabulary * small.width
    seconds_alone = constants.OPTIMIZER_BYTES * whole / (1e12 * 0.8)
    assert seconds(take(data=4, sharding="none")) == pytest.approx(seconds_alone)
    assert seconds(take(data=4)) == pytest.approx(seconds_alone / 4)
    assert seconds(take(tensor=4)) == pytest.approx(seconds_alone / 4)
    narrow = seconds(take(tensor=4, state_bits=8))
    assert narrow == pytest.approx(seconds_alone / 4 * (constants.OPTIMIZER_BYTES - 12) / 28)


def test_an_optimizer_elsewhere_waits_for_its_links(
    take: TakeStep, make_fleet: MakeFleet, small: ModelSpec
) -> None:
    linked = make_fleet(host_link=fact(BytesPerSecond(20e9)))
    owned = (small.product_parameters_active + small.vocabulary * small.width) / 16
    here, host, disk = (
        seconds(take(on=linked, data=16, accumulation=3, offload=place))
        for place in ("none", "host", "disk")
    )
    reckoned = constants.OPTIMIZER_BYTES / constants.HOST_MEMORY + 2 * (3 + 1) / 20e9
    assert host == pytest.approx(owned * reckoned)
    assert disk == pytest.approx(host + owned * 24 / constants.HOST_DISK)
    assert here < host < disk
    with pytest.raises(BadInput, match="nothing is offloaded"):
        take(offload="host")


def test_moments_of_eight_bits_take_half_of_the_state() -> None:
    wide, half, narrow = (state_bytes(Spread(state_bits=bits)) for bits in (32, 16, 8))
    assert wide / narrow == pytest.approx(12 / (4 + 2 * (1 + 4 / 256)))
    assert narrow < half < wide
