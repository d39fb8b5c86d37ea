"""Bytes by kind at the moment of the peak, for many layouts at once.

Three moments compete: the loss, when every block's saved activations meet the logits of a chunk;
the last block's backward pass, when they meet its gradients; and the end of the backward pass,
when all gradients stand beside a single block. The tables below mirror what `kernels` keep.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from narrows.plan.layouts import Array, Layouts, Setting, Shapes
from narrows.plan.optimizer import whole_state_bytes
from narrows.spec.ledger import MemoryPeak

# What torch takes once it computes: thread pools, oneDNN's primitives and their code; and what its
# compiler's own modules take beside. Measured by benchmarks/truth.py on models of 0.5M to 124M.
RUNTIME_BYTES = 48e6
COMPILER_BYTES = 160e6
# What a run has beside its steps: its text mapped, TensorBoard, samples, checkpoints. The demo's
# runs held 16 MB more than their steps at first and 20 to 43 MB later.
RUN_BYTES = 30e6
# What comes and goes within a step wears the allocator: glibc's heap grew by this over the bytes in
# use. A machine's calibration "activations" multiplies it by what its own allocator took.
TRANSIENT = ("activations", "logits", "workspace")
WEAR = 1.12
# A heap that serves whatever fits leaves holes where gradients come and go, in parts of their size,
# and between the streams that recomputing keeps, each too small for a block's activations again.
# Both measured as resident set over malloc's bytes in use, 0.5M to 124M parameters.
HOLES_GRADIENTS = 0.5
HOLES_RECOMPUTE = 3.0
_FP32 = 4
_TOKEN = 8

Moment = dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one of several processes has of a model: parameters that it computes with, and those of
    them that it keeps, with so many bytes of `state`. Where the `copied` whole stands beside its
    own piece, and where not so many are `gathered` at once. Gradients are a `late` sum in fp32 of
    the whole, or soon of the piece. So many micro-batches are in `flight` at once.
    """

    whole: float
    kept: float
    state: float
    copied: bool
    gathered: float
    late: bool
    flight: Array


@dataclass(frozen=True, kw_only=True)
class MemoryBytes:
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
        return np.asarray(sum(getattr(self, field.name) for field in fields(self)))

    def record(self, *place: int) -> MemoryPeak:
        """One candidate's bytes as a record; `place` is its index in the arrays."""
        kinds = {each.name: float(getattr(self, each.name)[place]) for each in fields(self)}
        return MemoryPeak(**kinds, peak=sum(kinds.values()))


def memory_bytes(
    model: Shapes,
    layouts: Layouts,
    calibration: dict[str, float] | None = None,
    held: Held | None = None,
) -> MemoryBytes:
    """Peak memory of a step under each layout; `calibration` is the machine's. Of several processes
    `model` is what one computes, and `held` what it has.
    """
    worn = (calibration or {}).get("activations", 1.0)
    value = layouts.setting.value_bytes
    tokens = layouts.micro_batch * model.context
    nothing = 0.0 * (tokens * model.layers)
    parameters = model.parameters + nothing
    moments = _moments(model, layouts, held)
    totals = np.stack([np.asarray(sum(list(moment.values()), nothing)) for moment in moments])
    worst = totals.argmax(axis=0)
    at_peak = {
        kind: np.choose(worst, [moment[kind] + nothing for moment in moments])
        * (WEAR * worn if kind in TRANSIENT else 1.0)
        for kind in moments[0]
    }
    at_peak["workspace"] = at_peak["workspace"] + worn * _holes(model, layouts)
    weights = parameters
    if held is None:
        state = whole_state_bytes(model, layouts.optimizer)
    else:
        state = np.asarray(held.state)
        parameters = held.kept + nothing
        weights = parameters + held.gathered + (held.whole if held.copied else 0.0)
    return MemoryBytes(
        weights=value * weights,
        masters=_FP32 * parameters if value < _FP32 else nothing,
        optimizer=state + nothing,
        runtime=nothing + RUNTIME_BYTES + COMPILER_BYTES * layouts.setting.compile,
        **at_peak,
    )


