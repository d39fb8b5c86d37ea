"""Processes that watch each other through their store; tests/train/test_group.py lets real ones
hang under torchrun.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import PrefixStore, Store, TCPStore

from narrows.train import sentry
from narrows.train.effort import Effort
from narrows.train.pulse import Pulse
from narrows.train.sentry import Sentry
from narrows.train.silence import Patience

PATIENCE = Patience(times=20.0, least_s=15.0, other_s=600.0)


class Clock:
    """Time that passes when it is told to, and what the processes work meanwhile."""

    now = worked = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sentry.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(sentry, "_own_effort", lambda: Effort(made.worked, False))
    return made


@pytest.fixture
def store() -> Store:
    return PrefixStore("attempt-0", TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True))


@pytest.fixture
def two(clock: Clock, store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Sentry]:
    """Of two processes whose pulses stand still unless a test lets them beat."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        made.append(Sentry(Pulse(None, rank), store, PATIENCE))
    store.set("hangs", "")
    return made


def found_after(
    clock: Clock, looking: list[Sentry], each: Callable[[], object] = lambda: None,
    limit: float = 700.0,
) -> float:  # fmt: skip
    """Seconds until one of those that look finds that all hang, `each` happening meanwhile."""
    began = clock.now
    while clock.now - began < limit:
        clock.now += 1.0
        each()
        # All look: one that found it first must not keep the others from writing.
        found = [one.look() for one in looking]
        if any(found):
            break
    return clock.now - began


def test_all_that_give_no_sign_hang(clock: Clock, two: list[Sentry]) -> None:
    assert found_after(clock, two) == pytest.approx(18.0, abs=3.0)
    told = [two[0]._told(0), two[0]._told(1)]
    assert "process 0 (step 0, starting, silent for 1" in told[0] and "test_sentry.py" in told[0]
    assert told[1].endswith("no stack, it does not answer")


@pytest.mark.parametrize("goes_on", [0, 1])
def test_one_that_goes_on_keeps_all_from_it(clock: Clock, two: list[Sentry], goes_on: int) -> None:
    assert found_after(clock, two, two[goes_on].own.again, limit=60.0) == 60.0


def test_one_that_works_may_take_long(clock: Clock, two: list[Sentry]) -> None:
    def work() -> None:
        clock.worked += 0.1

    assert found_after(clock, two, work) == pytest.approx(600.0, abs=2.0)


def test_one_that_writes_nothing_any_more_does_not_work(clock: Clock, two: list[Sentry]) -> None:
    for one in two:
        one.own.beat(3, "saving")
        one.look()
    assert found_after(clock, two[:1]) == pytest.approx(62.0, abs=5.0)


def test_one_that_is_done_is_not_waited_for(clock: Clock, two: list[Sentry]) -> None:
    for one in two:
        one.look()
    two[1].store.set("1", "left")  # by its own connection: another's may come before what it wrote
    assert found_after(clock, two[:1]) == pytest.approx(18.0, abs=3.0)


def test_what_another_found_is_true_for_all(clock: Clock, two: list[Sentry], store: Store) -> None:
    found_after(clock, two, limit=5.0)
    store.set("hangs", "1")
    assert found_after(clock, two) == 1.0


def test_where_the_store_does_not_answer_its_own_silence_counts(
    clock: Clock, two: list[Sentry], store: Store
) -> None:
    # Nobody has written this rank's line: the answer is waited for in vain.
    two[0].store.set_timeout(timedelta(milliseconds=50))
    assert found_after(clock, two[:1]) == pytest.approx(18.0, abs=3.0)
