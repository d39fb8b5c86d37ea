"""All layouts of a model over a fleet, each evaluated in full, and the best of them by a goal."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from narrows.plan.fleet.energy import joules
from narrows.plan.fleet.memory import peak
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.structures import candidates
from narrows.plan.fleet.time import step
from narrows.plan.fleet.variants import Wanted, refined
from narrows.plan.fleet.work import Work
from narrows.plan.layouts import Array
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Option

Goal = Literal["time", "money", "energy", "memory"]
# Of a device's memory, what a plan may count on: the rest is the driver's and fragments'.
MEMORY_SHARE = 0.94
_FIGURES = ("seconds", "bytes", "joules")
# Layouts whose variants are evaluated, and by how much these may exceed the memory at first; and
# of the leanest.
PROMISING = 256
NEARLY = 1.25
LEANEST = PROMISING // 8


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Every layout with its step, its memory and its energy."""

    spreads: Spreads
    seconds: Array
    bytes: Array
    joules: Array
    limit: float

    @property
    def fits(self) -> npt.NDArray[np.bool_]:
        """Which of them fit a device's memory."""
        return np.asarray(self.bytes <= self.limit)

    def values(self, goal: Goal) -> Array:
        """What the goal makes least."""
        # Every second of a fleet costs the same: money tells machines apart, not layouts.
        return {
            "time": self.seconds, "money": self.seconds, "energy": self.joules,
            "memory": self.bytes,
        }[goal]  # fmt: skip

    def best(self, goal: Goal = "time") -> int | None:
        """The best that fits, or None."""
        held = np.where(self.fits, self.values(goal), np.inf)
        index = int(held.argmin())
        return index if np.isfinite(held[index]) else None

    def option(self, index: int, verdict: str = "") -> Option:
        """One of them as a record."""
        return Option(
            spread=self.spreads.spread(index), step_seconds=float(self.seconds[index]),
            memory_peak=float(self.bytes[index]), joules=float(self.joules[index]),
            verdict=verdict,
        )  # fmt: skip

    def part(self, which: npt.NDArray[np.intp]) -> Found:
        """Some of these layouts."""
        arrays = {name: getattr(self, name)[which] for name in _FIGURES}
        return Found(spreads=self.spreads.part(which), limit=self.limit, **arrays)

    def promising(self, goal: Goal) -> npt.NDArray[np.intp]:
        """Those whose variants may be the best: the first by the goal of those that fit or nearly
        do, the leanest, and one of each pair of time and memory that no other beats.
        """
        near = np.where(self.bytes <= NEARLY * self.limit, self.values(goal), np.inf)
        most = min(PROMISING, near.size) - 1
        # Marked, not np.unique, which loads masked arrays for as long as a small search takes.
        chosen = np.zeros(near.size, dtype=bool)
        chosen[np.argpartition(near, most)[: most + 1]] = True
        few = min(LEANEST, near.size) - 1
        chosen[np.argpartition(self.bytes, few)[: few + 1]] = True
        chosen[self.pareto()] = True
        return np.flatnonzero(chosen)

    def pareto(self) -> list[int]:
        """Those that no other beats in both time and memory, fastest first."""
        fitting = np.flatnonzero(self.fits)
        order = fitting[np.lexsort((self.bytes[fitting], self.seconds[fitting]))]
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], self.bytes[order]]))
        least, front = np.inf, []
        for index in order[lowest[1:] < lowest[:-1]]:
            if self.bytes[index] < 0.98 * least:
                least = float(self.bytes[index])
                front.append(int(index))
        return front


def search(work: Work, fleet: Fleet, batch: int, wanted: Wanted, goal: Goal = "time") -> Found:
    """Evaluate every structure of `batch` sequences a step, then the best ones' variants.

    Raises BadInput where there is none.
    """
    found = evaluate(work, candidates(work, fleet, batch, wanted), fleet)
    return varied(work, fleet, found, wanted, goal)


def varied(work: Work, fleet: Fleet, found: Found, wanted: Wanted, goal: Goal) -> Found:
    """What was found, and the variants of the best of it."""
    variants = refined(work, found.spreads.part(found.promising(goal)), wanted)
    return joined([found, evaluate(work, variants, fleet)]) if variants.size else found


def joined(parts: list[Found]) -> Found:
    """The layouts of all."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _FIGURES
    }  # fmt: skip
    spreads = Spreads.joined([part.spreads for part in parts])
    return Found(spreads=spreads, limit=parts[0].limit, **arrays)


def evaluate(work: Work, spreads: Spreads, fleet: Fleet) -> Found:
    """Time, memory and energy of each of `spreads`."""
    seconds, peaks, energy = list[Array](), list[Array](), list[Array]()
    for part in spreads.chunks():
        taken = step(work, part, fleet)
        seconds.append(taken.seconds)
        peaks.append(peak(work, part))
        energy.append(joules(taken, fleet))
    return Found(
        spreads=spreads, seconds=np.concatenate(seconds), bytes=np.concatenate(peaks),
        joules=np.concatenate(energy),
        limit=MEMORY_SHARE * float(fleet.memory_capacity.value),
    )  # fmt: skip
