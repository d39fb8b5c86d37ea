"""A learning rate range test (arXiv:1506.01186): one short run whose rate rises step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import msgspec

from narrows.spec.errors import Diverged, RunFailed
from narrows.spec.machine import Machine
from narrows.spec.plan import Checkpointing, Evaluation, Plan, Schedule
from narrows.spec.record import save
from narrows.spec.tuning import Swept
from narrows.train.run import train

STEPS = 100
_SPAN = 30.0
"""The sweep begins at the planned rate divided by this, and ends at it times this."""
_KEEPS = 0.8
_LEAST = 12
"""Steps before which a loss is no minimum."""
_UNDER = 4.0
"""The suggestion under the rate of the lowest loss: that one has no future (LOG.md)."""


def swept(plan: Plan, steps: int) -> Plan:
    """The plan of a short run whose rate grows from far below the planned one to far above."""
    planned = plan.optimizer.learning_rate
    high = planned * _SPAN
    return msgspec.structs.replace(
        plan,
        steps=steps,
        optimizer=msgspec.structs.replace(plan.optimizer, learning_rate=high),
        schedule=Schedule(shape="sweep", warmup_steps=0, decay_steps=0, floor=_SPAN**-2),
        evaluation=Evaluation(every=steps, sequences=plan.evaluation.sequences),
        checkpoints=Checkpointing(every=max(1, steps // 4), keep=1),
        on_spike="stop",
        why={
            **plan.why, "optimizer.learning_rate": f"a sweep to {_SPAN:g} times the planned rate"
        },
    )  # fmt: skip


def sweep(
    plan: Plan, run: Path, *, machine: Machine, resume: bool, talk: Callable[[str], None]
) -> Swept:
    """Run the sweep's plan in the folder `run`, as far as the loss bears it, and read from it the
    learning rate for the plan; writes sweep.json.

    Raises RunFailed where the loss fell nowhere.
    """
    try:
        train(plan, run, machine=machine, resume=resume, talk=talk)
    except Diverged as end:
        talk(f"\nthe sweep ends where training does: {end.what}")
    found = reading(plan.name, *_curve(run))
    save(found, run / "sweep.json")
    return found


def reading(name: str, rates: list[float], losses: list[float]) -> Swept:
    """What losses at rising rates say: a quarter of the rate at which the smoothed loss is lowest.

    Raises RunFailed where it never fell.
    """
    calm: list[float] = []
    mean = 0.0
    for count, loss in enumerate(losses, 1):
        mean = _KEEPS * mean + (1.0 - _KEEPS) * loss
        calm.append(mean / (1.0 - _KEEPS**count))
    lowest = min(range(len(calm)), key=calm.__getitem__, default=0)
    if lowest < min(_LEAST, len(calm) - 1) or not calm:
        raise RunFailed(
            f"the loss fell at no rate of the sweep's {len(losses)} steps",
            hint="a lower train.learning_rate to sweep around, or more --steps",
        )
    suggested = float(f"{rates[lowest] / _UNDER:.2g}")
    at_end = lowest == len(calm) - 1
    why = (
        f"the smoothed loss is lowest, {calm[lowest]:.3f}, at {rates[lowest]:.2g}"
        + (", where the sweep ended: a higher one may do" if at_end else "")
        + f"; a {_UNDER:g}th of it leaves room for a whole training"
    )
    return Swept(
        name=name, rates=tuple(rates), losses=tuple(losses), smoothed=tuple(calm),
        suggested=suggested, why=why,
    )  # fmt: skip


def _curve(run: Path) -> tuple[list[float], list[float]]:
    """Rates and losses of the steps that were taken."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [each for each in map(json.loads, lines) if "loss" in each]
    steps = [each for each in steps if math.isfinite(each["loss"])]
    return [each["learning_rate"] for each in steps], [each["loss"] for each in steps]
