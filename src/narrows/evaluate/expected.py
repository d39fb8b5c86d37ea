"""What the passes of an evaluation are predicted to take on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import final

import torch

from narrows.evaluate.assessment import Pass, Taken
from narrows.hardware.probe import machine_known
from narrows.model.transformer import Transformer
from narrows.plan.layouts import TrainingPrecision
from narrows.plan.reading import reading_memory, reading_seconds
from narrows.spec.machine import Machine


@final
class Expected:
    """Of one model; nothing where the machine was not probed for its precision."""

    def __init__(self, model: Transformer) -> None:
        self._spec, self._precision = model.spec, precision(model)
        self._each: dict[Pass, float] = {}

    def of(self, passes: Mapping[Pass, int]) -> Taken | None:
        """All of these, by a process that has just read the model."""
        if self._machine is None or not passes:
            return None
        widest = max(passes, key=lambda each: each.sequences * each.positions)
        return Taken(
            seconds=sum(count * self._seconds(each) for each, count in passes.items()),
            memory=reading_memory(self._spec, *widest, self._precision, self._machine).peak,
        )

    @cached_property
    def _machine(self) -> Machine | None:
        known = machine_known()
        timed = known is not None and any(
            curve.precision == self._precision for curve in known.device.matmul
        )
        return known if timed else None

    def _seconds(self, each: Pass) -> float:
        if each not in self._each:
            assert self._machine is not None
            found = reading_seconds(self._spec, *each, self._precision, self._machine)
            self._each[each] = found
        return self._each[each]


def precision(model: Transformer) -> TrainingPrecision:
    """What it computes in."""
    return "bf16" if model.head_VD.dtype == torch.bfloat16 else "fp32"
