from __future__ import annotations

import time
from collections.abc import Callable

from narrows.hardware.measure.sampling import sample


def _spin(seconds: Callable[[], float]) -> Callable[[], None]:
    def trial() -> None:
        until = time.perf_counter() + seconds()
        while time.perf_counter() < until:
            pass

    return trial


def _nothing() -> None:
    return None


def test_each_trial_is_timed() -> None:
    trials = {1: _spin(lambda: 1e-3), 2: _spin(lambda: 2e-3)}
    found = sample(trials, seconds=1.0, longest=0.1, finish=_nothing)
    for milliseconds, timing in found.items():
        assert 1 <= timing.seconds / (milliseconds * 1e-3) < 1.5


def test_bursts_of_other_work_do_not_count() -> None:
    calls = iter(range(10_000))
    trial = _spin(lambda: 20e-3 if next(calls) % 3 else 1e-3)
    found = sample({"x": trial}, seconds=0.6, longest=0.1, finish=_nothing)
    assert found["x"].seconds < 3e-3


def test_what_takes_too_long_is_left_out() -> None:
    trials = {"quick": _spin(lambda: 1e-3), "long": _spin(lambda: 0.2)}
    found = sample(trials, seconds=0.2, longest=0.02, finish=_nothing)
    assert set(found) == {"quick"}


def test_what_would_take_too_long_is_not_tried() -> None:
    tried: list[str] = []
    trials = {"quick": _spin(lambda: 1e-3), "hopeless": lambda: tried.append("hopeless")}
    work = {"quick": 1.0, "hopeless": 100.0}
    found = sample(trials, seconds=0.1, longest=0.02, finish=_nothing, work=work.__getitem__)
    assert set(found) == {"quick"} and not tried


def test_there_is_an_answer_for_each_when_time_is_short() -> None:
    trials = {number: _spin(lambda: 1e-3) for number in range(30)}
    found = sample(trials, seconds=0.0, longest=0.1, finish=_nothing)
    assert set(found) == set(trials)
    assert not any(timing.settled for timing in found.values())


def test_slow_ones_leave_quick_ones_their_share() -> None:
    taken: list[str] = []

    def trial(name: str, seconds: float) -> Callable[[], None]:
        spin = _spin(lambda: seconds)
        return lambda: (taken.append(name), spin())[1]

    trials = {"quick": trial("quick", 2e-3), "slow": trial("slow", 0.15)}
    sample(trials, seconds=0.2, longest=1.0, finish=_nothing)
    assert taken.count("slow") == 2 and taken.count("quick") >= 9


def test_the_device_is_waited_for() -> None:
    waited: list[None] = []
    sample({"x": _nothing}, seconds=0.05, longest=0.1, finish=lambda: waited.append(None))
    assert len(waited) >= 5


def test_time_is_kept() -> None:
    calls = iter(range(10_000))
    trial = _spin(lambda: 1e-3 * (1 + next(calls) % 7))
    started = time.perf_counter()
    sample({"never settles": trial}, seconds=0.3, longest=0.1, finish=_nothing)
    assert time.perf_counter() - started < 1.0
