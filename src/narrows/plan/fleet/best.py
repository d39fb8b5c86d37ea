"""The best of a search alone, for what-ifs: what cannot be the best is not evaluated.

Two bounds hold for all that shares a structure and what it recomputes: the memory of the leanest
way to shard it, and the time of what it computes whatever else is chosen. Those that nearly fit are
evaluated, the lowest bound first, until no other can be among the best (branch and bound).
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from narrows.plan.fleet.energy import joules
from narrows.plan.fleet.memory import peak
from narrows.plan.fleet.search import (
    LEANEST,
    MEMORY_SHARE,
    NEARLY,
    PROMISING,
    Found,
    Goal,
    evaluate,
    joined,
    search,
    varied,
)
from narrows.plan.fleet.spreads import SHARDINGS, Spreads
from narrows.plan.fleet.structures import choices, structures
from narrows.plan.fleet.time import data_least, step, waiting_share
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.plan.layouts import Array
from narrows.spec.fleet import Fleet

# Layouts that are evaluated before it is asked again whether another can be among the best.
_BLOCK = 2048
# Layouts that are all evaluated in no more time than it takes to bound them.
_FEW = 20_000
# Below a bound, for what rounding adds to it.
_ROUNDED = 1.0 - 1e-9

Places = npt.NDArray[np.intp]


def best_alone(
    work: Work, fleet: Fleet, batch: int, wanted: Wanted, goal: Goal = "time"
) -> Found:  # fmt: skip
    """The part of what `search` finds that has its best, or where nothing fits its leanest.

    Raises BadInput where there is no layout.
    """
    if goal == "memory":
        return search(work, fleet, batch, wanted, goal)
    pairs = _Pairs.of(structures(work, fleet, batch, wanted), wanted)
    layouts = pairs.size * len(pairs.shardings)
    if layouts <= _FEW:
        found = evaluate(work, pairs.laid(np.arange(layouts)), fleet)
        return varied(work, fleet, found, wanted, goal)
    every = pairs.spreads(np.arange(pairs.size))
    held = _held_least(work, every, wanted)
    few = min(LEANEST, pairs.size) - 1
    lean = held <= np.partition(held, few)[few]
    limit = MEMORY_SHARE * float(fleet.memory_capacity.value)
    near = np.flatnonzero(lean | (held <= NEARLY * limit))
    low = _spent_least(work, every.part(near), fleet, goal)
    order = np.lexsort((low, ~lean[near]))
    near, low = near[order], low[order]
    places, count = pairs.layouts(near), len(pairs.shardings)
    low = np.repeat(low, count)
    known, enough = count * int(lean.sum()), -np.inf
    parts = [evaluate(work, pairs.laid(places[:known]), fleet)]
    while known < places.size:
        last = min(known + count * max(1, _BLOCK // count), places.size)
        if low[known] > enough:
            enough = _enough(parts, low[:known], goal)
            if low[known] > enough:
                break
            # What was evaluated since then may say less.
            enough = min(enough, low[last - 1])
        parts.append(evaluate(work, pairs.laid(places[known:last]), fleet))
        known = last
    # In the order of a whole search, so that of equals the same is taken.
    found = joined(parts).part(places[:known].argsort())
    return varied(work, fleet, found, wanted, goal)


class _Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """Structures, each with every choice of what is recomputed; a pair's place is its structure's,
    times the choices, and the choice's. A layout's place is that among all candidates.
    """

    known: Spreads
    shardings: Array
    recomputes: Array

    @classmethod
    def of(cls, known: Spreads, wanted: Wanted) -> _Pairs:
        table = np.array(choices(wanted), dtype=float)
        again = sorted(set(table[:, 1].tolist()))
        return cls(
            known=known, recomputes=np.array(again), shardings=table[:: len(again), 0]
        )  # fmt: skip

    @property
    def size(self) -> int:
        return self.known.size * len(self.recomputes)

    def spreads(self, places: Places) -> Spreads:
        """Pairs with nothing sharded."""
        structure, again = np.divmod(places, len(self.recomputes))
        return self.known.part(structure).changed(recompute=self.recomputes[again])

    def layouts(self, places: Places) -> Places:
        """The places of all layouts of some pairs."""
        structure, again = np.divmod(places, len(self.recomputes))
        sharding = np.arange(len(self.shardings))
        first = (structure * len(sharding))[:, None] + sharding
        return np.asarray((first * len(self.recomputes) + again[:, None]).ravel())

    def laid(self, places: Places) -> Spreads:
        """The layouts of some places."""
        rest, again = np.divmod(places, len(self.recomputes))
        structure, sharding = np.divmod(rest, len(self.shardings))
        return self.known.part(structure).changed(
            sharding=self.shardings[sharding], recompute=self.recomputes[again]
        )


def _held_least(work: Work, pairs: Spreads, wanted: Wanted) -> Array:
    """Memory of each pair where it is sharded in the leanest way."""

    def held(which: Spreads, sharding: str) -> Array:
        place = float(SHARDINGS.index(sharding))
        every = which.changed(sharding=np.full(which.size, place))
        return np.concatenate([peak(work, part) for part in every.chunks()])

    if wanted.sharding is not None:
        return held(pairs, wanted.sharding)
    # Gradients sharded need no more than less sharded; a pipeline keeps its stage's weights whole.
    found = held(pairs, "gradients")
    alone = np.flatnonzero(pairs.pipeline == 1)
    if alone.size:
        found[alone] = np.minimum(found[alone], held(pairs.part(alone), "parameters"))
    return found


def _spent_least(work: Work, pairs: Spreads, fleet: Fleet, goal: Goal) -> Array:
    """What the goal makes least, of what no choice but a pair's own changes: the computing, what
    tensor ranks send, and the optimizer at its most sharded; and the least that a pipeline waits,
    experts exchange and data ranks show.
    """
    sharded = np.full(pairs.size, float(SHARDINGS.index("gradients")))
    near = pairs.changed(sharding=sharded, placement=np.zeros(pairs.size))
    apart = near.changed(placement=np.ones(pairs.size))
    taken, other = step(work, near, fleet), step(work, apart, fleet)
    zero = np.zeros(pairs.size)
    # A context's exchange is a choice; which ranks are neighbours is one, too.
    expert = np.minimum(taken.expert, other.expert)
    data = np.minimum(data_least(work, near, fleet), data_least(work, apart, fleet))
    every = taken.gemm + taken.attention + taken.pointwise + taken.tensor + expert
    # A V waits a sixth of a micro-batch for each other stage at the least (see stages.bubble).
    pieces = np.where((pairs.interleave == 1) | pairs.zero_bubble, 6.0, pairs.interleave)
    waited = (pairs.pipeline - 1.0) * every / pairs.accumulation / pieces
    total = every + taken.optimizer + waited + data
    least = replace(
        taken, head=zero, expert=expert, context=zero, pipeline=zero, data=data, bubble=waited,
        waiting=total * waiting_share(fleet.devices),
    )  # fmt: skip
    return _ROUNDED * (least.seconds if goal in ("time", "money") else joules(least, fleet))


def _enough(parts: list[Found], low: Array, goal: Goal) -> float:
    """What is above this is neither promising nor, with variants, the best: not among the first,
    and no rival of those of the front whose variants may be the best.
    """
    limit = parts[0].limit
    values = np.concatenate([each.values(goal) for each in parts])
    held = np.concatenate([each.bytes for each in parts])
    near = values[held <= NEARLY * limit]
    if near.size < PROMISING or held.min() > limit:
        return np.inf
    best = float(values[held <= limit].min())
    first = max(best, float(np.partition(near, PROMISING - 1)[PROMISING - 1]))
    # Those that are as quick as the first are in any search's sight.
    behind = (held <= limit) & (values > first) & (low <= best)
    if not behind.any():
        return first
    front = joined(parts).pareto()
    return max(first, float(values[front][low[front] <= best].max(initial=0.0)))
