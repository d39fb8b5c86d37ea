from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from narrows.plan.fleet import constants
from narrows.plan.fleet.passes import Prompt, Replica, prefill_seconds
from narrows.plan.fleet.serving import (
    Apart,
    Load,
    Speculation,
    joined_seconds,
    queue,
    roomy,
    serve,
    step_seconds,
    weights_of,
)
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]


def test_prompts_that_join_slow_those_that_decode(small: ModelSpec, fleet: Fleet) -> None:
    work = Work.of(small, 4096)
    long = Load(concurrency=16, prompt=4096, answer=128)
    together = serve(work, Replica(), long, fleet)
    apart = serve(work, Replica(), replace(long, apart=Apart(replica=Replica())), fleet)
    assert apart.per_token == pytest.approx(apart.decode)
    added = (together.running - 1.0) / 127 * together.service
    assert together.decode + added < together.per_token
    assert together.per_token < together.decode + added + constants.SERVING_JOIN


def test_more_sets_for_prompts_shorten_the_wait(small: ModelSpec, fleet: Fleet) -> None:
    work = Work.of(small, 4096)
    found = [
        serve(
            work, Replica(),
            Load(concurrency=64, prompt=4096, answer=64,
                 apart=Apart(replica=Replica(), sets=sets)), fleet,
        ).first_token
        for sets in (0.5, 1.0, 4.0)
    ]  # fmt: skip
    assert found[0] > found[1] > found[2]


def test_a_queue_of_one_does_not_wait_and_of_many_is_served_in_turn() -> None:
    assert queue(2.0, 10.0, 1.0) == pytest.approx(2.0)
    # A station that is never idle serves one customer in each service time: R = n s - Z.
    assert queue(2.0, 1.0, 50.0) == pytest.approx(50 * 2.0 - 1.0, rel=0.02)
    # Half of who is being served is left, on average: Pollaczek and Khinchine at constant service.
    busy = 0.1
    assert queue(1.0, 10_000.0, 1000.0) == pytest.approx(1.0 + busy / 2 / (1 - busy), rel=0.02)


def test_many_prompts_that_join_a_step_share_what_it_reads(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 8), make_fleet(devices=1)
    load = Load(concurrency=64, prompt=8, answer=2)
    # One is lost in what a step reads anyway; all of them are computed for.
    one = prefill_seconds(work, Replica(), Prompt(8.0, beside=64.0), device)
    whole = prefill_seconds(work, Replica(), Prompt(63 * 8.0, beside=64.0), device)
    each = joined_seconds(work, Replica(), load, 64.0, device) / constants.ENGINES["vllm"].prompt
    assert one < each == pytest.approx(whole / 63, rel=0.1)


