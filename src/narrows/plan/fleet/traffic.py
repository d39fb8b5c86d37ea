"""Bytes that a step's collectives move, and how many there are, under many layouts.

`time` takes seconds from these expressions; `planned` says the same of one layout, rank by rank,
for a trace to be held against.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import Stage, first_tables, parameters_of
from narrows.plan.fleet.work import Work
from narrows.plan.layouts import Array
from narrows.spec.fleet import Spread
from narrows.spec.trace import AxisName, Collective, Traffic

_FP32 = 4.0


class Message(NamedTuple):
    """One collective, as Links takes it: bytes of the whole, or in an exchange of what one rank
    has; ranks that take part; devices between neighbours.
    """

    moved: Array
    ranks: Array
    stride: Array


def stream(work: Work, spreads: Spreads, T: Array) -> Array:
    """Bytes of the residual stream of T tokens."""
    return np.asarray(T * work.spec.width * spreads.value_bytes)


def tensor(work: Work, spreads: Spreads, T: Array) -> Message:
    """A gather, or a scatter, on entering or leaving a block's attention or feed-forward."""
    return Message(stream(work, spreads, T), spreads.tensor, np.ones_like(T))


def passes(spreads: Spreads) -> Array:
    """Passes of a block: forward, back where gradients go, and forward again where recomputed."""
    again = spreads.shared.recomputed * (spreads.recompute == 2)
    return np.asarray(1.0 + spreads.shared.reached * (1.0 + again))


def tensor_often(spreads: Spreads) -> Array:
    """Gathers and scatters of a block and a micro-batch: two all-reduces forward and two backward,
    each a gather and a scatter; again where recomputed.
    """
    return 4.0 * passes(spreads)


def experts(work: Work, spreads: Spreads, T: Array) -> Message:
    """Tokens to the experts of a block and back, forward."""
    spec = work.spec
    assert spec.experts is not None
    # A token goes out in the products' format and comes back in 16 bits.
    narrow = 1.0 if spreads.shared.precision in ("fp8", "fp4") else spreads.value_bytes
    copies = spec.experts.chosen * (spec.experts.capacity or 1.0)
    sent = T / spreads.tensor * copies * spec.width * (narrow + spreads.value_bytes)
    stride = np.where(spreads.expert > spreads.tensor, spreads.inside_data / spreads.tensor, 1.0)
    return Message(sent, spreads.expert, stride)


def keys(work: Work, spreads: Spreads, T: Array) -> Message:
    """Keys and values of a block once around all ranks of a context."""
    spec, c = work.spec, spreads.context
    width = 2.0 * spec.kv_heads * spec.head_width / spreads.tensor
    return Message(T * c * width * spreads.value_bytes, c, spreads.inside_data)


def heads(work: Work, spreads: Spreads, T: Array) -> Message:
    """Queries, keys, values and outputs dealt out by heads and gathered again, keys at least one
    head a rank.
    """
    spec, c, t = work.spec, spreads.context, spreads.tensor
    width = spec.heads * (spec.score_width + spec.value_width) / t
    dealt = width + 2.0 * spec.head_width * np.maximum(spec.kv_heads / t, c)
    return Message(T * dealt * spreads.value_bytes, c, spreads.inside_data)


def weights(
    work: Work, spreads: Spreads, held: tuple[Array, Array], width: float
) -> tuple[Message, ...]:
    """All parameters of a rank, or their gradients, `width` bytes each: those that all data ranks
    share, and those of its experts.
    """
    common, own = held
    d, stride = spreads.shards, spreads.inside_data
    shared = Message(common * width, d, stride)
    if work.spec.experts is None:
        return (shared,)
    fewer = np.minimum(spreads.expert_shards, d)
    return shared, Message(own * width, fewer, stride * np.minimum(spreads.expert, d))


def copies(spreads: Spreads, held: tuple[Array, Array]) -> Message:
    """Gradients of what a rank has, gathered or scattered among the copies of its set."""
    common, own = held
    d = spreads.shards
    shard = (common + own) * spreads.value_bytes / np.where(spreads.sharding == 3, d, 1.0)
    return Message(shard, spreads.replicas, spreads.inside_data * d)


def planned(work: Work, spread: Spread, stage: Stage) -> tuple[Traffic, ...]:
    """What a rank of that stage sends in a step."""
    spreads = Spreads.of([spread])
    parts = (_tensor, _experts, _contexts, _stages, _weights, _copies)
    return tuple(each for part in parts for each in part(work, spreads, stage) if each.bytes > 0.0)


