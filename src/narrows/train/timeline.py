"""Record what each process of a run does when, in a few of its steps, on one clock.

torch's profiler notes every operation and every collective, the latter from its call until it is
done. All ranks' notes make one file in the Trace Event format, which Perfetto and Chrome draw, and
one record, which the report draws.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from narrows.parallel.mesh import Axis
from narrows.spec.record import save
from narrows.spec.timeline import (
    Lane,
    Span,
    Timeline,
    Track,
    both,
    joined,
    length,
    without,
)
from narrows.train.step import Trainer, no_span

TRACE, SUMMARY = "timeline.trace.json.gz", "timeline.json"
WARM, STEPS = 3, 3
_PINGS = 9
_SHORT_S = 2e-5
"""What is shorter is in no file: the profiler's own notes take a few microseconds each."""
_SEEN = 1500.0
"""Parts of the whole that a page can show."""
_LINKS = ("gloo:", "nccl:")
# What calls others, or waits.
_WRAPPERS = ("c10d::", "narrows::", "FSDP::", "autograd::", "Profiler", "torch::autograd")
_THREADS: dict[Track, int] = {"compute": 1, "data": 2, "waiting": 3, "link": 4}
_OPERATION, _DATA = "aten::", "narrows::data"


class Event(NamedTuple):
    """Something that a rank did, in seconds of the common clock."""

    track: Track
    name: str
    start: float
    end: float


class Notes(NamedTuple):
    """One rank's events, when its steps began and ended, and by how much its clock may be off."""

    events: list[Event]
    steps: list[Span]
    error_s: float