def test_what_finds_no_room_waits(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, tight = Work.of(small, 8192), make_fleet(devices=1, gigabytes=6.0)
    load = Load(concurrency=64, prompt=8192, answer=1024)
    room = roomy(work, Replica(), load, tight)
    assert 1.0 < room < 64.0
    full = serve(work, Replica(), load, tight)
    assert full.running <= room
    most = serve(work, Replica(), replace(load, concurrency=room), tight)
    assert full.first_token > most.first_token + 0.9 * 1024 * most.per_token
    halved = roomy(work, Replica(cache_bytes=1.0), load, tight)
    assert halved == pytest.approx(2.0 * room)


def test_an_engine_that_takes_a_share_of_what_weights_leave_has_room_where_others_have_none(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, load = Work.of(small, 1024), Load(concurrency=1, prompt=1024, answer=128)
    needed = weights_of(work, Replica(), load) + constants.SERVING_RUNTIME
    tight = make_fleet(devices=1, gigabytes=1.05 * needed / 1e9)
    room = {
        name: roomy(work, Replica(), replace(load, engine=name), tight)
        for name in ("vllm", "trtllm")
    }
    assert room["vllm"] < 0.0 < room["trtllm"]


def test_a_shared_prefix_is_kept_once_and_computed_never(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 4096), make_fleet(devices=1)
    plain = Load(concurrency=8, prompt=4096, answer=128)
    shared = replace(plain, shared=3072)
    whole, less = (serve(work, Replica(), load, device) for load in (plain, shared))
    assert less.service < 0.4 * whole.service
    assert less.first_token < whole.first_token and less.per_token < whole.per_token
    assert less.room > 2.5 * whole.room


def test_chunks_bound_the_pause_and_lengthen_the_first_token(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 8192), make_fleet(devices=1)
    whole = Load(concurrency=8, prompt=8192, answer=512)
    cut = replace(whole, chunk=1024)
    assert whole.chunks == 1.0 and cut.chunks == 8.0
    plain, chunked = (serve(work, Replica(), load, device) for load in (whole, cut))
    assert chunked.first_token > plain.first_token + 6.0 * chunked.decode
    assert plain.service < chunked.service < 1.5 * plain.service
    assert chunked.service / cut.chunks < 0.3 * plain.service


def test_guesses_give_the_tokens_of_a_geometric_run() -> None:
    assert Speculation(accept=0.0, ahead=4).tokens == 1.0
    assert Speculation(accept=1.0, ahead=4).tokens == 5.0
    by_hand = 1.0 + 0.7 + 0.7**2
    found = Speculation(accept=0.7, ahead=2)
    assert found.tokens == pytest.approx(by_hand)
    # One token with 0.3, two with 0.21, three with 0.49.
    squares = 0.3 + 4 * 0.21 + 9 * 0.49
    assert found.variance == pytest.approx(squares - by_hand**2)
    assert Speculation(accept=1.0, ahead=4).variance == pytest.approx(0.0)


def test_a_draft_costs_its_steps_and_its_weights(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, device = Work.of(small, 512), make_fleet(devices=1)
    load = Load(concurrency=1, prompt=512, answer=128)
    guessed = replace(load, speculation=Speculation(accept=0.8, ahead=3, draft=work))
    plain = step_seconds(work, Replica(), load, 1.0, device)
    # The draft is the model itself: three more steps, and the check of four tokens.
    assert step_seconds(work, Replica(), guessed, 1.0, device) > 3.9 * plain
    assert weights_of(work, Replica(), guessed) == 2.0 * weights_of(work, Replica(), load)
    heads = replace(load, speculation=Speculation(accept=0.8, ahead=3))
    quick = serve(work, Replica(), heads, device)
    assert quick.per_token < 0.6 * serve(work, Replica(), load, device).per_token


def test_engines_hold_the_first_token_back(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, device = Work.of(small, 512), make_fleet(devices=1)
    first = {
        name: serve(
            work, Replica(), Load(concurrency=1, prompt=512, answer=128, engine=name), device
        ).first_token
        for name in constants.ENGINES
    }
    assert min(first, key=lambda name: first[name]) == "bare"
    alone = prefill_seconds(work, Replica(), Prompt(512.0), device)
    assert alone < first["bare"] < alone + 0.05


def test_those_who_all_come_at_once_wait_for_each_other(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 2048), make_fleet(devices=1)
    steady = Load(concurrency=33, prompt=2048, answer=512)
    service = joined_seconds(work, Replica(), steady, 33.0, device)
    often, burst = (
        serve(work, Replica(), replace(steady, rounds=rounds), device) for rounds in (1e9, 8.0)
    )
    # Four prompts share a pass and end with it; one process receives 33 requests in turn.
    engine = constants.ENGINES["vllm"]
    waits = engine.bunched * (17.5 * service + 16.0 * (engine.request + 2048 * engine.token))
    assert burst.first_token - often.first_token == pytest.approx(waits / 8, rel=1e-3)


def test_requests_of_one_length_follow_each_other_and_others_queue(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 4096), make_fleet(devices=1)
    steady = Load(concurrency=64, prompt=4096, answer=256)
    regular = replace(steady, rounds=1e9)
    assert serve(work, Replica(), regular, device).wait == 0.0
    assert serve(work, Replica(), steady, device).wait > 0.0
    # Those who compute prompts for several replicas cannot keep to the turns of one.
    apart = replace(regular, apart=Apart(replica=Replica()))
    assert serve(work, Replica(), apart, device).wait > 0.0


@settings(max_examples=40, deadline=None)
@given(
    requests=st.integers(1, 512), prompt=st.integers(16, 8192), answer=st.integers(1, 4096),
    tensor=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_more_requests_answer_more_in_all_and_each_no_sooner(
    requests: int, prompt: int, answer: int, tensor: int, small: ModelSpec, fleet: Fleet
) -> None:
    work, replica = Work.of(small, prompt), Replica(tensor=tensor)
    one, more = (
        serve(work, replica, Load(concurrency=count, prompt=prompt, answer=answer), fleet)
        for count in (requests, 2 * requests)
    )
    whole = [each.first_token + (answer - 1) * each.per_token for each in (one, more)]
    assert one.first_token > 0 and one.per_token > 0
    assert whole[1] >= 0.999 * whole[0]
    # Answers of a few tokens end with the steps that others join: of 4,000 drawn, 0.93 at worst.
    assert 2 * requests / whole[1] >= 0.9 * requests / whole[0]
