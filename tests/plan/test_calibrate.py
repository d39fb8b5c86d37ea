from __future__ import annotations

import msgspec
import pytest

from narrows.plan.calibrate import recalibrated
from narrows.plan.memory import TRANSIENT
from narrows.plan.plan import make_plan
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent
from narrows.spec.ledger import Kind, Ledger
from narrows.spec.machine import Machine

JOB = Job(
    name="x", model=ModelIntent(layers=4, width=256, vocabulary=4096, context=256),
    train=TrainIntent(steps=100, batch_sequences=8),
    layout=LayoutIntent(
        micro_batch=8, kernels="native", recompute="none", loss_chunk=512, compile=False
    ),
)  # fmt: skip


def slower(ledger: Ledger, factors: dict[Kind, float]) -> Ledger:
    rows = tuple(
        msgspec.structs.replace(row, seconds=row.seconds * factors.get(row.kind, 1.0))
        for row in ledger.rows
    )
    step = sum(row.seconds for row in rows)
    return msgspec.structs.replace(ledger, basis="measured", rows=rows, step_seconds=step)


def test_the_next_prediction_is_what_was_measured(machine: Machine) -> None:
    predicted = make_plan(JOB, machine, None).predicted
    measured = slower(predicted, {"gemm": 1.3, "pointwise": 0.8, "attention": 2.0})
    learned = recalibrated(machine, predicted, measured)
    again = make_plan(JOB, learned, None).predicted
    assert again.step_seconds == pytest.approx(measured.step_seconds, rel=1e-3)


def test_learning_twice_adds_up(machine: Machine) -> None:
    predicted = make_plan(JOB, machine, None).predicted
    once = recalibrated(machine, predicted, slower(predicted, {"gemm": 1.2}))
    predicted = make_plan(JOB, once, None).predicted
    twice = recalibrated(once, predicted, slower(predicted, {"gemm": 1.5}))
    assert twice.calibration["gemm"] == pytest.approx(1.8)


def test_no_single_run_moves_a_factor_far(machine: Machine) -> None:
    predicted = make_plan(JOB, machine, None).predicted
    learned = recalibrated(machine, predicted, slower(predicted, {"gemm": 100.0}))
    assert learned.calibration["gemm"] == 4.0


def test_kinds_that_hardly_matter_are_left_alone(machine: Machine) -> None:
    predicted = make_plan(JOB, machine, None).predicted
    learned = recalibrated(machine, predicted, slower(predicted, {"data": 3.0}))
    assert "data" not in learned.calibration


def test_memory_that_the_allocator_took_is_expected_of_it(machine: Machine) -> None:
    predicted = make_plan(JOB, machine, None).predicted
    worn = msgspec.structs.replace(predicted.memory, peak=1.2 * predicted.memory.peak)
    measured = msgspec.structs.replace(predicted, basis="measured", memory=worn)
    again = make_plan(JOB, recalibrated(machine, predicted, measured), None).predicted
    assert again.memory.peak == pytest.approx(worn.peak, rel=1e-3)


def test_what_the_runtime_took_more_is_not_expected_of_steps(machine: Machine) -> None:
    """A small model's steps would be planned at a quarter or at four times what they take."""
    small = msgspec.structs.replace(
        JOB, model=ModelIntent(layers=2, width=128, vocabulary=4096, context=256)
    )
    predicted = make_plan(small, machine, None).predicted
    transient = sum(getattr(predicted.memory, kind) for kind in TRANSIENT)
    assert 0.4 * predicted.memory.peak < transient < 2 * predicted.memory.runtime
    worn = msgspec.structs.replace(predicted.memory, peak=predicted.memory.peak + 10e6)
    measured = msgspec.structs.replace(predicted, basis="measured", memory=worn)
    assert "activations" not in recalibrated(machine, predicted, measured).calibration
