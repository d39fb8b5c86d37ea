"""The link between processes: how they meet, here or on several hosts, and what they measure."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from narrows.hardware import fit
from narrows.hardware.measure.device import Target, processor, target
from narrows.hardware.measure.together import Group, Threads, collectives, computing
from narrows.hardware.waking import waking_gently
from narrows.kernels.build import library
from narrows.kernels.products import needed
from narrows.spec.errors import BadInput
from narrows.spec.machine import Fact, Link

Backend = Literal["gloo", "nccl", "xccl"]

_COMPUTING_SHARE = 0.2
_MEETING_S = 60.0
_LOCAL_INTERFACE = {"darwin": "lo0"}
_PATIENCE = timedelta(minutes=2)
"""For one collective: one that takes longer has lost a process."""


class _Meeting(NamedTuple):
    """Where the processes find each other, this one's place, how many are started on each host,
    and how long it waits for all.
    """

    store: dist.Store
    rank: int
    ranks: int
    each: int
    seconds: float


def local(ranks: int, *, threads: int, seconds: float) -> Link | None:
    """The link between so many processes here; None where they cannot be started or joined.

    Call it before torch has used its threads: where the system can, the processes are forks, which
    start at once.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        return None
    if needed():
        library()  # before they start, as they are waited for so many seconds
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        receiving, sending = context.Pipe(duplex=False)
        store = Path(folder) / "store"
        processes = [
            context.Process(target=_local, args=(store, rank, ranks, threads, seconds, sending))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        sending.close()
        try:
            link: Link | None = receiving.recv() if receiving.poll(3 * seconds + 10) else None
        except EOFError:
            link = None
        for process in processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
    return link


def joined(environment: Mapping[str, str], *, threads: int, seconds: float) -> Link:
    """The link between this process and those that torchrun's environment speaks of.

    Raises BadInput where they do not meet within a minute; it names who is missing.
    """
    if not dist.is_available():
        raise BadInput("this torch cannot talk to other processes", hint="narrows doctor")
    meeting = _meeting(environment)
    return _measure(meeting, threads, seconds, _number(environment, "LOCAL_RANK", "0"))


def _context() -> ForkContext | SpawnContext:
    return get_context("fork") if sys.platform == "linux" else get_context("spawn")


def _local(
    path: Path, rank: int, ranks: int, threads: int, seconds: float, answer: Connection
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = _LOCAL_INTERFACE.get(sys.platform, "lo")
    meeting = _Meeting(dist.FileStore(str(path), ranks), rank, ranks, ranks, _MEETING_S)
    link = _measure(meeting, threads, seconds, rank)
    if rank == 0:
        answer.send(link)


def _meeting(environment: Mapping[str, str]) -> _Meeting:
    """By the variables that torchrun sets, or whoever starts the processes."""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        hint = "start the processes by torchrun, or narrows probe --link --processes N here"
        raise BadInput(f"{', '.join(missing)} is not set", hint=hint)
    rank, ranks, port = (_number(environment, n) for n in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    address = environment["MASTER_ADDR"]
    # torchrun's agent keeps a store already, where it says so.
    begins = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            address, port, is_master=begins, timeout=timedelta(seconds=_MEETING_S),
            wait_for_workers=False,
        )  # fmt: skip
    except dist.DistError as error:
        raise BadInput(
            f"process {rank} does not reach the first one at {address}:{port}: {_first(error)}",
            hint="start process 0 there within a minute, and let the port through",
        ) from None
    each = _number(environment, "LOCAL_WORLD_SIZE", "1")
    return _Meeting(dist.PrefixStore("narrows-link", store), rank, ranks, each, _MEETING_S)


def _number(environment: Mapping[str, str], name: str, usual: str = "") -> int:
    text = environment.get(name, usual)
    if not text.isdigit():
        raise BadInput(f'{name} is "{text}"', hint="a number, as torchrun sets it")
    return int(text)


def _measure(meeting: _Meeting, threads: int, seconds: float, local_rank: int) -> Link:
    """What every process of the meeting finds alike."""
    places = _meet(meeting)
    where, backend = _device(local_rank, Counter(places)[places[meeting.rank]])
    try:
        with waking_gently():
            dist.init_process_group(
                backend, store=dist.PrefixStore("group", meeting.store), rank=meeting.rank,
                world_size=meeting.ranks, timeout=_PATIENCE,
            )  # fmt: skip
        group = Group(meeting.rank, meeting.ranks, where)
        points = collectives(group, seconds=(1 - _COMPUTING_SHARE) * seconds)
        most = max(Counter(places).values())
        shared = Threads(alone=threads, shared=max(1, threads // most))
        gain = computing(group, shared, seconds=_COMPUTING_SHARE * seconds)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or backend in str(error).lower()):
            raise
        raise BadInput(
            f"process {meeting.rank} lost the others: {_first(error)}",
            hint="GLOO_SOCKET_IFNAME names the interface (see: ip address) by which they meet",
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    fitted = fit.link(tuple(point for point in points if point.operation == "all_reduce"))
    ranks, hosts = meeting.ranks, len(set(places))
    source = f"fit of all_reduce over {ranks} processes, median error {fitted.error:.0%}"
    alone = f"{shared.alone} thread{'s' if shared.alone > 1 else ''}"
    return Link(
        name=f"{ranks} processes " + ("of this machine" if hosts == 1 else f"on {hosts} hosts"),
        backend=backend,
        ranks=ranks,
        hosts=hosts,
        bandwidth=Fact(value=fitted.bandwidth, basis="fitted", source=source),
        latency=Fact(value=fitted.latency, basis="fitted", source=source),
        together=Fact(
            value=float(f"{gain:.3g}"),
            basis="measured",
            source=f"products of {ranks} x {shared.shared} against one of {alone}",
        ),
        points=points,
    )


def _meet(meeting: _Meeting) -> list[str]:
    """Where each of the processes is; raises BadInput with those that did not come in time."""
    store, here = meeting.store, _host()
    keys = [f"host/{rank}" for rank in range(meeting.ranks)]
    store.set(keys[meeting.rank], here)
    try:
        store.wait(keys, timedelta(seconds=meeting.seconds))
        return [store.get(key).decode() for key in keys]
    except dist.DistError:
        pass
    try:
        came = [rank for rank, key in enumerate(keys) if store.check([key])]
        there = sorted({store.get(keys[rank]).decode().split()[0] for rank in came})
    except dist.DistError:
        raise BadInput(f"process {meeting.rank} lost the first one") from None
    raise BadInput(
        _absent([rank for rank in range(meeting.ranks) if rank not in came], meeting),
        hint=f"only {', '.join(there)} came: start the same command on the others within a minute",
    )


def _absent(ranks: list[int], meeting: _Meeting) -> str:
    """Torchrun counts the processes host by host."""
    hosts = sorted({rank // meeting.each for rank in ranks})
    return (
        f"{len(ranks)} of {meeting.ranks} processes did not come within {meeting.seconds:.0f} s: "
        f"rank {', '.join(map(str, ranks))}, on host {', '.join(map(str, hosts))} of "
        f"{-(-meeting.ranks // meeting.each)} (counted from 0)"
    )


def _host() -> str:
    """Names the host: processes of one share its cores and its interfaces.

    Network namespaces count as hosts, as do containers: what crosses them crosses a network.
    """
    parts = [os.uname().nodename]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/net").st_ino))
    except OSError:
        pass
    return " ".join(parts)


def _device(local_rank: int, neighbours: int) -> tuple[Target, Backend]:
    """An accelerator of its own for each process of a host, else the processor for all."""
    where = target()
    backends: dict[str, Backend] = {"cuda": "nccl", "xpu": "xccl"}
    if where.torch_name not in backends or neighbours > where.devices:
        return processor(), "gloo"
    torch.accelerator.set_device_index(local_rank)
    return where, backends[where.torch_name]


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