class Recorder:
    """Notes `STEPS` steps from `first` on, and writes what all ranks noted after the last."""

    def __init__(self, trainer: Trainer, run: Path, first: int) -> None:
        self.trainer, self.run, self.first = trainer, run, first
        self._profile: Any = None
        self._steps: list[Span] = []
        self._zero = 0.0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`."""
        if not self.first <= number < self.first + STEPS:
            yield
            return
        if self._profile is None:
            self._profile = profile(activities=_activities(self.trainer.device))
            self._profile.start()
            # The profiler's clock is its own: this event ties it to the machine's.
            self._zero = time.perf_counter()
            with record_function("narrows::clock"):
                pass
        self.trainer.span = lambda name: record_function(f"narrows::{name}")
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.trainer.span = no_span
        self._steps.append((begin, time.perf_counter()))
        if number == self.first + STEPS - 1:
            self._profile.stop()
            self._write(self._noted())

    def _noted(self) -> Notes:
        events = list(self._profile.events())
        zero = next(e.time_range.start for e in events if e.name == "narrows::clock")
        offset, error = _ahead(self.trainer.ranks.everyone)
        shift = self._zero + offset - zero * 1e-6
        found = [
            Event(track, event.name.removeprefix("narrows::"),
                  event.time_range.start * 1e-6 + shift, event.time_range.end * 1e-6 + shift)
            for event in events
            if (track := _track(event)) is not None
        ]  # fmt: skip
        steps = [(start + offset, end + offset) for start, end in self._steps]
        self._profile = None
        return Notes(found, steps, error)

    def _write(self, mine: Notes) -> None:
        axis = self.trainer.ranks.everyone
        every: list[Any] = [mine]
        if axis.group is not None:
            every = [None] * axis.size
            dist.all_gather_object(every, mine)
        if axis.rank == 0:
            save(summary(self.first, every), self.run / SUMMARY)
            with gzip.open(self.run / TRACE, "wt", encoding="utf-8") as file:
                json.dump(trace_events(every), file, separators=(",", ":"))


def summary(first: int, every: list[Notes]) -> Timeline:
    """What the report draws."""
    zero, end = every[0].steps[0][0], max(notes.steps[-1][1] for notes in every)
    return Timeline(
        first_step=first, begins=tuple(start - zero for start, _ in every[0].steps),
        seconds=end - zero, clock_error_s=max(notes.error_s for notes in every),
        lanes=tuple(
            _lane(rank, _tracks(notes, zero), (end - zero) / _SEEN)
            for rank, notes in enumerate(every)
        ),
    )  # fmt: skip


def trace_events(every: list[Notes]) -> dict[str, Any]:
    """All events in the Trace Event format: a process a rank, its tracks as threads; of exchanges
    that are under way at once each has a thread of its own, as a thread's events may not cross.
    """
    zero = every[0].steps[0][0]
    found: list[dict[str, Any]] = []
    for rank, notes in enumerate(every):
        found.append(_name("process_name", rank, 0, f"rank {rank}"))
        found.append({"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0,
                      "args": {"sort_index": rank}})  # fmt: skip
        waits = [Event("waiting", "waiting", start + zero, end + zero)
                 for start, end in _tracks(notes, zero)["waiting"]]  # fmt: skip
        threads: dict[int, str] = {}
        until: dict[int, float] = {}
        for event in sorted([*notes.events, *waits], key=lambda each: (each.start, -each.end)):
            tid = _THREADS[event.track]
            if event.track == "link":
                while until.get(tid, 0.0) > event.start:
                    tid += 1
            # What follows at once may seem to begin before: a thread's events may not cross.
            start = max(event.start, until.get(tid, 0.0))
            if event.end - start < _SHORT_S:
                continue
            until[tid] = event.end
            more = tid - _THREADS["link"]
            threads[tid] = event.track if more <= 0 else f"link {more + 1}"
            found.append({
                "ph": "X", "cat": event.track, "name": event.name, "pid": rank, "tid": tid,
                "ts": round((start - zero) * 1e6, 3), "dur": round((event.end - start) * 1e6, 3),
            })  # fmt: skip
        found += [_name("thread_name", rank, tid, name) for tid, name in sorted(threads.items())]
    return {"traceEvents": found, "displayTimeUnit": "ms"}


def _name(what: str, rank: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": tid, "args": {"name": name}}


def _tracks(notes: Notes, zero: float) -> dict[Track, tuple[Span, ...]]:
    """Spans of each track within steps; an exchange with nothing else to do is waited for."""
    within = joined((start - zero, end - zero) for start, end in notes.steps)

    def spans(track: Track) -> tuple[Span, ...]:
        found = ((e.start - zero, e.end - zero) for e in notes.events if e.track == track)
        # Gaps as short as the profiler's own notes are none.
        return both(joined(found, _SHORT_S if track == "compute" else 0.0), within)

    compute, link, data = spans("compute"), spans("link"), spans("data")
    waiting = without(link, joined([*compute, *data]))
    return {"compute": compute, "link": link, "data": data, "waiting": waiting}


def _lane(rank: int, tracks: dict[Track, tuple[Span, ...]], seen: float) -> Lane:
    """What is drawn: gaps too short to be seen are none."""
    drawn: dict[str, Any] = {
        track: tuple((round(start, 6), round(end, 6)) for start, end in joined(spans, seen))
        for track, spans in tracks.items()
    }
    hidden = length(both(tracks["link"], tracks["compute"]))
    return Lane(rank=rank, **drawn, exchanging_s=length(tracks["link"]), hidden_s=hidden)


def _track(event: Any) -> Track | None:
    """What kind of thing it is; None of what only calls what is noted itself. Of operations within
    each other the outermost counts, of all else, such as compiled code, what calls nothing.
    """
    name = event.name
    if name.startswith(_LINKS):
        return "link"
    if name == _DATA:
        return "data"
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith(_OPERATION) or parent.name == _DATA:
            return None
        parent = parent.cpu_parent
    if name.startswith(_OPERATION):
        return "compute"
    if event.is_async or event.cpu_children or name.startswith(_WRAPPERS):
        return None
    return "compute"


def _activities(device: torch.device) -> list[ProfilerActivity]:
    every = [ProfilerActivity.CPU]
    return [*every, ProfilerActivity.CUDA] if device.type == "cuda" else every


def _ahead(axis: Axis) -> tuple[float, float]:
    """Seconds to add to this process's clock to have the first rank's, and how wrong that may be:
    nothing on one machine, whose processes have one clock; else half of the quickest of some
    exchanges.
    """
    if axis.group is None:
        return 0.0, 0.0
    machines: list[Any] = [None] * axis.size
    dist.all_gather_object(machines, _machine())
    found = 0.0, 0.0
    for rank in range(1, axis.size):
        if machines[rank] != machines[0] and axis.rank in (0, rank):
            found = _pinged(rank, axis)
    return found if axis.rank else (0.0, 0.0)


def _pinged(other: int, axis: Axis) -> tuple[float, float]:
    best = 0.0, float("inf")
    clock = torch.zeros(1, dtype=torch.float64)
    for _ in range(_PINGS):
        if axis.rank == 0:
            dist.recv(clock, src=other)
            clock[0] = time.perf_counter()
            dist.send(clock, dst=other)
            continue
        before = time.perf_counter()
        dist.send(clock, dst=0)
        dist.recv(clock, src=0)
        after = time.perf_counter()
        if (after - before) / 2.0 < best[1]:
            best = float(clock[0]) - (before + after) / 2.0, (after - before) / 2.0
    return best


def _machine() -> str:
    """What processes with one clock have in common."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text() if boot.exists() else socket.gethostname()
