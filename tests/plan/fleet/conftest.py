"""Sixteen made-up devices, four to a node, whose figures are round enough to reckon by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from narrows.plan.fleet.question import Question
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.time import Step, step
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Domain, Fleet, Reach, Spread
from narrows.spec.machine import Fact
from narrows.spec.model import Experts, ModelSpec, llama
from narrows.spec.units import (
    Bytes,
    BytesPerSecond,
    DollarsPerHour,
    FlopPerSecond,
    GramsPerKilowattHour,
    Seconds,
    Watts,
)

MakeFleet = Callable[..., Fleet]
TakeStep = Callable[..., Step]
Ask = Callable[..., Question]


def fact(value: Any) -> Fact[Any]:
    return Fact(value=value, basis="assumed", source="made up for a test")


def _domain(name: str, devices: int, bandwidth: float, latency: float) -> Domain:
    return Domain(
        name=name, devices=devices, bandwidth=fact(BytesPerSecond(bandwidth)),
        latency=fact(Seconds(latency)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_fleet() -> MakeFleet:
    """Build the fleet, with a few facts changed: devices, gigabytes, half, formats, …"""

    def make(
        *, devices: int = 16, per_node: int = 4, gigabytes: float = 40.0, half: float = 64.0,
        network: float = 10e9, formats: tuple[str, ...] = ("fp32", "bf16", "fp16", "fp8"),
        **changes: Any,
    ) -> Fleet:  # fmt: skip
        inner = min(devices, per_node)
        domains = [_domain("bus", inner, 100e9, 1e-6)]
        domains += [_domain("wire", devices, network, 5e-6)] if inner < devices else []
        peak = {"fp32": 25e12, "bf16": 100e12, "fp16": 100e12, "fp8": 200e12,
                "int8": 200e12}  # fmt: skip
        fleet = Fleet(
            name=f"{devices}xmade-up", accelerator="made-up", kind="cuda", architecture="none",
            devices=devices, devices_per_node=inner,
            peak={name: fact(FlopPerSecond(peak[name])) for name in formats},
            reach=Reach(
                matmul=0.5, half=half, narrow=1.0, attention_forward=0.4, attention_backward=0.3,
                biased=0.5, memory=0.8, links=1.0, source="made up for a test",
            ),
            memory_capacity=fact(Bytes(gigabytes * 1e9)),
            memory_bandwidth=fact(BytesPerSecond(1e12)), domains=tuple(domains),
            power_idle=fact(Watts(100.0)), power_full=fact(Watts(500.0)),
            price=fact(DollarsPerHour(2.0)), carbon=fact(GramsPerKilowattHour(500.0)),
            overhead=fact(1.5),
        )  # fmt: skip
        return msgspec.structs.replace(fleet, **changes)

    return make


@pytest.fixture(scope="session")
def fleet(make_fleet: MakeFleet) -> Fleet:
    return make_fleet()


@pytest.fixture(scope="session")
def small() -> ModelSpec:
    """428 M parameters in eight layers."""
    return llama(
        layers=8, width=2048, heads=16, kv_heads=4, vocabulary=16_384, context=2048,
        feed_forward_width=5632, tied_embeddings=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def sparse(small: ModelSpec) -> ModelSpec:
    """The same with sixteen experts in all layers but the first, of which two are chosen."""
    experts = Experts(count=16, chosen=2, width=1024, shared=1, dense_layers=1)
    return msgspec.structs.replace(small, experts=experts)


@pytest.fixture(scope="session")
def take(fleet: Fleet, small: ModelSpec) -> TakeStep:
    """The step of a layout: by default of the small model over the fleet."""

    def taken(*, on: Fleet = fleet, of: ModelSpec = small, **layout: Any) -> Step:
        return step(Work.of(of, of.context), Spreads.of([Spread(**layout)]), on)

    return taken


@pytest.fixture(scope="session")
def ask(small: ModelSpec, fleet: Fleet) -> Ask:
    """A question: by default of the small model over the fleet."""

    def asked(**changes: Any) -> Question:
        question = Question(name="small", model=small, fleet=fleet, batch=64, wanted=Wanted())
        return replace(question, **changes)

    return asked
