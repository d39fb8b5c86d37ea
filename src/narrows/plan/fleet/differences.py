"""What `parallel` does that the plan leaves out or does otherwise, with its amount by formula.

Counts of collectives take a sum for two: it is a scatter and a gather.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from narrows.plan.fleet import constants, traffic
from narrows.plan.fleet.optimizer import state_bytes
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread
from narrows.spec.model import LayerNorm
from narrows.spec.trace import Reason

_FP32 = 4.0
_SMALL = "norms, biases and positions"


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

    def _shares(self) -> tuple[float, float]:
        """Of each common parameter and of each expert's, what a rank sends when it is gathered."""
        d = float(self.spread.data * self.spread.context)
        among = max(1.0, d * self.spread.tensor / self.spread.expert)
        return _moved(d), _moved(among)

    def _sent(self) -> float:
        common, own = self._shares()
        return common * self.common + own * self.own

    def _otherwise(self, often: float) -> Iterator[Reason]:
        """What is true of every gathering and scattering: `often` bytes of a parameter."""
        common, own = self._shares()
        d = float(self.spread.data * self.spread.context)
        planned = _moved(min(d, max(1.0, d * self.spread.tensor / self.spread.expert)))
        if self.own and own != planned:
            yield Reason(name="experts are shared by tensor ranks, too",
                         amount=often * self.own * (own - planned))  # fmt: skip
        yield Reason(name=_SMALL, amount=often * common * self.small)

    def _experts_apart(self, often: float) -> Iterator[Reason]:
        if not self.work.layers_experts:
            return
        there = self._shares()[1] > 0.0
        planned = min(self.spread.data * self.spread.context,
                      self.spread.data * self.spread.tensor / self.spread.expert) > 1  # fmt: skip
        count = (float(there) - float(planned)) * self.work.layers_experts * often
        if count:
            yield Reason(name="experts are gathered apart", amount=1e-9, count=count)

    def _summed(self) -> Iterator[Reason]:
        common, own = self._shares()
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
        m, common = self.spread.accumulation, self._shares()[0]
        again = float(self.spread.reshard)
        yield Reason(name="gradients are scattered in 32 bits",
                     amount=m * (_FP32 - self.value) * self._sent())  # fmt: skip
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
                         count=-2.0 * (self.layers + 1.0))  # fmt: skip
            return
        piece = 2.0 * _moved(r) * whole * self.value / d
        yield Reason(name="copies add up the gradients of their pieces alone",
                     amount=piece - planned)  # fmt: skip
        yield Reason(name="in 32 bits", amount=piece * (_FP32 / self.value - 1.0))
        yield Reason(name=_SMALL, amount=2.0 * _moved(r) * _FP32 * self.small / d)

    def weights(self) -> Iterator[Reason]:
        """Of memory that parameters take."""
        whole = self.common + self.own
        several = self.spread.data * self.spread.context * self.spread.replicas > 1
        small = self.small / (self.shards if self.spread.sharding == "parameters" else 1.0)
        if several and self.spread.sharding != "parameters":
            yield Reason(name="a rank's own piece stays beside what is gathered of it",
                         amount=self.value * (whole + self.small) / self.shards)  # fmt: skip
        yield Reason(name=_SMALL, amount=self.value * small)

    def gradients(self, *, there: bool) -> Iterator[Reason]:
        """Of memory that gradients take, `there` or not when memory is fullest."""
        spread = self.spread
        early = spread.sharding in ("gradients", "parameters")
        planned = _FP32 * (self.common + self.own) / (self.shards if early else 1.0)
        if not there:
            yield Reason(name="none is there yet when memory is fullest", amount=-planned)
            return
        alone = spread.data * spread.context * spread.replicas == 1
        summed = alone or (early and spread.replicas == 1)
        width = self.value if summed else _FP32
        if width < _FP32:
            yield Reason(name="they are kept in the weights' 16 bits",
                         amount=planned * (width / _FP32 - 1.0))  # fmt: skip
        if early and not summed:
            yield Reason(name="the buffer of the last scatter stays until the next",
                         amount=_FP32 * (self.tables + self.small_outside))  # fmt: skip
        yield Reason(name=_SMALL, amount=width * self.small / (self.shards if early else 1.0))

    def optimizer(self) -> Iterator[Reason]:
        """Of memory that masters and moments take."""
        yield Reason(name=_SMALL, amount=state_bytes(self.spread) * self.small / self.shards)

    def transient(self, worn: float) -> Iterator[Reason]:
        """Of memory that comes and goes, of which the plan has `worn` with an allocator's share."""
        yield Reason(name="the allocator reserves nothing here",
                     amount=worn * (1.0 / constants.ALLOCATOR - 1.0))  # fmt: skip


def _norm(work: Work) -> float:
    """Parameters of a norm of the stream."""
    norm = work.spec.norm
    biased = isinstance(norm, LayerNorm) and (
        work.spec.biases if norm.biases is None else norm.biases
    )
    return work.spec.width * (2.0 if biased else 1.0)
