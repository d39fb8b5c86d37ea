"""Every operation of one optimizer step: how often, how large, how many FLOP and bytes.

Mirrors `model` and `train` operation for operation; the hinge test compares the two. Sizes are
arrays [models, layouts], so a whole search is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from narrows.plan.layouts import Array, Layouts, Shapes
from narrows.plan.optimizer import moved_bytes, orthogonalized
from narrows.spec.ledger import Kind, Phase
from narrows.spec.machine import Direction as ProductDirection

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product (m,k) @ (k,n), its operands lying in memory as `direction` has them."""

    m: Array
    n: Array
    k: Array
    direction: ProductDirection


@dataclass(frozen=True, kw_only=True)
class StreamedProduct:
    """A forward product of few rows, whose weights are among `working_set` bytes read in turn."""

    m: Array
    n: Array
    k: Array
    working_set: Array


@dataclass(frozen=True, kw_only=True)
class CausalAttention:
    """Attention of `rows` = B·N heads over `positions`, never writing the scores to memory."""

    rows: Array
    positions: Array
    head_width: Array
    direction: Direction


@dataclass(frozen=True, kw_only=True)
class CachedAttention:
    """Attention of `queries` new positions of `sequences` to `keys`, theirs included."""

    sequences: Array
    kv_heads: Array
    group: Array
    head_width: Array
    queries: Array
    keys: Array


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """A memory-bound operation of `kernels.interface.OPERATIONS` on `elements`."""

    operation: str
    elements: Array
    direction: Direction


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Work of the host alone: finding and starting an operation."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Bytes read from storage."""


Work = Product | StreamedProduct | CausalAttention | CachedAttention | Pointwise | Launch | Transfer


@dataclass(frozen=True, kw_only=True)
class Operation:
    """`count` calls a step, each of `flop` and `memory_bytes`, arrays [models, layouts].

    What is `in_block` is what a layout may compile or recompute.
    """

    name: str
    phase: Phase
    kind: Kind
    count: Array
    flop: Array
    memory_bytes: Array
    work: Work
    in_block: bool = False


# Values moved per element, forward and backward, by kernels that read every operand and write every
# result once. norm adds to the stream first: it reads x and delta and writes their sum and its
# norm; gelu's and swiglu's backward make the activation again beside the gradient.
VALUES_MOVED: dict[str, tuple[float, float]] = {
    "norm": (4, 4),
    "gelu": (2, 4),
    "swiglu": (3, 6),
    "rotary": (6, 6),
    "dropout": (2, 2),
    "embedding": (2, 2),
    "positions": (2, 1),
    "column_sum": (1, 0),
    "bias": (2, 0),
    "cross_entropy": (2, 0),
}


def step_operations(
    model: Shapes, layouts: Layouts, *, first: bool = True, last: bool = True
) -> tuple[Operation, ...]:
    """The operations of one optimizer step of `model` under each of `layouts`; of a pipeline's
    stage, the `first` of which embeds and the `last` takes the loss.
    """
    return (
        *(_embedding(model, layouts) if first else ()),
        *_blocks(model, layouts),
        *(_head(model, layouts) if last else ()),
        *_optimizer(model, layouts),
        *_besides(model, layouts),
    )


def evaluation_operations(model: Shapes, layouts: Layouts) -> tuple[Operation, ...]:
    """The forward operations of one micro-batch, as evaluation runs them."""
    once = np.ones_like(layouts.accumulation)
    forward = replace(layouts, accumulation=once, recompute=0 * once)
    return tuple(each for each in step_operations(model, forward) if each.phase == "forward")


