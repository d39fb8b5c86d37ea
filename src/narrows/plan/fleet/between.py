"""What the ranks of one replica send each other in a pass: sums behind attention and feed-forward,
or tokens to the ranks that compute for them and back.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from narrows.plan.fleet import constants
from narrows.plan.fleet.links import Links
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet

_VALUE = 2.0
"""Bytes of a value of the stream."""


class Sent(NamedTuple):
    """Seconds, and bytes that a rank receives."""

    seconds: float
    received: float

    def often(self, times: float) -> Sent:
        """So many times."""
        return Sent(times * self.seconds, times * self.received)

    def __add__(self, other: object) -> Sent:
        if not isinstance(other, Sent):
            return NotImplemented
        return Sent(self.seconds + other.seconds, self.received + other.received)


def between_ranks(
    work: Work, ranks: int, groups: int, tokens: float, fleet: Fleet, narrow: bool = False
) -> Sent:
    """Of a pass of `tokens` over `ranks`, of which `groups` attend to different requests. Those add
    up what each computes of its own tokens' attention; all ranks what they compute of the rest, or,
    where not all of them have seen all tokens, these are brought to them and back. `narrow`: tokens
    go to experts in 8 bits.
    """
    if ranks == 1:
        return Sent(0.0, 0.0)
    attending = _added(work, ranks // groups, tokens / groups, fleet)
    if groups == 1:
        return attending.often(2.0 * work.layers)
    ways = [_gathered(work, ranks, tokens, fleet)]
    if work.spec.experts is not None:
        ways.append(_dispatched(work, ranks, tokens, fleet, 1.0 if narrow else _VALUE))
    return attending.often(work.layers) + min(ways).often(work.layers)


def _added(work: Work, ranks: int, tokens: float, fleet: Fleet) -> Sent:
    """A sum over `ranks`: from all at once, around, or from a switch that adds."""
    if ranks == 1:
        return Sent(0.0, 0.0)
    moved, later = tokens * work.spec.width * _VALUE, constants.SERVING_REDUCE_TWICE
    around = moved * _around(Links.of(fleet, 1.0), ranks)
    ways = [
        Sent(ranks * around, (ranks - 1.0) * moved),
        Sent(later + 2.0 * around, 2.0 * (ranks - 1.0) / ranks * moved),
    ]
    if fleet.reach.switched and ranks <= fleet.domains[0].devices:
        added = (ranks + 1.0) / (ranks - 1.0) * around * fleet.reach.links / fleet.reach.switched
        ways.append(Sent(later + added, (1.0 + 1.0 / ranks) * moved))
    return Sent(_begun(ranks), 0.0) + min(ways)


def _gathered(work: Work, ranks: int, tokens: float, fleet: Fleet) -> Sent:
    """All tokens to all ranks, and what each computes of them added up where they are from."""
    moved = tokens * work.spec.width * _VALUE
    around = moved * _around(Links.of(fleet, 1.0), ranks)
    return Sent(2.0 * (_begun(ranks) + around), 2.0 * (ranks - 1.0) / ranks * moved)


def _dispatched(work: Work, ranks: int, tokens: float, fleet: Fleet, byte: float) -> Sent:
    """Each token to the ranks of the experts that it chose and the results back
    (arXiv:2412.19437, section 3.2.2).
    """
    assert work.spec.experts is not None
    met = ranks * (1.0 - (1.0 - 1.0 / ranks) ** work.spec.experts.chosen)
    moved = tokens / ranks * met * work.spec.width * (byte + _VALUE)
    seconds = 2.0 * _begun(ranks) + moved * _exchanged(Links.of(fleet, 1.0), ranks)
    return Sent(seconds, (1.0 - 1.0 / ranks) * moved)


def _begun(ranks: int) -> float:
    return constants.SERVING_REDUCE + constants.SERVING_REDUCE_RANK * ranks


@cache
def _around(links: Links, ranks: int) -> float:
    """Seconds for each byte that is gathered over so many neighbours."""
    return float(links.gathering(np.array([float(ranks)]), np.ones(1))[0][0])


@cache
def _exchanged(links: Links, ranks: int) -> float:
    """Seconds for each byte that a rank deals out to so many neighbours."""
    return float(links.exchanging(np.array([float(ranks)]), np.ones(1))[0][0])