def saved_bytes(model: Shapes, setting: Setting) -> Array:
    """Bytes of a block that wait for its backward pass, per token; the hinge test counts them."""
    value, stream = setting.value_bytes, model.width * setting.value_bytes
    piece = stream / model.sequence
    activation = model.feed_forward_width * value
    out = model.heads * model.head_width * value
    saved: dict[str, Array | float] = {
        "norms, inputs of qkv and up": 2 * stream,
        "queries, keys and values": model.qkv_width * value,
        "attention's output, input of out": out,
        "log of the softmax's sums": model.heads * _FP32,
        "up's output": model.up_width * value,
    }
    if setting.kernels == "native":
        saved["the stream before both norms, and its statistics"] = 2 * (piece + 2 * _FP32)
    else:
        saved["the activation, input of down"] = activation
        if model.centred:
            saved["the stream before both norms, and its statistics"] = 2 * (piece + 2 * value)
        else:
            # torch spells RMSNorm in fp32: the stream and its norm, and one number a row.
            saved["the stream and its norm in fp32, twice"] = (
                2 * _FP32 * (2 * model.width / model.sequence + 1)
            )
        if model.gated:
            saved["silu of the gate"] = activation
        if model.rotary:
            turned = (model.heads + model.kv_heads) * model.head_width * value
            saved["turned queries and keys, and the output in their order"] = turned + out
    if model.dropout:
        saved["masks of two dropouts, a byte a value"] = 2 * model.width
    return np.asarray(sum(saved.values()))


def _holes(model: Shapes, layouts: Layouts) -> Array:
    """Bytes that the heap holds and nobody uses."""
    tokens = layouts.micro_batch * model.context
    block = tokens * saved_bytes(model, layouts.setting)
    again = np.where(
        layouts.recompute > 0, np.minimum(HOLES_RECOMPUTE, model.layers - 1) * block, 0.0
    )
    gradients = _largest(model) if layouts.optimizer.fused else model.parameters
    return HOLES_GRADIENTS * layouts.setting.value_bytes * gradients + again


def _largest(model: Shapes) -> Array:
    """Values of the largest parameter."""
    rows = np.maximum(np.maximum(model.vocabulary, model.up_width), model.qkv_width)
    return np.asarray(rows * model.width)


def _moments(model: Shapes, layouts: Layouts, held: Held | None) -> tuple[Moment, Moment, Moment]:
    value = layouts.setting.value_bytes
    tokens = layouts.micro_batch * model.context
    stream = tokens * model.width * value
    block = tokens * saved_bytes(model, layouts.setting)
    again = np.where(layouts.recompute > 0, block, 0.0)
    kept = np.where(layouts.recompute > 0, 2 * stream, block)
    # Tokens and targets; the last stream, which the final norm keeps, and the loss's gradient.
    ends = tokens * 2 * _TOKEN + 2 * stream
    # The head's gradient, which a few classes have next to nothing of.
    table = model.vocabulary * model.width * value * bool(model.said)
    summed, own, layers = model.parameters, model.parameters, model.layers
    if held is not None:
        summed = own = np.full_like(layers, held.kept)
        if held.late:
            summed = np.full_like(layers, held.whole)
        layers = layers * held.flight
    if layouts.optimizer.fused:
        # Each gradient is used and freed where it is made.
        own = _largest(model)
    buffer = np.where(layouts.accumulation > 1, _FP32 * summed, 0.0)
    working = tokens * _working_bytes(model, layouts.setting)
    loss = {
        "gradients": buffer + table,
        "activations": kept * layers + ends,
        "logits": _logits_bytes(model, layouts),
        "workspace": stream,
    }
    last_block = {
        "gradients": buffer + table,
        "activations": kept * layers + ends + again,
        "logits": 0 * tokens,
        "workspace": working,
    }
    end = {
        "gradients": buffer + value * own + (table if model.tied else 0.0),
        "activations": kept + ends + again,
        "logits": 0 * tokens,
        "workspace": working,
    }
    return loss, last_block, end


def _working_bytes(model: Shapes, setting: Setting) -> Array:
    """Bytes alive beside the saved ones in a block's backward pass, per token: two gradients of
    the stream, and the widest of the gradients inside. Native kernels make the activation again;
    torch has freed it by then.
    """
    again = 1 if setting.kernels == "native" or model.gated else 0
    forward = (1 + again) * model.feed_forward_width + (model.up_width if model.gated else 0)
    attention = model.qkv_width + model.heads * model.head_width
    return (2 * model.width + np.maximum(forward, attention)) * setting.value_bytes


def _logits_bytes(model: Shapes, layouts: Layouts) -> Array:
    """A chunk's logits, which their gradient replaces; torch's softmax is another tensor in fp32,
    of an fp32 copy.
    """
    rows = np.minimum(layouts.loss_chunk, layouts.micro_batch * model.context * model.said)
    value = layouts.setting.value_bytes
    each = value
    if layouts.setting.kernels == "torch":
        each += _FP32 if value == _FP32 else 2 * _FP32
    return rows * model.vocabulary * each
