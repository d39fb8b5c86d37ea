from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from msgspec.structs import replace

from narrows.plan.fleet.service import service
from narrows.plan.fleet.sweep import changes, swept
from narrows.plan.fleet.ways import Demand, search, way_of, worth
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.service import Changed, Guesses, Limits, Requests

MakeFleet = Callable[..., Fleet]


def demand(model: ModelSpec, fleet: Fleet, **changes: Any) -> Demand:
    load = {"concurrency": 16.0, "prompt": 2048, "answer": 128}
    requests = {**load, **{name: changes.pop(name) for name in list(changes) if name in {
        "rate", "prompt", "answer", "chunk", "shared", "concurrency"}}}  # fmt: skip
    return Demand(
        name="small", model=model, fleet=fleet, requests=Requests(**requests), **changes
    )  # fmt: skip


def told(asked: Demand) -> dict[str, Changed]:
    work = Work.of(asked.model, asked.requests.prompt)
    return {each.name: each for each in changes(work, service(asked).best, asked)}


def test_each_width_is_loaded_until_no_more_fit(small: ModelSpec, fleet: Fleet) -> None:
    asked = demand(small, fleet)
    best = service(asked).best
    found = list(swept(Work.of(small, 2048), best, asked))
    lines = {
        width: list(points)
        for width, points in groupby(found, key=lambda each: each.placement.tensor)
    }
    assert list(lines) == [1, 2, 4, 8, 16]
    work, requests = Work.of(small, 2048), asked.requests
    for points in lines.values():
        placed = points[0].placement
        assert placed.replicas * placed.tensor == 16
        assert points[0].concurrency == placed.replicas
        ratios = [b.concurrency / a.concurrency for a, b in zip(points, points[1:], strict=False)]
        assert set(ratios[:-1]) == {2.0} and 1.0 < ratios[-1] <= 2.0
        full = replace(requests, concurrency=points[-1].concurrency)
        room = way_of(work, placed, replace(asked, requests=full)).room
        most = min(points[-1].concurrency + placed.replicas, 8192.0 * placed.replicas)
        assert points[-1].concurrency <= room and (most > room or most == 8192.0 * placed.replicas)
        tokens = [each.tokens_per_s for each in points]
        waits = [each.per_token_s for each in points]
        assert tokens == sorted(tokens) and waits == sorted(waits)


def test_a_load_is_what_the_plan_would_say_of_it(small: ModelSpec, fleet: Fleet) -> None:
    asked = demand(small, fleet, limits=Limits(percent=50))
    best = service(asked).best
    point = next(
        each for each in swept(Work.of(small, 2048), best, asked)
        if each.placement == best.placement and each.concurrency == 16.0
    )  # fmt: skip
    assert point.tokens_per_s == best.tokens_per_s
    assert point.per_token_s == best.per_token.p50
    assert point.first_token_s == best.first_token.p50


def test_a_width_that_does_not_hold_the_model_has_no_loads(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    tight = make_fleet(gigabytes=3.3)
    asked = demand(small, tight, prompt=64, answer=16)
    best = service(asked).best
    widths = {each.placement.tensor for each in swept(Work.of(small, 64), best, asked)}
    assert widths and 1 not in widths


def test_each_change_is_that_change_alone(small: ModelSpec, fleet: Fleet) -> None:
    asked = demand(small, fleet)
    best, found = service(asked).best, told(asked)
    work = Work.of(small, 2048)
    chunked = replace(asked, requests=Requests(concurrency=16, prompt=2048, answer=128, chunk=512))
    assert found["prompts in chunks of 512"].way == way_of(work, best.placement, chunked)
    kept = replace(asked, requests=Requests(concurrency=16, prompt=2048, answer=128, shared=1024))
    assert found["half of each prompt kept"].way == way_of(work, best.placement, kept)
    narrow = found["weights of 8 bits"].way
    assert narrow is not None and narrow.placement.weight_bits == 8.0
    assert narrow.per_token.mean < best.per_token.mean
    guessed = found["4 tokens guessed ahead, 70% right"].way
    assert guessed is not None and guessed.per_token.mean < best.per_token.mean
    assert not any(each.searched for name, each in found.items() if "requests" not in name)


def test_what_is_on_is_switched_off(small: ModelSpec, fleet: Fleet) -> None:
    guesses = Guesses(accept=0.8, ahead=3, tokens=2.952)
    found = told(demand(small, fleet, shared=512, chunk=256, guesses=guesses))
    for name in ("no guesses", "prompts whole", "no tokens kept of a prompt"):
        assert found[name].outcome == "kept", name
    assert not {"prompts in chunks of 512", "half of each prompt kept"} & set(found)


def test_other_numbers_of_requests_and_devices_have_their_own_best(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    asked = demand(
        small, make_fleet(), smaller=make_fleet(devices=8), larger=(make_fleet(devices=32),)
    )
    found = told(asked)
    for name, fleet in (("half the devices", 8), ("twice the devices", 32)):
        way = found[name].way
        assert way is not None and found[name].searched
        placed = way.placement
        assert (placed.replicas + placed.apart) * placed.tensor == fleet
    twice = replace(asked, requests=Requests(concurrency=32, prompt=2048, answer=128))
    own = found["twice the requests"].way
    assert own == min(search(twice).quick, key=worth)


def test_one_request_is_not_halved(small: ModelSpec, fleet: Fleet) -> None:
    assert "half the requests" not in told(demand(small, fleet, concurrency=1.0))


def test_changes_that_do_not_do_say_why(small: ModelSpec, make_fleet: MakeFleet) -> None:
    device = make_fleet(devices=1)
    most = 0.9 * max(
        way.tokens_per_s for way in search(demand(small, device, concurrency=400.0)).quick
    )  # fmt: skip
    fast = told(demand(small, device, concurrency=None, rate=most / 128.0))
    assert fast["twice the requests"].outcome == "saturated"
    assert 0.0 < (fast["twice the requests"].most or 0.0) < 2.0 * most / 128.0
    asked = demand(small, device, weight_bits=16.0)
    limit = 1.01 * service(asked).best.per_token.p90
    late = told(replace(asked, limits=Limits(per_token_s=limit)))["twice the requests"]
    assert late.outcome == "late" and late.way is not None
    tight = make_fleet(devices=1, gigabytes=3.1)
    full = told(demand(small, tight, prompt=64, answer=16, weight_bits=8.0, concurrency=1.0))
    assert full["weights of 16 bits"].outcome == "full"
