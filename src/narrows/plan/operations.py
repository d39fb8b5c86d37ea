"""Every operation of one optimizer step: how often, how large, how many FLOP and bytes.

Mirrors `model` and `train` operation for operation; the hinge test compares the two. Sizes are
arrays [models, layouts], so a whole search is written once.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec.structs import replace

from narrows.plan import low_rank
from narrows.plan.layouts import Array, Layouts, Shapes
from narrows.plan.operation import (
    CausalAttention,
    Direction,
    Operation,
    Product,
    Transfer,
    Way,
    host,
    kernel,
    matmul,
    pointwise,
    product,
)
from narrows.plan.optimizer import moved_bytes, offloaded_bytes, orthogonalized
from narrows.plan.trained import Layer, Matrix


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
        *(_taught(model, layouts) if last else ()),
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
    stream, trained = tokens * model.width, model.trained
    table, positions = trained.table, trained.learns("positions.weight")
    yield from pointwise("embedding", stream, count, layouts, back=table)
    if model.learned:
        yield from pointwise("positions", stream, count, layouts, back=positions)
    if model.dropout:
        yield from pointwise("dropout", stream, count, layouts, back=table or positions)
    if not table:
        return
    # The table's gradient is dense: filled with zeros and, where tied, added to the head's.
    values = model.vocabulary * model.width + 0 * tokens
    moved = values * layouts.setting.value_bytes * (4 if model.tied else 1)
    yield kernel("embedding_gradient", ("backward", "pointwise"), values, count, moved)


def block_operations(
    model: Shapes, layouts: Layouts, layer: Layer | None = None
) -> Iterator[Operation]:
    """One block's operations, forward and backward, once; the host's work beside them included. Of
    a kind of block that a model has, else of its first.
    """
    layer = layer or model.trained.layers[0]
    once = np.ones_like(layouts.micro_batch * model.context)
    calls = once * (_HOST_CALLS_BLOCK + low_rank.HOST_CALLS * layer.adapted)
    if model.attended is not None:
        calls = calls + _HOST_CALLS_DOCUMENT * layouts.micro_batch * model.context / model.attended
    for each in (*_block(model, layouts, once, layer), host(calls)):
        yield replace(each, in_block=True)


def _blocks(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    for layer in model.trained.layers:
        often = model.layers if model.learning.everything else float(layer.blocks)
        count = often * layouts.accumulation
        for each in block_operations(model, layouts, layer):
            operation = replace(each, count=each.count * count)
            yield operation
            if operation.phase == "forward" and layer.flows and layouts.recompute.any():
                again = layouts.full
                if operation.kind not in _KEPT:
                    again = again + layouts.selective
                yield _again(operation, operation.count * again)


def _block(model: Shapes, layouts: Layouts, count: Array, layer: Layer) -> Iterator[Operation]:
    tokens = layouts.micro_batch * model.context
    stream = tokens * model.width
    heads_width = model.heads * model.head_width
    forward_width = model.feed_forward_width
    own = _Own(model, layouts, count, layer)
    qkv, activated = layer.qkv.flows, layer.down.reads
    norm = stream / model.sequence
    yield from pointwise("norm", norm, count, layouts, back=layer.first_norm)
    yield from _linear("qkv", (tokens, model.qkv_width, model.width), own)
    if model.rotary and layouts.setting.kernels == "torch":
        # Native attention turns queries and keys as it reads them.
        turned = (model.heads + model.kv_heads) * model.head_width
        yield from pointwise("rotary", tokens * turned, count, layouts, back=qkv)
    for each in _attention(model, layouts, count):
        if qkv or each.phase == "forward":
            yield each
    yield from _linear("out", (tokens, model.width, heads_width), own)
    yield from pointwise("norm", norm, count, layouts, back=layer.second_norm)
    yield from _linear("up", (tokens, model.up_width, model.width), own)
    activation = "swiglu" if model.gated else "gelu"
    yield from pointwise(activation, tokens * forward_width, count, layouts, back=activated)
    if activated and layer.activates_again and layouts.setting.kernels == "native":
        again = next(pointwise(activation, tokens * forward_width, count, layouts))
        yield replace(again, phase="backward")
    yield from _linear("down", (tokens, model.width, forward_width), own)
    if model.dropout:
        yield from pointwise("dropout", norm, 2 * count, layouts, back=layer.flows)


def _head(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    """The loss takes its gradient on the way forward, a chunk of positions at a time."""
    tokens = layouts.micro_batch * model.context
    count = layouts.accumulation + 0 * tokens
    norm, trained = tokens * model.width / model.sequence, model.trained
    yield from pointwise("norm", norm, count, layouts, back=trained.hidden)
    if not model.said:
        # A few numbers of each document, beside the blocks nothing.
        return
    said = tokens * model.said
    yield from _transform(model, said, count, layouts)
    chunks = np.ceil(said / layouts.loss_chunk)
    rows = said / chunks
    sizes = rows, model.vocabulary, model.width
    learns = Matrix(weight=trained.head, bias=False, low=0, reads=trained.told)
    yield from product("head", sizes, count * chunks, layouts, learns)
    losses = next(pointwise("cross_entropy", rows * model.vocabulary, count * chunks, layouts))
    yield replace(losses, kind="loss")
    if model.judged.twice:
        yield matmul("head", "forward", sizes, count * chunks, layouts)
        yield replace(losses, kind="loss")


def _transform(model: Shapes, said: Array, count: Array, layouts: Layouts) -> Iterator[Operation]:
    """What BERT's head makes of the last states before it reads them."""
    trained = model.trained
    if not trained.spec.head_transform:
        return
    learns = trained.learns("transform.weight")
    own = Matrix(weight=learns, bias=learns, low=0, reads=trained.hidden)
    yield from product("transform", (said, model.width, model.width), count, layouts, own)
    for each in ("bias", "gelu", "norm"):
        yield from pointwise(each, said * model.width, count, layouts, back=own.flows)


