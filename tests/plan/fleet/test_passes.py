from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from narrows.model.presets import preset
from narrows.plan.fleet import constants
from narrows.plan.fleet.passes import (
    Prompt,
    Replica,
    Tokens,
    cache_bytes_per_token,
    decode_pass,
    decode_seconds,
    peak_of,
    prefill_pass,
    prefill_seconds,
    reductions,
    seen,
    starts,
    touched_bytes,
    weights_bytes,
)
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]


def test_one_request_decodes_at_the_rate_that_weights_are_read(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 1024), make_fleet(devices=1)
    weights = touched_bytes(work, Replica(), 1.0) / constants.SERVING_MEMORY
    cache = 128 * cache_bytes_per_token(small, Replica()) / constants.SERVING_CACHE
    starts = small.layers * constants.SERVING_BLOCK + constants.SERVING_STEP
    found = decode_seconds(work, Replica(), 1.0, 128.0, device)
    assert found == pytest.approx((weights + cache) / 1e12 + starts + constants.SERVING_SEQUENCE)


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
    # Two of eight for each, and the second token's as if not quite drawn by chance.
    met = 8.0 * (1.0 - 0.75**2.0**constants.SERVING_DRAWS)
    assert two - one == pytest.approx((met - 2.0) * each)
    assert 1.3 * each < two - one < 1.5 * each
    assert many - one == pytest.approx(6.0 * each)


def test_four_bits_are_of_experts_alone_where_there_are_any(sparse: ModelSpec) -> None:
    work = Work.of(sparse, 1024)
    wide, narrow = (weights_bytes(work, Replica(weight_bits=bits)) for bits in (16.0, 4.0))
    experts = work.layers_experts * 16 * sum(m.parameters for m in work.expert)
    assert wide - narrow == pytest.approx(experts * 1.5)


def test_groups_that_attend_for_themselves_hold_attention_each(sparse: ModelSpec) -> None:
    work = Work.of(sparse, 1024)
    together, apart = (Replica(tensor=4, attention_data=groups) for groups in (1, 4))
    attention = 2.0 * work.layers * sum(m.parameters for m in work.attention)
    more = weights_bytes(work, apart) - weights_bytes(work, together)
    assert more == pytest.approx(0.75 * attention)


def test_a_window_bounds_what_is_read_of_the_past(make_fleet: MakeFleet) -> None:
    mistral = preset("mistral-7b-v0.1").spec
    full = replace(mistral, window=None)
    device = make_fleet(devices=1)

    def at(spec: ModelSpec, past: float) -> float:
        return decode_seconds(Work.of(spec, 1024), Replica(), 8.0, past, device)

    assert at(mistral, 30_000.0) == pytest.approx(at(mistral, 4096.0))
    assert at(full, 30_000.0) > 1.2 * at(mistral, 30_000.0)


def test_layers_of_both_kinds_are_counted_as_they_lie() -> None:
    for name in ("gpt-oss-120b", "gemma-3-27b", "llama-3.1-8b"):
        spec = preset(name).spec
        sizes = [spec.window_of(layer) for layer in range(spec.layers)]
        mean = sum(min(9000.0, size or 9000.0) for size in sizes) / spec.layers
        assert seen(spec, 9000.0) == pytest.approx(mean)


