from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from narrows.plan.fleet.service import service
from narrows.plan.fleet.serving import serve
from narrows.plan.fleet.ways import Demand, load_of, replica_of
from narrows.plan.fleet.work import Work
from narrows.spec.errors import DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.service import Guesses, Limits, Requests, Serving

MakeFleet = Callable[..., Fleet]
LOAD: dict[str, object] = {"concurrency": 16, "prompt": 512, "answer": 128}


def demand(model: ModelSpec, fleet: Fleet, **changes: object) -> Demand:
    told = {name: value for name, value in changes.items() if name in Requests.__struct_fields__}
    rest: dict[str, Any] = {name: value for name, value in changes.items() if name not in told}
    requests = Requests(**{**LOAD, **told})  # type: ignore[arg-type]
    return Demand(name="small", model=model, fleet=fleet, requests=requests, **rest)


def same(way: Serving, other: Serving) -> bool:
    """Whether both store as many bits."""
    mine, its = way.placement, other.placement
    return (mine.weight_bits, mine.cache_bits) == (its.weight_bits, its.cache_bits)


def test_the_widest_weights_and_keys_that_will_do_are_taken(small: ModelSpec, fleet: Fleet) -> None:
    found = service(demand(small, fleet))
    assert (found.best.placement.weight_bits, found.best.placement.cache_bits) == (16.0, 16.0)
    alike = [way for way in found.others if same(way, found.best)]
    assert alike and all(way.tokens_per_s <= 1.02 * found.best.tokens_per_s for way in alike)


