"""Seconds of what processes tell each other, by the points that were measured of their link."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from narrows.plan.cost import AS_IS, Scales
from narrows.plan.exchange import Message, sent
from narrows.spec.layout import Layout
from narrows.spec.machine import Collective, Link, Machine

_LIKE: dict[Collective, Collective] = {
    "shift": "send", "send": "all_gather", "all_to_all": "all_gather", "broadcast": "all_gather",
    "all_gather": "reduce_scatter", "reduce_scatter": "all_reduce",
}  # fmt: skip
"""Of a collective that was not measured, the one whose points stand for it."""

_DISTURBED = 3.0
"""Times what its neighbours' mean says; by more a point was hit by something else: a packet sent
again after 200 ms, or a process that was not let run.
"""


class Taken(NamedTuple):
    """Seconds of one collective: until its first byte is there, and until its last."""

    waiting: float
    moving: float

    @property
    def seconds(self) -> float:
        """Both."""
        return self.waiting + self.moving


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """What joins the processes of a layout: the link of all, and those of some of them."""

    layout: Layout
    links: tuple[Link, ...]
    world: Link | None
    scales: Scales

    @classmethod
    def of(cls, layout: Layout, machine: Machine, scales: Scales = AS_IS) -> Network:
        """By the machine's link of as many ranks, on the most hosts; else by the nearest."""
        links = machine.links
        world = _nearest(links, layout.processes) if links else None
        return cls(layout=layout, links=links, world=world, scales=scales)

    @property
    def known(self) -> bool:
        """Whether a link of that many ranks was measured."""
        return self.world is not None and self.world.ranks == self.layout.processes

    @property
    def hosts(self) -> int:
        """Hosts that the processes are on."""
        return self.world.hosts if self.world is not None and self.known else 1

    @property
    def asked(self) -> bool:
        """Whether what is sent waits until the receiver asks for it, as gloo's does."""
        return self.world is None or self.world.backend == "gloo"

    @property
    def together(self) -> float:
        """How many times as fast all of them at once compute as one that has a machine for itself;
        where that was not measured, each host as fast as one.
        """
        if self.world is None or not self.known or self.world.together is None:
            return float(self.hosts)
        return float(self.world.together.value)

    def taken(self, message: Message) -> Taken:
        """Of one of a message's collectives."""
        link = self._between(message)
        return Taken(0.0, 0.0) if link is None else self._by(link, message)

    def busy(self, message: Message) -> float:
        """Seconds of it in which the processes themselves are at work, and compute nothing else:
        what it takes where no wire is between them.
        """
        near = [each for each in self.links if each.hosts == 1]
        if self.hosts == 1 or not near:
            return self.taken(message).seconds if self.hosts == 1 else 0.0
        local = self._by(_nearest(near, message.ranks), message).seconds
        return min(local, self.taken(message).seconds)

    def why(self) -> str:
        """By what the exchange is predicted."""
        count = self.layout.processes
        hint = f"narrows probe --link --processes {count}"
        if self.world is None:
            return f"no link was measured, and nothing is counted for it: {hint}"
        ranks = f"{self.world.name}, {self.world.ranks} ranks"
        if not self.known:
            return f"estimated from {ranks}, by what each sends around a ring: {hint}"
        others = sorted(
            {n for n in _groups(self.layout) if n not in {link.ranks for link in self.links}}
        )
        told = f"; groups of {', '.join(map(str, others))} by the ring's share" if others else ""
        return f"measured between {ranks}{told}"

    def _between(self, message: Message) -> Link | None:
        """The link of a group: of its own kind, within a host or between hosts."""
        if self.world is None:
            return None
        here = self.layout.processes / self.hosts
        within = _stride(message, self.layout) * message.ranks <= here
        alike = [
            each for each in self.links if (each.hosts == 1) == (within or self.hosts == 1)
        ]  # fmt: skip
        return _nearest(alike or self.links, message.ranks)

    def _by(self, link: Link, message: Message) -> Taken:
        wanted = sent(message.kind, message.message, message.ranks)
        points = _points(link, message.kind)
        if not points:
            share = 2 * (link.ranks - 1) / link.ranks
            waiting = float(link.latency.value)
            moving = wanted / share / float(link.bandwidth.value)
        else:
            waiting = min(seconds for _, seconds in points)
            moving = max(0.0, _between_points(points, wanted) - waiting)
        return Taken(waiting / self.scales.link_latency, moving / self.scales.link_bandwidth)


def _nearest(links: Sequence[Link], ranks: int) -> Link:
    return min(links, key=lambda each: (abs(math.log(each.ranks / ranks)), -each.hosts))


def _groups(layout: Layout) -> tuple[int, ...]:
    names = ("tensor", "context", "data", "replicas", "expert")
    return tuple(size for name in names if (size := getattr(layout, name)) > 1)


def _stride(message: Message, layout: Layout) -> int:
    """Processes between neighbours of the message's axis."""
    inner = layout.tensor * layout.context
    return {
        "context": layout.tensor, "data": inner, "replicas": inner * layout.data,
        "pipeline": layout.processes // layout.pipeline,
    }.get(message.axis or "", 1)  # fmt: skip


def _points(link: Link, kind: Collective) -> list[tuple[float, float]]:
    """Bytes that a rank sends, and seconds, the fewest first."""
    wanted: Collective | None = kind
    while wanted is not None:
        found = [
            (sent(wanted, float(point.message), point.ranks), point.seconds)
            for point in link.points if point.operation == wanted
        ]  # fmt: skip
        if found:
            return _undisturbed(sorted(found))
        wanted = _LIKE.get(wanted)
    return []


def _undisturbed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points as they are where nothing else was at work: no message takes longer than a longer
    one, nor much longer than those around it say.
    """
    kept: list[tuple[float, float]] = []
    least = math.inf
    for size, seconds in reversed(points):
        least = min(least, seconds)
        kept.append((size, least))
    kept.reverse()
    return [
        point for index, point in enumerate(kept)
        if not 0 < index < len(kept) - 1
        or point[1] < _DISTURBED * math.sqrt(kept[index - 1][1] * kept[index + 1][1])
    ]  # fmt: skip


def _between_points(points: list[tuple[float, float]], wanted: float) -> float:
    """On the line between the two points around; beyond the last at its rate."""
    if wanted >= points[-1][0]:
        return points[-1][1] * wanted / points[-1][0]
    before = points[0]
    for point in points:
        if wanted <= point[0]:
            span = point[0] - before[0]
            share = (wanted - before[0]) / span if span > 0 else 1.0
            return before[1] + max(0.0, share) * (point[1] - before[1])
        before = point
    return before[1]
