"""The predicted ledger of one layout: the same record that a run measures."""

from __future__ import annotations

import msgspec
import numpy as np

from narrows.plan.cost import AS_IS, Scales, block_factor, operation_seconds
from narrows.plan.curves import Curves, matmul_peak
from narrows.plan.heap import Heap
from narrows.plan.layouts import USUALLY, Judged, Layouts, Shapes
from narrows.plan.operation import Operation
from narrows.plan.operations import step_operations
from narrows.plan.power import bill, energy_basis, watts
from narrows.plan.recipe import Cadence
from narrows.plan.together import Step, peak_bytes, step
from narrows.spec.adapter import EVERYTHING, Learning
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.layout import Layout
from narrows.spec.ledger import Kind, Ledger, MemoryPeak, Phase, Row, Total
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec
from narrows.spec.optimizer import USUAL, Optimizer

_LEAST_IDLE = 1e-9


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What of a run is known besides its step: steps, batch and what else takes time, memory where
    it reads a text, how gradients are exchanged and what uses them, the share of the tokens that
    are to be said, how long the documents are that they stand in, what learns and how it is judged.
    """

    steps: int
    batch_sequences: int
    seconds_start: float
    cadence: Cadence
    reads_text: bool = False
    gradients: GradientExchange = EXACT
    optimizer: Optimizer = USUAL
    said: float = 1.0
    attended: float | None = None
    learning: Learning = EVERYTHING
    judged: Judged = USUALLY


def predict(model: ModelSpec, layout: Layout, machine: Machine, run: Run) -> Ledger:
    """Rows by operation and phase, the memory peak and the whole run."""
    shapes = Shapes.of(
        [model], said=run.said, attended=run.attended, learning=run.learning, judged=run.judged
    )  # fmt: skip
    layouts = Layouts.of(layout, run.gradients, run.optimizer)
    if layout.processes > 1:
        rows = _several(step(shapes, layouts, machine), layout, machine)
    else:
        block = _only(block_factor(shapes, layouts, machine))
        rows = _rows(step_operations(shapes, layouts), layouts, machine, block)
    taken = sum(row.seconds for row in rows)
    tokens = run.batch_sequences * model.context
    peak = matmul_peak(machine, layouts.setting)
    return Ledger(
        basis="predicted",
        energy_basis=energy_basis(machine),
        rows=rows,
        step_seconds=taken,
        step_tokens=float(tokens),
        mfu=model.flop_per_token * tokens / (taken * peak),
        memory=_memory(shapes, layouts, machine, run),
        total=_total(rows, taken, tokens, machine, run),
    )


def _memory(shapes: Shapes, layouts: Layouts, machine: Machine, run: Run) -> MemoryPeak:
    peak = peak_bytes(shapes, layouts, machine).record(0, 0)
    more = Heap.of(machine).run(reads_text=run.reads_text)
    return msgspec.structs.replace(peak, runtime=peak.runtime + more, peak=peak.peak + more)


def total_seconds(steps: int, step_seconds: float, seconds_start: float, cadence: Cadence) -> float:
    """The whole run from start to the last checkpoint."""
    auxiliary = cadence.seconds_evaluating + cadence.seconds_saving
    return seconds_start + steps * step_seconds + auxiliary


def _several(found: Step, layout: Layout, machine: Machine) -> tuple[Row, ...]:
    """Rows of a process of the slowest stage: what it computes, what it tells others, and how long
    it waits for them.
    """
    stage = found.slowest(0)
    block = _only(np.asarray(stage.block))
    busy = min(machine.device.threads, layout.threads * layout.processes)
    computing = _rows(stage.operations, stage.layouts, machine, block, found.scales, threads=busy)
    share = float(found.working[0] / (layout.accumulation * stage.micro[0]))
    rows = [
        _times(row, 1.0 if row.phase == "optimizer" else share) for row in computing
    ]  # fmt: skip
    sums: dict[tuple[str, Phase], list[float]] = {}
    hops = sum(each.seconds for each in stage.told[0] if each.hop) or 1.0
    for each in stage.told[0]:
        seconds = each.seconds
        if each.often:
            seconds = share * (seconds - stage.hidden(each, 0))
        elif each.hop:
            seconds *= float(found.hops[0]) / hops
        message = each.message
        name = "send" if message.kind == "shift" else message.kind
        phase: Phase = "other" if each.hop else message.phase
        entry = sums.setdefault((name, phase), [0.0, 0.0, 0.0])
        adding = message.calls, message.sent, seconds
        entry[:] = [total + more for total, more in zip(entry, adding, strict=True)]
    rows += [
        Row(
            operation=name, phase=phase, kind="link", count=count, flop=0.0, memory_bytes=0.0,
            network_bytes=sent, seconds=seconds, joules=seconds * watts(machine, "link", busy),
        )
        for (name, phase), (count, sent, seconds) in sums.items()
    ]  # fmt: skip
    idle = float(found.seconds[0]) - sum(row.seconds for row in rows)
    if idle > _LEAST_IDLE * float(found.seconds[0]):
        rows.append(Row(
            operation="bubble", phase="other", kind="idle", count=1.0, flop=0.0, memory_bytes=0.0,
            network_bytes=0.0, seconds=idle, joules=idle * watts(machine, "idle", busy),
        ))  # fmt: skip
    return tuple(rows)


def _times(row: Row, share: float) -> Row:
    return msgspec.structs.replace(row, seconds=row.seconds * share, joules=row.joules * share)


def _rows(
    operations: tuple[Operation, ...], layouts: Layouts, machine: Machine, block: float,
    scales: Scales = AS_IS, *, threads: int | None = None,
) -> tuple[Row, ...]:  # fmt: skip
    curves = Curves.of(machine, layouts.setting)
    sums: dict[tuple[str, Phase, Kind], list[float]] = {}
    for operation in operations:
        count = _only(operation.count)
        if count == 0:
            continue
        seconds = _only(operation_seconds(operation, layouts, machine, curves, scales=scales))
        seconds *= block if operation.in_block else 1.0
        key = (operation.name, operation.phase, operation.kind)
        entry = sums.setdefault(key, [0.0, 0.0, 0.0, 0.0])
        adding = (
            count, count * _only(operation.flop), count * _only(operation.memory_bytes), seconds,
        )  # fmt: skip
        sums[key] = [total + each for total, each in zip(entry, adding, strict=True)]
    busy = threads or int(layouts.threads[0])
    return tuple(
        Row(
            operation=name, phase=phase, kind=kind, count=count, flop=flop, memory_bytes=moved,
            network_bytes=0.0, seconds=seconds, joules=seconds * watts(machine, kind, busy),
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
