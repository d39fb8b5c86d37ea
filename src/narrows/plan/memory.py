"""Bytes by kind at the moment of the peak, for many layouts at once.

Three moments compete: the loss, when every block's saved activations meet the logits of a chunk;
the last block's backward pass, when they meet its gradients; and the end of the backward pass,
when all gradients stand beside a single block. Where there is a teacher, its forward pass is one
more. The tables below mirror what `kernels` keep.
"""

from __future__ import annotations

import msgspec
import numpy as np

from narrows.plan.heap import POOL, Heap
from narrows.plan.layouts import Array, Layouts, Setting, Shapes
from narrows.plan.optimizer import AT_HAND_BYTES, whole_state_bytes
from narrows.plan.trained import Layer
from narrows.spec.adapter import LowRank
from narrows.spec.ledger import MemoryPeak

# What comes and goes within a step. A machine's calibration "activations" multiplies it by what its
# own runs took.
TRANSIENT = ("activations", "logits", "workspace")
_FP32 = 4
_DIVERGENCE_FP32 = 4
_TOKEN = 8

Moment = dict[str, Array]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What one of several processes has of a model: parameters that it computes with, and those of
    them that it keeps, with so many bytes of `state`. Where the `copied` whole stands beside its
    own piece, and where not so many are `gathered` at once. Gradients are a `late` sum in fp32 of
    the whole, or soon of the piece. So many micro-batches are in `flight` at once. Beside all this
    are the bytes of what is frozen.
    """

    whole: float
    kept: float
    state: float
    copied: bool
    gathered: float
    late: bool
    flight: Array
    frozen_bytes: float = 0.0


class MemoryBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by kind, arrays [models, layouts]; of a fleet, for one model, [layouts]."""

    weights: Array
    masters: Array
    gradients: Array
    optimizer: Array
    activations: Array
    logits: Array
    workspace: Array
    runtime: Array

    @property
    def peak(self) -> Array:
        """The sum of the kinds."""
        return np.asarray(sum(getattr(self, name) for name in self.__struct_fields__))

    def record(self, *place: int) -> MemoryPeak:
        """One candidate's bytes as a record; `place` is its index in the arrays."""
        kinds = {name: float(getattr(self, name)[place]) for name in self.__struct_fields__}
        return MemoryPeak(**kinds, peak=sum(kinds.values()))


def memory_bytes(
    model: Shapes,
    layouts: Layouts,
    heap: Heap = POOL,
    held: Held | None = None,
    worn: float = 1.0,
) -> MemoryBytes:
    """Peak memory of a step under each layout, in `heap`, as past runs have `worn` it. Of several
    processes `model` is what one computes, and `held` what it has.
    """
    value = layouts.setting.value_bytes
    tokens = layouts.micro_batch * model.context
    nothing = 0.0 * (tokens * model.layers)
    learned = model.parameters_trained + nothing
    moments = [
        {
            kind: each * (worn * heap.wear if kind in TRANSIENT else 1.0)
            for kind, each in moment.items()
        }
        for moment in _moments(model, layouts, held)
    ]
    totals = np.stack([np.asarray(sum(list(moment.values()), nothing)) for moment in moments])
    worst = totals.argmax(axis=0)
    at_peak = {
        kind: np.choose(worst, [moment[kind] + nothing for moment in moments])
        for kind in moments[0]
    }
    at_peak["workspace"] = at_peak["workspace"] + worn * _holes(model, layouts, heap)
    weights = value * (model.parameters + nothing)
    if not model.learning.everything:
        weights = model.trained.weight_bytes(value) + nothing
    if held is None:
        state = whole_state_bytes(model, layouts.optimizer)
    else:
        state = np.asarray(held.state)
        learned = held.kept + nothing
        weights = learned + held.gathered + (held.whole if held.copied else 0.0)
        weights = value * weights + held.frozen_bytes
    masters = (_FP32 - value) * learned
    if layouts.offload == "disk":
        state, masters = np.minimum(state + masters, AT_HAND_BYTES), 0 * masters
    elif layouts.offload == "host":
        # Sharded, the weights are there themselves, and here what is gathered of them.
        weights = weights - value * learned * (held is not None)
        state, masters = 0 * state, 0 * masters
    if model.taught is not None:
        weights = weights + value * model.taught.parameters
    return MemoryBytes(
        weights=weights,
        masters=masters + nothing,
        optimizer=state + nothing,
        runtime=nothing + heap.runtime(layouts.setting),
        **at_peak,
    )


