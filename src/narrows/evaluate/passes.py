"""The passes that a model makes in an evaluation: counted, timed, and foretold for this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple, final

import msgspec
import torch

from narrows.evaluate.assessment import Taken
from narrows.evaluate.progress import Talk
from narrows.hardware.probe import machine_known
from narrows.model.transformer import Transformer
from narrows.plan.answer import Question, answer_memory, pass_rows
from narrows.plan.heap import Heap
from narrows.plan.layouts import TrainingPrecision
from narrows.plan.passes import Pass as Extension
from narrows.plan.reading import reading_memory, reading_seconds
from narrows.spec.ledger import MemoryPeak
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec
from narrows.spec.units import Seconds

_LONG_S = 10.0
"""From here on is said before how long it will take."""
_NEAR = 64
"""Pasts that differ by less are taken for alike."""


class Whole(NamedTuple):
    """So many sequences of so many positions, padding among them, read at once; nothing is kept."""

    sequences: int
    positions: int


class Prefill(NamedTuple):
    """The first positions of so many prompts, read at once; `room` for all that comes is kept."""

    sequences: int
    positions: int
    room: int


class Decode(NamedTuple):
    """One further token of so many sequences, each behind about `past`."""

    sequences: int
    past: int

    @classmethod
    def at(cls, sequences: int, place: int) -> Decode:
        """Of tokens at a place; those near it are taken for alike."""
        return cls(sequences, place // _NEAR * _NEAR + _NEAR // 2)


Pass = Whole | Prefill | Decode


@final
class Passes:
    """Those of one model that were `made`, in so many `seconds` altogether. Nothing is foretold on
    a machine that was not probed for what the model computes in.
    """

    def __init__(self, model: Transformer) -> None:
        self.made: Counter[Pass] = Counter()
        self.seconds = 0.0
        self._spec, self._precision = model.spec, precision(model)
        self._each: dict[Pass, float] = {}

    @contextmanager
    def timed(self) -> Iterator[Counter[Pass]]:
        """Gives what is to count those that are made meanwhile."""
        began = time.perf_counter()
        yield self.made
        self.seconds += time.perf_counter() - began

    def expected(self, passes: Mapping[Pass, int]) -> Taken | None:
        """What all of these take, by a process that has just read the model."""
        if self._machine is None or not passes:
            return None
        return Taken(
            seconds=sum(count * self._seconds(each) for each, count in passes.items()),
            memory=max(_memory(each, self._spec, self._precision, self._machine).peak
                       for each in _widest(passes)),
        )  # fmt: skip

    def announce(self, planned: Mapping[Pass, int], what: str, talk: Talk) -> None:
        """Say how long these will take where that is worth it."""
        taken = self.expected(planned)
        if taken is not None and taken.seconds > _LONG_S:
            talk(f"{what}: {Seconds(taken.seconds).text()} predicted")

    @cached_property
    def _machine(self) -> Machine | None:
        known = machine_known()
        timed = known is not None and any(
            curve.precision == self._precision for curve in known.device.matmul
        )
        # What training taught the record is of training.
        return msgspec.structs.replace(known, calibration={}) if known and timed else None

    def _seconds(self, each: Pass) -> float:
        if each not in self._each:
            assert self._machine is not None
            self._each[each] = _seconds(each, self._spec, self._precision, self._machine)
        return self._each[each]


def precision(model: Transformer) -> TrainingPrecision:
    """What it computes in."""
    return "bf16" if model.head_VD.dtype == torch.bfloat16 else "fp32"


def _widest(passes: Iterable[Pass]) -> Iterator[Whole | Prefill]:
    """Of those that read, those that may hold the most."""
    whole = [each for each in passes if isinstance(each, Whole)]
    if whole:
        yield max(whole, key=lambda each: each.sequences * each.positions)
    yield from (each for each in passes if isinstance(each, Prefill))


def _seconds(
    each: Pass, spec: ModelSpec, precision: TrainingPrecision, machine: Machine
) -> float:  # fmt: skip
    if isinstance(each, Whole):
        return reading_seconds(spec, *each, precision, machine)
    setting = Question(prompt=1, tokens=1, precision=precision).setting
    if isinstance(each, Prefill):
        read = Extension(sequences=each.sequences, queries=each.positions)
        rows = pass_rows(spec, read, setting, machine, "prefill")
    else:
        further = Extension(sequences=each.sequences, queries=1, past=each.past)
        rows = pass_rows(spec, further, setting, machine, "decode")
    return sum(row.seconds for row in rows)


def _memory(
    each: Whole | Prefill, spec: ModelSpec, precision: TrainingPrecision, machine: Machine
) -> MemoryPeak:
    if isinstance(each, Whole):
        return reading_memory(spec, *each, precision, machine)
    asked = Question(
        prompt=each.positions, tokens=each.room - each.positions, sequences=each.sequences,
        precision=precision, fresh=True,
    )  # fmt: skip
    return answer_memory(spec, asked, Heap.of(machine))
