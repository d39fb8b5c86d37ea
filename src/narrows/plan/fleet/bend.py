"""The articles' T = a n/p + b p beside the model's own curve: at how many devices p each bends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from narrows.plan.layouts import Array
from narrows.spec.forecast import Bend, Elsewhere

_POINTS_LEAST = 3
# At p* = sqrt(a n/b) both terms are equal: half of the devices' time divides no more.
_LOST = 2.0


def bend(scaling: Sequence[Elsewhere]) -> Bend | None:
    """Both bends of the same batch over more and more devices; None where too few numbers of them
    fit, or where more of them only take longer.
    """
    known = [(each.devices, each.step_seconds) for each in scaling if each.step_seconds]
    if len(known) < _POINTS_LEAST:
        return None
    devices, seconds = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    work, each = _fitted(devices, seconds)
    if work <= 0.0:
        return None
    errors = (work / devices + each * devices) / seconds - 1.0
    return Bend(
        work_seconds=work, device_seconds=each,
        devices=math.sqrt(work / each) if each > 0.0 else None,
        devices_real=_crossing(devices, devices * seconds), error=float(np.abs(errors).max()),
    )  # fmt: skip


def _fitted(devices: Array, seconds: Array) -> tuple[float, float]:
    """a n and b of the least relative errors, neither below zero."""
    terms = np.stack([1.0 / (devices * seconds), devices / seconds], axis=1)
    (work, each), *_ = np.linalg.lstsq(terms, np.ones(len(devices)), rcond=None)
    if each <= 0.0:
        return float(terms[:, 0].sum() / (terms[:, 0] ** 2).sum()), 0.0
    return float(work), float(each)


def _crossing(devices: Array, spent: Array) -> float | None:
    """Where device-seconds of a step reach twice their least, between points by ratio."""
    least = int(spent.argmin())
    most = _LOST * spent[least]
    for place in range(least + 1, len(spent)):
        if spent[place] >= most:
            before, after = np.log(spent[place - 1]), np.log(spent[place])
            share = (np.log(most) - before) / (after - before)
            ratio = devices[place] / devices[place - 1]
            return float(devices[place - 1] * ratio**share)
    return None
