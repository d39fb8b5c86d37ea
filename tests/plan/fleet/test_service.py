from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from narrows.plan.fleet.service import Demand, service, text
from narrows.spec.errors import DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.record import from_builtins, to_builtins
from narrows.spec.service import Service

MakeFleet = Callable[..., Fleet]


def demand(model: ModelSpec, fleet: Fleet, **changes: object) -> Demand:
    asked = {"concurrency": 16, "prompt": 512, "answer": 128, **changes}
    return Demand(name="small", model=model, fleet=fleet, **asked)  # type: ignore[arg-type]


def test_the_widest_weights_that_will_do_are_taken(small: ModelSpec, fleet: Fleet) -> None:
    found = service(demand(small, fleet))
    assert found.best.weight_bits == 16.0
    same = [way for way in found.others if way.weight_bits == 16.0]
    assert all(way.tokens_per_s <= found.best.tokens_per_s for way in same)
    assert any(way.weight_bits < 16.0 for way in found.others)


def test_a_latency_that_wide_weights_miss_narrows_them(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    device = make_fleet(devices=1)
    ways = [service(demand(small, device, weight_bits=bits)).best for bits in (16.0, 8.0)]
    between = (ways[0].per_token_s + ways[1].per_token_s) / 2.0
    found = service(demand(small, device, per_token_s=between))
    assert found.best.weight_bits < 16.0 and found.best.per_token_s <= between


def test_every_way_uses_all_devices_and_fits(small: ModelSpec, fleet: Fleet) -> None:
    found = service(demand(small, fleet))
    for way in (found.best, *found.others):
        assert way.replicas * way.tensor == fleet.devices
        assert way.memory_bytes <= found.memory_limit
        assert small.heads % way.tensor == 0


def test_what_does_not_fit_says_by_how_much(small: ModelSpec, make_fleet: MakeFleet) -> None:
    with pytest.raises(DoesNotFit, match=r"does not fit: .* GB free") as caught:
        service(demand(small, make_fleet(devices=1, gigabytes=1.2)))
    assert caught.value.exit_code == 3 and caught.value.hint


def test_what_is_too_slow_says_how_quick_it_can_be(small: ModelSpec, fleet: Fleet) -> None:
    with pytest.raises(DoesNotFit, match="no layout is as quick as asked for") as caught:
        service(demand(small, fleet, per_token_s=1e-6))
    assert "ms" in caught.value.what or "µs" in caught.value.what


def test_tokens_cost_what_the_devices_do(small: ModelSpec, fleet: Fleet) -> None:
    best = service(demand(small, fleet)).best
    dollars_a_second = 2.0 * fleet.devices / 3600.0
    assert best.dollars_per_million_tokens == pytest.approx(
        dollars_a_second / best.tokens_per_s * 1e6
    )
    free = msgspec.structs.replace(fleet, price=None)
    assert service(demand(small, free)).best.dollars_per_million_tokens is None


def test_it_is_told_and_kept(small: ModelSpec, fleet: Fleet) -> None:
    found = service(demand(small, fleet))
    told = text(found)
    assert "small served by 16 x made-up" in told and "first token" in told
    assert max(len(line) for line in told.splitlines()) <= 100
    assert from_builtins(Service, to_builtins(found)) == found
