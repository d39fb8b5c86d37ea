"""What processes that have joined a group take to tell each other, and compute all at once.

Every rank runs the same trials in the same order. After each they agree on how long the slowest
took, so that what follows from the times, they decide alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, final, get_args

import torch
import torch.distributed as dist

from narrows.hardware.measure import matmul
from narrows.hardware.measure.device import Target
from narrows.spec.machine import Collective, CollectivePoint, Precision
from narrows.spec.units import Bytes

OPERATIONS: tuple[Collective, ...] = get_args(Collective)
_MESSAGE_LEAST, _GROWTH, _MESSAGES = 1 << 10, 4, 9
_GATHERED_MOST, _ALL_MOST = 1 << 27, 1 << 30
"""all_gather leaves as many messages on each rank as there are ranks; many ranks of one machine
share its memory.
"""
_LONGEST_S, _LONGEST_SHARE = 2.0, 1 / 20
"""A message may take so much of the time that the largest of each collective, with all below it,
is sent at least twice.
"""
_SMALL = 1 << 16
"""What takes long below it, other work has held up."""
_SAMPLE_S, _REPEATS_MOST = 1e-3, 4
_BEST = 3
"""The answer is the median of this many quickest, as in `sampling`."""
_AGREE, _SAMPLES_LEAST = 1.05, 12
_ALONE_S, _AT_ONCE_S = 2e-2, 4e-2
"""Short, so that other work leaves some samples alone, and long beside what the others begin their
waiting with, on the same cores; of all at once many of the time slices that ranks on the same cores
take in turn.
"""
_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class Group(NamedTuple):
    """This process's place among the others, and where its tensors lie."""

    rank: int
    ranks: int
    where: Target


class Threads(NamedTuple):
    """Of a process that has a machine to itself, and of one that shares it with its neighbours."""

    alone: int
    shared: int


def collectives(group: Group, *, seconds: float) -> tuple[CollectivePoint, ...]:
    """Each collective at messages of 1 KB to 64 MB, or as large as the time allows."""
    clock = _Clock(group, seconds)
    buffers = _Buffers(group)
    times: dict[tuple[Collective, int], list[float]] = {}
    repeats: dict[tuple[Collective, int], int] = {}
    longest = min(_LONGEST_S, _LONGEST_SHARE * seconds)
    for operation in OPERATIONS:
        took = 0.0
        for message in _messages(operation, group.ranks):
            trial = buffers.trial(operation, message)
            if took < _SAMPLE_S:
                clock.time(trial, 1)
            taken = [clock.time(trial, 1)]
            if message >= _SMALL and _GROWTH * taken[0] > longest:
                # Other work may have held it up.
                taken.append(clock.time(trial, 1))
            took = min(taken)
            times[operation, message] = taken
            repeats[operation, message] = max(1, min(_REPEATS_MOST, int(_SAMPLE_S / took)))
            if message >= _SMALL and _GROWTH * took > longest:
                break
    waiting = list(times)
    while waiting and not clock.late:
        key = min(waiting, key=lambda each: _taken(times[each]))
        times[key].append(clock.time(buffers.trial(*key), repeats[key]))
        if _settled(times[key]):
            waiting.remove(key)
    return tuple(
        CollectivePoint(
            operation=operation, ranks=group.ranks, message=Bytes(message),
            seconds=float(f"{_best(found):.4g}"),
        )
        for (operation, message), found in times.items()
    )  # fmt: skip


def computing(group: Group, threads: Threads, *, seconds: float) -> float:
    """How many times as fast all ranks at once compute as the first one alone.

    They share out what they compute, so the slowest of them is what all wait for.
    """
    gains = []
    for precision in _PRECISIONS:
        clock = _Clock(group, seconds / len(_PRECISIONS))
        product = matmul.product(group.where, precision)
        torch.set_num_threads(threads.alone)
        clock.time(product, 1)
        took = clock.time(product, 4)
        quick, long = (max(1, int(each / took)) for each in (_ALONE_S, _AT_ONCE_S))
        alone: list[float] = []
        at_once: list[float] = []
        while len(alone) < _BEST or not clock.late:
            torch.set_num_threads(threads.alone)
            lone = product if group.rank == 0 else _nothing
            lone()  # Threads that have rested come late.
            alone.append(clock.time(lone, quick))
            torch.set_num_threads(threads.shared)
            at_once.append(clock.time(product, long))
        gains.append(group.ranks * _best(alone) / _best(at_once))
    return math.prod(gains) ** (1 / len(gains))


