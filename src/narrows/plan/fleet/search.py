"""All layouts of a model over a fleet, each evaluated in full, and the best of them by a goal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrows.plan.family import divisors
from narrows.plan.fleet.energy import joules
from narrows.plan.fleet.memory import peak
from narrows.plan.fleet.spreads import CHOICES, RECOMPUTES, SHARDINGS, Spreads
from narrows.plan.fleet.time import step
from narrows.plan.fleet.variants import Wanted, refined
from narrows.plan.fleet.work import Work
from narrows.plan.layouts import Array
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Option

Goal = Literal["time", "money", "energy", "memory"]
# Of a device's memory, what a plan may count on: the rest is the driver's and fragments'.
MEMORY_SHARE = 0.94
# Layouts at once: their arrays stay in the second-level cache.
_CHUNK = 4096
# Layouts whose variants are evaluated, and by how much these may exceed the memory at first.
_PROMISING = 256
_NEARLY = 1.25
_PIECES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 20)
_TENSOR_MOST, _MICRO_MOST, _POSITIONS_LEAST = 64, 64, 1024


@dataclass(frozen=True, kw_only=True)
class Found:
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

    def beside(self, other: Found) -> Found:
        """These layouts and the other's."""
        arrays = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("seconds", "bytes", "joules")
        }
        return Found(spreads=self.spreads.beside(other.spreads), limit=self.limit, **arrays)

    def promising(self, goal: Goal) -> npt.NDArray[np.intp]:
        """Those whose variants may be the best: the first by the goal of those that fit or nearly
        do, the leanest, and one of each pair of time and memory that no other beats.
        """
        near = np.where(self.bytes <= _NEARLY * self.limit, self.values(goal), np.inf)
        most = min(_PROMISING, near.size) - 1
        first = np.argpartition(near, most)[: most + 1]
        leanest = np.argpartition(self.bytes, most)[: most // 8 + 1]
        return np.unique(np.concatenate([first, leanest, np.array(self.pareto(), dtype=np.intp)]))

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
    variants = refined(work, found.spreads.part(found.promising(goal)), wanted)
    return found.beside(evaluate(work, variants, fleet)) if variants.size else found


def evaluate(work: Work, spreads: Spreads, fleet: Fleet) -> Found:
    """Time, memory and energy of each of `spreads`."""
    seconds, peaks, energy = (np.empty(spreads.size) for _ in range(3))
    for first in range(0, spreads.size, _CHUNK):
        which = slice(first, first + _CHUNK)
        part = spreads.part(which)
        taken = step(work, part, fleet)
        seconds[which] = taken.seconds
        peaks[which] = peak(work, part)
        energy[which] = joules(taken, fleet)
    return Found(
        spreads=spreads, seconds=seconds, bytes=peaks, joules=energy,
        limit=MEMORY_SHARE * float(fleet.memory_capacity.value),
    )  # fmt: skip


def candidates(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> Spreads:
    """All layouts that the model's shape, the devices and the batch allow."""
    rows = np.array(list(_structures(work, fleet, batch, wanted)), dtype=float)
    if not rows.size:
        raise _refusal(work, fleet, batch, wanted)
    # Doing norms and activations again is a variant; the others differ too much to be one.
    recomputes = RECOMPUTES[:3] if wanted.recompute is None else (wanted.recompute,)
    shardings = SHARDINGS if wanted.sharding is None else (wanted.sharding,)
    choices = np.array([
        (SHARDINGS.index(sharding), RECOMPUTES.index(recompute))
        for sharding, recompute in itertools.product(shardings, recomputes)
    ], dtype=float)  # fmt: skip
    every = np.repeat(rows, len(choices), axis=0)
    again = np.tile(choices, (len(rows), 1))
    fixed = {
        name: np.full(len(every), float(known.index(given)) if given is not None else usual)
        for name, known in CHOICES.items()
        if name not in ("sharding", "recompute")
        for given, usual in [(getattr(wanted, name), float(name == "reshard"))]
    }
    fewer = {
        name: np.full(len(every), float(getattr(wanted, name) or 0))
        for name in ("first_fewer", "last_fewer")
    }
    names = (
        "tensor", "pipeline", "context", "expert", "data", "micro_batch", "accumulation",
        "interleave", "replicas",
    )  # fmt: skip
    return Spreads(
        shared=wanted.shared, sharding=again[:, 0], recompute=again[:, 1],
        **dict(zip(names, every.T, strict=True)), **fixed, **fewer,
    )  # fmt: skip


def _structures(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> Iterator[tuple[int, ...]]:
    spec, devices = work.spec, fleet.devices
    layers = spec.layers + spec.encoder_layers
    node = fleet.domains[0].devices
    most = min(_TENSOR_MOST, devices, node)
    tensors = _options(wanted.tensor, [t for t in _powers(most) if spec.heads % t == 0])
    longest = max(1, work.positions // _POSITIONS_LEAST)
    contexts = _options(wanted.context, _powers(min(devices, longest)))
    experts = spec.experts.count if spec.experts else 1
    for t, c in itertools.product(tensors, contexts):
        left = devices // (t * c)
        if t * c * left != devices or spec.heads % t:
            continue
        pipelines = _options(wanted.pipeline, [p for p in divisors(left) if p <= layers])
        for p in pipelines:
            if left % p or p > layers:
                continue
            data = left // p
            if batch % data:
                continue
            pieces = _pieces(layers, p, wanted)
            micros = [b for b in divisors(batch // data) if b <= _MICRO_MOST]
            spread = [e for e in divisors(experts) if data * t % e == 0]
            for e, b, r in itertools.product(
                _options(wanted.expert, spread), _options(wanted.micro_batch, micros),
                _copies(data, c * t, node),
            ):  # fmt: skip
                if batch % (data * b) or (data // r) * t * c % e or experts % e:
                    continue
                m = batch // (data * b)
                for v in pieces:
                    if v == 1 or m % p == 0 or wanted.schedule == "zero_bubble":
                        yield t, p, c, e, data // r, b, m, v, r


def _pieces(layers: int, stages: int, wanted: Wanted) -> list[int]:
    """Into how many a stage may be cut."""
    if wanted.schedule == "gpipe" or stages == 1:
        return [1] if wanted.interleave in (None, 1) else []
    if wanted.schedule == "zero_bubble":
        return [2]
    if wanted.interleave is not None:
        return [wanted.interleave] if wanted.interleave * stages <= layers else []
    return [1, *(v for v in _PIECES if _even(layers, stages * v))]


def _even(layers: int, pieces: int) -> bool:
    """Whether the layers, alone or with the embedding and the head as two more, fill the pieces."""
    return layers % pieces == 0 or (layers + 2) % pieces == 0


def _copies(data: int, inside: int, node: int) -> list[int]:
    """How often the sharded set may be repeated: not at all, or so that a set is whole nodes."""
    return [1, *(r for r in divisors(data) if r > 1 and data // r * inside % node == 0)]


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length())]


def _options(fixed: int | None, free: list[int]) -> list[int]:
    return free if fixed is None else [fixed]


def _refusal(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> BadInput:
    spec, t, p = work.spec, wanted.tensor, wanted.pipeline
    if t is not None and spec.heads % t:
        near = ", ".join(str(d) for d in divisors(spec.heads) if fleet.devices % d == 0)
        return BadInput(
            f"{spec.heads} heads cannot be divided among {t} tensor ranks",
            hint=f"--set layout.tensor=N with N one of {near}",
        )
    if p is not None and p > spec.layers:
        return BadInput(
            f"{spec.layers} layers do not fill {p} pipeline stages",
            hint=f"--set layout.pipeline=N with N at most {spec.layers}",
        )
    fixed = (t or 1) * (p or 1) * (wanted.context or 1)
    if fleet.devices % fixed:
        return BadInput(
            f"{fleet.devices} devices cannot be divided into groups of {fixed}",
            hint="choose tensor, pipeline and context whose product divides the devices",
        )
    if wanted.expert is not None and (refusal := _experts_refusal(work, fleet, wanted.expert, p)):
        return refusal
    ranks, micro = fleet.devices // fixed, wanted.micro_batch or 1
    size = f" in micro-batches of {micro}" if micro > 1 else ""
    return BadInput(
        f"a batch of {batch} sequences cannot be divided among {ranks} data ranks{size}",
        hint=f"a batch that is a multiple of {ranks * micro}, or more tensor or pipeline ranks",
    )


def _experts_refusal(work: Work, fleet: Fleet, expert: int, stages: int | None) -> BadInput | None:
    if work.spec.experts is None and expert > 1:
        return BadInput(
            f"a model without experts cannot spread them over {expert} ranks",
            hint="leave layout.expert out",
        )
    count = work.spec.experts.count if work.spec.experts else 1
    ranks = fleet.devices // (stages or 1)
    if count % expert == 0 and ranks % expert == 0:
        return None
    near = ", ".join(str(d) for d in divisors(count) if ranks % d == 0)
    return BadInput(
        f"{count} experts cannot be spread over {expert} of {ranks} ranks",
        hint=f"--set layout.expert=N with N one of {near}",
    )