def test_a_latency_that_wide_weights_miss_narrows_them(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    device = make_fleet(devices=1)
    ways = [service(demand(small, device, weight_bits=bits)).best for bits in (16.0, 8.0)]
    between = (ways[0].per_token.p90 + ways[1].per_token.p90) / 2.0
    found = service(demand(small, device, limits=Limits(per_token_s=between)))
    assert found.best.per_token.p90 <= between
    assert found.best.placement.weight_bits < 16.0 or found.best.placement.cache_bits < 16.0


def test_limits_hold_at_their_percentile(small: ModelSpec, make_fleet: MakeFleet) -> None:
    device = make_fleet(devices=1)
    best = service(demand(small, device, weight_bits=4.5)).best
    between = (best.first_token.p50 + best.first_token.p99) / 2.0
    limits = Limits(first_token_s=between, percent=50)
    assert limits.kept(best)
    assert not Limits(first_token_s=between, percent=99).kept(best)


def test_every_way_uses_all_devices_and_fits(small: ModelSpec, fleet: Fleet) -> None:
    found = service(demand(small, fleet))
    for way in (found.best, *found.others):
        placed = way.placement
        assert (placed.replicas + placed.apart) * placed.tensor == fleet.devices
        assert way.held.total <= found.memory_limit
        assert small.heads % placed.tensor == 0
        assert 0.0 <= way.usage.prefilling <= 1.0 and 0.0 < way.usage.computing <= 1.0


def test_prompts_may_have_devices_of_their_own(small: ModelSpec, fleet: Fleet) -> None:
    found = service(demand(small, fleet, prompt=4096, limits=Limits(per_token_s=0.02)))
    apart = [way for way in (found.best, *found.others) if way.placement.apart]
    assert apart and all(way.per_token.p99 == way.per_token.mean for way in apart)


def test_a_rate_is_answered_by_as_many_at_a_time_as_little_says(
    small: ModelSpec, fleet: Fleet
) -> None:
    found = service(demand(small, fleet, concurrency=None, rate=20.0))
    best = found.best
    assert best.tokens_per_s == pytest.approx(20.0 * 128, rel=0.05)
    load = load_of(demand(small, fleet), best.placement, best.concurrency)
    answer = serve(Work.of(small, 512), replica_of(best.placement), load, fleet)
    stay = answer.first_token + 128 * answer.per_token
    assert best.concurrency == pytest.approx(20.0 * stay, rel=0.05)


def test_no_more_prompts_are_answered_than_can_be_computed(small: ModelSpec, fleet: Fleet) -> None:
    asked = demand(small, fleet, concurrency=256.0, answer=1)
    for way in service(asked).others:
        load = load_of(asked, way.placement, way.concurrency)
        each = serve(Work.of(small, 512), replica_of(way.placement), load, fleet).service
        assert way.tokens_per_s * each <= way.placement.replicas * (1.0 + 1e-9)


def test_too_high_a_rate_names_the_highest_and_one_that_works(
    small: ModelSpec, fleet: Fleet
) -> None:
    with pytest.raises(DoesNotFit, match=r"saturate .* requests/s") as caught:
        service(demand(small, fleet, concurrency=None, rate=1e5))
    most = float(re.findall(r"answers is ([\d.e+]+) requests/s", caught.value.what)[0])
    works = float(re.findall(r'--rate "([\d.]+) requests/s" works', str(caught.value.hint))[0])
    assert 0.85 * most < works < most
    assert service(demand(small, fleet, concurrency=None, rate=works)).best.tokens_per_s > 0
    with pytest.raises(DoesNotFit, match="saturate"):
        service(demand(small, fleet, concurrency=None, rate=1.1 * most))


def test_what_does_not_fit_says_by_how_much_and_where_it_does(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    tight, roomy = make_fleet(devices=1, gigabytes=2.4), make_fleet(devices=1)
    asked = demand(small, tight, larger=(make_fleet(devices=2, gigabytes=2.4), roomy))
    with pytest.raises(DoesNotFit, match=r"does not fit: .* GB free") as caught:
        service(asked)
    assert caught.value.exit_code == 3 and caught.value.hint == f"--machine {roomy.name} works"


def test_what_is_too_slow_says_how_quick_it_can_be_and_what_would_do(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    device = make_fleet(devices=1)
    slow = demand(small, device, concurrency=64, prompt=4096)
    one = service(demand(small, device, concurrency=1, prompt=4096, weight_bits=4.5)).best
    limits = Limits(per_token_s=2.0 * one.per_token.p90)
    with pytest.raises(DoesNotFit, match="no layout is as quick as asked for") as caught:
        service(replace(slow, limits=limits))
    works = int(re.findall(r"--serve (\d+) works", str(caught.value.hint))[0])
    assert 1 <= works < 64
    again = demand(small, device, concurrency=works, prompt=4096, limits=limits)
    assert service(again).best.per_token.p90 <= limits.per_token_s  # type: ignore[operator]
    with pytest.raises(DoesNotFit) as caught:
        service(demand(small, device, limits=Limits(per_token_s=1e-6)))
    assert "other devices" in str(caught.value.hint)


def test_more_than_there_is_room_for_wait(small: ModelSpec, make_fleet: MakeFleet) -> None:
    device = make_fleet(devices=1, gigabytes=4.0)
    found = service(demand(small, device, concurrency=500, prompt=8192, weight_bits=16.0))
    assert 1.0 < found.best.room < 500
    assert found.best.held.total <= found.memory_limit * 1.001


def test_room_for_all_comes_before_width(small: ModelSpec, make_fleet: MakeFleet) -> None:
    device = make_fleet(devices=1, gigabytes=6.0)
    found = service(demand(small, device, concurrency=40, prompt=6000))
    assert found.best.room >= 40 and found.best.placement.cache_bits < 16.0
    wide = [way for way in found.others if way.placement.cache_bits == 16.0]
    assert wide and all(way.room < 40 or way.placement.weight_bits < 16.0 for way in wide)


def test_guesses_quicken_what_few_ask_for(small: ModelSpec, make_fleet: MakeFleet) -> None:
    device = make_fleet(devices=1)
    guesses = Guesses(accept=0.8, ahead=3, tokens=2.952)
    plain, guessed = (
        service(demand(small, device, concurrency=1, guesses=each)) for each in (None, guesses)
    )
    assert guessed.best.per_token.mean < 0.6 * plain.best.per_token.mean
    by_itself = service(demand(small, device, concurrency=1, guesses=guesses, draft=small))
    assert by_itself.best.per_token.mean > plain.best.per_token.mean


def test_tokens_cost_what_the_devices_do(small: ModelSpec, fleet: Fleet) -> None:
    best = service(demand(small, fleet)).best
    dollars_a_second = 2.0 * fleet.devices / 3600.0
    assert best.usage.dollars_per_million_tokens == pytest.approx(
        dollars_a_second / best.tokens_per_s * 1e6
    )
    # Between idle and full power.
    watts = (best.usage.joules_per_token or 0.0) * best.tokens_per_s / fleet.devices
    assert 100.0 < watts < 500.0
    free = replace(fleet, price=None, power_full=None)
    other = service(demand(small, free)).best.usage
    assert other.dollars_per_million_tokens is None and other.joules_per_token is None


def test_twice_of_what_holds_it_back_helps_most(small: ModelSpec, make_fleet: MakeFleet) -> None:
    found = service(demand(small, make_fleet(devices=1), prompt=8192))
    assert found.doubling_decode[0].resource == "memory bandwidth"
    assert found.doubling_prefill[0].resource == "compute"
    for rows in (found.doubling_decode, found.doubling_prefill):
        savings = [row.saving for row in rows]
        assert savings == sorted(savings, reverse=True) and 0.0 <= savings[-1] <= savings[0] < 0.51