def saved_bytes(model: Shapes, setting: Setting, layer: Layer | None = None) -> Array:
    """Bytes of a block that wait for its backward pass, per token; the hinge test counts them. Of a
    kind of block that a model has, else of its first.
    """
    own = layer or model.trained.layers[0]
    value, stream = setting.value_bytes, model.width * setting.value_bytes
    piece = stream / model.sequence
    activation = model.feed_forward_width * value
    out = model.heads * model.head_width * value
    norms, attends = own.first_norm + own.second_norm, own.qkv.flows
    native = setting.kernels == "native"
    kept_again = own.down.keeps and not (native and own.activates_again)
    whole_native = native and own.down.low == 0
    # Native products keep what the norm before them keeps as well, and compute it again.
    inputs = sum(
        matrix.keeps and not (native and norm and matrix.low == 0)
        for matrix, norm in ((own.qkv, own.first_norm), (own.up, own.second_norm))
    )
    saved: dict[str, Array | float] = {
        "norms, inputs of qkv and up": inputs * stream,
        "queries, keys and values": attends * model.qkv_width * value,
        "attention's output, input of out": (attends or own.out.keeps) * out,
        "log of the softmax's sums": attends * model.heads * _FP32,
        "up's output": (own.down.reads or own.down.keeps) * model.up_width * value,
    }
    if native:
        saved["the stream before both norms, and its statistics"] = norms * (piece + 2 * _FP32)
    elif model.centred:
        saved["the stream before both norms, and its statistics"] = norms * (piece + 2 * value)
    elif setting.compile:
        # The compiler's RMSNorm is made again from the stream and one number a row.
        saved["the stream before both norms, and its statistics"] = norms * (piece + _FP32)
    else:
        # torch spells RMSNorm in fp32: the stream, for the weight's gradient its norm, and one
        # number a row.
        streams = (1 + own.norm_weights) * model.width / model.sequence
        saved["the stream and its norm in fp32, twice"] = norms * _FP32 * (streams + 1)
    if kept_again and not whole_native:
        saved["the activation, input of down"] = activation
    if not native and not setting.compile and own.down.reads and model.gated:
        saved["silu of the gate"] = activation
    if not native and attends and model.rotary:
        turned = (model.heads + model.kv_heads) * model.head_width * value
        ordered = out * own.out.keeps
        saved["turned queries and keys, and the output in their order"] = turned + ordered
    if model.dropout:
        saved["masks of two dropouts, a byte a value"] = 2 * own.flows * model.width
    saved |= _saved_beside(model, value, own)
    return np.asarray(sum(saved.values()))


def product_bytes(model: Shapes, setting: Setting) -> tuple[Array, Array]:
    """Bytes of a block's products and attention, per token, which selective recompute keeps; but
    for those of the last product, which are the next block's stream. And those of them that wait
    for the backward pass without it, too.
    """
    out, value = model.heads * model.head_width, setting.value_bytes
    shared = (model.qkv_width + out + model.up_width) * value + model.heads * _FP32
    return shared + model.width * value, shared


def _saved_beside(model: Shapes, value: int, layer: Layer) -> dict[str, Array | float]:
    """What low-rank products keep: what lies between A and B, where rows have lengths the product
    before them, and of dropout what is left and a byte a value.
    """
    adapter = layer.adapter
    if adapter is None:
        return {}
    out, forward = model.heads * model.head_width, model.feed_forward_width
    sizes = (
        (layer.qkv, model.width, model.qkv_width), (layer.out, out, model.width),
        (layer.up, model.width, model.up_width), (layer.down, forward, model.width),
    )  # fmt: skip
    saved: dict[str, Array | float] = {}
    for matrix, columns, rows in sizes:
        if matrix.low:
            saved["between A and B"] = saved.get("between A and B", 0.0) + matrix.low * value
            if layer.lengths:
                saved["before lengths"] = saved.get("before lengths", 0.0) + rows * value
            if adapter.dropout:
                more = columns * (value + 1)
                saved["dropped"] = saved.get("dropped", 0.0) + more
    return saved


def _saved(model: Shapes, layouts: Layouts) -> tuple[Array, Array]:
    """What all blocks keep of a micro-batch, but for how often it is in flight; and the most that
    one does.
    """
    tokens, setting = layouts.micro_batch * model.context, layouts.setting
    if model.learning.everything:
        one = tokens * saved_bytes(model, setting)
        return one * model.layers, one
    each = [tokens * saved_bytes(model, setting, layer) for layer in model.trained.layers]
    often = [layer.blocks for layer in model.trained.layers]
    whole = sum(one * count for one, count in zip(each, often, strict=True))
    return np.asarray(whole), np.max(each, axis=0)


def _holes(model: Shapes, layouts: Layouts, heap: Heap) -> Array:
    """Bytes that a heap holds and nobody uses."""
    tokens = layouts.micro_batch * model.context
    shared = layouts.selective * tokens * product_bytes(model, layouts.setting)[1]
    block = _saved(model, layouts)[1] - shared
    again = np.where(
        layouts.recompute > 0, np.minimum(heap.recompute, model.layers - 1) * block, 0.0
    )
    gradients = _largest(model) if layouts.optimizer.fused else model.parameters_trained
    return heap.gradients * layouts.setting.value_bytes * gradients + again


