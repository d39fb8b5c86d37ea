"""The predicted ledger of answering: the first token, those after it, and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np

from narrows.plan.cost import operation_seconds
from narrows.plan.curves import Curves, matmul_peak
from narrows.plan.heap import POOL, Heap
from narrows.plan.layouts import Array, Layouts, Setting, Shapes, TrainingPrecision
from narrows.plan.operation import Operation
from narrows.plan.passes import Pass, block_operations, pass_operations, read_bytes
from narrows.plan.power import bill, energy_basis, watts
from narrows.spec.ledger import Ledger, MemoryPeak, Phase, Row, Total
from narrows.spec.machine import CachePrecision, ExtendedPoint, Machine
from narrows.spec.model import ModelSpec, gpt2, llama

DRAW_BYTES = 40
"""What drawing a token holds at once for each logit: fp32 and fp64 copies, sums and places."""
_FP32 = 4
_HOST = "host"
# What torch takes once it computes without gradients: thread pools, products' code; a model of next
# to nothing took 8 to 15 MB. What a run folder takes to be read: the libraries of tensors and
# tokenizers, and for each token of a vocabulary its text, its number and its merge, by generate.
_RUNTIME_BYTES = 11e6
_READING_BYTES = 17e6
_TOKEN_BYTES = 850
# Products of a block and of its attention, each made once for each length of prompt.
_MADE = 6


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`sequences` prompts of `prompt` tokens at a time, each answered by `tokens` tokens.

    `fresh`: by a process that has just read its run folder, and had no such prompt before. Keys and
    values are kept in `cache`, or as the model computes.
    """

    prompt: int
    tokens: int
    precision: TrainingPrecision
    sequences: int = 1
    fresh: bool = False
    cache: CachePrecision | None = None

    @property
    def setting(self) -> Setting:
        """Models answer by torch's kernels, eagerly."""
        return Setting(precision=self.precision, kernels="torch", compile=False)


def predict_answer(model: ModelSpec, asked: Question, machine: Machine) -> Ledger:
    """Rows of the prefill and of all decode passes, the memory peak, and what the answer costs.

    What training taught the machine's record is of training, and left out. Beyond the model's
    context the cache is no longer: what reading its half again takes there is not predicted.
    """
    machine = msgspec.structs.replace(machine, calibration={})
    passes = max(0, asked.tokens - 1)
    first, each = _passes(model, asked)
    rows = _rows(model, first, asked.setting, machine, "prefill", 1)
    if asked.fresh:
        rows += _made(asked.setting, machine)
    if passes:
        rows += _rows(model, each, asked.setting, machine, "decode", passes)
    peak = matmul_peak(machine, asked.setting)
    return ledger(rows, answer_memory(model, asked, Heap.of(machine)), asked, peak, machine)


class Answers(Protocol):
    """How many answers are asked for at once, and of how many tokens each."""

    @property
    def tokens(self) -> int:
        """Of an answer."""

    @property
    def sequences(self) -> int:
        """Answers."""


def ledger(
    rows: tuple[Row, ...], memory: MemoryPeak, asked: Answers, peak: float, machine: Machine
) -> Ledger:
    """The predicted one of answers, by the rows of all their passes; `peak` FLOP/s are the most."""
    seconds = sum(row.seconds for row in rows)
    return Ledger(
        basis="predicted",
        energy_basis=energy_basis(machine),
        rows=rows,
        step_seconds=seconds,
        step_tokens=float(asked.sequences * asked.tokens),
        mfu=sum(row.flop for row in rows) / (seconds * peak),
        memory=memory,
        total=_total(rows, asked, machine),
    )


def pass_rows(
    model: ModelSpec, each: Pass, setting: Setting, machine: Machine, phase: Phase
) -> tuple[Row, ...]:
    """The operations of one pass through the model, the choice of its tokens included."""
    return _rows(model, each, setting, machine, phase, 1)