def _each(
    axis: AxisName, kind: Collective, message: Message, count: Array | float, often: Array | float
) -> Traffic:
    """`count` collectives that move the message `often` times in all."""
    share = (message.ranks - 1.0) / message.ranks
    return Traffic(
        axis=axis, kind=kind, count=float(np.max(count)),
        bytes=float(np.max(message.moved * share * often)),
    )  # fmt: skip


def _tokens(work: Work, spreads: Spreads) -> Array:
    return spreads.micro_batch * (work.positions / spreads.context)


def _often(spreads: Spreads, stage: Stage) -> Array:
    """Blocks that a rank computes in a step, counted once a micro-batch."""
    return np.asarray(stage.layers * spreads.accumulation)


def _tensor(work: Work, spreads: Spreads, stage: Stage) -> Iterator[Traffic]:
    message = tensor(work, spreads, _tokens(work, spreads))
    half = tensor_often(spreads) / 2.0 * _often(spreads, stage)
    if spreads.shared.sequence_parallel:
        yield _each("tensor", "gather", message, half, half)
        yield _each("tensor", "scatter", message, half, half)
    else:
        yield _each("tensor", "sum", message, half, 2.0 * half)


def _experts(work: Work, spreads: Spreads, stage: Stage) -> Iterator[Traffic]:
    if work.spec.experts is None:
        return
    often = passes(spreads) * _often(spreads, stage)
    often = often * work.layers_experts / work.layers
    message = experts(work, spreads, _tokens(work, spreads))
    yield _each("expert", "exchange", message, 2.0 * often, often)


def _contexts(work: Work, spreads: Spreads, stage: Stage) -> Iterator[Traffic]:
    T, often = _tokens(work, spreads), _often(spreads, stage)
    if spreads.exchange[0] == 1:
        often = often * passes(spreads)
        yield _each("context", "exchange", heads(work, spreads, T), 2.0 * often, often)
    else:
        # Once around forward, twice backward.
        steps = 3.0 * often * (spreads.context - 1.0)
        yield _each("context", "send", keys(work, spreads, T), steps, 3.0 * often)


def _stages(work: Work, spreads: Spreads, stage: Stage) -> Iterator[Traffic]:
    sent = spreads.accumulation * (stage.onward + stage.backward)
    each = stream(work, spreads, _tokens(work, spreads)) / spreads.tensor
    yield Traffic(
        axis="pipeline", kind="send", count=float(sent[0]), bytes=float((sent * each)[0])
    )  # fmt: skip


def held(work: Work, spreads: Spreads) -> tuple[Array, Array]:
    """Parameters of a rank that has its share of the layers and the first stage's tables: those
    that all data ranks share, and its experts'.
    """
    each = work.layers / spreads.pipeline
    return parameters_of(work, spreads, each, first_tables(work, spreads))


def _weights(work: Work, spreads: Spreads, stage: Stage) -> Iterator[Traffic]:
    """Sharded parameters are gathered for each micro-batch, forward and where they were dropped
    backward, and gradients scattered; else gradients are scattered, and weights gathered, once.
    """
    trained = spreads.shared.trained
    # A pipeline gathers its stage once a step.
    m = np.where(spreads.pipeline > 1, 1.0, spreads.accumulation)
    parts = stage.held(work, spreads)
    if spreads.sharding[0] == 3:
        moves: tuple[tuple[Collective, Array, float], ...] = (
            ("gather", m * (1.0 + spreads.reshard), spreads.value_bytes),
            ("scatter", m * trained, _FP32),
        )
    else:
        once = trained * np.ones_like(m)
        moves = ("gather", once, spreads.value_bytes), ("scatter", once, _FP32)
    # One for each block, one for the tables.
    routed = work.layers_experts / work.layers
    there = np.ones_like(m) * (stage.embeds or stage.ends)
    pieces = stage.layers + there, stage.layers * routed * np.ones_like(m)
    for kind, often, width in moves:
        messages = weights(work, spreads, parts, width)
        yield _summed(
            _each("data", kind, message, often * count, often)
            for message, count in zip(messages, pieces, strict=False)
        )


def _summed(several: Iterator[Traffic]) -> Traffic:
    first, *others = several
    there = [each for each in (first, *others) if each.bytes > 0.0]
    return Traffic(
        axis=first.axis, kind=first.kind, count=sum(each.count for each in there),
        bytes=sum(each.bytes for each in there),
    )  # fmt: skip


def _copies(work: Work, spreads: Spreads, stage: Stage) -> Iterator[Traffic]:
    message = copies(spreads, stage.held(work, spreads))
    routed = work.layers_experts / work.layers
    pieces = stage.layers * (1.0 + routed) + (stage.embeds or stage.ends)
    yield _each("replicas", "sum", message, pieces, 2.0)
