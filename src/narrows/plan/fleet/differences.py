"""What `parallel` does that the plan leaves out or does otherwise, with its amount by formula.

Counts of collectives take a sum for two: it is a scatter and a gather.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from narrows.plan.fleet import constants, traffic
from narrows.plan.fleet.memory import kept_bytes
from narrows.plan.fleet.optimizer import state_bytes
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread
from narrows.spec.ledger import MemoryPeak
from narrows.spec.model import LayerNorm, Learned, Rotary
from narrows.spec.trace import Reason

_FP32 = 4.0
_SMALL = "norms, biases and positions"
_SPREAD = "experts are shared by tensor ranks, too"
_PADDED = "pieces of experts are padded to a whole one"


def _moved(ranks: float) -> float:
    """The share of a whole that a rank sends around a ring."""
    return (ranks - 1.0) / ranks


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One rank's share of a step: tokens, layers, and the parameters that the plan counts, of
    which `tables` are not in blocks; `small` are those that it leaves out.
    """

    work: Work
    spread: Spread
    tokens: float
    layers: float
    common: float
    own: float
    tables: float
    small: float
    small_outside: float

    @classmethod
    def of(cls, work: Work, spread: Spread) -> Rank:
        """Of a rank that has its share of the layers and the first stage's tables."""
        spec, t = work.spec, spread.tensor
        common, own = traffic.held(work, Spreads.of([spread]))
        every, routed = traffic.held(work, Spreads.of([Spread()]))
        tables = spec.vocabulary * spec.width * (1.0 if spec.tied_embeddings else 2.0)
        small = spec.parameters - float(every[0] + routed[0])
        outside = spec.embedding_parameters - tables + _norm(work) * bool(spec.final_norm)
        return cls(
            work=work, spread=spread,
            tokens=spread.accumulation * spread.micro_batch * work.positions / spread.context,
            layers=work.layers / spread.pipeline, common=float(common[0]), own=float(own[0]),
            tables=tables / t, small=small, small_outside=outside,
        )  # fmt: skip

    @property
    def full(self) -> bool:
        """Whether blocks are computed again."""
        return self.spread.recompute == "full"

    @property
    def value(self) -> float:
        """Bytes of a weight."""
        return 4.0 if self.spread.precision == "fp32" else 2.0

    @property
    def shards(self) -> float:
        """Ranks that share one copy of what is sharded."""
        whole = self.spread.sharding == "none"
        return 1.0 if whole else float(self.spread.data * self.spread.context)

    def tensor(self) -> Iterator[Reason]:
        """Of the tensor axis."""
        spread, spec = self.spread, self.work.spec
        sequence = spread.sequence_parallel
        m, share = spread.accumulation, _moved(spread.tensor)
        stream = self.tokens * spec.width * self.value * share
        often = 5.0 if sequence else 4.0
        yield Reason(name="embedding and head", amount=often * stream, count=often * m)
        chunk = min(self.tokens / m, 1024.0) if spread.chunked_loss else self.tokens / m
        chunks = m * math.ceil(self.tokens / m / chunk)
        # A row's largest; its sum of exponentials and its target's.
        yield Reason(name="the loss's rows", amount=2.0 * share * 3.0 * _FP32 * self.tokens,
                     count=4.0 * chunks)  # fmt: skip
        if self.full:
            # Leaving the feed-forward, whose result nothing keeps.
            last = 1.0 if sequence else 2.0
            yield Reason(name="a block's last sum is not done again",
                         amount=-last * stream * self.work.layers_dense,
                         count=-last * m * self.work.layers_dense)  # fmt: skip
        if spec.experts is not None:
            amount = (4.0 + 2.0 * self.full) * stream * self.work.layers_experts
            count = (4.0 + 2.0 * self.full) * m * self.work.layers_experts
            yield Reason(name="experts take their piece of the sequence as it is",
                         amount=-amount, count=-count)  # fmt: skip
        partial = self._partial()
        if partial:
            yield Reason(name="gradients of what all have alike, of each rank's tokens", count=2.0,
                         amount=2.0 * share * self.value * partial / self.shards)  # fmt: skip

    def _partial(self) -> float:
        """Parameters whose gradients tensor ranks add up."""
        spec, work = self.work.spec, self.work
        normed = 2.0 * spec.head_width * self.layers if spec.query_norm == "head" else 0.0
        if not self.spread.sequence_parallel:
            return normed
        whole = sum(each.parameters for each in work.attention if each.cut == "whole")
        norms = spec.norms_per_block * self.layers + bool(spec.final_norm)
        routed = sum(each.parameters for each in work.routed)
        return normed + whole * self.layers + norms * _norm(work) + routed * work.layers_experts

    def data(self) -> Iterator[Reason]:
        """Of the data axis."""
        yield from {
            "none": self._summed, "optimizer": self._scattered, "gradients": self._scattered,
            "parameters": self._gathered,
        }[self.spread.sharding]()  # fmt: skip
        ranks = self.spread.data * self.spread.replicas
        if ranks > 1:
            yield Reason(name="the loss and its tokens are added up",
                         amount=2.0 * _moved(ranks) * 12.0, count=4.0)  # fmt: skip

    @property
    def _among(self) -> tuple[float, float]:
        """Ranks that share a copy of what all have, and of an expert."""
        d = float(self.spread.data * self.spread.context)
        return d, max(1.0, d * self.spread.tensor / self.spread.expert)

    @property
    def _padded(self) -> float:
        """What of the experts is moved, where there are more ranks than experts to cut."""
        experts = self.work.spec.experts
        if experts is None:
            return 1.0
        here, ranks = experts.count / self.spread.expert, self._among[1]
        return math.ceil(here / ranks) * ranks / here

    def _sent(self) -> float:
        """Parameters that a rank sends when all are gathered, as planned."""
        d, among = self._among
        return _moved(d) * self.common + _moved(min(d, among)) * self.own

    def _otherwise(self, often: float) -> Iterator[Reason]:
        """What is true of every gathering and scattering: `often` bytes of a parameter."""
        d, among = self._among
        more = _moved(among) - _moved(min(d, among))
        yield Reason(name=_SPREAD, amount=often * self.own * more)
        padding = self.own * (self._padded - 1.0)
        yield Reason(name=_PADDED, amount=often * _moved(among) * padding)
        yield Reason(name=_SMALL, amount=often * _moved(d) * self.small)

    def _pieces(self, *, sharded: bool) -> tuple[float, float, float]:
        """Parameters that a rank keeps: as planned, what padding adds on the first, small ones."""
        if not sharded:
            return self.common + self.own, 0.0, self.small
        d, among = self._among
        own = self.own / among
        return self.common / d + own, own * (self._padded - 1.0), self.small / d

    def _summed(self) -> Iterator[Reason]:
        ranks = float(self.spread.data * self.spread.context * self.spread.replicas)
        sent, more = self._sent(), _moved(ranks) * (self.common + self.own)
        if ranks > self.spread.data * self.spread.context:
            yield Reason(name="one sum among all copies", amount=2.0 * _FP32 * (more - sent))
        yield Reason(name="both halves of the sum are in 32 bits, and no weights are gathered",
                     amount=(_FP32 - self.value) * sent)  # fmt: skip
        yield Reason(name=_SMALL, amount=2.0 * _FP32 * _moved(ranks) * self.small)

    def _scattered(self) -> Iterator[Reason]:
        m = self.spread.accumulation
        again = m - 1 if self.spread.sharding == "gradients" else 0
        pieces = self.layers + self.work.layers_experts + 1.0
        yield Reason(name="gradients are scattered after each micro-batch, not once",
                     amount=again * _FP32 * self._sent(), count=again * pieces)  # fmt: skip
        yield from self._otherwise(self.value + _FP32 * (1 + again))

    def _gathered(self) -> Iterator[Reason]:
        m, common = self.spread.accumulation, _moved(self._among[0])
        again = float(self.spread.reshard)
        yield Reason(name="tables stay gathered until they are needed backward",
                     amount=-m * again * self.value * common * (self.tables + self.small_outside),
                     count=-m * again)  # fmt: skip
        yield from self._otherwise(m * ((1.0 + again) * self.value + _FP32))

    def replicas(self) -> Iterator[Reason]:
        """Of the copies of a sharded set."""
        whole, r = self.common + self.own, self.spread.replicas
        planned = 2.0 * _moved(r) * whole * self.value
        d = self.spread.data * self.spread.context
        planned /= d if self.spread.sharding == "parameters" else 1.0
        if self.spread.sharding == "none":
            yield Reason(name="one sum among all copies", amount=-planned,
                         count=-2.0 * (self.layers + self.work.layers_experts + 1.0))  # fmt: skip
            return
        piece = 2.0 * _moved(r) * whole * self.value / d
        yield Reason(name="copies add up the gradients of their pieces alone",
                     amount=piece - planned)  # fmt: skip
        yield Reason(name="in 32 bits", amount=piece * (_FP32 / self.value - 1.0))
        yield Reason(name=_SMALL, amount=2.0 * _moved(r) * _FP32 * self.small / d)

    @property
    def _alike(self) -> int:
        """Ranks that compute with the same parameters."""
        return self.spread.data * self.spread.context * self.spread.replicas

    def weights(self) -> Iterator[Reason]:
        """Of memory that parameters take."""
        parameters = self.spread.sharding == "parameters"
        if self._alike > 1 and not parameters:
            piece = sum(self._pieces(sharded=self.spread.sharding != "none"))
            yield Reason(name="a rank's own piece stays beside what is gathered of it",
                         amount=self.value * piece)  # fmt: skip
        _, padded, small = self._pieces(sharded=parameters)
        yield Reason(name=_PADDED, amount=self.value * padded)
        yield Reason(name=_SMALL, amount=self.value * small)

    def gradients(self) -> Iterator[Reason]:
        """Of memory that gradients take."""
        spread = self.spread
        early = spread.sharding in ("gradients", "parameters")
        alone = self._alike == 1
        once = spread.accumulation == 1
        planned, padded, small = self._pieces(sharded=early)
        if once and spread.sharding == "optimizer":
            piece, padded, small = self._pieces(sharded=True)
            yield Reason(name="a single micro-batch's are scattered at once",
                         amount=_FP32 * (piece - planned))  # fmt: skip
            planned = piece
        summed = once or alone or (early and spread.replicas == 1)
        width = self.value if summed else _FP32
        yield Reason(name="they are kept in the weights' 16 bits",
                     amount=(width - _FP32) * planned)  # fmt: skip
        if early and not summed:
            yield Reason(name="the buffer of the last scatter stays until the next",
                         amount=_FP32 * (self.tables + self.small_outside))  # fmt: skip
        yield Reason(name=_PADDED, amount=width * padded)
        yield Reason(name=_SMALL, amount=width * small)

    def optimizer(self) -> Iterator[Reason]:
        """Of memory that masters and moments take."""
        _, padded, small = self._pieces(sharded=self.spread.sharding != "none")
        yield Reason(name=_PADDED, amount=state_bytes(self.spread) * padded)
        yield Reason(name=_SMALL, amount=state_bytes(self.spread) * small)

    def transient(self, planned: MemoryPeak) -> Iterator[Reason]:
        """Of memory that comes and goes, at the loss: torch's operations beside the fused ones that
        the plan speaks of. For models of one kind of attention without masks, in 16 bits.
        """
        spread, value = self.spread, self.value
        worn = planned.activations + planned.workspace
        yield Reason(name="the allocator reserves nothing here",
                     amount=worn * (1.0 / constants.ALLOCATOR - 1.0))  # fmt: skip
        if spread.sharding == "parameters":
            whole = self.common + self.own
            block = (whole - self.tables) / self.layers
            other = self.tables + self.small_outside - 2.0 * whole / self.layers
            yield Reason(name="tables and a block's buffer stand gathered, not two blocks",
                         amount=value * (block + (other if spread.reshard else 0.0)))  # fmt: skip
        early = spread.sharding in ("gradients", "parameters")
        if early and spread.accumulation > 1 and spread.replicas == 1:
            yield Reason(name="the buffer of the last scatter stays until the next",
                         amount=_FP32 * (self.tables + self.small_outside))  # fmt: skip
        spec, t = self.work.spec, spread.tensor
        plain = isinstance(spec.positions, Rotary | Learned) and spec.block_norms == "before"
        odd = spec.experts or spec.latent or spec.window or spec.score_cap or spec.sinks
        if not plain or odd or spec.query_norm or value == _FP32:
            return
        tokens = self.tokens / spread.accumulation
        ranks = t if spread.sequence_parallel else 1.0
        stream = tokens * spec.width * value
        blocks = self.layers if not self.full else 0.0
        if self.full:
            kept = float(kept_bytes(self.work, Spreads.of([spread]))[0])
            yield Reason(name="no block is done again yet", amount=-tokens * kept)
            yield Reason(name="of a block done again both the stream and its last addition wait",
                         amount=self.layers * stream / ranks)  # fmt: skip
        yield Reason(name="a region's sequence stays whole once it is gathered",
                     amount=blocks * 2.0 * stream * (1.0 - 1.0 / ranks))  # fmt: skip
        yield Reason(name="nothing is dropped, and no masks are kept",
                     amount=-blocks * constants.STREAMS_MORE * stream / ranks)  # fmt: skip
        norms = 2.0 * tokens / ranks
        # RMSNorm is spelt in fp32: its input, its result, a number a row.
        each = 8.0 if isinstance(spec.norm, LayerNorm) else 6.0 * spec.width + 4.0
        yield Reason(name="norms keep fp32", amount=blocks * norms * each)
        heads = (2.0 * spec.heads + spec.kv_heads) * spec.head_width
        turned = value * heads if isinstance(spec.positions, Rotary) else 0.0
        yield Reason(name="turned queries and keys beside the projection, the output in its order",
                     amount=blocks * tokens * turned / t)  # fmt: skip
        gate = value * spec.feed_forward_width if spec.gated else 0.0
        yield Reason(name="the activated gate", amount=blocks * tokens * gate / t)
        # Of the streams that the plan has beside blocks four are the last norm's in fp32.
        here = 0.0 if isinstance(spec.norm, LayerNorm) else 1.0 / ranks
        yield Reason(name="the last norm's streams are of a piece, or not there",
                     amount=4.0 * stream * (here - 1.0))  # fmt: skip


def _norm(work: Work) -> float:
    """Parameters of a norm of the stream."""
    norm = work.spec.norm
    biased = isinstance(norm, LayerNorm) and (
        work.spec.biases if norm.biases is None else norm.biases
    )
    return work.spec.width * (2.0 if biased else 1.0)
