"""Collectives between ranks: α–β by ring, over the domain that a group of ranks spans.

Ranks lie in the order tensor, context, expert and data, pipeline (innermost first), as Megatron
places them. A ring over whole nodes leaves each by all of its devices' ports at once.
"""

from __future__ import annotations

import msgspec
import numpy as np

from narrows.plan.fleet import constants
from narrows.plan.layouts import Array
from narrows.spec.fleet import Fleet


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes a second of one device inside its domain and beyond, and what a message waits."""

    domain: float
    inside: float
    outside: float
    latency_inside: float
    latency_outside: float

    @classmethod
    def of(cls, fleet: Fleet, reached: float | None = None) -> Links:
        """The innermost domain and the outermost; inside, `reached` of what large sums alone do,
        or what training's collectives do.
        """
        inner, outer = fleet.domains[0], fleet.domains[-1]
        alone = inner is outer
        inside = fleet.reach.links * (constants.LINK if reached is None else reached)
        share = inside if alone or inner.devices > 1 else constants.NETWORK
        return cls(
            domain=float(inner.devices),
            inside=float(inner.bandwidth.value) * share,
            outside=float(outer.bandwidth.value) * (share if alone else constants.NETWORK),
            latency_inside=float(inner.latency.value),
            latency_outside=float(outer.latency.value),
        )

    def gather(self, moved: Array, ranks: Array, stride: Array) -> Array:
        """Seconds to gather (or reduce and scatter) `moved` bytes in all over `ranks`, of which
        neighbours are `stride` devices apart.
        """
        of_byte, waits = self.gathering(ranks, stride)
        return of_byte * moved + waits

    def gathering(self, ranks: Array, stride: Array) -> tuple[Array, Array]:
        """Of a gather, seconds for each byte, (n-1)/n of them at each rank's own rate; and what the
        quickest algorithm waits for messages: a ring n-1 times; by levels, a ring in each domain
        and one over the domains; doubling the distance, log2 n times (Thakur et al. 2005,
        doi:10.1177/1094342005051521).
        """
        beyond = ranks * stride > self.domain
        members = np.minimum(np.maximum(self.domain / stride, 1.0), ranks)
        rate = np.where(beyond, np.minimum(self.inside, self.outside * members), self.inside)
        far, near = np.where(beyond, self.latency_outside, 0.0), self.latency_inside
        ring = (ranks - 1.0) * (near + far / members)
        levels = (members - 1.0) * near + (ranks / members - 1.0) * (near + far)
        doubling = np.log2(ranks) * near + np.log2(ranks / members) * far
        of_byte = (1.0 - 1.0 / ranks) / rate
        return of_byte, np.asarray(np.minimum(ring, np.minimum(levels, doubling)))

    def exchange(self, moved: Array, ranks: Array, stride: Array) -> Array:
        """Seconds of an all-to-all in which each rank sends `moved` bytes in all: what leaves the
        domain goes by the rank's own port.
        """
        of_byte, waits = self.exchanging(ranks, stride)
        return of_byte * moved + waits

    def exchanging(self, ranks: Array, stride: Array) -> tuple[Array, Array]:
        """Of an all-to-all, seconds for each byte, and what it waits for messages."""
        near = np.clip(self.domain / stride, 1.0, ranks)
        beyond = (1.0 - near / ranks) / self.outside
        of_byte = np.maximum((near / ranks - 1.0 / ranks) / self.inside, beyond)
        return of_byte, np.asarray(self.latency_inside * (ranks - 1.0))

    def send(self, moved: Array, stride: Array) -> Array:
        """Seconds to hand `moved` bytes to the rank `stride` devices further."""
        far = stride >= self.domain
        return moved / np.where(far, self.outside, self.inside) + self.latency_outside * far
