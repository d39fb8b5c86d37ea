"""How a model is divided: equal pieces of a size, and which blocks a rank of a pipeline has.

A model is cut into pieces along its layers: one a rank, or several, dealt out in turn
(arXiv:2104.04473), or two in a V, where the first rank has both ends (arXiv:2405.15362).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from narrows.spec.errors import BadInput
from narrows.spec.fleet import Spread
from narrows.spec.layout import Layout

ENTRY = ("tokens", "positions", "types", "norm_embedding")
EXIT = ("norm", "transform", "norm_transform", "head", "head_bias")
"""Modules that stand before the blocks, and behind them."""


def even(size: int, ranks: int, rank: int) -> tuple[int, int]:
    """The `rank`-th of pieces that are equal but for the last ones, as torch.chunk makes them."""
    each = -(-size // ranks)
    start = min(size, rank * each)
    return start, min(size, start + each)


class Piece(NamedTuple):
    """A run of blocks from `start` up to `stop`: the `number`-th of `total` along the model."""

    number: int
    total: int
    start: int
    stop: int

    @property
    def first(self) -> bool:
        """Whether it embeds."""
        return self.number == 0

    @property
    def last(self) -> bool:
        """Whether it takes the loss."""
        return self.number == self.total - 1

    def has(self, name: str, *, tied: bool) -> bool:
        """Whether a parameter is in it."""
        place, _, rest = name.partition(".")
        if place == "blocks":
            return self.start <= int(rest.partition(".")[0]) < self.stop
        entry = place in ENTRY and self.first
        return entry or (self.last and (place in EXIT or (tied and name == "tokens.weight")))


def rank_of(number: int, layout: Layout | Spread) -> int:
    """The rank that has the `number`-th piece."""
    p = layout.pipeline
    return 2 * p - 1 - number if bent(layout) and number >= p else number % p


def pieces(layers: int, layout: Layout | Spread) -> list[Piece]:
    """All pieces of a model along its layers. Ranks have as many layers as the plan's do: the first
    has `first_fewer` less than its share, the last `last_fewer`, and what is left over goes to the
    ranks from the first on, or in a V to those from the last on.
    """
    p, v = layout.pipeline, layout.interleave
    each, over = divmod(layers + layout.first_fewer + layout.last_fewer, p)
    counts = []
    for number in range(p * v):
        rank, turn = rank_of(number, layout), number // p
        share = each + (rank >= p - over if bent(layout) else rank < over)
        counts.append(share // v + (turn < share % v))
    counts[0] -= layout.first_fewer
    counts[-1] -= layout.last_fewer
    if min(counts) < 0 or 0 in counts[1:-1]:
        raise BadInput(
            f"{layers} layers cannot be divided into {p * v} pieces, with {layout.first_fewer} "
            f"fewer in the first and {layout.last_fewer} fewer in the last",
            hint="lower layout.pipeline, interleave, first_fewer or last_fewer",
        )
    stops = list(itertools.accumulate(counts))
    return [
        Piece(number, len(counts), stop - count, stop)
        for number, (count, stop) in enumerate(zip(counts, stops, strict=True))
    ]


def bent(layout: Layout | Spread) -> bool:
    """Whether pieces lie in a V."""
    return layout.schedule == "zero_bubble"
