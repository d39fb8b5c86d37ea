"""What a rank keeps in memory that the plan leaves out or counts otherwise, by formula."""

from __future__ import annotations

from collections.abc import Iterator

from narrows.plan.fleet import constants
from narrows.plan.fleet.memory import kept_bytes
from narrows.plan.fleet.optimizer import state_bytes
from narrows.plan.fleet.share import FP32, PADDED, SMALL, Rank
from narrows.plan.fleet.spreads import Spreads
from narrows.spec.ledger import MemoryPeak
from narrows.spec.model import LayerNorm, Learned, Rotary
from narrows.spec.trace import Reason


def weights(rank: Rank) -> Iterator[Reason]:
    """Of memory that parameters take."""
    parameters = rank.spread.sharding == "parameters"
    if rank.alike > 1 and not parameters:
        piece = sum(rank.pieces(sharded=rank.spread.sharding != "none"))
        yield Reason(name="a rank's own piece stays beside what is gathered of it",
                     amount=rank.value * piece)  # fmt: skip
    mine, padded, small = rank.pieces(sharded=parameters)
    if parameters and rank.spread.pipeline > 1:
        yield Reason(name="a rank keeps its piece, not the stage",
                     amount=rank.value * (mine - rank.common - rank.own))  # fmt: skip
    yield Reason(name=PADDED, amount=rank.value * padded)
    yield Reason(name=SMALL, amount=rank.value * small)


def gradients(rank: Rank) -> Iterator[Reason]:
    """Of memory that gradients take."""
    spread = rank.spread
    early = _early(rank)
    once = spread.accumulation == 1
    whole = spread.sharding == "parameters" and spread.pipeline > 1
    on_paper = spread.sharding == "gradients" or (spread.sharding == "parameters" and not whole)
    planned, _, _ = rank.pieces(sharded=on_paper)
    at_once = once and spread.sharding == "optimizer"
    piece, padded, small = rank.pieces(sharded=early or at_once)
    if at_once:
        yield Reason(name="a single micro-batch's are scattered at once",
                     amount=FP32 * (piece - planned))  # fmt: skip
    elif whole and early:
        yield Reason(name="they are scattered after each micro-batch, not once",
                     amount=FP32 * (piece - planned))  # fmt: skip
    elif on_paper and not early:
        yield Reason(name="a zero-bubble pipeline scatters them at the step's end",
                     amount=FP32 * (piece - planned))  # fmt: skip
    summed = once or rank.alike == 1
    summed |= early and (spread.replicas == 1 or spread.pipeline > 1)
    width = rank.value if summed else FP32
    yield Reason(name="they are kept in the weights' 16 bits",
                 amount=(width - FP32) * piece)  # fmt: skip
    if early and not summed:
        yield _buffer(rank)
    yield Reason(name=PADDED, amount=width * padded)
    yield Reason(name=SMALL, amount=width * small)


def _buffer(rank: Rank) -> Reason:
    amount = FP32 * (rank.tables + rank.small_outside)
    return Reason(name="the buffer of the last scatter stays until the next", amount=amount)


def _early(rank: Rank) -> bool:
    """Whether gradients are scattered after each micro-batch."""
    return rank.spread.sharding in ("gradients", "parameters") and not rank.zero_bubble


def optimizer(rank: Rank) -> Iterator[Reason]:
    """Of memory that masters and moments take."""
    _, padded, small = rank.pieces(sharded=rank.spread.sharding != "none")
    yield Reason(name=PADDED, amount=state_bytes(rank.spread) * padded)
    yield Reason(name=SMALL, amount=state_bytes(rank.spread) * small)


def transient(rank: Rank, planned: MemoryPeak) -> Iterator[Reason]:
    """Of memory that comes and goes: torch's operations beside the fused ones that the plan speaks
    of.
    """
    worn = planned.activations + planned.workspace
    yield Reason(name="the allocator reserves nothing here",
                 amount=worn * (1.0 / constants.ALLOCATOR - 1.0))  # fmt: skip
    yield from _gathered(rank)
    spread = rank.spread
    if _early(rank) and spread.accumulation > 1 and spread.replicas == spread.pipeline == 1:
        yield _buffer(rank)
    spec = rank.work.spec
    plain = isinstance(spec.positions, Rotary | Learned) and spec.block_norms == "before"
    odd = spec.experts or spec.latent or spec.window or spec.score_cap or spec.sinks
    if plain and not odd and not spec.query_norm and rank.value != FP32:
        yield from _blocks(rank)
        yield from _beside_blocks(rank)


