"""The link between processes, measured and put into the machine's record."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping

from narrows.hardware import child, find, fit, probe
from narrows.hardware.measurement import Request
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.machine import Collective, Link
from narrows.spec.record import Record
from narrows.spec.units import Bytes, BytesPerSecond, Seconds

Talk = Callable[[str], None]

_CROWD = 16
_SECONDS = 40.0
_SECONDS_MEETING = 75.0
_SECONDS_STUCK = 120.0
"""On cores that others hold, what is late ends late."""


class Fit(Record):
    """seconds(message) = latency + message / bandwidth of one collective, and how far the points
    lie from it (median); messages from `least` to `most`.
    """

    operation: Collective
    latency: Seconds
    bandwidth: BytesPerSecond
    error: float
    least: Bytes
    most: Bytes


def probe_link(
    processes: int | None, *, talk: Talk, environment: Mapping[str, str] = os.environ
) -> Link:
    """The link between so many processes of this machine, or between this one and those that
    torchrun started with it; the first of them keeps it in the machine's record.

    Raises BadInput where there are fewer than two processes, or where they do not all meet.
    """
    started = environment.get("WORLD_SIZE")
    count = _count(processes, started)
    if count < 2:
        raise BadInput(
            f"a link joins at least two processes, not {count}",
            hint="narrows probe --link --processes 2, or start several by torchrun",
        )
    cores = find.processor().cores_allowed
    if not started and count > _CROWD * cores:
        raise BadInput(
            f"{count} processes on {cores} cores would wait for cores, not for each other",
            hint=f"narrows probe --link --processes N with N at most {_CROWD * cores}",
        )
    known = probe.machine_known()
    threads = known.device.threads if known else cores
    request = Request(
        folder="", seconds=_SECONDS, threads=(threads,), processes=None if started else count
    )
    seconds = _SECONDS + _SECONDS_MEETING + _SECONDS_STUCK
    try:
        link = child.run("link", request, Link, seconds=seconds, talk=talk)
    except child.TooLong as error:
        raise RunFailed(f"measuring did not end: {error}", hint="narrows doctor") from None
    if environment.get("RANK", "0") == "0":
        probe.keep_link(link, talk=talk)
        talk(f"kept in {probe.path()}")
    return link


def fits(link: Link) -> tuple[Fit, ...]:
    """Latency and bandwidth of each collective of the link."""
    groups = itertools.groupby(link.points, key=lambda point: point.operation)
    found = []
    for operation, points in groups:
        taken = tuple(points)
        fitted, messages = fit.link(taken), [point.message for point in taken]
        found.append(Fit(
            operation=operation, latency=fitted.latency, bandwidth=fitted.bandwidth,
            error=fitted.error, least=min(messages), most=max(messages),
        ))  # fmt: skip
    return tuple(found)


def text(link: Link) -> str:
    """A table for the terminal: a line for each collective."""
    lines = [
        f"{link.name}, {link.backend}",
        "",
        f"{'':16}{'latency':>10}{'bandwidth':>14}{'error':>8}   messages",
    ]
    for each in fits(link):
        rate = f"{each.bandwidth * 8 / 1e6:,.0f} Mbit/s"
        lines.append(
            f"{each.operation:16}{each.latency.text():>10}{rate:>14}{each.error:>8.0%}   "
            f"{each.least.text()} to {each.most.text()}"
        )
    if link.together:
        gain, source = link.together.value, link.together.source
        lines += ["", f"all at once compute {gain:g} x as fast as one alone ({source})"]
    return "\n".join(lines)


def _count(processes: int | None, started: str | None) -> int:
    if started is None:
        return processes or 1
    if not started.isdigit():
        raise BadInput(f'WORLD_SIZE is "{started}"', hint="the number of processes")
    if processes not in (None, int(started)):
        raise BadInput(
            f"{started} processes are started already, not {processes}",
            hint="leave --processes out",
        )
    return int(started)