def answer_memory(model: ModelSpec, asked: Question, heap: Heap = POOL) -> MemoryPeak:
    """Peak bytes by kind in `heap`, at the widest moment of the last block of the prefill."""
    shapes, value = Shapes.of([model]), asked.setting.value_bytes
    room = min(asked.prompt + asked.tokens, model.context)
    logits = model.vocabulary * (asked.sequences * value + DRAW_BYTES)
    reading = _READING_BYTES + _TOKEN_BYTES * model.vocabulary
    kinds = {
        "weights": float(value * model.parameters),
        "cache": float(asked.sequences * cache_bytes(model, room, value, asked.cache)),
        "activations": heap.wear * asked.sequences * asked.prompt * _held_bytes(shapes, value),
        "logits": float(logits),
        "runtime": _RUNTIME_BYTES + asked.fresh * reading,
    }
    return MemoryPeak(**kinds, peak=sum(kinds.values()))


def cache_bytes(
    model: ModelSpec, positions: int, value_bytes: int, kept: CachePrecision | None = None
) -> int:
    """What keys and values of so many positions take, in `value_bytes` each unless int8 is `kept`:
    there each has its scale, in each head.
    """
    widths = model.score_width, model.value_width
    each = sum(width + _FP32 if kept == "int8" else width * value_bytes for width in widths)
    return positions * model.layers * model.kv_heads * each


def _held_bytes(model: Shapes, value: int) -> float:
    """Bytes alive for each token where a block's activation is computed: the stream and what is to
    be added, before the block and after attention, with their norms; queries, keys and values; the
    attention's output; and what the feed-forward has so far. RMSNorm leaves three copies in fp32.
    """
    gates = 2 if model.gated else 1
    values = (
        7 * model.width + model.qkv_width + model.heads * model.head_width + model.up_width
        + gates * model.feed_forward_width
    )  # fmt: skip
    widened = 0 if model.centred or value == _FP32 else 3 * _FP32 * model.width
    return _only(values * value + widened)


def _passes(model: ModelSpec, asked: Question) -> tuple[Pass, Pass]:
    """The prefill, and the decode pass of the mean past, which costs the mean of all."""
    past = asked.prompt + max(0, asked.tokens - 2) / 2
    return (
        Pass(sequences=asked.sequences, queries=asked.prompt),
        Pass(sequences=asked.sequences, queries=1, past=min(past, model.context - 1)),
    )


def _rows(
    model: ModelSpec, each: Pass, setting: Setting, machine: Machine, phase: Phase, times: int
) -> tuple[Row, ...]:
    shapes, curves = Shapes.of([model]), Curves.of(machine, setting)
    block = _block(shapes, each, setting, machine)
    rows: dict[str, Row] = {}
    for operation in pass_operations(shapes, each, setting):
        count = _only(operation.count)
        seconds = seconds_of(operation, setting, machine, curves)
        if operation.in_block and operation.name == _HOST and block.between is not None:
            seconds = model.layers * block.between
        elif operation.in_block:
            seconds *= block.factor
        row = Row(
            operation=operation.name, phase=phase, kind=operation.kind, count=times * count,
            flop=times * count * _only(operation.flop),
            memory_bytes=times * count * _only(operation.memory_bytes), network_bytes=0.0,
            seconds=times * seconds,
            joules=times * seconds * watts(machine, operation.kind, machine.device.threads),
        )  # fmt: skip
        before = rows.get(row.operation)
        rows[row.operation] = row if before is None else _added(before, row)
    return tuple(rows.values())


def _made(setting: Setting, machine: Machine) -> tuple[Row, ...]:
    """What products of new shapes take once."""
    curves = [each for each in machine.device.streamed if each.precision == setting.precision]
    seconds = _MADE * float(curves[0].making) if curves else 0.0
    return (
        Row(
            operation="make", phase="prefill", kind="launch", count=float(_MADE), flop=0.0,
            memory_bytes=0.0, network_bytes=0.0, seconds=seconds,
            joules=seconds * watts(machine, "launch", machine.device.threads),
        ),
    )  # fmt: skip


