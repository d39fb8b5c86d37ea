from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from narrows.plan.fleet import latency
from narrows.plan.fleet.passes import Replica
from narrows.plan.fleet.serving import Apart, Load, Speculation, serve
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]


@pytest.fixture
def device(make_fleet: MakeFleet) -> Fleet:
    return make_fleet(devices=1)


@pytest.fixture
def busy() -> Load:
    return Load(concurrency=24, prompt=4096, answer=256)


def test_the_tail_of_a_wait_is_exponential(small: ModelSpec, device: Fleet, busy: Load) -> None:
    answer = serve(Work.of(small, 4096), Replica(), busy, device)
    found = latency.first_token(answer, busy, 0.0)
    used = latency.prefilling(answer, busy)
    assert 0.5 < used < 1.0 and found.mean == pytest.approx(answer.first_token)
    # Ten times rarer: log(10) mean waits of who waits at all.
    apart = math.log(10.0) * answer.wait / used
    assert found.p99 - found.p90 == pytest.approx(apart)
    assert found.p50 < found.mean < found.p90


def test_lengths_that_vary_lengthen_the_wait(small: ModelSpec, device: Fleet, busy: Load) -> None:
    answer = serve(Work.of(small, 4096), Replica(), busy, device)
    even, varied = (latency.first_token(answer, busy, variation) for variation in (0.0, 1.0))
    assert varied.mean - even.mean == pytest.approx(answer.wait)
    assert varied.p99 > even.p99


def test_who_is_alone_never_waits(small: ModelSpec, device: Fleet) -> None:
    alone = Load(concurrency=1, prompt=128, answer=1024)
    answer = serve(Work.of(small, 128), Replica(), alone, device)
    found = latency.first_token(answer, alone, 0.5)
    assert found.p50 == found.p90 == pytest.approx(answer.first_token)


def test_prompts_that_join_spread_the_time_a_token_takes(
    small: ModelSpec, device: Fleet, busy: Load
) -> None:
    work = Work.of(small, 4096)
    at = (work, Replica(), device)
    together = serve(work, Replica(), busy, device)
    spread = latency.per_token(together, busy, True, 0.0, at)
    sigma = together.service * math.sqrt(together.running - 1.0) / 255
    assert spread.p50 == spread.mean == together.per_token
    assert spread.p99 - spread.mean == pytest.approx(2.3263 * sigma)
    apart = replace(busy, apart=Apart(replica=Replica(), sets=4.0))
    even = latency.per_token(serve(work, Replica(), apart, device), apart, True, 0.0, at)
    assert even.p99 == even.mean
    # Under a rate how many write varies, too.
    assert latency.per_token(together, busy, False, 0.0, at).p99 > spread.p99


def test_luck_with_guesses_spreads_it_too(small: ModelSpec, device: Fleet) -> None:
    work = Work.of(small, 256)
    plain = Load(concurrency=1, prompt=256, answer=256, apart=Apart(replica=Replica()))
    for accept, spreads in ((0.6, True), (1.0, False)):
        guessed = replace(plain, speculation=Speculation(accept=accept, ahead=4))
        answer = serve(work, Replica(), guessed, device)
        found = latency.per_token(answer, guessed, True, 0.0, (work, Replica(), device))
        assert (found.p99 > 1.01 * found.mean) == spreads
