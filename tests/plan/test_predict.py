from __future__ import annotations

import pytest
from msgspec.structs import replace

from narrows.plan.cost import step_seconds
from narrows.plan.heap import Heap
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.predict import Run, predict
from narrows.plan.recipe import Cadence
from narrows.spec.layout import Layout
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Machine
from narrows.spec.model import gpt2
from narrows.spec.plan import Checkpointing, Evaluation

MODEL = gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024)
LAYOUT = Layout(
    micro_batch=2, accumulation=2, precision="bf16", recompute="none", compile=False,
    kernels="native", threads=2, loss_chunk=512,
)  # fmt: skip
RUN = Run(
    steps=100, batch_sequences=4, seconds_start=7.0,
    cadence=Cadence(
        evaluation=Evaluation(every=10, sequences=8), checkpoints=Checkpointing(every=50, keep=2),
        seconds_evaluating=11.0, seconds_saving=13.0,
    ),
)  # fmt: skip


@pytest.fixture
def ledger(machine: Machine) -> Ledger:
    return predict(MODEL, LAYOUT, machine, RUN)


def test_rows_sum_to_the_step_that_the_search_saw(ledger: Ledger, machine: Machine) -> None:
    whole = step_seconds(Shapes.of([MODEL]), Layouts.of(LAYOUT), machine)
    assert ledger.step_seconds == pytest.approx(float(whole[0, 0]))
    assert sum(row.seconds for row in ledger.rows) == pytest.approx(ledger.step_seconds)
    assert sum(ledger.seconds_by_kind().values()) == pytest.approx(ledger.step_seconds)


def test_an_operation_has_one_row_a_phase(ledger: Ledger) -> None:
    keys = [(row.operation, row.phase) for row in ledger.rows]
    assert len(keys) == len(set(keys))
    rows = dict(zip(keys, ledger.rows, strict=True))
    assert rows["qkv", "forward"].count == 12 * 2
    assert rows["qkv", "backward"].flop == 2 * rows["qkv", "forward"].flop
    assert rows["norm", "forward"].count == 2 * (2 * 12 + 1)


def test_the_run_is_start_steps_evaluation_and_saving(ledger: Ledger) -> None:
    total = ledger.total
    assert total.seconds == pytest.approx(7.0 + 100 * ledger.step_seconds + 11.0 + 13.0)
    assert (total.steps, total.tokens) == (100, 100 * 4 * 1024)


def test_utilisation_is_model_flop_over_the_measured_peak(ledger: Ledger) -> None:
    flop = MODEL.flop_per_token * 4 * 1024
    assert ledger.mfu == pytest.approx(flop / ledger.step_seconds / 0.95e12)
    assert 0.2 < ledger.mfu < 1.0


def test_energy_is_near_full_power_throughout(ledger: Ledger, machine: Machine) -> None:
    watts = ledger.total.joules / ledger.total.seconds
    assert 40 < watts <= 45
    assert ledger.energy_basis == "estimated"
    assert ledger.total.dollars == pytest.approx(ledger.total.seconds / 3600 * 0.1)


def test_a_run_that_reads_a_text_has_more_in_memory(ledger: Ledger, machine: Machine) -> None:
    reading = predict(MODEL, LAYOUT, machine, replace(RUN, reads_text=True)).memory
    more = Heap.of(machine).run_bytes
    assert reading.peak - ledger.memory.peak == pytest.approx(more)
    assert reading.runtime - ledger.memory.runtime == pytest.approx(more)
