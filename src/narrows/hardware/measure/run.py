"""What the measuring process does, in its order."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from narrows.hardware import disk, find, power
from narrows.hardware.load import LoadWatch
from narrows.hardware.measure import (
    answering,
    blocks,
    compiling,
    links,
    matmul,
    memory,
    operations,
    packing,
)
from narrows.hardware.measure.device import Target, memory_bytes, target
from narrows.hardware.measure.sampling import Sample
from narrows.hardware.measurement import Measurement, Request, Spot
from narrows.kernels.allocator import keep_pages
from narrows.kernels.build import obstacle
from narrows.kernels.load import available
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.machine import (
    Compiler,
    Device,
    Fact,
    KernelSet,
    Link,
    MatmulCurve,
    Memory,
    Precision,
)
from narrows.spec.units import Bytes, Watts

_IDLE_SECONDS, _FULL_SECONDS = 0.8, 0.8
_SPOT_SECONDS = 1.0
_ANSWERING_SHARE, _PACKED_SHARE = 0.14, 0.08
"""Of the time for the device; the shares in `_device` are of the rest."""
_SLOW = 0.5
_PRIORITY = -15


def everything(request: Request) -> Measurement:
    """All but the compiler, which has a process and a deadline of its own.

    The links come first: their processes are forks, which must precede torch's threads.
    """
    started, watch = time.monotonic(), LoadWatch()
    go_first()
    _tell("collectives between two processes")
    link = links.local(2, threads=request.threads[0], seconds=0.1 * request.seconds)
    _tell("the disk")
    storage = disk.measure(Path(request.folder), seconds=0.08 * request.seconds)
    where = target()
    sets = _kernel_sets(where)
    left = request.seconds - (time.monotonic() - started)
    measured, samples = _device(where, request.threads, sets, max(left, 0.3 * request.seconds))
    return Measurement(
        device=measured,
        devices=where.devices,
        disk=storage,
        kernel_sets=sets,
        links=(link,) if link else (),
        other_load=round(watch.cores(), 2),
        settled=round(sum(s.settled for s in samples) / max(1, len(samples)), 3),
    )


def compiler(request: Request) -> Compiler:
    """torch.compile alone."""
    go_first()
    torch.set_num_threads(request.threads[0])
    keep_pages()
    bf16 = find.has_bf16_unit(find.processor()) or target().kind != "cpu"
    return compiling.compiler(target(), torch.bfloat16 if bf16 else torch.float32)


def spot(request: Request) -> Spot:
    """One product in fp32 and bf16 now, to hold against what was measured before."""
    torch.set_num_threads(request.threads[0])
    go_first()
    watch, where = LoadWatch(), target()
    return Spot(
        fp32=matmul.spot(where, "fp32", seconds=_SPOT_SECONDS),
        bf16=matmul.spot(where, "bf16", seconds=_SPOT_SECONDS),
        other_load=round(watch.cores(), 2),
    )


def link(request: Request) -> Link:
    """What joins so many processes here, or this one and those that were started like it."""
    go_first()
    threads = request.threads[0]
    if request.processes is None:
        _tell("collectives, once all processes are there")
        return links.joined(os.environ, threads=threads, seconds=request.seconds)
    _tell(f"collectives between {request.processes} processes")
    found = links.local(request.processes, threads=threads, seconds=request.seconds)
    if found is None:
        raise BadInput(
            f"{request.processes} processes cannot be started here, or do not meet by gloo",
            hint="narrows doctor",
        )
    return found


def _device(
    where: Target, candidates: tuple[int, ...], sets: tuple[KernelSet, ...], seconds: float
) -> tuple[Device, list[Sample]]:
    threads = matmul.threads_best(where, candidates) if len(candidates) > 1 else candidates[0]
    torch.set_num_threads(threads)
    answering_seconds = _ANSWERING_SHARE * seconds
    packed_seconds = 0.0 if obstacle() else _PACKED_SHARE * seconds
    seconds -= answering_seconds + packed_seconds
    _tell("memory")
    points, copy, samples = memory.copying(where, seconds=0.07 * seconds)
    fresh = memory.fresh_pages(where, seconds=0.03 * seconds)
    joined = memory.host_link(where, seconds=0.01 * seconds)
    keep_pages()
    launch = operations.launch(where, seconds=0.02 * seconds)
    _tell("products of matrices")
    curves, taken = matmul.curves(where, seconds=0.28 * seconds)
    samples += taken
    worth = _worth(curves)
    _tell("attention")
    attended, taken = operations.attention(where, sets, seconds=0.13 * seconds)
    samples += taken
    _tell("memory-bound operations")
    capacity, free = _capacity(where)
    kernels, taken = operations.pointwise(
        where, sets, seconds=0.2 * seconds, memory_bytes=float(free.value)
    )
    samples += taken
    _tell("whole blocks")
    stacked = blocks.curves(where, sets, worth, seconds=0.25 * seconds)
    _tell("answering: few rows, many weights, a cache")
    answers = answering.curves(
        where, worth, seconds=answering_seconds, memory_bytes=float(free.value)
    )
    samples += answers.samples
    packed, taken = packing.curves(where, seconds=packed_seconds, memory_bytes=float(free.value))
    samples += taken
    idle, full = _power(where, curves, threads)
    found = Device(
        kind=where.kind,
        name=where.name,
        threads=threads,
        memory=Memory(capacity=capacity, free=free, copy=copy, curve=points, fresh_pages=fresh),
        matmul=tuple(curves),
        attention=tuple(attended),
        kernels=(*kernels, *answers.draw),
        blocks=stacked,
        streamed=answers.streamed,
        cached=answers.cached,
        extended=answers.extended,
        packed=packed,
        launch=launch,
        host_link=joined,
        power_idle=idle,
        power_full=full,
    )
    return found, samples


def _worth(curves: list[MatmulCurve]) -> tuple[operations.Trained, ...]:
    """What whole blocks are timed in: a processor without bf16's instructions takes minutes for
    them, and nothing is ever planned in what is slower and rounds more.
    """
    peaks = {curve.precision: float(curve.peak.value) for curve in curves}
    slow = peaks.get("bf16", 0.0) < _SLOW * peaks["fp32"]
    return ("fp32",) if slow else ("fp32", "bf16")


def _kernel_sets(where: Target) -> tuple[KernelSet, ...]:
    """Kernel sets that load; the first time, loading the native one compiles it."""
    if where.kind != "cpu":
        return ("torch",)
    sets = available()
    if "native" in sets:
        _tell("native kernels, compiled the first time")
    try:
        operations.prepare(sets)
    except RunFailed as error:
        _tell(f"goes on without native kernels: {error.what}")
        return ("torch",)
    return sets


def _capacity(where: Target) -> tuple[Fact[Bytes], Fact[Bytes]]:
    if where.kind == "cpu":
        return find.memory_capacity(), find.memory_free()
    free, whole = memory_bytes(where)
    return (
        Fact(value=Bytes(whole), basis="measured", source=f"torch, {where.name}"),
        Fact(value=Bytes(free), basis="measured", source=f"torch, {where.name}"),
    )


def _power(
    where: Target, curves: list[MatmulCurve], threads: int
) -> tuple[Fact[Watts] | None, Fact[Watts] | None]:
    """Idle and busy power by RAPL; None leaves it to the catalogue's estimate."""
    if where.kind != "cpu" or not power.rapl_zones():
        return None, None
    best: Precision = max(curves, key=lambda curve: curve.peak.value).precision
    product = matmul.product(where, best)
    idle = power.watts(_IDLE_SECONDS, lambda: time.sleep(0.05))
    full = power.watts(_FULL_SECONDS, product)
    if idle is None or full is None:
        return None, None
    source = "RAPL, the whole processor with everything that runs on it"
    return (
        Fact(value=Watts(idle).rounded(3), basis="measured", source=f"{source}, resting"),
        Fact(
            value=Watts(full).rounded(3),
            basis="measured",
            source=f"{source}, {best} products on {threads} threads",
        ),
    )


def go_first() -> None:
    """Ask to be preferred over other work on the same cores; only an administrator may.

    This process leads a session of its own, which Linux may schedule as one (sched(7), autogroup).
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        Path("/proc/self/autogroup").write_text(str(_PRIORITY))
    except OSError:
        pass


def _tell(what: str) -> None:
    sys.stdout.write(f"measuring {what}\n")
    sys.stdout.flush()
