"""The predicted ledger of answering with matrices packed in groups of 4 or 8 bits, or in bf16.

A step is products, whose weights are read once for all its rows, and attention over what is cached.
Both are interpolated between steps that the machine has measured (Device.packed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from narrows.plan.answer import DRAW_BYTES, cache_bytes, ledger, seconds_of
from narrows.plan.curves import Curves, matmul_peak
from narrows.plan.layouts import Setting, Shapes
from narrows.plan.passes import draw
from narrows.plan.power import watts
from narrows.spec.ledger import Kind, Ledger, MemoryPeak, Phase, Row
from narrows.spec.machine import CachePrecision, Machine, PackedCurve, PackedPoint
from narrows.spec.model import ModelSpec, llama

GROUP_BITS = {4: 5.0, 8: 8.5, 16: 16.0}
"""Of a weight, with its share of a group's scale and least value."""
_GROUP = 32
"""Weights of a group."""
_WHOLE_BITS = 12
"""More than any group has: values in bf16."""
_MANY = 2
"""Positions from which attention takes several at a time."""
_CHUNK = 512
"""Positions of a prompt that one step computes."""
_BLOCK = 16
"""Positions of a cache that lie together."""
_BF16_BYTES = 2
_DRAWN = Setting(precision="fp32", kernels="torch", compile=False)
_PRODUCTS = Setting(precision="bf16", kernels="native", compile=False)
_LEAST_S = 1e-9
_RUNTIME_BYTES = 10e6
"""Of the libraries that a text is read and computed with."""
_WORD_BYTES = 900.0
"""Of a tokenizer, for each token: SmolLM2's 49,152 take 47 MB."""


class PackedQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """`sequences` prompts of `prompt` tokens, of which the first `cached` are kept already, read in
    turn, each answered by `tokens` tokens, all at once; the matrices take `weight_bytes`, keys and
    values are kept in `cache`, and beside the matrices an adapter has `adapter_bytes` in bf16 that
    each of their rows is multiplied by.
    """

    prompt: int
    tokens: int
    weight_bytes: float
    sequences: int = 1
    cached: int = 0
    cache: CachePrecision = "bf16"
    adapter_bytes: float = 0.0


def predict_packed(model: ModelSpec, asked: PackedQuestion, machine: Machine) -> Ledger | None:
    """Rows of reading a prompt and of writing the rest, the memory peak and what the answers cost;
    None where the machine has measured no such steps.
    """
    if not machine.device.packed:
        return None
    rows = reading_rows(model, asked, machine)
    if asked.tokens > 1:
        rows += writing_rows(model, asked, machine)
    return ledger(rows, _memory(model, asked), asked, matmul_peak(machine, _PRODUCTS), machine)


def packable(model: ModelSpec) -> bool:
    """Whether its matrices divide into groups."""
    widths = (model.width, model.feed_forward_width, model.head_width)
    return not any(width % _GROUP for width in widths)


def packed_bytes(model: ModelSpec, bits: int) -> float:
    """Of all matrices in groups of 4 or 8 bits, or in bf16 (16)."""
    return _weights(model) * GROUP_BITS[bits] / 8.0


class _Rates(NamedTuple):
    """Seconds of products for each weight, at so many `rows` in a step; and of attention for each
    position and value of a head: of `single` queries, which wait for what is cached, for each head
    of that, and `sharing` for each head more that shares it; of `several` for each of their own.
    And of `beside`, a row of an adapter, for each of its values.
    """

    rows: tuple[float, ...]
    of_weight: tuple[float, ...]
    single: float
    sharing: float
    several: float
    beside: float = 0.0

    def products(self, weights: float, rows: float) -> float:
        """Seconds of so many weights for as many rows."""
        if rows >= self.rows[-1]:
            return weights * self.of_weight[-1] * rows / self.rows[-1]
        logs = np.log(self.of_weight)
        return weights * float(np.exp(np.interp(np.log(rows), np.log(self.rows), logs)))

    def attention(self, model: ModelSpec, queries: float, keys: float) -> float:
        """Seconds of so many queries that see as many positions each, in all layers."""
        if queries >= _MANY:
            heads, rate = model.heads, self.several
        else:
            heads = model.kv_heads
            rate = self.single + self.sharing * (model.heads / model.kv_heads - 1.0)
        return rate * queries * keys * model.layers * heads * model.head_width