def _embedding(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    tokens = layouts.micro_batch * model.context
    count = layouts.accumulation + 0 * tokens
    stream = tokens * model.width
    yield from pointwise("embedding", stream, count, layouts)
    if model.learned:
        yield from pointwise("positions", stream, count, layouts)
    if model.dropout:
        yield from pointwise("dropout", stream, count, layouts)
    # The table's gradient is dense: filled with zeros and, where tied, added to the head's.
    table = model.vocabulary * model.width + 0 * tokens
    moved = table * layouts.setting.value_bytes * (4 if model.tied else 1)
    yield kernel("embedding_gradient", ("backward", "pointwise"), table, count, moved)


def block_operations(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    """One block's operations, forward and backward, once; the host's work beside them included."""
    once = np.ones_like(layouts.micro_batch * model.context)
    calls = once * _HOST_CALLS_BLOCK
    if model.attended is not None:
        calls = calls + _HOST_CALLS_DOCUMENT * layouts.micro_batch * model.context / model.attended
    for each in (*_block(model, layouts, once), host(calls)):
        yield replace(each, in_block=True)


def _blocks(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    count = model.layers * layouts.accumulation
    for each in block_operations(model, layouts):
        operation = replace(each, count=each.count * count)
        yield operation
        if operation.phase == "forward" and layouts.recompute.any():
            yield _again(operation, operation.count * layouts.recompute)


def _block(model: Shapes, layouts: Layouts, count: Array) -> Iterator[Operation]:
    tokens = layouts.micro_batch * model.context
    stream = tokens * model.width
    heads_width = model.heads * model.head_width
    forward_width = model.feed_forward_width
    norm = list(pointwise("norm", stream / model.sequence, count, layouts))
    yield from norm
    yield from _linear("qkv", (tokens, model.qkv_width, model.width), count, model, layouts)
    if model.rotary and layouts.setting.kernels == "torch":
        # Native attention turns queries and keys as it reads them.
        turned = (model.heads + model.kv_heads) * model.head_width
        yield from pointwise("rotary", tokens * turned, count, layouts)
    yield from _attention(model, layouts, count)
    yield from _linear("out", (tokens, model.width, heads_width), count, model, layouts)
    yield from norm
    yield from _linear("up", (tokens, model.up_width, model.width), count, model, layouts)
    activation = "swiglu" if model.gated else "gelu"
    yield from pointwise(activation, tokens * forward_width, count, layouts)
    yield from _linear("down", (tokens, model.width, forward_width), count, model, layouts)
    if model.dropout:
        yield from pointwise("dropout", stream / model.sequence, 2 * count, layouts)


def _head(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    """The loss takes its gradient on the way forward, a chunk of positions at a time."""
    tokens = layouts.micro_batch * model.context
    count = layouts.accumulation + 0 * tokens
    yield from pointwise("norm", tokens * model.width / model.sequence, count, layouts)
    if not model.said:
        # A few numbers of each document, beside the blocks nothing.
        return
    said = tokens * model.said
    chunks = np.ceil(said / layouts.loss_chunk)
    rows = said / chunks
    yield from _product("head", (rows, model.vocabulary, model.width), count * chunks, layouts)
    losses = pointwise("cross_entropy", rows * model.vocabulary, count * chunks, layouts)
    yield replace(next(losses), kind="loss")


def _optimizer(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    value = layouts.setting.value_bytes
    elements = model.parameters + 0 * layouts.micro_batch
    once = np.ones_like(elements)
    several = np.where(layouts.accumulation > 1, 1.0, 0.0) * once
    gradient = elements * np.where(layouts.accumulation > 1, 4.0, value)
    yield kernel("squared_norm", ("optimizer", "optimizer"), elements, once, gradient)
    optimizer = layouts.optimizer
    moved = gradient + elements * moved_bytes(optimizer, value)
    yield kernel(optimizer.operation, ("optimizer", "optimizer"), elements, once, moved)
    for m, n, k, times in orthogonalized(model, optimizer.rule):
        yield Operation(
            name=optimizer.operation, phase="optimizer", kind="optimizer",
            count=once * model.layers * times, flop=2.0 * m * n * k,
            memory_bytes=(m * k + k * n + m * n) * layouts.setting.value_bytes,
            work=Product(m=m, n=n, k=k, direction="forward"),
        )  # fmt: skip
    # Into an fp32 buffer once a micro-batch: reads the gradient, reads and writes the sum.
    often = layouts.accumulation * several
    yield kernel("accumulate", ("optimizer", "optimizer"), elements, often, elements * (value + 8))
    yield kernel("clear", ("optimizer", "optimizer"), elements, several, elements * 4)


def _besides(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    tokens = layouts.micro_batch * model.context
    count = layouts.accumulation + 0 * tokens
    yield Operation(
        name="batch", phase="data", kind="data", count=count, flop=0 * tokens,
        memory_bytes=tokens * _TOKEN_BYTES, work=Transfer(),
    )  # fmt: skip
    chunks = np.ceil(tokens / layouts.loss_chunk)
    yield host(count * chunks * _HOST_CALLS_CHUNK)


def host(calls: Array) -> Operation:
    """Calls that find and start work and compute nothing."""
    return Operation(
        name="host", phase="other", kind="launch", count=calls, flop=0 * calls,
        memory_bytes=0 * calls, work=Launch(),
    )  # fmt: skip


# A token is stored in 2 bytes and handed to the model as int64.
_TOKEN_BYTES = 2 + 8
# Calls of torch that no curve holds (views, autograd's own nodes), forward and backward: in a
# block, and for a chunk of the loss.
_HOST_CALLS_BLOCK = 24
# To cut a document out of a row and to put what comes of it back, forward and backward.
_HOST_CALLS_DOCUMENT = 6
_HOST_CALLS_CHUNK = 12


def _linear(
    name: str, sizes: tuple[Array, Array, Array], count: Array, model: Shapes, layouts: Layouts
) -> Iterator[Operation]:
    """A product; where there is a bias, laid out for the product to add to, and the sum over rows
    that is its gradient.
    """
    yield from _product(name, sizes, count, layouts)
    if model.biases:
        m, n, _ = sizes
        yield next(pointwise("bias", m * n, count, layouts))
        yield replace(next(pointwise("column_sum", m * n, count, layouts)), phase="backward")


def _product(
    name: str, sizes: tuple[Array, Array, Array], count: Array, layouts: Layouts
) -> Iterator[Operation]:
    """y_mn = x_mk @ w_kn forward; dx = dy @ wᵀ and dw = xᵀ @ dy backward."""
    m, n, k = sizes
    yield _matmul(name, "forward", (m, n, k), count, layouts)
    yield _matmul(name, "dgrad", (m, k, n), count, layouts)
    yield _matmul(name, "wgrad", (n, k, m), count, layouts)


def _matmul(
    name: str, direction: ProductDirection, sizes: tuple[Array, Array, Array], count: Array,
    layouts: Layouts,
) -> Operation:  # fmt: skip
    m, n, k = sizes
    moved = (m * k + k * n + m * n) * layouts.setting.value_bytes
    return Operation(
        name=name, phase="forward" if direction == "forward" else "backward", kind="gemm",
        count=count, flop=2.0 * m * n * k, memory_bytes=moved,
        work=Product(m=m, n=n, k=k, direction=direction),
    )  # fmt: skip


def _attention(model: Shapes, layouts: Layouts, count: Array) -> Iterator[Operation]:
    """Two products over half of the T·T scores forward; five backward, since the scores are made
    again (arXiv:2205.14135). Of documents side by side each is computed by itself.
    """
    tokens = layouts.micro_batch * model.context
    positions, documents = model.context, np.ones_like(tokens)
    if model.attended is not None:
        positions = np.full_like(model.context, model.attended)
        documents = tokens / positions
    rows = tokens / positions / documents * model.heads
    scores = rows * positions * positions / 2
    count, tokens = count * documents, tokens / documents
    out = tokens * model.heads * model.head_width
    qkv = tokens * model.qkv_width
    value = layouts.setting.value_bytes
    directions: tuple[tuple[Direction, int, Array], ...] = (
        ("forward", 2, qkv + out),
        ("backward", 5, 2 * qkv + 2 * out),
    )
    for direction, products, values in directions:
        yield Operation(
            name="attention", phase=direction, kind="attention", count=count,
            flop=products * 2.0 * scores * model.head_width, memory_bytes=values * value,
            work=CausalAttention(
                rows=rows, positions=positions + 0 * rows,
                head_width=model.head_width + 0 * rows, direction=direction,
            ),
        )  # fmt: skip


def pointwise(
    operation: str, elements: Array, count: Array, layouts: Layouts
) -> Iterator[Operation]:
    """A memory-bound operation, forward and backward."""
    directions: tuple[Direction, Direction] = ("forward", "backward")
    for direction, values in zip(directions, VALUES_MOVED[operation], strict=True):
        yield Operation(
            name=operation, phase=direction, kind="pointwise", count=count, flop=0 * elements,
            memory_bytes=values * elements * layouts.setting.value_bytes,
            work=Pointwise(operation=operation, elements=elements, direction=direction),
        )  # fmt: skip


def kernel(
    operation: str, place: tuple[Phase, Kind], elements: Array, count: Array, moved: Array
) -> Operation:
    """A memory-bound operation that moves so many bytes."""
    return Operation(
        name=operation, phase=place[0], kind=place[1], count=count, flop=0 * elements,
        memory_bytes=moved,
        work=Pointwise(operation=operation, elements=elements, direction="forward"),
    )  # fmt: skip


def _again(operation: Operation, count: Array) -> Operation:
    """A forward operation run once more in the backward pass."""
    return replace(operation, phase="backward", count=count)
