from __future__ import annotations

from collections.abc import Callable

import pytest

from narrows.plan.fleet.service import service
from narrows.plan.fleet.service_render import text
from narrows.plan.fleet.ways import Demand
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.record import from_builtins, to_builtins
from narrows.spec.service import Guesses, Requests, Service

MakeFleet = Callable[..., Fleet]


@pytest.fixture
def asked(small: ModelSpec, fleet: Fleet) -> Demand:
    return Demand(
        name="small", model=small, fleet=fleet,
        requests=Requests(concurrency=16, prompt=512, answer=128),
    )  # fmt: skip


def test_it_is_told_and_kept(asked: Demand) -> None:
    found = service(asked)
    told = text(found)
    assert "small served by 16 x made-up, 4 nodes of 4" in told and "16 requests at a time" in told
    kinds = ("first token", "each token more", "p99", "tokens/s", "weights", "cache", "runtime")
    for what in (*kinds, "J for a token", "for a million", "holds it back", "other ways"):
        assert what in told
    assert max(len(line) for line in told.splitlines()) <= 100
    assert from_builtins(Service, to_builtins(found)) == found


def test_what_was_asked_for_is_named(small: ModelSpec, fleet: Fleet) -> None:
    found = service(
        Demand(
            name="small", model=small, fleet=fleet, draft=small,
            guesses=Guesses(accept=0.7, ahead=4, tokens=2.77, draft="smaller"),
            requests=Requests(rate=3.0, prompt=512, answer=128, shared=256, chunk=64),
        )
    )  # fmt: skip
    told = text(found)
    assert "3 requests/s" in told and "the first 256 shared" in told and "chunks of 64" in told
    assert "4 tokens ahead by smaller, 70% of them right: 2.77 a step" in told


def test_what_finds_no_room_is_said(small: ModelSpec, make_fleet: MakeFleet) -> None:
    found = service(
        Demand(
            name="small", model=small, fleet=make_fleet(devices=1, gigabytes=4.0),
            requests=Requests(concurrency=2000, prompt=8192, answer=128),
        )
    )  # fmt: skip
    assert "the others wait, or are preempted" in text(found)