def _taught(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    """A teacher's forward pass over the same rows, and how far the model's logits are from its."""
    if model.taught is None:
        return
    compiled = layouts.setting.compile
    for each in step_operations(model.taught, replace(layouts, recompute=0 * layouts.recompute)):
        if each.phase == "forward" and each.kind != "loss":
            yield replace(each, name="teacher", in_block=each.in_block and not compiled)
    tokens = layouts.micro_batch * model.context
    chunks = np.ceil(tokens / layouts.loss_chunk)
    values = tokens / chunks * model.vocabulary
    moved = values * (_DIVERGENCE_FP32 * 4 + _DIVERGENCE_VALUES * layouts.setting.value_bytes)
    often = layouts.accumulation * chunks
    yield kernel("divergence", ("forward", "loss"), values, often, moved)


def _optimizer(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    value = layouts.setting.value_bytes
    elements = model.parameters_trained + 0 * layouts.micro_batch
    once = np.ones_like(elements)
    several = np.where(layouts.accumulation > 1, 1.0, 0.0) * once
    gradient = elements * np.where(layouts.accumulation > 1, 4.0, value)
    yield kernel("squared_norm", ("optimizer", "optimizer"), elements, once, gradient)
    optimizer = layouts.optimizer
    moved = gradient + elements * moved_bytes(optimizer)
    yield _stepping(optimizer.operation, elements, once, moved, layouts)
    for m, n, k, times in orthogonalized(model, optimizer.rule):
        yield Operation(
            name=optimizer.operation, phase="optimizer", kind="optimizer",
            count=once * model.layers * times, flop=2.0 * m * n * k,
            memory_bytes=(m * k + k * n + m * n) * layouts.setting.value_bytes,
            work=Product(m=m, n=n, k=k, direction="forward"),
        )  # fmt: skip
    # Into an fp32 buffer once a micro-batch: reads the gradient, reads and writes the sum.
    often = layouts.accumulation * several
    yield _stepping("accumulate", elements, often, elements * (value + 8), layouts)
    yield _stepping("clear", elements, several, elements * 4, layouts)
    yield from _offload(layouts, elements)


def _stepping(
    name: str, elements: Array, count: Array, moved: Array, layouts: Layouts
) -> Operation:
    """What is done where the optimizer's state is."""
    done = kernel(name, ("optimizer", "optimizer"), elements, count, moved)
    return replace(done, work=Transfer(way="host")) if layouts.offload == "host" else done


def _offload(layouts: Layouts, elements: Array) -> Iterator[Operation]:
    """On a disk all that is kept comes and goes once a step, of all processes by turns: those of
    several hosts are taken to share one. To a host gradients go down and weights come up; where
    these are sharded, each micro-batch takes them up twice.
    """
    value, spread = layouts.setting.value_bytes, layouts.spread
    kept = elements * offloaded_bytes(layouts.optimizer, value)
    m = layouts.accumulation
    moved: dict[Way, Array] = {}
    if layouts.offload == "disk":
        moved = {"read": kept, "write": kept}
    elif layouts.offload == "host":
        moved = {"link": elements * value * (m + 1.0 if spread is None else 3.0 * m)}
    for way, size in moved.items():
        yield Operation(
            name="offload", phase="optimizer", kind="data", count=np.ones_like(elements),
            flop=0 * elements, memory_bytes=size,
            work=Transfer(way=way, sharers=spread.processes if spread else 1),
        )  # fmt: skip


def _besides(model: Shapes, layouts: Layouts) -> Iterator[Operation]:
    tokens = layouts.micro_batch * model.context
    count = layouts.accumulation + 0 * tokens
    yield Operation(
        name="batch", phase="data", kind="data", count=count, flop=0 * tokens,
        memory_bytes=tokens * _TOKEN_BYTES, work=Transfer(),
    )  # fmt: skip
    chunks = np.ceil(tokens / layouts.loss_chunk)
    yield host(count * chunks * _HOST_CALLS_CHUNK)


# Of what is computed again selectively, all but these (parallel/recompute.py).
_KEPT = ("gemm", "attention")
# A token is stored in 2 bytes and handed to the model as int64.
_TOKEN_BYTES = 2 + 8
# What kernels/loss.py's divergence reads and writes of each logit, beside the cross entropy.
_DIVERGENCE_FP32, _DIVERGENCE_VALUES = 32, 3
# Calls of torch that no curve holds (views, autograd's own nodes), forward and backward: in a
# block, and for a chunk of the loss.
_HOST_CALLS_BLOCK = 24
# To cut a document out of a row and to put what comes of it back, forward and backward.
_HOST_CALLS_DOCUMENT = 6
_HOST_CALLS_CHUNK = 12


class _Own(msgspec.Struct, frozen=True):
    """What a block's products have in common."""

    model: Shapes
    layouts: Layouts
    count: Array
    layer: Layer


def _linear(name: str, sizes: tuple[Array, Array, Array], own: _Own) -> Iterator[Operation]:
    """A product; where there is a bias, laid out for the product to add to, and the sum over rows
    that is its gradient; and what an adapter adds.
    """
    matrix: Matrix = getattr(own.layer, name)
    (m, n, _), count, layouts = sizes, own.count, own.layouts
    yield from product(name, sizes, count, layouts, matrix)
    if own.model.biases:
        yield next(pointwise("bias", m * n, count, layouts))
        if matrix.bias:
            yield replace(next(pointwise("column_sum", m * n, count, layouts)), phase="backward")
    if own.layer.adapter is not None:
        yield from low_rank.operations(sizes, matrix, own.layer.adapter, count, layouts)


def _attention(model: Shapes, layouts: Layouts, count: Array) -> Iterator[Operation]:
    """Two products over half of the T·T scores forward, over all of them where tokens see what
    follows; five backward, since the scores are made again (arXiv:2205.14135). Of documents side
    by side each is computed by itself.
    """
    tokens = layouts.micro_batch * model.context
    positions, documents = model.context, np.ones_like(tokens)
    if model.attended is not None:
        positions = np.full_like(model.context, model.attended)
        documents = tokens / positions
    rows = tokens / positions / documents * model.heads
    rows = rows * (1 if model.causal else 2)
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


def _again(operation: Operation, count: Array) -> Operation:
    """A forward operation run once more in the backward pass."""
    return replace(operation, phase="backward", count=count)
