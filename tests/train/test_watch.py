from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from narrows.train import watch
from narrows.train.effort import Effort
from narrows.train.pulse import Pulse
from narrows.train.silence import Patience
from narrows.train.watch import Watch

RUNNING = {0: 100, 1: 101}


class Clock:
    """Time that passes when it is told to, and what each process works meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spent = {process: Effort(0.0, False) for process in RUNNING.values()}

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watch.time, "monotonic", made.monotonic)
    monkeypatch.setattr(watch, "efforts", lambda leaders: dict(made.spent))
    return made


def hangs_after(
    clock: Clock, watched: Watch, each: Any = lambda: None, limit: float = 700.0
) -> float:
    """Seconds until the processes are found to hang, `each` happening in each of them."""
    began = clock.now
    while clock.now - began < limit:
        clock.now += 0.5
        each()
        if watched.look(RUNNING):
            break
    return clock.now - began


@pytest.fixture
def watched(clock: Clock, tmp_path: Path) -> Watch:
    return Watch(tmp_path, 2, Patience(times=20.0, least_s=15.0, other_s=600.0))


def test_a_start_in_which_nobody_works_hangs(clock: Clock, watched: Watch) -> None:
    assert hangs_after(clock, watched) == pytest.approx(17.0, abs=2.0)


@pytest.mark.parametrize("disk", [False, True])
def test_one_that_works_may_be_silent_for_long(clock: Clock, watched: Watch, disk: bool) -> None:
    def work() -> None:
        known = clock.spent[101].processor_s
        clock.spent[101] = Effort(known + 0.1 * (not disk), disk)

    assert hangs_after(clock, watched, work) == pytest.approx(600.0, abs=2.0)


def test_one_that_goes_on_keeps_all_from_hanging(
    clock: Clock, watched: Watch, tmp_path: Path
) -> None:
    pulse = Pulse(tmp_path, 1)
    assert hangs_after(clock, watched, pulse.again, limit=60.0) == 60.0
    pulse.close()
    assert hangs_after(clock, watched) == pytest.approx(17.0, abs=2.0)


def test_where_nothing_can_be_known_all_may_work(
    clock: Clock, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "efforts", lambda leaders: {})
    assert hangs_after(clock, watched) == pytest.approx(600.0, abs=2.0)
