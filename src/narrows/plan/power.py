"""Watts, joules, dollars and grams of carbon from seconds."""

from __future__ import annotations

from typing import Literal

import msgspec

from narrows.spec.ledger import Kind
from narrows.spec.machine import Machine

# Kinds of work that one thread does while the others wait.
_SINGLE: tuple[Kind, ...] = ("launch", "data")
_JOULES_PER_KILOWATT_HOUR = 3.6e6


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What a run costs."""

    joules: float
    dollars: float
    carbon_grams: float


def watts(machine: Machine, kind: Kind, threads: int) -> float:
    """Power while work of `kind` runs: idle, and the rest by the share of threads that are busy.

    Zero where the machine's power is not known.
    """
    device = machine.device
    if device.power_full is None:
        return 0.0
    idle = float(device.power_idle.value) if device.power_idle else 0.0
    busy = 1 if kind in _SINGLE else threads
    return idle + (float(device.power_full.value) - idle) * busy / device.threads


def bill(machine: Machine, seconds: float, watts_mean: float) -> Bill:
    """Energy at the device; carbon with what the building adds (PUE); money by the hour."""
    joules = seconds * watts_mean
    electricity = machine.electricity
    kilowatt_hours = joules * electricity.overhead.value / _JOULES_PER_KILOWATT_HOUR
    return Bill(
        joules=joules,
        dollars=seconds / 3600 * float(electricity.price.value),
        carbon_grams=kilowatt_hours * float(electricity.carbon.value),
    )


def energy_basis(machine: Machine) -> Literal["measured", "estimated"]:
    """Whether the power at full load was read off a meter."""
    full = machine.device.power_full
    return "measured" if full is not None and full.basis == "measured" else "estimated"
