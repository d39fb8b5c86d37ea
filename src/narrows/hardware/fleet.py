"""A fleet by name: "h100-sxm", "8xh100-sxm", "16x8xh100-sxm" (nodes x devices x accelerator)."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from narrows.hardware.accelerators import Accelerator, accelerator, accelerators, plain
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Domain, Fleet, Reach, counted
from narrows.spec.machine import Fact, Machine
from narrows.spec.tables import Tables
from narrows.spec.units import (
    BytesPerSecond,
    DollarsPerHour,
    FlopPerSecond,
    GramsPerKilowattHour,
    Seconds,
)

_CATALOGUE = Path(__file__).with_name("catalogue")
# Microseconds of one message: within a node, across a switch, between hosts (NCCL's own model,
# nccl/src/graph/tuning.cc: NVLink 0.6 to 1, network 2.7 to 14 by algorithm).
_LATENCY_INSIDE, _LATENCY_OUTSIDE = Seconds(1e-6), Seconds(5e-6)
_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_HERE = "here"
_DEVICES_MOST = 10_000_000
# A device with a little more memory is another make of the same size.
_ROOMIER = 1.1
_NO_NETWORK = BytesPerSecond(12.5e9)


def fleet(name: str) -> Fleet:
    """The fleet that `name` describes; raises BadInput with the nearest names it knows."""
    first, second, what = counted(name)
    known = accelerator(what)
    devices = (1 if first is None else first) * (1 if second is None else second)
    if devices < 1:
        raise BadInput(f'"{name}" has no devices', hint='such as "8xh100-sxm"')
    if devices > _DEVICES_MOST:
        raise BadInput(
            f'"{name}" has {devices:,} devices', hint=f"at most {_DEVICES_MOST:,} are planned for"
        )
    return fleet_of(known, devices, name=name, per_node=second)


def fleet_of(
    known: Accelerator, devices: int, *, name: str, per_node: int | None = None,
    network: float | None = None,
) -> Fleet:  # fmt: skip
    """`devices` of one accelerator; `network` bytes/s of a device where known to differ."""
    inside = per_node or min(devices, known.devices_per_node)
    assumed = _electricity()
    return Fleet(
        name=name,
        accelerator=known.name,
        kind=known.kind,
        architecture=known.architecture,
        devices=devices,
        devices_per_node=inside,
        peak=_peaks(known),
        reach=reach(known),
        memory_capacity=_fact(known, "memory_capacity", known.memory_capacity),
        memory_bandwidth=_fact(known, "memory_bandwidth", known.memory_bandwidth),
        domains=tuple(_domains(known, devices, inside, network)),
        host_link=None if known.host_link is None else _fact(known, "host_link", known.host_link),
        host_memory=None if known.host_memory is None
        else _fact(known, "host_memory", known.host_memory),
        power_idle=None if known.power_idle is None
        else _fact(known, "power_idle", known.power_idle),
        power_full=None if known.power_full is None
        else _fact(known, "power_full", known.power_full),
        price=None if known.price is None
        else Fact(value=known.price.value, basis="datasheet",
                  source=f"{known.price.source}, {known.price.date}"),
        carbon=Fact(
            value=GramsPerKilowattHour.parse(assumed["carbon"]["value"]), basis="assumed",
            source=assumed["carbon"]["source"],
        ),
        overhead=Fact(
            value=float(assumed["overhead"]["rented"]), basis="assumed",
            source=assumed["overhead"]["rented_source"],
        ),
    )  # fmt: skip


def roomier(known: Fleet) -> tuple[str, ...]:
    """Names of as many devices of the same kind with more memory each, the least more first."""
    larger = {
        key: each.memory_capacity for key, each in accelerators().items()
        if each.kind == known.kind
        and each.memory_capacity > _ROOMIER * known.memory_capacity.value
    }  # fmt: skip
    first, second, _ = counted(known.name)
    counts = "".join(f"{count}x" for count in (first, second) if count is not None)
    return tuple(counts + key for key in sorted(larger, key=lambda key: larger[key]))


def ladder(known: Fleet) -> tuple[Fleet, ...]:
    """The same devices in fewer and in greater numbers, by factors of two, eight times at most.

    What was measured is known in no greater number than it was measured in.
    """
    devices = [known.devices * factor for factor in _FACTORS]
    whole = [int(count) for count in devices if count >= 1 and count == int(count)]
    if known.architecture == _HERE:
        return tuple(_fewer(known, count) for count in whole if count <= known.devices)
    _, per_node, what = counted(known.name)
    listed = accelerator(what)
    return tuple(
        known if count == known.devices else fleet_of(
            listed, count, name=f"{count}x{what}", per_node=per_node and min(per_node, count)
        )
        for count in whole
    )  # fmt: skip


def _fewer(known: Fleet, devices: int) -> Fleet:
    domains = tuple(
        msgspec.structs.replace(each, devices=min(each.devices, devices)) for each in known.domains
    )
    return msgspec.structs.replace(
        known, devices=devices, domains=domains,
        devices_per_node=min(known.devices_per_node, devices),
    )  # fmt: skip


def fleet_here(machine: Machine) -> Fleet:
    """A measured machine as a fleet of what computes in it: its reach is known, not fitted."""
    device = machine.device
    curves = {curve.precision: curve for curve in device.matmul}
    best = curves.get("bf16") or next(iter(curves.values()))
    half = (best.half_m * best.half_n * best.half_k) ** (1 / 3)
    forward, backward = _attention_rates(machine)
    peak = float(best.peak.value)
    rented = machine.electricity
    alone = Domain(
        name="within the machine", devices=machine.devices,
        bandwidth=Fact(value=device.memory.copy.value, basis="measured", source="copying"),
        latency=Fact(value=_LATENCY_INSIDE, basis="assumed", source="NCCL's own model"),
    )  # fmt: skip
    return Fleet(
        name="here",
        accelerator=device.name if device.kind != "cpu" else machine.name,
        kind=device.kind,
        architecture=_HERE,
        devices=machine.devices,
        devices_per_node=machine.devices,
        peak={name: curve.peak for name, curve in curves.items()},
        reach=Reach(
            matmul=1.0, half=half, narrow=1.0, attention_forward=forward / peak,
            attention_backward=backward / peak, biased=1.0, memory=1.0,
            source=f"measured here, {machine.probed_at[:10]}", basis="measured",
        ),
        memory_capacity=device.memory.free,
        memory_bandwidth=device.memory.copy,
        domains=(alone,),
        power_idle=device.power_idle,
        power_full=device.power_full,
        price=Fact(
            value=DollarsPerHour(rented.price.value / machine.devices), basis=rented.price.basis,
            source=rented.price.source,
        ),
        carbon=rented.carbon,
        overhead=rented.overhead,
        machine=machine,
    )  # fmt: skip


def _attention_rates(machine: Machine) -> tuple[float, float]:
    """FLOP/s of causal attention at its best, forward and backward; else a third of the peak."""
    rates = [
        (2.0 * work / point.forward, 5.0 * work / point.backward)
        for curve in machine.device.attention if curve.precision == "bf16"
        for point in curve.points
        if (work := float(point.rows * point.positions**2 * point.head_width))
    ]  # fmt: skip
    if not rates:
        peak = max(float(curve.peak.value) for curve in machine.device.matmul)
        return peak / 3.0, peak / 3.0
    return max(rate for rate, _ in rates), max(rate for _, rate in rates)


@cache
def _electricity() -> dict[str, Any]:
    return tomllib.loads((_CATALOGUE / "electricity.toml").read_text(encoding="utf-8"))


@cache
def _reaches() -> Tables:
    return Tables.of(_CATALOGUE / "reach.toml")


@cache
def _reach(key: str) -> Reach:
    return Reach(**_inherited(key))


def _inherited(key: str) -> dict[str, Any]:
    """A row over those that it is `of`, down to the default."""
    row = _reaches()[key]
    of = str(row.pop("of", "default"))
    return row if key == "default" else {**_inherited(of), **row}


def reach(known: Accelerator) -> Reach:
    """By name, else by architecture, else by kind, else the default."""
    named = (plain(known.name), known.architecture, known.kind, "default")
    return next(_reach(each) for each in named if each in _reaches())


def _peaks(known: Accelerator) -> dict[str, Fact[FlopPerSecond]]:
    formats = {
        name: value
        for name in known.peak.__struct_fields__
        if (value := getattr(known.peak, name)) is not None
    }
    return {name: _fact(known, name, value) for name, value in formats.items()}


def _domains(
    known: Accelerator, devices: int, per_node: int, network: float | None
) -> list[Domain]:
    found: list[Domain] = []
    if known.link is not None:
        joined = min(devices, max(known.link.devices, 1))
        if known.link.devices <= known.devices_per_node:
            joined = min(joined, per_node)
        found.append(
            Domain(
                name=known.link.name, devices=joined,
                bandwidth=_fact(known, "link", known.link.bandwidth),
                latency=Fact(value=_LATENCY_INSIDE, basis="assumed", source="NCCL's own model"),
            )
        )  # fmt: skip
    elif known.host_link is not None:
        found.append(
            Domain(
                name="PCIe", devices=min(devices, per_node),
                bandwidth=_fact(known, "host_link", known.host_link),
                latency=Fact(value=_LATENCY_INSIDE, basis="assumed", source="NCCL's own model"),
            )
        )  # fmt: skip
    if not found or found[-1].devices < devices:
        bandwidth = Fact(value=_NO_NETWORK, basis="assumed", source="100 Gbit/s a device")
        if known.network is not None:
            bandwidth = _fact(known, "network", known.network.bandwidth)
        if network is not None:
            bandwidth = Fact(value=BytesPerSecond(network), basis="datasheet", source="as given")
        found.append(
            Domain(
                name=known.network.name if known.network else "100 Gbit/s a device, assumed",
                devices=devices, bandwidth=bandwidth,
                latency=Fact(value=_LATENCY_OUTSIDE, basis="assumed", source="NCCL's own model"),
            )
        )  # fmt: skip
    return found


def _fact(known: Accelerator, name: str, value: object) -> Fact:  # type: ignore[type-arg]
    source = known.source_of.get(name, known.source)
    return Fact(
        value=value, basis="assumed" if source.startswith("assumed") else "datasheet", source=source
    )
