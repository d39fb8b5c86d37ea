from __future__ import annotations

from collections.abc import Callable

import pytest

from narrows.plan.fleet import constants
from narrows.plan.fleet.optimizer import host_bytes, state_bytes
from narrows.plan.fleet.time import Step
from narrows.plan.fleet.work import Work
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
    # Four devices a node displace each other, two share a link; the sum comes up to two of three
    # micro-batches and goes down after each, and the weights come up.
    passes = (constants.OPTIMIZER_BYTES + constants.HOST_PASSES) * 4**2 / constants.HOST_MEMORY
    copies = 2 * (3 + 2 + 2 + 1) / (20e9 / 2)
    assert host == pytest.approx(owned * (passes + copies))
    assert disk == pytest.approx(host + owned * 24 / constants.HOST_DISK)
    assert here < host < disk
    with pytest.raises(BadInput, match="nothing is offloaded"):
        take(offload="host")


def test_a_host_keeps_what_its_devices_own(make_fleet: MakeFleet, small: ModelSpec) -> None:
    fleet, work = make_fleet(), Work.of(small, small.context)
    whole = small.product_parameters_active + small.vocabulary * small.width
    # Master and moments, gradients in 32 bits and weights in 16, of four of sixteen shares.
    held = host_bytes(work, Spread(data=16, offload="host"), fleet)
    assert held == pytest.approx(4 / 16 * whole * (12 + 4 + 2))
    assert host_bytes(work, Spread(data=16, sharding="none"), fleet) == pytest.approx(16 * held)


def test_moments_of_eight_bits_take_half_of_the_state() -> None:
    wide, half, narrow = (state_bytes(Spread(state_bits=bits)) for bits in (32, 16, 8))
    assert wide / narrow == pytest.approx(12 / (4 + 2 * (1 + 4 / 256)))
    assert narrow < half < wide