@final
class _Clock:
    """Times trials that all ranks run; `late` once the time for all of them is over."""

    def __init__(self, group: Group, seconds: float) -> None:
        self.where, self.late = group.where, False
        self._until = time.perf_counter() + seconds

    def time(self, trial: Callable[[], object], repeats: int) -> float:
        """Seconds of one call on the rank where it took longest; all start together."""
        dist.barrier()
        started = time.perf_counter()
        for _ in range(repeats):
            trial()
        self.where.finish()
        ended = time.perf_counter()
        agreed = torch.tensor(
            [(ended - started) / repeats, float(ended > self._until)], device=self.where.torch_name
        )
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        took, late = agreed.tolist()
        self.late = bool(late)
        return float(took)


@final
class _Buffers:
    """What is sent and where it arrives: shared by all trials, so that none pays for new pages."""

    def __init__(self, group: Group) -> None:
        self.group, device = group, group.where.torch_name
        largest = max(_messages("all_reduce", group.ranks))
        gathered = group.ranks * max(_messages("all_gather", group.ranks))
        self._given = torch.full((largest // 4,), 0.0, device=device)
        self._taken = torch.full((max(largest, gathered) // 4,), 0.0, device=device)

    def trial(self, operation: Collective, message: int) -> Callable[[], object]:
        """One call in which each rank puts `message` bytes in.

        Calls that follow each other must wait for each other, else what is timed is how soon the
        next may begin: so roots of a broadcast change, and `send` passes one message around.
        """
        rank, ranks = self.group.rank, self.group.ranks
        before, behind = (rank - 1) % ranks, (rank + 1) % ranks
        # Pieces for each rank must be equal, so a few bytes of a message are left out.
        given = self._given[: max(1, message // 4 // ranks) * ranks]
        same = self._taken[: len(given)]
        if operation == "all_reduce":
            return lambda: dist.all_reduce(given)
        if operation == "all_gather":
            whole = self._taken[: ranks * len(given)]
            return lambda: dist.all_gather_single(whole, given)
        if operation == "reduce_scatter":
            part = self._taken[: len(given) // ranks]
            return lambda: dist.reduce_scatter_single(part, given)
        if operation == "all_to_all":
            return lambda: dist.all_to_all_single(same, given)
        if operation == "broadcast":
            roots = _around(ranks)
            return lambda: dist.broadcast(given, next(roots))
        if operation == "send":
            hops = _around(ranks)
            return lambda: _hop(given, next(hops), rank, ranks)
        return lambda: _shift(given, same, before, behind)


def _messages(operation: Collective, ranks: int) -> list[int]:
    sizes = [_MESSAGE_LEAST * _GROWTH**power for power in range(_MESSAGES)]
    most = (_GATHERED_MOST if operation == "all_gather" else _ALL_MOST) // ranks
    return [size for size in sizes if size <= max(most, _MESSAGE_LEAST)]


def _around(ranks: int) -> Iterator[int]:
    """0, 1, ... and again."""
    turn = 0
    while True:
        yield turn
        turn = (turn + 1) % ranks


def _hop(tensor: torch.Tensor, sender: int, rank: int, ranks: int) -> None:
    """The sender's message to the next; that one sends on at the next call."""
    if rank == sender:
        dist.send(tensor, (sender + 1) % ranks)
    elif rank == (sender + 1) % ranks:
        dist.recv(tensor, sender)


def _shift(given: torch.Tensor, taken: torch.Tensor, before: int, behind: int) -> None:
    """To the next and from the one before at once, as rings do.

    The receipt is asked for first: gloo says that a rank is ready to receive behind what that rank
    is sending already, and then one direction waits for the other.
    """
    operations = [dist.P2POp(dist.irecv, taken, before), dist.P2POp(dist.isend, given, behind)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def _nothing() -> None:
    """What a rank does while another is timed alone."""


def _best(found: list[float]) -> float:
    best = sorted(found)[:_BEST]
    return best[(len(best) - 1) // 2]


def _taken(found: list[float]) -> float:
    """Grows with each sample, of larger messages by more: they get fewer samples and more time."""
    return len(found) * math.sqrt(min(found))


def _settled(found: list[float]) -> bool:
    best = sorted(found)[:_BEST]
    return len(found) >= _SAMPLES_LEAST and best[-1] <= _AGREE * best[0]
