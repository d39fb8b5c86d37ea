from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.model.presets import preset
from narrows.plan.fleet import constants
from narrows.plan.fleet.serving import (
    Load,
    Replica,
    cache_bytes_per_token,
    decode_seconds,
    prefill_seconds,
    serve,
    touched_bytes,
)
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]


def test_one_request_decodes_at_the_rate_that_weights_are_read(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 1024), make_fleet(devices=1)
    read = touched_bytes(work, Replica(), 1.0)
    rate = 1e12 * constants.SERVING_MEMORY
    fixed = small.layers * constants.SERVING_BLOCK + constants.SERVING_STEP
    cache = 128 * cache_bytes_per_token(small, Replica())
    found = decode_seconds(work, Replica(), 1.0, 128.0, device)
    assert found == pytest.approx((read + cache) / rate + fixed)


def test_weights_are_what_products_hold(small: ModelSpec) -> None:
    read = touched_bytes(Work.of(small, 1024), Replica(), 1.0)
    norms = (2 * small.layers + 1) * small.width
    table = small.vocabulary * small.width
    assert read == pytest.approx(2.0 * (small.parameters - norms - table))


def test_a_cache_holds_keys_and_values_of_each_layer() -> None:
    llama = preset("llama-3.1-8b").spec
    assert cache_bytes_per_token(llama, Replica()) == 2 * 32 * 8 * 128 * 2
    assert cache_bytes_per_token(llama, Replica(tensor=4)) == 2 * 32 * 2 * 128 * 2
    # No fewer than one head: sixteen ranks hold eight heads twice.
    assert cache_bytes_per_token(llama, Replica(tensor=16)) == 2 * 32 * 1 * 128 * 2


def test_latent_attention_keeps_one_vector_for_all_heads() -> None:
    deepseek = preset("deepseek-v3").spec
    assert cache_bytes_per_token(deepseek, Replica()) == 61 * (512 + 64) * 2


def test_more_tokens_meet_more_experts() -> None:
    work = Work.of(preset("mixtral-8x7b").spec, 1024)
    one, two, many = (touched_bytes(work, Replica(), tokens) for tokens in (1.0, 2.0, 1e6))
    each = work.layers_experts * sum(m.parameters for m in work.expert) * 2.0
    assert two - one == pytest.approx(1.5 * each)
    assert many - one == pytest.approx(6.0 * each)


def test_a_window_bounds_what_is_read_of_the_past(make_fleet: MakeFleet) -> None:
    mistral = preset("mistral-7b-v0.1").spec
    full = msgspec.structs.replace(mistral, window=None)
    device = make_fleet(devices=1)

    def at(spec: ModelSpec, past: float) -> float:
        return decode_seconds(Work.of(spec, 1024), Replica(), 8.0, past, device)

    assert at(mistral, 30_000.0) == pytest.approx(at(mistral, 4096.0))
    assert at(full, 30_000.0) > 1.2 * at(mistral, 30_000.0)


def test_fewer_bits_are_read_faster(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, device = Work.of(small, 1024), make_fleet(devices=1)
    steps = [
        decode_seconds(work, Replica(weight_bits=bits), 1.0, 1.0, device) for bits in (16.0, 8.0)
    ]
    table = 2.0 * small.vocabulary * small.width
    saved = (touched_bytes(work, Replica(), 1.0) - table) / 2.0
    assert steps[0] - steps[1] == pytest.approx(saved / 1e12 / constants.SERVING_MEMORY)


def test_prefill_is_bound_by_computing(small: ModelSpec, make_fleet: MakeFleet) -> None:
    device = make_fleet(devices=1)
    work = Work.of(small, 8192)
    least = 2.0 * 8192 * (small.product_parameters_active - small.vocabulary * small.width)
    seconds = prefill_seconds(work, Replica(), 8192.0, device)
    assert least / 50e12 < seconds < 2.5 * least / 50e12


def test_prompts_that_join_slow_those_that_decode(small: ModelSpec, fleet: Fleet) -> None:
    work = Work.of(small, 4096)
    long = Load(concurrency=16, prompt=4096, answer=128)
    together = serve(work, Replica(), long, fleet)
    apart = serve(work, Replica(), replace(long, apart=True), fleet)
    assert apart.per_token == pytest.approx(apart.decode)
    assert together.per_token == pytest.approx(together.decode + 16 / 128 * together.prefill)


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
    assert more.per_token >= one.per_token > 0
    assert more.first_token >= one.first_token > one.prefill
    assert 2 * requests / more.per_token >= 0.999 * requests / one.per_token
