"""The predicted ledger of one layout: the same record that a run measures."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from narrows.plan.cost import block_factor, operation_seconds
from narrows.plan.curves import Curves, matmul_peak
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.memory import RUN_BYTES
from narrows.plan.operations import Operation, step_operations
from narrows.plan.power import bill, energy_basis, watts
from narrows.plan.recipe import Cadence
from narrows.plan.search import peak_bytes
from narrows.spec.layout import Layout
from narrows.spec.ledger import Kind, Ledger, MemoryPeak, Phase, Row, Total
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Run:
    """What of a run is known besides its step: steps, batch and what else takes time, and memory
    where it reads a text.
    """

    steps: int
    batch_sequences: int
    seconds_start: float
    cadence: Cadence
    reads_text: bool = False


def predict(model: ModelSpec, layout: Layout, machine: Machine, run: Run) -> Ledger:
    """Rows by operation and phase, the memory peak and the whole run."""
    shapes, layouts = Shapes.of([model]), Layouts.of(layout)
    block = _only(block_factor(shapes, layouts, machine))
    rows = _rows(step_operations(shapes, layouts), layouts, machine, block)
    step = sum(row.seconds for row in rows)
    tokens = run.batch_sequences * model.context
    peak = matmul_peak(machine, layouts.setting)
    return Ledger(
        basis="predicted",
        energy_basis=energy_basis(machine),
        rows=rows,
        step_seconds=step,
        step_tokens=float(tokens),
        mfu=model.flop_per_token * tokens / (step * peak),
        memory=_memory(shapes, layouts, machine, run),
        total=_total(rows, step, tokens, machine, run),
    )


def _memory(shapes: Shapes, layouts: Layouts, machine: Machine, run: Run) -> MemoryPeak:
    peak = peak_bytes(shapes, layouts, machine).record(0, 0)
    more = RUN_BYTES if run.reads_text else 0.0
    return msgspec.structs.replace(peak, runtime=peak.runtime + more, peak=peak.peak + more)


def total_seconds(steps: int, step_seconds: float, seconds_start: float, cadence: Cadence) -> float:
    """The whole run from start to the last checkpoint."""
    auxiliary = cadence.seconds_evaluating + cadence.seconds_saving
    return seconds_start + steps * step_seconds + auxiliary


def _rows(
    operations: tuple[Operation, ...], layouts: Layouts, machine: Machine, block: float
) -> tuple[Row, ...]:
    curves = Curves.of(machine, layouts.setting)
    sums: dict[tuple[str, Phase, Kind], list[float]] = {}
    for operation in operations:
        count = _only(operation.count)
        if count == 0:
            continue
        seconds = _only(operation_seconds(operation, layouts, machine, curves))
        seconds *= block if operation.in_block else 1.0
        key = (operation.name, operation.phase, operation.kind)
        entry = sums.setdefault(key, [0.0, 0.0, 0.0, 0.0])
        adding = (
            count, count * _only(operation.flop), count * _only(operation.memory_bytes), seconds,
        )  # fmt: skip
        sums[key] = [total + each for total, each in zip(entry, adding, strict=True)]
    threads = int(layouts.threads[0])
    return tuple(
        Row(
            operation=name, phase=phase, kind=kind, count=count, flop=flop, memory_bytes=moved,
            network_bytes=0.0, seconds=seconds, joules=seconds * watts(machine, kind, threads),
        )
        for (name, phase, kind), (count, flop, moved, seconds) in sums.items()
    )  # fmt: skip


def _total(rows: tuple[Row, ...], step: float, tokens: int, machine: Machine, run: Run) -> Total:
    seconds = total_seconds(run.steps, step, run.seconds_start, run.cadence)
    cost = bill(machine, seconds, sum(row.joules for row in rows) / step)
    return Total(
        steps=run.steps,
        tokens=float(run.steps * tokens),
        seconds=seconds,
        seconds_training=run.steps * step,
        seconds_start=run.seconds_start,
        seconds_evaluating=run.cadence.seconds_evaluating,
        seconds_saving=run.cadence.seconds_saving,
        joules=cost.joules,
        dollars=cost.dollars,
        carbon_grams=cost.carbon_grams,
    )


def _only(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    assert values.size == 1, f"one model and one layout, got {values.shape}"
    return float(values.reshape(-1)[0])