def _added(one: Row, other: Row) -> Row:
    sums = ("count", "flop", "memory_bytes", "seconds", "joules")
    return msgspec.structs.replace(
        one, **{name: getattr(one, name) + getattr(other, name) for name in sums}
    )


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    """What whole blocks say of their operations: times `factor`, and `between` them so long."""

    factor: float = 1.0
    between: float | None = None


def _block(shapes: Shapes, each: Pass, setting: Setting, machine: Machine) -> _Block:
    """Interpolated between the blocks that the machine has measured of one sequence, by the
    logarithm of the stream's elements. A prompt's operations keep each other from the caches: a
    factor. Between those of single tokens lies the host's work, alike for one sequence and many: a
    time.
    """
    curves = Curves.of(machine, setting)
    single = each.queries == 1
    found: dict[float, float] = {}
    for point, make in _measured(shapes, setting, machine):
        if (point.queries == 1) == single:
            expected = _expected(point, make, setting, machine, curves)
            apart = max(0.0, point.seconds - expected)
            found[float(point.queries * point.width)] = (
                apart if single else point.seconds / expected
            )
    if not found:
        return _Block()
    sizes = np.array(sorted(found))
    wanted = np.log((1 if single else each.sequences * each.queries) * _only(shapes.width))
    told = float(np.interp(wanted, np.log(sizes), [found[size] for size in sizes]))
    return _Block(between=told) if single else _Block(factor=told)


def _expected(
    point: ExtendedPoint, make: Callable[..., ModelSpec], setting: Setting, machine: Machine,
    curves: Curves,
) -> float:  # fmt: skip
    """The sum of a measured block's operations; of a single token's, without the host's."""
    spec = make(
        layers=point.layers, width=point.width, heads=point.width // point.head_width,
        vocabulary=1, context=point.keys,
    )  # fmt: skip
    shapes = Shapes.of([spec])
    each = Pass(
        sequences=1, queries=point.queries, past=point.keys - point.queries
    )  # fmt: skip
    return sum(
        seconds_of(one, setting, machine, curves)
        for one in block_operations(shapes, each, setting, read_bytes(shapes, each, setting))
        if point.queries > 1 or one.name != _HOST
    )


def _measured(
    shapes: Shapes, setting: Setting, machine: Machine
) -> list[tuple[ExtendedPoint, Callable[..., ModelSpec]]]:
    """Points of the curve nearest in kind, each with what makes the model of its blocks."""
    fitting = [curve for curve in machine.device.extended if curve.precision == setting.precision]
    if not fitting:
        return []
    kind = "llama" if shapes.gated else "gpt2"
    curve = max(fitting, key=lambda each: each.kind == kind)
    make = llama if curve.kind == "llama" else gpt2
    return [(point, make) for point in curve.points]


def seconds_of(operation: Operation, setting: Setting, machine: Machine, curves: Curves) -> float:
    """Of one of the operations of a pass, once."""
    layouts = Layouts(
        setting=setting, micro_batch=np.ones(1), accumulation=np.ones(1), recompute=np.zeros(1),
        threads=np.array([float(machine.device.threads)]), loss_chunk=np.ones(1),
    )  # fmt: skip
    return _only(operation_seconds(operation, layouts, machine, curves))


def _total(rows: tuple[Row, ...], asked: Answers, machine: Machine) -> Total:
    seconds = sum(row.seconds for row in rows)
    cost = bill(machine, seconds, sum(row.joules for row in rows) / seconds)
    return Total(
        steps=max(0, asked.tokens - 1), tokens=float(asked.sequences * asked.tokens),
        seconds=seconds,
        seconds_training=0.0, seconds_start=0.0, seconds_evaluating=0.0, seconds_saving=0.0,
        joules=cost.joules, dollars=cost.dollars, carbon_grams=cost.carbon_grams,
    )  # fmt: skip


def _only(values: Array) -> float:
    assert np.size(values) == 1, f"one model and one pass, got {np.shape(values)}"
    return float(np.reshape(values, -1)[0])
