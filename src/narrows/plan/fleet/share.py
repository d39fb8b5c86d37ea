"""One rank's share of a step that the plan speaks of: its layers, parameters and tokens."""

from __future__ import annotations

import math

import msgspec

from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import Stage, stages
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread

FP32 = 4.0
SMALL = "norms, biases and positions"
PADDED = "pieces of experts are padded to a whole one"


def moved(ranks: float) -> float:
    """The share of a whole that a rank sends around a ring."""
    return (ranks - 1.0) / ranks


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    """Of a rank of `stage`: tokens, micro-batches whose activations it keeps at once, and the
    parameters that the plan counts, of which `tables` are not in blocks; `small` are those that it
    leaves out.
    """

    work: Work
    spread: Spread
    stage: Stage
    tokens: float
    flight: float
    common: float
    own: float
    tables: float
    small: float
    small_outside: float

    @classmethod
    def of(cls, work: Work, spread: Spread, number: int) -> Rank:
        """Of a rank of that stage."""
        spec, t = work.spec, spread.tensor
        stage, spreads = Stage.of(work, spread, number), Spreads.of([spread])
        common, own = stage.held(work, spreads)
        every = Stage.of(work, Spread(), 0).held(work, Spreads.of([Spread()]))
        tables = spec.vocabulary * spec.width * (1.0 if spec.tied_embeddings else 2.0)
        entry = spec.embedding_parameters - tables
        leaving = spec.norm_parameters * spec.final_norm
        small = spec.parameters - float(every[0][0] + every[1][0]) - entry - leaving
        outside = entry * stage.embeds + leaving * stage.ends
        return cls(
            work=work, spread=spread, stage=stage,
            tokens=spread.accumulation * spread.micro_batch * work.positions / spread.context,
            flight=float(stages(work, spreads).flight[stage.kind, 0]),
            common=float(common[0]), own=float(own[0]),
            tables=stage.tables(work) * spec.vocabulary * spec.width / t,
            small=small * stage.layers / work.layers + outside, small_outside=outside,
        )  # fmt: skip

    @property
    def micro(self) -> float:
        """Tokens of a micro-batch."""
        return self.tokens / self.spread.accumulation

    @property
    def layers(self) -> float:
        """Blocks of its stage."""
        return self.stage.layers

    @property
    def dense(self) -> float:
        """Those with a single feed-forward."""
        return self.layers * self.work.layers_dense / self.work.layers

    @property
    def routed(self) -> float:
        """Those with experts."""
        return self.layers * self.work.layers_experts / self.work.layers

    @property
    def full(self) -> bool:
        """Whether blocks are computed again."""
        return self.spread.recompute == "full"

    @property
    def zero_bubble(self) -> bool:
        """Whether backward passes are cut in two."""
        return self.spread.schedule == "zero_bubble" and self.spread.pipeline > 1

    @property
    def value(self) -> float:
        """Bytes of a weight."""
        return 4.0 if self.spread.precision == "fp32" else 2.0

    @property
    def among(self) -> tuple[float, float]:
        """Ranks that share a copy of what all have, and of an expert."""
        d = float(self.spread.data * self.spread.context)
        return d, max(1.0, d * self.spread.tensor / self.spread.expert)

    @property
    def padded(self) -> float:
        """What of the experts is moved, where there are more ranks than experts to cut."""
        experts = self.work.spec.experts
        if experts is None:
            return 1.0
        here, ranks = experts.count / self.spread.expert, self.among[1]
        return math.ceil(here / ranks) * ranks / here

    @property
    def alike(self) -> int:
        """Ranks that compute with the same parameters."""
        return self.spread.data * self.spread.context * self.spread.replicas

    @property
    def spread_experts(self) -> float:
        """Ranks that compute with the same experts."""
        return max(1.0, self.alike * self.spread.tensor / self.spread.expert)

    @property
    def whole(self) -> bool:
        """Whether the ranks of a context are all ranks."""
        return self.spread.context == self.spread.devices

    @property
    def outside(self) -> bool:
        """Whether it has parameters that are in no block."""
        return self.stage.embeds or self.stage.ends

    @property
    def groups(self) -> float:
        """What is gathered and scattered one by one: blocks, their experts, and all else."""
        among = self.among[1] if self.spread.sharding != "none" else self.spread_experts
        return self.layers + self.routed * (among > 1.0) + self.outside

    def pieces(self, *, sharded: bool) -> tuple[float, float, float]:
        """Parameters that a rank keeps: as planned, what padding adds on the first, small ones."""
        if not sharded:
            return self.common + self.own, 0.0, self.small
        d, among = self.among
        own = self.own / among
        return self.common / d + own, own * (self.padded - 1.0), self.small / d