def test_fewer_bits_are_read_faster(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, device = Work.of(small, 1024), make_fleet(devices=1)
    steps = [
        decode_seconds(work, Replica(weight_bits=bits), 1.0, 1.0, device) for bits in (16.0, 8.0)
    ]
    table = 2.0 * small.vocabulary * small.width
    saved = (touched_bytes(work, Replica(), 1.0) - table) / 2.0
    assert steps[0] - steps[1] == pytest.approx(saved / 1e12 / constants.SERVING_MEMORY)


def test_a_narrow_format_computes_faster_only_where_the_device_has_it(
    make_fleet: MakeFleet,
) -> None:
    device, old = make_fleet(), make_fleet(formats=("fp32", "bf16"))
    assert peak_of(device, 8.0) > 1.5 * peak_of(device, 16.0)
    assert peak_of(device, 4.5) == peak_of(device, 16.0)
    assert peak_of(old, 8.0) == peak_of(old, 16.0) == peak_of(device, 16.0)


def test_kernels_that_start_one_by_one_take_longer(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, device = Work.of(small, 1024), make_fleet(devices=1)
    graph, eager = (
        decode_seconds(work, Replica(captured=captured), 1.0, 1.0, device)
        for captured in (True, False)
    )
    assert eager - graph == pytest.approx(small.layers * constants.SERVING_EAGER)


def test_operands_are_brought_into_formats_by_kernels_of_their_own(
    sparse: ModelSpec, small: ModelSpec, make_fleet: MakeFleet
) -> None:
    old = make_fleet(formats=("bf16", "fp8"))
    new = replace(old, peak={**old.peak, "fp4": old.peak["fp8"]})
    dense, experts = Work.of(small, 1024), Work.of(sparse, 1024)

    def more(work: Work, bits: float, fleet: Fleet, compute: float | None = None) -> float:
        narrow = starts(work, Replica(weight_bits=bits, compute_bits=compute), 1.0, fleet)
        return narrow - starts(work, Replica(), 1.0, fleet)

    assert more(dense, 8.0, new) == 0.0 and more(dense, 4.5, new, 16.0) == 0.0
    assert more(dense, 4.5, new) == pytest.approx(small.layers * constants.SERVING_NARROWED)
    each = experts.layers_experts * constants.SERVING_NARROWED_EXPERTS
    assert more(experts, 8.0, new) == more(experts, 4.5, old) == pytest.approx(each)
    assert more(experts, 4.5, new) == 0.0


def test_prefill_is_bound_by_computing(small: ModelSpec, make_fleet: MakeFleet) -> None:
    device = make_fleet(devices=1)
    work = Work.of(small, 8192)
    least = 2.0 * 8192 * (small.product_parameters_active - small.vocabulary * small.width)
    seconds = prefill_seconds(work, Replica(), Prompt(8192.0), device)
    reached = peak_of(device, 16.0)
    assert least / reached < seconds < 2.5 * least / reached
    parts = prefill_pass(work, Replica(), Prompt(8192.0), device)
    assert parts.compute > 0.5 * parts.seconds == pytest.approx(0.5 * seconds)


def test_what_joins_a_step_starts_nothing_and_reads_no_weights_again(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 16), make_fleet(devices=1)
    alone = prefill_pass(work, Replica(), Prompt(16.0), device)
    joined = prefill_pass(work, Replica(), Prompt(16.0, beside=4.0), device)
    assert joined.starts == 0.0
    # So few tokens compute for less time than the weights take to read.
    assert joined.seconds < 0.2 * alone.seconds


def test_tokens_that_are_kept_are_attended_to_and_not_computed(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, device = Work.of(small, 8192), make_fleet(devices=1)
    whole, rest, short = (
        prefill_seconds(work, Replica(), prompt, device)
        for prompt in (Prompt(8192.0), Prompt(2048.0, cached=6144.0), Prompt(2048.0))
    )
    assert short < rest < 0.5 * whole


def test_checking_guesses_reads_the_past_once(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, device = Work.of(small, 1024), make_fleet(devices=1)
    one, five = (
        decode_pass(work, Replica(), Tokens(each, 1.0, 4096.0), device) for each in (1.0, 5.0)
    )
    assert five.read == pytest.approx(one.read, rel=0.01)
    assert decode_seconds(work, Replica(), 1.0, 4096.0, device, 5.0) == pytest.approx(five.seconds)


def test_ranks_reduce_after_each_half_of_a_block(small: ModelSpec, fleet: Fleet) -> None:
    work, replica = Work.of(small, 1024), Replica(tensor=4)
    parts = decode_pass(work, replica, Tokens(1.0, 1.0, 128.0), fleet)
    reduce = constants.SERVING_REDUCE + 4 * constants.SERVING_REDUCE_RANK
    assert parts.links == pytest.approx(2 * small.layers * reduce, rel=0.1)
    alone = decode_pass(work, replace(replica, tensor=1), Tokens(1.0, 1.0, 128.0), fleet)
    assert alone.links == 0.0 and alone.read > 3.0 * parts.read


def test_a_switch_that_adds_up_sends_each_rank_the_sum_alone(
    small: ModelSpec, fleet: Fleet
) -> None:
    work, replica, tokens = Work.of(small, 1024), Replica(tensor=4), 65_536.0
    adding = replace(fleet, reach=replace(fleet.reach, switched=0.9))
    # A ring brings 2 (n-1)/n of the values; a switch the sum, and a rank's own share of the parts.
    moved = 2 * small.layers * tokens * small.width * 2
    rate = float(fleet.domains[0].bandwidth.value)
    (ring, received), (switch, less) = (
        reductions(work, replica, tokens, each) for each in (fleet, adding)
    )
    assert (received, less) == pytest.approx((1.5 * moved, 1.25 * moved))
    assert switch - ring == pytest.approx((1.25 / 0.9 - 1.5) * moved / rate, rel=1e-6)


def test_small_sums_are_read_all_at_once(small: ModelSpec, fleet: Fleet) -> None:
    _, received = reductions(Work.of(small, 1024), Replica(tensor=4), 1.0, fleet)
    assert received == pytest.approx(2 * small.layers * 3 * small.width * 2)


def test_a_sum_beyond_a_domain_goes_by_its_ports(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work, tokens = Work.of(small, 1024), 65_536.0
    far, near = make_fleet(devices=8, per_node=4), make_fleet(devices=8, per_node=8)
    slow, quick = (reductions(work, Replica(tensor=8), tokens, each)[0] for each in (far, near))
    assert slow > quick
