"""What a measured run teaches: the machine corrected, kind by kind, for truer plans."""

from __future__ import annotations

import msgspec

from narrows.plan.memory import TRANSIENT
from narrows.spec.ledger import Ledger, MemoryPeak
from narrows.spec.machine import Machine

# A kind below this share of the step is noise, and no single run moves a factor further than this.
_SHARE_LEAST = 0.01
_FACTOR_MOST = 4.0
# Below this share of the peak, what comes and goes in a step cannot be told from what stays; and
# below so many times the runtime's, which is known to a few megabytes, not from that.
_SHARE_MEMORY, _RUNTIMES = 0.3, 2.0


def recalibrated(machine: Machine, predicted: Ledger, measured: Ledger) -> Machine:
    """`machine` with its factor of each kind of operation multiplied by measured / predicted, and
    likewise that of starting ("start") and of memory within a step ("activations").

    `predicted` must have been made with `machine` as it is. Kinds that either ledger lacks keep
    their factor.
    """
    before, after = predicted.seconds_by_kind(), measured.seconds_by_kind()
    factors = dict(machine.calibration)
    for kind, seconds in before.items():
        if min(seconds, after[kind]) >= _SHARE_LEAST * predicted.step_seconds:
            factors[kind] = _corrected(factors.get(kind, 1.0), after[kind] / seconds)
    if predicted.total.seconds_start > 0 and measured.total.seconds_start > 0:
        ratio = measured.total.seconds_start / predicted.total.seconds_start
        factors["start"] = _corrected(factors.get("start", 1.0), ratio)
    worn = _transient_ratio(predicted.memory, measured.memory.peak)
    if worn is not None:
        factors["activations"] = _corrected(factors.get("activations", 1.0), worn)
    return msgspec.structs.replace(machine, calibration=factors)


def _transient_ratio(predicted: MemoryPeak, peak: float) -> float | None:
    """What a step's comings and goings took over what was predicted of them, where they matter."""
    transient = float(sum(getattr(predicted, kind) for kind in TRANSIENT))
    lasting = predicted.peak - transient
    least = max(_SHARE_MEMORY * predicted.peak, _RUNTIMES * predicted.runtime)
    if transient < least or peak <= lasting:
        return None
    return (peak - lasting) / transient


def _corrected(factor: float, ratio: float) -> float:
    bounded = min(max(ratio, 1 / _FACTOR_MOST), _FACTOR_MOST)
    return float(f"{factor * bounded:.4g}")