def _gathered(rank: Rank) -> Iterator[Reason]:
    """What stands gathered of sharded parameters."""
    spread, whole = rank.spread, rank.common + rank.own
    if spread.sharding != "parameters":
        return
    block = (whole - rank.tables) / rank.layers
    outside = rank.tables + rank.small_outside
    if rank.zero_bubble:
        yield Reason(name="the stage is gathered whole", amount=rank.value * (whole + rank.small))
    elif spread.pipeline > 1:
        there = outside + (block * (1.0 + (not rank.stage.ends)) if spread.reshard else whole)
        yield Reason(name="tables and blocks stand gathered", amount=rank.value * there)
    else:
        other = outside - 2.0 * whole / rank.layers
        yield Reason(name="tables and a block's buffer stand gathered, not two blocks",
                     amount=rank.value * (block + (other if spread.reshard else 0.0)))  # fmt: skip


def _blocks(rank: Rank) -> Iterator[Reason]:
    """What all blocks keep, of each micro-batch in flight. For models of one kind of attention
    without masks, in 16 bits.
    """
    spread, spec, value, t = rank.spread, rank.work.spec, rank.value, rank.spread.tensor
    ranks = t if spread.sequence_parallel else 1.0
    stream = rank.micro * spec.width * value
    if rank.full:
        kept = float(kept_bytes(rank.work, Spreads.of([spread]))[0])
        if rank.stage.ends:
            yield Reason(name="no block is done again yet", amount=-rank.micro * kept)
        yield Reason(name="of a block done again both the stream and its last addition wait",
                     amount=rank.flight * rank.layers * stream / ranks)  # fmt: skip
        return
    blocks = rank.flight * rank.layers
    yield Reason(name="a region's sequence stays whole once it is gathered",
                 amount=blocks * 2.0 * stream * (1.0 - 1.0 / ranks))  # fmt: skip
    yield Reason(name="nothing is dropped, and no masks are kept",
                 amount=-blocks * constants.STREAMS_MORE * stream / ranks)  # fmt: skip
    norms = 2.0 * rank.micro / ranks
    # RMSNorm is spelt in fp32: its input, its result, a number a row.
    each = 8.0 if isinstance(spec.norm, LayerNorm) else 6.0 * spec.width + 4.0
    yield Reason(name="norms keep fp32", amount=blocks * norms * each)
    heads = (2.0 * spec.heads + spec.kv_heads) * spec.head_width
    turned = value * heads if isinstance(spec.positions, Rotary) else 0.0
    yield Reason(name="turned queries and keys beside the projection, the output in its order",
                 amount=blocks * rank.micro * turned / t)  # fmt: skip
    if spread.context > 1:
        apart = (spec.heads + spec.kv_heads) * spec.head_width * value
        yield Reason(name="contexts keep turned queries and keys and the values, no projection",
                     amount=-blocks * rank.micro * apart / t)  # fmt: skip
    gate = value * spec.feed_forward_width if spec.gated else 0.0
    yield Reason(name="the activated gate", amount=blocks * rank.micro * gate / t)


def _beside_blocks(rank: Rank) -> Iterator[Reason]:
    """Streams at the worst moment: at the loss, where it is taken."""
    spread, spec = rank.spread, rank.work.spec
    ranks = spread.tensor if spread.sequence_parallel else 1.0
    stream = rank.micro * spec.width * rank.value
    if rank.stage.ends:
        # Of the streams that the plan has beside blocks four are the last norm's in fp32.
        here = 0.0 if isinstance(spec.norm, LayerNorm) else 1.0 / ranks
        yield Reason(name="the last norm's streams are of a piece, or not there",
                     amount=4.0 * stream * (here - 1.0))  # fmt: skip
    else:
        # Of attention's backward pass, or of the feed-forward's, whichever has more.
        near = 4.0 if rank.stage.embeds else 6.0
        attention = 3.0 + near / ranks
        wide = 2.0 * spec.feed_forward_width / spec.width / spread.tensor
        feed_forward = 1.0 + (near / 2.0 if near > 4.0 else 0.0) / ranks + wide
        more = max(attention, feed_forward) - constants.WORKSPACE_STREAMS
        yield Reason(name="a block's gradients, and what neighbours send", amount=more * stream)
    if spread.pipeline > 1:
        waiting = rank.flight * spread.interleave * stream / ranks
        yield Reason(name="what a piece hands on waits with it", amount=waiting)
