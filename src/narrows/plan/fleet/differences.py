"""What `parallel` sends that the plan leaves out or counts otherwise, with its amount by formula.

Counts of collectives take a sum for two: it is a scatter and a gather.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from narrows.plan.fleet.share import FP32, PADDED, SMALL, Rank, moved
from narrows.spec.trace import Reason

_SPREAD = "experts are shared by tensor ranks, too"


def tensor(rank: Rank) -> Iterator[Reason]:
    """Of the tensor axis."""
    spread, spec = rank.spread, rank.work.spec
    sequence = spread.sequence_parallel
    m, share = spread.accumulation, moved(spread.tensor)
    stream = rank.tokens * spec.width * rank.value * share
    # A sum and its pieces' gather where tokens are looked up, a gather and a scatter at the head.
    often = (3.0 if sequence else 2.0) * rank.stage.embeds + 2.0 * rank.stage.ends
    yield Reason(name="embedding and head", amount=often * stream, count=often * m)
    if rank.stage.ends:
        chunk = min(rank.tokens / m, 1024.0) if spread.chunked_loss else rank.tokens / m
        chunks = m * math.ceil(rank.tokens / m / chunk)
        # A row's largest; its sum of exponentials and its target's.
        yield Reason(name="the loss's rows", amount=2.0 * share * 3.0 * FP32 * rank.tokens,
                     count=4.0 * chunks)  # fmt: skip
    if rank.full:
        # Leaving the feed-forward, whose result nothing keeps.
        last = 1.0 if sequence else 2.0
        yield Reason(name="a block's last sum is not done again",
                     amount=-last * stream * rank.dense, count=-last * m * rank.dense)  # fmt: skip
    if spec.experts is not None:
        often = (4.0 + 2.0 * rank.full) * rank.routed
        yield Reason(name="experts take their piece of the sequence as it is",
                     amount=-often * stream, count=-often * m)  # fmt: skip
    partial = _partial(rank)
    if partial:
        shards = 1.0 if spread.sharding == "none" else rank.among[0]
        yield Reason(name="gradients of what all have alike, of each rank's tokens", count=2.0,
                     amount=2.0 * share * rank.value * partial / shards)  # fmt: skip


def _partial(rank: Rank) -> float:
    """Parameters whose gradients tensor ranks add up."""
    spec, work = rank.work.spec, rank.work
    normed = 2.0 * spec.head_width * rank.layers if spec.query_norm == "head" else 0.0
    if not rank.spread.sequence_parallel:
        return normed
    whole = sum(each.parameters for each in work.attention if each.cut == "whole")
    norms = spec.norms_per_block * rank.layers + bool(spec.final_norm) * rank.stage.ends
    routed = sum(each.parameters for each in work.routed)
    return normed + whole * rank.layers + norms * spec.norm_parameters + routed * rank.routed


def context(rank: Rank) -> Iterator[Reason]:
    """Of the context axis."""
    spread, spec = rank.spread, rank.work.spec
    c, t, m = float(spread.context), spread.tensor, spread.accumulation
    often = rank.layers * m
    if spread.exchange == "ring":
        # Keys and values of a rank's part, in all micro-batches and blocks.
        part = rank.tokens * rank.layers * 2.0 * spec.kv_heads * spec.head_width / t * rank.value
        yield Reason(name="keys and values go each by themselves", amount=0.0,
                     count=3.0 * often * (c - 1.0))  # fmt: skip
        wide = FP32 / rank.value
        yield Reason(name="their gradients travel in 32 bits",
                     amount=(wide - 1.0) * (c - 1.0) * part)  # fmt: skip
        yield Reason(name="and come home by one pass more", amount=wide * part, count=2.0 * often)
        if rank.full:
            yield Reason(name="a block done again sends them again", amount=(c - 1.0) * part,
                         count=2.0 * often * (c - 1.0))  # fmt: skip
    else:
        heads = spec.kv_heads / t
        dealt = math.lcm(round(heads), round(c)) - max(heads, c)
        more = moved(c) * rank.tokens * rank.layers * 2.0 * spec.head_width * dealt * rank.value
        yield Reason(name="heads of keys are repeated until all ranks have as many",
                     amount=more * (2.0 + rank.full))  # fmt: skip
    if not rank.whole:
        yield from _loss(c)


def expert(rank: Rank) -> Iterator[Reason]:
    """Of the expert axis."""
    experts = rank.work.spec.experts
    assert experts is not None
    often = rank.routed * rank.spread.accumulation * (1.0 + rank.full)
    share = moved(rank.spread.expert)
    yield Reason(name="how many rows come is told before", count=often,
                 amount=often * share * FP32 * experts.count)  # fmt: skip
    if experts.capacity is not None:
        width = rank.tokens / rank.spread.tensor * experts.chosen * rank.work.spec.width
        sent = 2.0 * (2.0 + rank.full) * rank.routed * share * width * rank.value
        unfilled = experts.capacity - min(1.0, experts.capacity)
        yield Reason(name="room that is not filled is not sent", amount=-sent * unfilled)


def pipeline(rank: Rank) -> Iterator[Reason]:
    """Of the pipeline axis."""
    spread, spec, stage = rank.spread, rank.work.spec, rank.stage
    t, sent = spread.tensor, stage.onward + stage.backward
    if not spread.sequence_parallel:
        whole = rank.tokens * spec.width * rank.value
        yield Reason(name="tensor ranks hand on the whole stream each",
                     amount=sent * whole * moved(t))  # fmt: skip
    yield Reason(name="neighbours greet each other once", amount=FP32 * sent, count=sent)
    if spec.tied_embeddings and stage.embeds != stage.ends:
        shards = 1.0 if spread.sharding == "none" else rank.among[0]
        yield Reason(name="both ends add up the gradients of their copy of the embedding",
                     amount=rank.value * rank.tables / shards, count=1.0)  # fmt: skip
    yield from _loss(float(spread.pipeline))


def _loss(ranks: float) -> Iterator[Reason]:
    yield Reason(name="the loss is added up", amount=2.0 * moved(ranks) * FP32, count=2.0)


def data(rank: Rank) -> Iterator[Reason]:
    """Of the data axis."""
    if rank.alike > 1:
        yield from {
            "none": _summed, "optimizer": _scattered, "gradients": _scattered,
            "parameters": _gathered,
        }[rank.spread.sharding](rank)  # fmt: skip
    ranks = rank.spread.data * rank.spread.replicas
    if ranks > 1:
        yield Reason(name="the loss and its tokens are added up",
                     amount=2.0 * moved(ranks) * 12.0, count=4.0)  # fmt: skip
    if rank.whole:
        # Torch has one group for both axes.
        yield from _loss(float(rank.spread.context))


def _sent(rank: Rank) -> float:
    """Parameters that a rank sends when all are gathered, as planned."""
    d, among = rank.among
    return moved(d) * rank.common + moved(min(d, among)) * rank.own


def _otherwise(rank: Rank, often: float) -> Iterator[Reason]:
    """What is true of every gathering and scattering: `often` bytes of a parameter."""
    d, among = rank.among
    more = moved(among) - moved(min(d, among))
    yield Reason(name=_SPREAD, amount=often * rank.own * more)
    padding = rank.own * (rank.padded - 1.0)
    yield Reason(name=PADDED, amount=often * moved(among) * padding)
    yield Reason(name=SMALL, amount=often * moved(d) * rank.small)


def _summed(rank: Rank) -> Iterator[Reason]:
    ranks = float(rank.alike)
    sent, more = _sent(rank), moved(ranks) * rank.common + moved(rank.spread_experts) * rank.own
    if more != sent:
        yield Reason(name="one sum among all copies", amount=2.0 * FP32 * (more - sent))
    yield Reason(name="both halves of the sum are in 32 bits, and no weights are gathered",
                 amount=(FP32 - rank.value) * sent)  # fmt: skip
    yield Reason(name=SMALL, amount=2.0 * FP32 * moved(ranks) * rank.small)


def _scattered(rank: Rank) -> Iterator[Reason]:
    m = rank.spread.accumulation
    each = rank.spread.sharding == "gradients" and not rank.zero_bubble
    again = m - 1 if each else 0
    yield Reason(name="gradients are scattered after each micro-batch, not once",
                 amount=again * FP32 * _sent(rank), count=again * rank.groups)  # fmt: skip
    yield from _otherwise(rank, rank.value + FP32 * (1 + again))


def _gathered(rank: Rank) -> Iterator[Reason]:
    spread, value = rank.spread, rank.value
    again, piped = float(spread.reshard), spread.pipeline > 1
    outside = moved(rank.among[0]) * (rank.tables + rank.small_outside)
    if rank.zero_bubble:
        yield Reason(name="what is gathered stays until the step's end",
                     amount=-again * value * _sent(rank), count=-again * rank.groups)  # fmt: skip
        yield from _otherwise(rank, value + FP32)
        return
    m = spread.accumulation
    if piped:
        often = m - 1
        more = often * ((1.0 + again) * value + FP32)
        yield Reason(name="a stage is gathered and scattered for each micro-batch, not once",
                     amount=more * _sent(rank),
                     count=often * (2.0 + again) * rank.groups)  # fmt: skip
    yield Reason(name="tables stay gathered until they are needed backward",
                 amount=-m * again * value * outside, count=-m * again * rank.outside)  # fmt: skip
    for_pieces = m * (spread.interleave - 1.0) * rank.outside
    yield Reason(name="tables are gathered for each piece of a stage",
                 amount=for_pieces * value * outside, count=for_pieces)  # fmt: skip
    yield from _otherwise(rank, m * ((1.0 + again) * value + FP32))


def replicas(rank: Rank) -> Iterator[Reason]:
    """Of the copies of a sharded set."""
    whole, r = rank.common + rank.own, rank.spread.replicas
    planned = 2.0 * moved(r) * whole * rank.value
    planned /= rank.among[0] if rank.spread.sharding == "parameters" else 1.0
    if rank.spread.sharding == "none":
        yield Reason(name="one sum among all copies", amount=-planned,
                     count=-2.0 * rank.groups)  # fmt: skip
        return
    mine, padded, small = (2.0 * moved(r) * each for each in rank.pieces(sharded=True))
    yield Reason(name="copies add up the gradients of their pieces alone",
                 amount=mine * rank.value - planned)  # fmt: skip
    yield Reason(name="in 32 bits", amount=mine * (FP32 - rank.value))
    yield Reason(name=PADDED, amount=padded * FP32)
    yield Reason(name=SMALL, amount=small * FP32)
    early = rank.spread.sharding in ("gradients", "parameters") and not rank.zero_bubble
    if rank.spread.pipeline > 1 and early:
        again = rank.spread.accumulation - 1
        yield Reason(name="a pipeline's copies add up after each micro-batch, not once",
                     amount=again * FP32 * (mine + padded + small),
                     count=2.0 * again * rank.groups)  # fmt: skip
