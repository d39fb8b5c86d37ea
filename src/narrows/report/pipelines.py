"""What each rank of a pipeline does when, under its schedule, micro-batch by micro-batch.

Forward takes one unit, backward two, on whole stages; pieces of a stage take their share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from narrows.spec.fleet import Spread

Pass = Literal["forward", "backward", "weights"]


class Task(NamedTuple):
    """One pass of a micro-batch through a piece; pieces are counted along the model."""

    micro: int
    piece: int
    passing: Pass


class Slot(NamedTuple):
    """When a rank runs a task; `length` in units of a stage's forward pass."""

    rank: int
    start: float
    length: float
    task: Task


def timeline(spread: Spread, ranks: int, micros: int) -> list[Slot]:
    """The schedule of `spread` on so many ranks, for so many micro-batches."""
    if spread.schedule == "zero_bubble":
        return _v_shaped(ranks, micros)
    pieces = spread.interleave
    if spread.schedule == "gpipe":
        orders = [list(_all_forward(rank, micros)) for rank in range(ranks)]
    elif pieces == 1:
        orders = [list(_one_one(rank, ranks, micros)) for rank in range(ranks)]
    else:
        micros = max(ranks, micros // ranks * ranks)
        orders = [list(_interleaved(rank, ranks, pieces, micros)) for rank in range(ranks)]
    return _run(orders, ranks * pieces, 1.0 / pieces)


def _all_forward(rank: int, micros: int) -> Iterator[Task]:
    """GPipe (arXiv:1811.06965)."""
    yield from (Task(micro, rank, "forward") for micro in range(micros))
    yield from (Task(micro, rank, "backward") for micro in range(micros))


def _one_one(rank: int, ranks: int, micros: int) -> Iterator[Task]:
    """1F1B: a rank runs ranks - rank forwards, then one backward and one forward in turn
    (arXiv:2006.09503).
    """
    ahead = min(ranks - rank, micros)
    yield from (Task(micro, rank, "forward") for micro in range(ahead))
    for micro in range(micros):
        yield Task(micro, rank, "backward")
        if ahead + micro < micros:
            yield Task(ahead + micro, rank, "forward")


def _interleaved(rank: int, ranks: int, pieces: int, micros: int) -> Iterator[Task]:
    """1F1B over pieces, ranks micro-batches of a piece at a time (arXiv:2104.04473)."""

    def task(place: int, passing: Pass) -> Task:
        group, within = divmod(place, ranks * pieces)
        piece, micro = divmod(within, ranks)
        if passing == "backward":
            piece = pieces - 1 - piece
        return Task(group * ranks + micro, piece * ranks + rank, passing)

    every = micros * pieces
    ahead = min(2 * (ranks - rank - 1) + (pieces - 1) * ranks, every)
    yield from (task(place, "forward") for place in range(ahead))
    for place in range(every):
        if ahead + place < every:
            yield task(ahead + place, "forward")
        yield task(place, "backward")


def _run(orders: list[list[Task]], pieces: int, share: float) -> list[Slot]:
    """Each rank in its order, every task once what it needs is done."""
    done: dict[Task, float] = {}
    free, place = [0.0] * len(orders), [0] * len(orders)
    slots: list[Slot] = []
    while any(at < len(order) for at, order in zip(place, orders, strict=True)):
        before = len(slots)
        for rank, order in enumerate(orders):
            while place[rank] < len(order):
                task = order[place[rank]]
                need = _needed(task, pieces)
                if need is not None and need not in done:
                    break
                start = max(free[rank], done[need] if need is not None else 0.0)
                length = share * (1.0 if task.passing == "forward" else 2.0)
                free[rank] = done[task] = start + length
                slots.append(Slot(rank, start, length, task))
                place[rank] += 1
        assert len(slots) > before, "an order that waits for itself"
    return slots


def _needed(task: Task, pieces: int) -> Task | None:
    """What must be done before a task."""
    micro, piece, passing = task
    if passing == "weights":
        return Task(micro, piece, "backward")
    if passing == "forward":
        return Task(micro, piece - 1, "forward") if piece else None
    if piece == pieces - 1:
        return Task(micro, piece, "forward")
    return Task(micro, piece + 1, "backward")


@dataclass
class _Rank:
    """What a rank of a V has begun and what waits for it."""

    pieces: tuple[int, int]
    # Micro-batches that went forward through its first piece before any comes back: as many as
    # the way to the last rank and back is long.
    ahead: int
    forward: list[int] = field(default_factory=lambda: [0, 0])
    backward: list[int] = field(default_factory=lambda: [0, 0])
    weights: list[Task] = field(default_factory=list)


def _v_shaped(ranks: int, micros: int) -> list[Slot]:
    """Zero bubble: rank r holds pieces r and 2p - 1 - r; weight gradients fill what would be gaps,
    and no rank keeps more than 2p pieces' activations (arXiv:2405.15362). All passes take half a
    unit.
    """
    held = [
        _Rank(pieces=(rank, 2 * ranks - 1 - rank), ahead=2 * (ranks - rank) - 1)
        for rank in range(ranks)
    ]
    done: set[Task] = set()
    slots: list[Slot] = []
    tick = 0
    while any(rank.backward[0] < micros or rank.weights for rank in held):
        chosen = [
            (index, task)
            for index, rank in enumerate(held)
            if (task := _next(rank, done, ranks, micros)) is not None
        ]
        for index, task in chosen:
            slots.append(Slot(index, tick / 2.0, 0.5, task))
            _begun(held[index], task)
            done.add(task)
        tick += 1
    return slots


def _next(rank: _Rank, done: set[Task], ranks: int, micros: int) -> Task | None:
    """Back before on, on before weights, unless memory is full."""
    last = 2 * ranks
    for which in (1, 0):
        back = Task(rank.backward[which], rank.pieces[which], "backward")
        if back.micro < micros and _needed(back, last) in done:
            return back
    kept = sum(rank.forward) - sum(rank.backward) + len(rank.weights)
    if kept < last:
        for which in (1, 0):
            on = Task(rank.forward[which], rank.pieces[which], "forward")
            need = _needed(on, last)
            open_ = which == 1 or rank.forward[0] - rank.forward[1] < rank.ahead
            if on.micro < micros and open_ and (need is None or need in done):
                return on
    return rank.weights[0] if rank.weights else None


def _begun(rank: _Rank, task: Task) -> None:
    if task.passing == "weights":
        rank.weights.remove(task)
        return
    counts = rank.forward if task.passing == "forward" else rank.backward
    counts[rank.pieces.index(task.piece)] += 1
    if task.passing == "backward":
        rank.weights.append(Task(task.micro, task.piece, "weights"))
