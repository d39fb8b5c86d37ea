from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from narrows.plan.doubling import doubling
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.offers import offers
from narrows.plan.together import step_seconds
from narrows.spec.exchange import Bf16, LocalSteps, PowerSGD
from narrows.spec.layout import Layout
from narrows.spec.machine import Link, Machine
from narrows.spec.model import llama
from narrows.spec.units import BytesPerSecond, Seconds

from .conftest import fact

MODEL = llama(layers=4, width=192, heads=4, vocabulary=512, context=128)
LAYOUT = Layout(
    micro_batch=8, accumulation=1, precision="bf16", recompute="none", compile=False,
    kernels="native", threads=1, loss_chunk=512, data=2,
)  # fmt: skip


def joined(machine: Machine, rate: float) -> Machine:
    link = Link(
        name="2 hosts", backend="gloo", ranks=2, hosts=2, bandwidth=fact(BytesPerSecond(rate)),
        latency=fact(Seconds(2e-4)), together=fact(2.0),
    )  # fmt: skip
    return msgspec.structs.replace(machine, links=(link,))


def of(machine: Machine, **changes: object) -> list[float]:
    layouts = Layouts.of(msgspec.structs.replace(LAYOUT, **changes))
    shapes = Shapes.of([MODEL])
    now = float(step_seconds(shapes, layouts, machine)[0, 0])
    bottleneck = doubling(shapes, layouts, machine, now)[0].resource
    found = offers(shapes, layouts, machine, bottleneck)
    for offer in found:
        other = replace(layouts, gradients=offer.exchange)
        assert offer.step_seconds == float(step_seconds(shapes, other, machine)[0, 0])
        assert offer.saving == pytest.approx(1.0 - offer.step_seconds / now)
    kinds = [type(offer.exchange) for offer in found]
    assert kinds in ([], [Bf16], [Bf16, PowerSGD, LocalSteps, LocalSteps])
    return [offer.saving for offer in found]


def test_a_slow_link_is_offered_less_to_carry(machine: Machine) -> None:
    half, *others = of(joined(machine, 12e6))
    assert 0.3 < half < 0.5
    assert all(saving > 0.7 for saving in others)


def test_a_fast_one_is_not(machine: Machine) -> None:
    assert of(joined(machine, 1e11)) == []


def test_nor_is_what_the_layout_cannot_do(machine: Machine) -> None:
    assert len(of(joined(machine, 12e6), sharding="parameters")) == 1


def test_nor_is_anything_where_somebody_chose(machine: Machine) -> None:
    layouts = Layouts.of(LAYOUT, LocalSteps(every=5))
    assert offers(Shapes.of([MODEL]), layouts, joined(machine, 12e6), "link bandwidth") == ()
