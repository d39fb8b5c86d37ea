"""Times many small trials so that other work on the same cores disturbs the answer least."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar, final

K = TypeVar("K", bound=Hashable)
Trial = Callable[[], object]

_SAMPLE_SECONDS = 5e-4
"""A sample repeats a quicker trial until it lasts this long, far above the clock's resolution."""
_AGREE = 1.05
_UNDISTURBED = 0.03
_BEST = 3
_SAMPLES_MIN = 9
_OVERTIME = 1.25
_HOPELESS = 3.0
"""Larger products are done at better rates than smaller ones, by less than this."""


class Sample(NamedTuple):
    """Seconds of one call, and whether it settled: its best samples agreed and were undisturbed.
    `usual` is the lower quartile of those that were undisturbed, or of all where hardly any was.
    """

    seconds: float
    settled: bool
    usual: float


class _Timing(NamedTuple):
    seconds: float
    disturbed: bool


def sample(
    trials: Mapping[K, Trial],
    *,
    seconds: float,
    longest: float,
    finish: Callable[[], None],
    work: Callable[[K], float] = lambda _: 0.0,
) -> dict[K, Sample]:
    """The time of each trial, taken in rounds over all of them for at most about `seconds`.

    The answer is the median of the three quickest samples: what the hardware does when let alone.
    On shared cores a plain median is the scheduler's time slice (8 ms for a product of 40 µs), and
    a single minimum can be luck. Rounds spread each trial's samples over time, so a burst of other
    work hits a few of each. A trial is finished when its three best agree within 5 % and no thread
    of ours waited for a core during them; one that takes more than `longest` is left out, and not
    even tried where it is to do so much `work` that it would at thrice the best rate so far.
    `finish` waits for the device. The first round is always completed: there is an answer for each
    trial; and where slow trials take all of the time, quick ones still have their share of it.
    """
    started = time.perf_counter()
    queue = _Queue()
    repeats: dict[K, int] = {}
    times: dict[K, list[_Timing]] = {}
    rate = 0.0
    for key, trial in trials.items():
        hopeless = work(key) > _HOPELESS * longest * rate > 0.0
        warm = None if hopeless else _warm(trial, longest, finish, queue)
        if warm is not None:
            rate = max(rate, work(key) / warm.seconds)
            repeats[key] = max(1, math.ceil(_SAMPLE_SECONDS / max(warm.seconds, 1e-8)))
            times[key] = [warm]
    waiting = list(repeats)
    while waiting and time.perf_counter() - started < seconds:
        for key in waiting:
            times[key].append(_time(trials[key], repeats[key], finish, queue))
            if time.perf_counter() - started > _OVERTIME * seconds:
                break
        waiting = [key for key in waiting if not _finished(times[key])]
    for key, found in times.items():
        count = min(_SAMPLES_MIN, seconds / len(times) / max(found[0].seconds, 1e-8))
        while len(found) < count:
            found.append(_time(trials[key], repeats[key], finish, queue))
    queue.close()
    return {key: _answer(found) for key, found in times.items()}


@final
class _Queue:
    """How long this process's threads have waited for a core, from Linux's schedstat."""

    def __init__(self) -> None:
        self._files: list[int] = []
        try:
            for thread in os.listdir("/proc/self/task"):
                self._files.append(os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY))
        except OSError:
            self.close()

    def waited(self) -> float:
        """Seconds of waiting so far, summed over threads; 0 where the system does not say."""
        try:
            return sum(int(os.pread(file, 64, 0).split()[1]) for file in self._files) * 1e-9
        except (OSError, IndexError):
            return 0.0

    def close(self) -> None:
        """Give the files back."""
        for file in self._files:
            os.close(file)
        self._files = []


def _warm(
    trial: Trial, longest: float, finish: Callable[[], None], queue: _Queue
) -> _Timing | None:
    """Run a trial twice; the second time, or None where it takes too long."""
    first = _time(trial, 1, finish, queue)
    if first.seconds > 4 * longest:
        return None
    second = _time(trial, 1, finish, queue)
    return second if min(first, second).seconds <= longest else None


def _time(trial: Trial, repeats: int, finish: Callable[[], None], queue: _Queue) -> _Timing:
    waited = queue.waited()
    started = time.perf_counter()
    for _ in range(repeats):
        trial()
    finish()
    elapsed = time.perf_counter() - started
    return _Timing(elapsed / repeats, queue.waited() - waited > _UNDISTURBED * elapsed)


def _answer(found: list[_Timing]) -> Sample:
    best = sorted(found)[:_BEST]
    alone = [timing.seconds for timing in found if not timing.disturbed]
    counted = alone if len(alone) >= _BEST else [timing.seconds for timing in found]
    usual = sorted(counted)[len(counted) // 4]
    return Sample(best[len(best) // 2].seconds, _settled(found), usual)


def _finished(found: list[_Timing]) -> bool:
    return len(found) >= _SAMPLES_MIN and _settled(found)


def _settled(found: list[_Timing]) -> bool:
    best = sorted(found)[:_BEST]
    agree = best[-1].seconds <= _AGREE * best[0].seconds
    return len(best) == _BEST and agree and not any(timing.disturbed for timing in best)
