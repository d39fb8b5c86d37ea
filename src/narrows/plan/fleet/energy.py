"""Joules of a step over all devices: idle power always, the rest by what each part keeps busy."""

from __future__ import annotations

import numpy as np

from narrows.plan.fleet.time import Step
from narrows.plan.layouts import Array
from narrows.spec.fleet import Fleet

# Share of the way from idle to full power: products draw all of it, what waits for memory about
# two thirds, what waits for links a quarter (Patel et al. 2024, arXiv:2308.12908, figures 5 and 6).
COMPUTING, MOVING, WAITING = 1.0, 0.65, 0.25
# Idle as a share of full power where only the latter is published.
IDLE_SHARE = 0.12


def watts(fleet: Fleet, busy: float) -> float:
    """Of one device that is so busy; zero where its power is not known."""
    if fleet.power_full is None:
        return 0.0
    full = float(fleet.power_full.value)
    idle = float(fleet.power_idle.value) if fleet.power_idle else IDLE_SHARE * full
    return idle + (full - idle) * busy


def joules(taken: Step, fleet: Fleet) -> Array:
    """Energy of one step, [layouts]; zero where the device's power is not known."""
    if fleet.power_full is None:
        return np.zeros_like(taken.gemm)
    idle, full = watts(fleet, 0.0), watts(fleet, 1.0)
    computing = taken.gemm + taken.attention + taken.head
    moving = taken.pointwise + taken.optimizer
    waiting = (
        taken.tensor + taken.expert + taken.context + taken.pipeline + taken.bubble + taken.data
        + taken.waiting
    )  # fmt: skip
    busy = COMPUTING * computing + MOVING * moving + WAITING * waiting
    return np.asarray(fleet.devices * (idle * taken.seconds + (full - idle) * busy))
