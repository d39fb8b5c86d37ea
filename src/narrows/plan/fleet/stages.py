"""What the stages of a pipeline hold and how long they wait for each other, under its schedule.

Three kinds of stages are followed: the first, one in the middle (the second, which keeps most of
those without an embedding), and the last, with the head. A zero-bubble pipeline is laid in a V
(arXiv:2405.15362): its first rank holds the first piece and the last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from narrows.plan.fleet.spreads import SCHEDULES, Spreads
from narrows.plan.fleet.work import Work, parameters
from narrows.plan.layouts import Array
from narrows.spec.fleet import Spread
from narrows.spec.pieces import pieces, rank_of


class Stages(NamedTuple):
    """Arrays [stages, layouts]: layers, embedding tables, whether the loss is taken there, and the
    micro-batches whose activations it keeps at once. A stage that is not there has zeros.
    """

    layers: Array
    tables: Array
    losses: Array
    flight: Array


class Stage(NamedTuple):
    """One rank of a pipeline: its blocks, whether it embeds and whether it takes the loss, how
    many of its pieces it hands on to other ranks and how many gradients it hands back, and its
    place in the arrays of Stages.
    """

    layers: float
    embeds: bool
    ends: bool
    onward: float
    backward: float
    kind: int

    @classmethod
    def of(cls, work: Work, spread: Spread, number: int) -> Stage:
        """The stage of that number."""
        every = pieces(int(work.layers), spread)
        own = [piece for piece in every if rank_of(piece.number, spread) == number]
        here = {piece.number for piece in own}
        embeds, ends = any(piece.first for piece in own), any(piece.last for piece in own)
        # In a V the last rank hands its first piece on to itself.
        onward = sum(not (piece.last or piece.number + 1 in here) for piece in own)
        backward = sum(not (piece.first or piece.number - 1 in here) for piece in own)
        return cls(
            layers=float(sum(piece.stop - piece.start for piece in own)), embeds=embeds, ends=ends,
            onward=float(onward), backward=float(backward), kind=0 if embeds else 2 if ends else 1,
        )  # fmt: skip

    def tables(self, work: Work) -> float:
        """Embedding tables that it has."""
        if self.embeds and self.ends:
            return 1.0 if work.spec.tied_embeddings else 2.0
        return float(self.embeds + self.ends)

    def held(self, work: Work, spreads: Spreads) -> tuple[Array, Array]:
        """Its parameters: those that all data ranks share, and its experts'."""
        ones = np.ones_like(spreads.pipeline)
        return parameters_of(work, spreads, self.layers * ones, self.tables(work) * ones)


def stages(work: Work, spreads: Spreads) -> Stages:
    """The first stage, one in the middle, the last."""
    p, v, m = spreads.pipeline, spreads.interleave, spreads.accumulation
    first, middle, last = layers(work, spreads)
    alone = p == 1.0
    joined = alone | spreads.zero_bubble
    many = np.where(spreads.zero_bubble, p > 1.0, p > 2.0)
    zero = np.zeros_like(p)
    ends = last - spreads.first_fewer
    own = np.where(alone, work.layers, np.where(spreads.zero_bubble, ends, first))
    flight = np.stack([in_turn(p, v, number) for number in (0.0, 1.0, p - 1.0)])
    flight = np.where(spreads.zero_bubble, p, flight)
    flight = np.where(spreads.schedule == SCHEDULES.index("gpipe"), m, flight)
    return Stages(
        layers=np.stack([own, np.where(many, middle, zero), np.where(joined, zero, last)]),
        tables=np.stack([first_tables(work, spreads), zero, np.where(joined, zero, 1.0)]),
        losses=np.stack([joined * 1.0, zero, np.where(joined, zero, 1.0)]),
        flight=np.where(alone, 1.0, np.minimum(flight, m)),
    )


def in_turn(p: Array | float, v: Array | float, number: Array | float) -> Array:
    """Micro-batches whose activations the stage of that number, of p with v pieces each, keeps at
    once where forward and backward passes take turns (arXiv:2104.04473).
    """
    return np.asarray(np.where(v > 1.0, p + (p - 1.0 - 2.0 * number) / v, p - number))


def first_tables(work: Work, spreads: Spreads) -> Array:
    """Embedding tables of the first stage: both where it takes the loss, too."""
    both = 1.0 if work.spec.tied_embeddings else 2.0
    return np.where((spreads.pipeline == 1.0) | spreads.zero_bubble, both, 1.0)


def layers(work: Work, spreads: Spreads) -> tuple[Array, Array, Array]:
    """Layers of the first stage, of the fullest in the middle and of the one with the head."""
    each = (work.layers + spreads.first_fewer + spreads.last_fewer) / spreads.pipeline
    full = np.ceil(each)
    return (
        full - spreads.first_fewer,
        full,
        np.maximum(0.0, np.floor(each) - spreads.last_fewer),
    )


def parameters_of(
    work: Work, spreads: Spreads, layers: Array, tables: Array
) -> tuple[Array, Array]:
    """Parameters of one rank with so many layers and tables: those that all data ranks share, and
    those of its experts, which only data / expert ranks do.
    """
    whole, cut = work.average_block(0.0)
    table = float(work.spec.vocabulary * work.spec.width)
    common = layers * (whole + cut / spreads.tensor) + tables * table / spreads.tensor
    own = np.broadcast_to(0.0, np.shape(common))
    if work.spec.experts is not None:
        each = work.spec.experts.count * parameters(work.expert).whole
        own = layers * (work.layers_experts / work.layers) * each / spreads.expert
    return np.asarray(common), np.asarray(own)


def bubble(spreads: Spreads, micro_batch: Array, weights: Array) -> Array:
    """Seconds that a stage waits while the pipeline fills and drains; `micro_batch` are those of
    one on the fullest stage, of which `weights` go to gradients of weights.

    A zero-bubble pipeline waits what its weight gradients do not fill, forward + backward - 2 ·
    weights for each of p - 1 stages (arXiv:2401.10241, table 1), and at least half a forward pass,
    which is what its schedule loses where all three are equal (report/pipelines.py draws it). Fewer
    micro-batches than stages leave it, too, to wait for the first one to go down the V and back.
    """
    stages, missing = spreads.pipeline - 1.0, spreads.pipeline - spreads.accumulation
    unfilled = stages * np.maximum(micro_batch / 6.0, micro_batch - 3.0 * weights)
    down_and_back = missing * (micro_batch - weights) - weights / 2.0
    bent = np.maximum(unfilled, down_and_back)
    return np.where(spreads.zero_bubble, bent, stages * micro_batch / spreads.interleave)