def _largest(model: Shapes) -> Array:
    """Values of the largest parameter."""
    rows = np.maximum(np.maximum(model.vocabulary, model.up_width), model.qkv_width)
    return np.asarray(rows * model.width)


def _moments(model: Shapes, layouts: Layouts, held: Held | None) -> tuple[Moment, ...]:
    value = layouts.setting.value_bytes
    tokens = layouts.micro_batch * model.context
    stream = tokens * model.width * value
    every, block = _saved(model, layouts)
    products, shared = (tokens * each for each in product_bytes(model, layouts.setting))
    again = np.where(layouts.recompute > 0, block - layouts.selective * shared, 0.0)
    dropped = 2 * stream + layouts.selective * products
    kept = np.where(layouts.recompute > 0, dropped, block)
    flowing = np.where(layouts.recompute > 0, dropped * _flowing(model), every)
    # Tokens and targets; the last stream, which the final norm keeps, and the loss's gradient.
    ends = tokens * 2 * _TOKEN + 2 * stream
    # The head's gradient, which a few classes have next to nothing of.
    learns = bool(model.said) and (model.trained.head or model.trained.table)
    table = model.vocabulary * model.width * value * learns
    summed = own = model.parameters_trained
    flight = np.ones_like(layouts.micro_batch)
    if held is not None:
        summed = own = np.full_like(model.layers, held.kept)
        if held.late:
            summed = np.full_like(model.layers, held.whole)
        flight = held.flight
    if layouts.optimizer.fused:
        # Each gradient is used and freed where it is made.
        own = _largest(model)
    elif held is None:
        # Of one process alone, a micro-batch's gradient joins the sum where it is made.
        own = np.where(layouts.accumulation > 1, _largest(model), own)
    buffer = np.where(layouts.accumulation > 1, _FP32 * summed, 0.0)
    if layouts.offload == "host":
        buffer = 0.0 * buffer
    working = tokens * _working_bytes(model, layouts.setting) + value * _unpacked(model)
    taught = model.taught
    said = 0.0 if taught is None else tokens * taught.width * value
    loss = {
        "gradients": buffer + table,
        "activations": flowing * flight + ends + said,
        "logits": _logits_bytes(model, layouts),
        "workspace": stream,
    }
    last_block = {
        "gradients": buffer + table,
        "activations": flowing * flight + ends + again,
        "logits": 0 * tokens,
        "workspace": working,
    }
    end = {
        "gradients": buffer + value * own + (table if model.tied else 0.0),
        "activations": kept + ends + again,
        "logits": 0 * tokens,
        "workspace": working,
    }
    if taught is None:
        return loss, last_block, end
    teaching = {
        "gradients": buffer,
        "activations": tokens * 2 * _TOKEN,
        "logits": 0 * tokens,
        "workspace": tokens * _working_bytes(taught, layouts.setting),
    }
    return loss, last_block, end, teaching


def _flowing(model: Shapes) -> Array:
    """Blocks that are passed backward."""
    if model.learning.everything:
        return model.layers
    return np.full((1, 1), float(sum(e.blocks for e in model.trained.layers if e.flows)))


def _working_bytes(model: Shapes, setting: Setting) -> Array:
    """Bytes alive beside the saved ones in a block's backward pass, per token: two gradients of
    the stream, and the widest of the gradients inside. Native kernels make the activation again;
    torch has freed it by then.
    """
    again = 1 if setting.kernels == "native" or model.gated else 0
    forward = (1 + again) * model.feed_forward_width + (model.up_width if model.gated else 0)
    attention = model.qkv_width + model.heads * model.head_width
    return (2 * model.width + np.maximum(forward, attention)) * setting.value_bytes


def _unpacked(model: Shapes) -> Array:
    """Values of the largest matrix that is made whole for a product."""
    adapter = model.learning.adapter
    if not isinstance(adapter, LowRank) or adapter.base is None:
        return 0.0 * model.width
    widest = np.maximum(model.qkv_width, np.maximum(model.up_width, model.feed_forward_width))
    return np.asarray(model.width * widest)


def _logits_bytes(model: Shapes, layouts: Layouts) -> Array:
    """A chunk's logits, which their gradient replaces; torch's softmax is another tensor in fp32,
    of an fp32 copy. Beside a teacher's, some in fp32 (kernels/loss.py).
    """
    rows = np.minimum(layouts.loss_chunk, layouts.micro_batch * model.context * model.said)
    value = layouts.setting.value_bytes
    each = value
    if layouts.setting.kernels == "torch":
        each += _FP32 if value == _FP32 else 2 * _FP32
    if model.judged.teacher is not None:
        each = value + _DIVERGENCE_FP32 * _FP32
    return rows * model.vocabulary * each
