"""Keep a run's account: what each step took, and the measured ledger made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

import msgspec

from narrows.hardware.power import PowerMeter
from narrows.kernels.meter import MemoryMeter
from narrows.spec.exchange import LocalSteps
from narrows.spec.ledger import Ledger, Row, Total
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.train.meter import memory_peak
from narrows.train.profiled import profiled_rows
from narrows.train.step import Batches, StepResult, Trainer

_RECENT = 10
_LEAVES = 0.25
"""How far a step may be from its prediction before that is said."""


class Account:
    """Times by purpose, energy and memory of this start of a run."""

    def __init__(
        self, plan: Plan, machine: Machine, power: PowerMeter, memory: MemoryMeter
    ) -> None:
        self.plan, self.machine, self.power, self.memory = plan, machine, power, memory
        self.elapsed_before = 0.0
        self.rows: tuple[Row, ...] = ()
        self.steps_s: list[float] = []
        self._began = time.perf_counter()
        self._last_s, self._joules = 0.0, 0.0
        self._start_s = self._evaluating_s = self._saving_s = self._training_s = 0.0

    @property
    def sampled(self) -> int:
        """Steps timed in this start."""
        return len(self.steps_s)

    def started(self) -> None:
        """The model is built: what came before was the start."""
        self._start_s = time.perf_counter() - self._began

    def elapsed(self) -> float:
        """Seconds of the whole run, earlier starts included."""
        return self.elapsed_before + time.perf_counter() - self._began

    @contextmanager
    def timing_step(self) -> Iterator[None]:
        """Around one training step; what waits in it for a checkpoint is none of it."""
        begin, waited = time.perf_counter(), self._saving_s
        yield
        self._last_s = time.perf_counter() - begin - (self._saving_s - waited)
        self._training_s += self._last_s

    @contextmanager
    def timing_evaluation(self) -> Iterator[None]:
        """Around an evaluation."""
        begin = time.perf_counter()
        yield
        self._evaluating_s += time.perf_counter() - begin

    @contextmanager
    def timing_wait(self) -> Iterator[None]:
        """Around what waits for a checkpoint."""
        begin = time.perf_counter()
        yield
        self._saving_s += time.perf_counter() - begin

    def look(self, trainer: Trainer, number: int, batches: Batches) -> None:
        """Run step `number` again under a profiler, for the rows of the ledger.

        The weights move on and the heap is left in pieces: to be called when all is saved. Neither
        time nor memory counts.
        """
        self.memory.set_aside()
        self.rows = profiled_rows(trainer, lambda: trainer.step(number, batches))

    def step_seconds(self) -> float:
        """Median step, the first left out where there are more: it warms up. Of local steps the
        mean: most of them do not meet.
        """
        timed = self.steps_s[1:] or self.steps_s
        return self._typical(timed) if timed else self._last_s

    def unforeseen(self) -> tuple[str, str] | None:
        """An event and its message where the last steps are far from the predicted one."""
        if len(self.steps_s) <= _RECENT:
            return None
        measured = self._typical(self.steps_s[-_RECENT:])
        predicted = self.plan.predicted.step_seconds
        if abs(measured / predicted - 1.0) <= _LEAVES:
            return None
        message = f"a step takes {measured:.3g} s, {predicted:.3g} s were predicted"
        return "slow" if measured > predicted else "quick", message

    def seconds_left(self, step: int) -> float:
        """By what this start has taken so far, evaluations and checkpoints included."""
        done = max(1, len(self.steps_s))
        beside = (self._evaluating_s + self._saving_s) / done
        return (self.plan.steps - step) * (self.step_seconds() + beside)

    def row(self, step: int, result: StepResult) -> dict[str, Any]:
        """The step's line in metrics.jsonl."""
        plan, joules = self.plan, self.power.joules()
        drawn, self._joules = joules - self._joules, joules
        self.steps_s += [self._last_s / result.steps] * result.steps
        tokens_per_s = result.steps * plan.step_tokens / self._last_s
        noise = {} if result.noise_tokens is None else {"noise_tokens": result.noise_tokens}
        return {
            "step": step, "tokens": float(step * plan.step_tokens), "loss": result.loss,
            **({"batch_sequences": result.steps * plan.batch_sequences} if plan.batch_ramp else {}),
            "learning_rate": result.learning_rate, "gradient_norm": result.gradient_norm,
            "seconds": self._last_s, "tokens_per_s": tokens_per_s, "mfu": self._mfu(tokens_per_s),
            "memory_bytes": self.memory.now(), "watts": drawn / self._last_s,
            "elapsed_s": self.elapsed(), **noise,
        }  # fmt: skip

    def ledger(self, trainer: Trainer, step: int) -> Ledger:
        """What was measured so far."""
        seconds = self.step_seconds()
        joules, elapsed = self.power.joules(), self.elapsed()
        watts = joules / max(1e-9, elapsed - self.elapsed_before)
        rows = tuple(
            msgspec.structs.replace(
                row, seconds=row.seconds * seconds, joules=row.seconds * seconds * watts
            )
            for row in self.rows
        )
        electricity = self.machine.electricity
        total_joules = watts * elapsed
        wall_kwh = total_joules / 3.6e6 * electricity.overhead.value
        return Ledger(
            basis="measured",
            energy_basis="measured" if self.power.basis == "measured" else "estimated",
            rows=rows,
            step_seconds=seconds,
            step_tokens=float(self.plan.step_tokens),
            mfu=self._mfu(self.plan.step_tokens / seconds),
            memory=memory_peak(trainer, self.memory.peak()),
            total=Total(
                steps=step, tokens=float(step * self.plan.step_tokens), seconds=elapsed,
                seconds_training=self._training_s, seconds_start=self._start_s,
                seconds_evaluating=self._evaluating_s, seconds_saving=self._saving_s,
                joules=total_joules, dollars=elapsed / 3600.0 * electricity.price.value,
                carbon_grams=wall_kwh * electricity.carbon.value,
            ),
        )  # fmt: skip

    def _typical(self, seconds: list[float]) -> float:
        return (fmean if isinstance(self.plan.exchange, LocalSteps) else median)(seconds)

    def _mfu(self, tokens_per_s: float) -> float:
        return self.plan.model.flop_per_token * tokens_per_s / self.plan.peak_flop_per_s