def _rates(model: ModelSpec, asked: PackedQuestion, machine: Machine) -> _Rates:
    """Between the two measured models, by the logarithm of the weights' bytes."""
    bits = 8 * asked.weight_bytes / _weights(model)
    curves = machine.device.packed
    curve = min(curves, key=lambda each: abs(GROUP_BITS[each.bits] - bits))
    lies = GROUP_BITS[curve.bits] / 8
    small, large = (_measured(curve, choose, asked.cache) for choose in (min, max))
    sizes = np.log([small.weights * lies, large.weights * lies])
    share = float(np.interp(np.log(asked.weight_bytes), sizes, [0.0, 1.0]))
    of_weight = [
        a ** (1.0 - share) * b**share
        for a, b in zip(small.rates.of_weight, large.rates.of_weight, strict=True)
    ]  # fmt: skip
    # Of one row, reading is what takes the time; bf16, where it was not measured, takes as much
    # longer to multiply, too.
    more = bits / GROUP_BITS[curve.bits]
    for row in range(len(of_weight) if bits > _WHOLE_BITS > curve.bits else 1):
        of_weight[row] *= more
    return large.rates._replace(of_weight=tuple(of_weight), beside=_beside(curves))


def _beside(curves: tuple[PackedCurve, ...]) -> float:
    """An adapter lies in the caches, in bf16: each row reads it anew."""
    widest = max(curves, key=lambda each: each.bits)
    rates = _measured(widest, min, "bf16").rates
    return rates.of_weight[0] * GROUP_BITS[16] / GROUP_BITS[widest.bits]


class _Measured(NamedTuple):
    weights: float
    rates: _Rates


def _measured(
    curve: PackedCurve, choose: Callable[[Iterable[int]], int], cache: CachePrecision
) -> _Measured:
    """What the measured steps of the narrowest or the widest model say; of a kind of cache that was
    not measured, what those of bf16 do.
    """
    width = choose(point.width for point in curve.points)
    every = [point for point in curve.points if point.width == width]
    points = [point for point in every if point.group == 1]
    empty = {(p.sequences, p.queries): p.seconds for p in points if not p.past}
    spec = _spec(points[0])
    unit, weights = spec.layers * spec.heads * spec.head_width, _block_weights(spec)
    attention: dict[tuple[CachePrecision, bool], float] = {}
    for p in points:
        if p.past:
            more = max(0.0, p.seconds - empty[p.sequences, p.queries])
            each = more / (p.sequences * p.queries * p.past * unit)
            attention[p.cache, p.queries >= _MANY] = each
    products: dict[float, float] = {}
    for (sequences, queries), seconds in empty.items():
        keys = sequences * queries * (queries + 1) / 2
        own = keys * unit * attention["bf16", queries >= _MANY]
        products[float(sequences * queries)] = max(seconds - own, _LEAST_S) / weights
    rows = tuple(sorted(products))
    of_weight = tuple(products[each] for each in rows)
    if (cache, False) not in attention:
        cache = "bf16"
    single, several = attention[cache, False], attention[cache, True]
    sharing = _sharing(every, cache, single)
    return _Measured(weights, _Rates(rows, of_weight, single, sharing, several))


def _sharing(points: list[PackedPoint], cache: CachePrecision, single: float) -> float:
    """What each head more takes that shares keys and values: nothing, where that was not measured
    or reading them is what takes the time.
    """
    shared = [point for point in points if point.group > 1]
    empty = next((point.seconds for point in shared if not point.past), None)
    behind = next((point for point in shared if point.past and point.cache == cache), None)
    if empty is None or behind is None:
        return 0.0
    spec = _spec(behind)
    unit = behind.past * spec.layers * spec.kv_heads * spec.head_width
    return max(0.0, (behind.seconds - empty) / unit - single) / (behind.group - 1)


def _spec(point: PackedPoint) -> ModelSpec:
    heads = point.width // 64
    return llama(
        layers=point.layers, width=point.width, heads=heads, kv_heads=heads // point.group,
        vocabulary=1, context=point.past + point.queries,
    )  # fmt: skip


def _block_weights(model: ModelSpec) -> int:
    """Of all matrices in blocks."""
    attends = (2 * model.heads + 2 * model.kv_heads) * model.head_width
    gates = 3 if model.gated else 2
    return model.layers * model.width * (attends + gates * model.feed_forward_width)


def _weights(model: ModelSpec) -> int:
    """Of all matrices, those of tokens and head among them."""
    ends = 1 if model.tied_embeddings else 2
    return _block_weights(model) + ends * model.vocabulary * model.width


