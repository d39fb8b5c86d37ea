"""Collectives between two processes of this machine, over gloo."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from narrows.hardware import fit
from narrows.spec.machine import Collective, CollectivePoint, Fact, Link
from narrows.spec.units import Bytes

_OPERATIONS: tuple[Collective, ...] = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
_MESSAGES = (1 << 10, 1 << 14, 1 << 18, 1 << 21, 1 << 24)
_RANKS = 2
_IN_A_ROW = 4
_BEST = 3
"""The answer is the median of this many quickest, as in `sampling`."""


class _Seconds(NamedTuple):
    operation: Collective
    message: int
    seconds: float


def local(*, seconds: float) -> Link | None:
    """The link between two processes here; None where they cannot be started or joined.

    Call it before torch has used its threads: where the system can, the processes are forks, which
    start at once.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        return None
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        receiving, sending = context.Pipe(duplex=False)
        ranks = [
            context.Process(target=_rank, args=(rank, Path(folder) / "store", sending, seconds))
            for rank in range(_RANKS)
        ]
        for rank in ranks:
            rank.start()
        sending.close()
        try:
            measured: list[_Seconds] = receiving.recv() if receiving.poll(3 * seconds) else []
        except EOFError:
            measured = []
        for rank in ranks:
            rank.join(timeout=2)
            if rank.is_alive():
                rank.kill()
    return _link(measured) if measured else None


def _context() -> ForkContext | SpawnContext:
    return get_context("fork") if sys.platform == "linux" else get_context("spawn")


def _link(measured: list[_Seconds]) -> Link:
    points = tuple(
        CollectivePoint(
            operation=found.operation, ranks=_RANKS, message=Bytes(found.message),
            seconds=float(f"{found.seconds:.4g}"),
        )
        for found in measured
    )  # fmt: skip
    fitted = fit.link(tuple(point for point in points if point.operation == "all_reduce"))
    source = f"fit of all_reduce over {_RANKS} processes, median error {fitted.error:.0%}"
    return Link(
        name="two processes of this machine",
        backend="gloo",
        bandwidth=Fact(value=fitted.bandwidth, basis="fitted", source=source),
        latency=Fact(value=fitted.latency, basis="fitted", source=source),
        points=points,
    )


def _rank(rank: int, store: Path, answer: Connection, seconds: float) -> None:
    """One process: join the other, time everything, rank 0 answers."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=_RANKS)
    trials = {
        (operation, message): _collective(operation, message)
        for operation in _OPERATIONS
        for message in _MESSAGES
    }
    times: dict[tuple[Collective, int], list[float]] = {key: [] for key in trials}
    started = time.perf_counter()
    while not _both_late(time.perf_counter() - started > seconds):
        for key, collective in trials.items():
            times[key] += _time(collective)
    if rank == 0:
        answer.send([_Seconds(*key, sorted(found)[_BEST // 2]) for key, found in times.items()])
    dist.destroy_process_group()


def _both_late(late: bool) -> bool:
    """The ranks end after the same round, or one would wait for the other for ever."""
    votes = torch.tensor(int(late))
    dist.all_reduce(votes)
    return int(votes) > 0


def _collective(operation: Collective, message: int) -> Callable[[], object]:
    """`message` is what each rank puts in; for all_gather and reduce_scatter its share of it."""
    data = torch.ones(message // 4)
    if operation == "all_reduce":
        return lambda: dist.all_reduce(data)
    if operation == "broadcast":
        return lambda: dist.broadcast(data, 0)
    if operation == "all_gather":
        whole = torch.empty(_RANKS * len(data))
        return lambda: dist.all_gather_single(whole, data)
    part = torch.empty(len(data) // _RANKS)
    return lambda: dist.reduce_scatter_single(part, data)


def _time(collective: Callable[[], object]) -> list[float]:
    """A few times in a row after one that warms up; rounds of these lie apart in time."""
    collective()
    times: list[float] = []
    for _ in range(_IN_A_ROW):
        dist.barrier()
        started = time.perf_counter()
        collective()
        times.append(time.perf_counter() - started)
    return times
