"""Every operation of a model that answers: of a pass over prompts, and of one over single tokens.

Mirrors `infer` and the model's `extend` operation for operation; the hinge test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec.structs import replace

from narrows.plan.layouts import Array, Layouts, Setting, Shapes
from narrows.plan.operation import (
    CachedAttention,
    Operation,
    Pointwise,
    StreamedProduct,
    host,
    pointwise,
)

# Bytes moved for each logit where a token is drawn: the softmax and its sums are in fp64.
_DRAW_BYTES = 80
# Calls of torch that no curve holds (views, slices of the cache), in a block and beside the blocks.
_HOST_CALLS_BLOCK = 16
_HOST_CALLS_PASS = 16


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """`queries` new positions of each of `sequences` go through the model; `past` are cached."""

    sequences: int
    queries: int
    past: float = 0.0

    @property
    def keys(self) -> float:
        """Positions that the last query attends to."""
        return self.past + self.queries


def pass_operations(model: Shapes, each: Pass, setting: Setting) -> tuple[Operation, ...]:
    """The operations of one pass, up to the logits of what comes next, and its choice."""
    layouts = _layouts(each, setting)
    once, read = np.ones((1, 1)), read_bytes(model, each, setting)
    stream = each.sequences * each.queries * model.width
    operations = [next(pointwise("embedding", stream, once, layouts))]
    if model.learned:
        operations.append(next(pointwise("positions", stream, once, layouts)))
    for one in block_operations(model, each, setting, read):
        operations.append(replace(one, count=one.count * model.layers))
    operations.append(next(pointwise("norm", stream, once, layouts)))
    rows = each.sequences * once
    operations.append(_product("head", (rows, model.vocabulary, model.width), read, setting))
    operations.append(host(once * _HOST_CALLS_PASS))
    operations.append(draw(model, rows))
    return tuple(operations)


def read_bytes(model: Shapes, each: Pass, setting: Setting) -> Array:
    """Weights and caches: what lies between two uses of the same."""
    return setting.value_bytes * (model.parameters + model.layers * _kept(model, each))


def block_operations(
    model: Shapes, each: Pass, setting: Setting, read: Array
) -> Iterator[Operation]:
    """One block's operations, among `read` bytes of all that is read."""
    for one in _block(model, each, setting, read):
        yield replace(one, in_block=True)


def _block(model: Shapes, each: Pass, setting: Setting, read: Array) -> Iterator[Operation]:
    layouts, once = _layouts(each, setting), np.ones((1, 1))
    tokens = each.sequences * each.queries * once
    norm = next(pointwise("norm", tokens * model.width, once, layouts))
    yield norm
    yield _product("qkv", (tokens, model.qkv_width, model.width), read, setting)
    if model.rotary:
        turned = tokens * (model.heads + model.kv_heads) * model.head_width
        yield next(pointwise("rotary", turned, once, layouts))
    yield _attention(model, each, setting, read)
    heads_width = model.heads * model.head_width
    yield _product("out", (tokens, model.width, heads_width), read, setting)
    yield norm
    yield _product("up", (tokens, model.up_width, model.width), read, setting)
    activation = "swiglu" if model.gated else "gelu"
    yield next(pointwise(activation, tokens * model.feed_forward_width, once, layouts))
    yield _product("down", (tokens, model.width, model.feed_forward_width), read, setting)
    yield host(once * _HOST_CALLS_BLOCK)


def _product(
    name: str, sizes: tuple[Array, Array, Array], read: Array, setting: Setting
) -> Operation:
    m, n, k = sizes
    return Operation(
        name=name, phase="forward", kind="gemm", count=np.ones((1, 1)), flop=2.0 * m * n * k,
        memory_bytes=(m * k + k * n + m * n) * setting.value_bytes,
        work=StreamedProduct(m=m, n=n, k=k, working_set=read),
    )  # fmt: skip


def _kept(model: Shapes, each: Pass) -> Array:
    """Values of one block's caches."""
    return 2 * each.sequences * model.kv_heads * model.head_width * each.keys


def _attention(model: Shapes, each: Pass, setting: Setting, read: Array) -> Operation:
    """Two products over the scores that causality leaves; the cache is read once."""
    scores = each.sequences * model.heads * seen(each)
    new = each.sequences * each.queries * (model.qkv_width + model.heads * model.head_width)
    one = np.ones((1, 1))
    return Operation(
        name="attention", phase="forward", kind="attention", count=one,
        flop=4.0 * scores * model.head_width,
        memory_bytes=(_kept(model, each) + new) * setting.value_bytes,
        work=CachedAttention(
            sequences=each.sequences * one, kv_heads=model.kv_heads,
            group=model.heads / model.kv_heads, head_width=model.head_width,
            queries=each.queries * one, keys=each.keys * one, working_set=read,
        ),
    )  # fmt: skip


def seen(each: Pass) -> float:
    """Scores of one head and sequence: half of the new positions' square, as training counts it,
    and for a single position all that went before.
    """
    if each.queries == 1:
        return float(each.keys)
    return each.queries * (each.past + each.queries / 2)


def draw(model: Shapes, rows: Array) -> Operation:
    """One token for each sequence, one after the other."""
    return Operation(
        name="draw", phase="forward", kind="other", count=rows, flop=0 * rows,
        memory_bytes=_DRAW_BYTES * model.vocabulary,
        work=Pointwise(operation="draw", elements=model.vocabulary, direction="forward"),
    )  # fmt: skip


def _layouts(each: Pass, setting: Setting) -> Layouts:
    one = np.ones(1)
    return Layouts(
        setting=setting, micro_batch=each.sequences * one, accumulation=one, recompute=0 * one,
        threads=one, loss_chunk=one,
    )  # fmt: skip