def reading_rows(model: ModelSpec, asked: PackedQuestion, machine: Machine) -> tuple[Row, ...]:
    """One prompt, in chunks, and the choice of what follows; the machine has measured such
    steps.
    """
    rates, new = _rates(model, asked, machine), asked.prompt - asked.cached
    products, attended, chunks = 0.0, 0.0, -(-new // _CHUNK)
    for first in range(asked.cached, asked.prompt, _CHUNK):
        count = min(_CHUNK, asked.prompt - first)
        products += rates.products(_block_weights(model), count)
        attended += rates.attention(model, count, first + (count + 1) / 2)
    head = model.vocabulary * model.width
    products += rates.products(head, 1)
    flop = 2.0 * (_block_weights(model) * new + head)
    moved = chunks * asked.weight_bytes
    work = _Work(flop, moved, products, attended, _Beside.of(asked, rates, new), 1)
    return _rows(model, work, "prefill", machine)


def writing_rows(model: ModelSpec, asked: PackedQuestion, machine: Machine) -> tuple[Row, ...]:
    """The tokens behind the first of all texts, at the mean past; the machine has measured such
    steps.
    """
    rates, passes, texts = _rates(model, asked, machine), asked.tokens - 1, asked.sequences
    past = asked.prompt + asked.tokens / 2
    weights = _block_weights(model) + model.vocabulary * model.width
    products = passes * rates.products(weights, texts)
    attended = passes * texts * rates.attention(model, 1, past)
    rows = passes * texts
    flop, moved = 2.0 * weights * rows, passes * asked.weight_bytes
    work = _Work(flop, moved, products, attended, _Beside.of(asked, rates, rows), rows)
    return _rows(model, work, "decode", machine)


class _Beside(NamedTuple):
    """What so many rows of an adapter take."""

    flop: float
    memory_bytes: float
    seconds: float

    @staticmethod
    def of(asked: PackedQuestion, rates: _Rates, rows: int) -> _Beside:
        moved = asked.adapter_bytes * rows
        values = moved / _BF16_BYTES
        return _Beside(2.0 * values, moved, rates.beside * values)


class _Work(NamedTuple):
    flop: float
    memory_bytes: float
    products: float
    attention: float
    beside: _Beside
    drawn: int


def _rows(model: ModelSpec, work: _Work, phase: Phase, machine: Machine) -> tuple[Row, ...]:
    one = draw(Shapes.of([model]), np.ones((1, 1)))
    drawing = seconds_of(one, _DRAWN, machine, Curves.of(machine, _DRAWN))
    parts: list[tuple[str, Kind, float, float, float, int]] = [
        ("products", "gemm", work.flop, work.memory_bytes, work.products, 1),
        ("attention", "attention", 0.0, 0.0, work.attention, 1),
        ("draw", "other", 0.0, 0.0, work.drawn * drawing, work.drawn),
    ]
    if work.beside.seconds:
        parts.append(("adapter", "gemm", *work.beside, 1))
    threads = machine.device.threads
    return tuple(
        Row(
            operation=name, phase=phase, kind=kind, count=float(count), flop=flop,
            memory_bytes=moved, network_bytes=0.0, seconds=seconds,
            joules=seconds * watts(machine, kind, threads),
        )
        for name, kind, flop, moved, seconds, count in parts
    )  # fmt: skip


def packed_room(positions: int) -> int:
    """Of a cache for so many: they lie in blocks."""
    return -(-positions // _BLOCK) * _BLOCK


def _memory(model: ModelSpec, asked: PackedQuestion) -> MemoryPeak:
    room = packed_room(asked.prompt + asked.tokens)
    rows = min(_CHUNK, room)
    heads = (model.heads + 2 * model.kv_heads) * model.head_width
    codes = model.width + model.feed_forward_width + model.heads * model.head_width
    kinds = {
        "weights": asked.weight_bytes + asked.adapter_bytes,
        "cache": float(asked.sequences * cache_bytes(model, room, _BF16_BYTES, asked.cache)),
        "activations": float(rows * (8 * model.width + 6 * heads + 1.5 * codes)),
        "logits": float(model.vocabulary * (4 * asked.sequences + DRAW_BYTES)),
        "runtime": _RUNTIME_BYTES + _WORD_BYTES * model.vocabulary,
    }
    return MemoryPeak(**kinds, peak=sum(kinds.values()))
