"""Each part of a step by hand, on devices without a ramp: a product takes its FLOP over 50e12."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from narrows.plan.fleet import constants
from narrows.plan.fleet.time import Step, waiting_share
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]
Take = Callable[..., dict[str, float]]

MATMUL, MEMORY = 100e12 * 0.5, 1e12 * 0.8
BUS, WIRE = constants.LINK * 100e9, constants.NETWORK * 10e9
T, D, F, V, LAYERS = 2048, 2048, 5632, 16_384, 8
WEIGHTS = D * (16 + 2 * 4) * 128 + D * 16 * 128 + 3 * D * F
PARAMETERS = LAYERS * WEIGHTS + 2 * V * D
SCORES = 2 * (T / 2) * 16 * 2 * 128
"""FLOP of a token's scores and values, forward."""


@pytest.fixture(scope="module")
def parts(take: Callable[..., Step], make_fleet: MakeFleet) -> Take:
    """Seconds by part: by default of the small model over devices without a ramp."""
    flat = make_fleet(half=0.0)

    def taken(**layout: Any) -> dict[str, float]:
        found = take(**{"on": flat, **layout})
        return {name: float(getattr(found, name)[0]) for name in found.__struct_fields__}

    return taken


# The distance doubles: four steps over sixteen devices, the last two of them between nodes.
WAITS = 4 * 1e-6 + 2 * 5e-6
APART = 2 * (1e-6 + 5e-6)


def gathered(moved: float, ranks: int, rate: float, waits: float) -> float:
    return (ranks - 1) * moved / ranks / rate + waits


def across_all(moved: float) -> float:
    """Seconds to gather over all sixteen devices: each node is left by its four ports."""
    return gathered(moved, 16, 4 * WIRE, WAITS)


def directions(found: dict[str, float]) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass of one micro-batch, head included."""
    forward = found["gemm"] / 3 + found["attention"] * (2 / 0.4) / (2 / 0.4 + 5 / 0.3)
    forward += constants.FORWARD_SHARE * found["pointwise"] + found["head"] / 3
    all_of_it = sum(found[name] for name in ("gemm", "attention", "pointwise", "head"))
    return forward, all_of_it - forward


def test_products_are_divided_by_the_tensor_ranks(parts: Take) -> None:
    assert parts(tensor=4)["gemm"] == pytest.approx(6 * LAYERS * WEIGHTS * T / 4 / MATMUL)


def test_the_ramp_is_added_to_every_side(take: Callable[..., Step]) -> None:
    sides = [(24 * 128 / 2, D), (D, 16 * 128 / 2), (2 * F / 2, D), (D, F / 2)]
    by_hand = sum(2 * (T + 64) * (out + 64) * (inner + 64) for out, inner in sides)
    taken = float(take(tensor=2).gemm[0])
    assert taken == pytest.approx(3 * LAYERS * by_hand / MATMUL)


def test_attention_by_tiles(parts: Take) -> None:
    flop = LAYERS * T * SCORES / 2
    found = parts(tensor=2, accumulation=3)["attention"]
    assert found == pytest.approx(3 * (flop / 40e12 + 2.5 * flop / 30e12))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_through_memory(parts: Take, small: ModelSpec, causal: bool) -> None:
    model = msgspec.structs.replace(small, causal=causal)
    found = parts(of=model, flash_attention=False, micro_batch=2, tensor=2, context=2)
    # The whole square, whether or not half of it is masked, in both passes: one and two products.
    square = 2 * 16 / 2 * T**2 / 2
    products = 3 * 2 * square * 2 * 128 / (MATMUL * constants.SCORE_REACH)
    moved = constants.SCORE_PASSES * square * 2 / MEMORY
    assert found["attention"] == pytest.approx(LAYERS * (products + moved))
    again = parts(of=model, flash_attention=False, micro_batch=2, tensor=2, context=2,
                  recompute="full")  # fmt: skip
    more = LAYERS * (products / 3 + constants.SCORE_FORWARD_SHARE * moved)
    assert again["attention"] == pytest.approx(found["attention"] + more)


@pytest.mark.parametrize(
    ("recompute", "flash", "again"),
    [("none", True, 0.0), ("selective", False, 0.5), ("selective", True, 1.0), ("full", True, 1.0)],
)
def test_memory_bound_operations(parts: Take, recompute: str, flash: bool, again: float) -> None:
    values = constants.PASSES_WIDTH * D + constants.PASSES_FEED_FORWARD * 1.5 * F
    seconds = LAYERS * T * values * 2 * constants.FUSED / MEMORY
    found = parts(tensor=4, recompute=recompute, flash_attention=flash)["pointwise"]
    assert found == pytest.approx((1 + constants.FORWARD_SHARE * again) * seconds / 4)


def test_memory_bound_operations_of_experts_and_of_plain_feed_forwards(
    parts: Take, small: ModelSpec, sparse: ModelSpec
) -> None:
    found = parts(of=sparse)["pointwise"] - parts(of=small)["pointwise"]
    # In seven layers two chosen experts and a shared one, all of 1024, instead of one of 5632.
    values = constants.PASSES_FEED_FORWARD * 1.5 * 7 * (3 * 1024 - F)
    # Each token is sorted to its two experts.
    values += constants.PASSES_EXPERT * 7 * 2 * D
    assert found == pytest.approx(T * values * 2 * constants.FUSED / MEMORY)


def test_head_and_loss(parts: Take) -> None:
    product = 6 * T * V * D / MATMUL
    loss = T * V * constants.LOGIT_BYTES / MEMORY
    assert parts(tensor=4)["head"] == pytest.approx((product + loss) / 4)
    assert parts(precision="fp8")["head"] == pytest.approx(product + loss)


def test_experts_see_their_tokens_and_all_share_the_rest(parts: Take, sparse: ModelSpec) -> None:
    expert = 3 * D * 1024
    attention = WEIGHTS - 3 * D * F
    # Four of sixteen experts on each of four ranks: an eighth of the tokens for each of them.
    routed = 2 * T * expert / constants.EXPERT_REACH
    shared = T * (expert + 16 * D)
    flop = 6 * (LAYERS * T * attention + T * 3 * D * F + 7 * (routed + shared))
    assert parts(of=sparse, data=4, expert=4)["gemm"] == pytest.approx(flop / MATMUL)


def test_few_tokens_for_an_expert_are_on_the_ramp(
    take: Callable[..., Step], sparse: ModelSpec
) -> None:
    few, many = (float(take(of=sparse, data=16, expert=e).gemm[0]) for e in (1, 16))
    # Sixteen local experts of 256 tokens, or one of 4096; the rest of the products is the same.
    sides = (2 * 1024 + 64) * (D + 64) + (D + 64) * (1024 + 64)
    tokens = 16 * (2 * T / 16 + 64) - (2 * T + 64)
    reached = MATMUL * constants.EXPERT_REACH
    assert few - many == pytest.approx(3 * 7 * 2 * tokens * sides / reached)


@pytest.mark.parametrize(("recompute", "passes"), [("none", 2), ("full", 3)])
def test_tensor_parallel_collectives(parts: Take, recompute: str, passes: int) -> None:
    """Two all-reduces a pass, each a gather and a scatter of the stream."""
    once = gathered(T * D * 2, 4, BUS, 2e-6)
    found = parts(tensor=4, recompute=recompute, sequence_parallel=False)["tensor"]
    assert found == pytest.approx(LAYERS * passes * 4 * once)


@pytest.mark.parametrize(("precision", "width"), [("bf16", 2 + 2), ("fp8", 1 + 2)])
@pytest.mark.parametrize(("recompute", "passes"), [("none", 2), ("full", 3)])
def test_the_exchange_with_experts(
    parts: Take, sparse: ModelSpec, recompute: str, passes: int, precision: str, width: int
) -> None:
    found = parts(of=sparse, data=16, expert=16, recompute=recompute, precision=precision)
    sent = T * 2 * D * width
    once = max(sent * 12 / 16 / WIRE, sent * 3 / 16 / BUS) + 15 * 1e-6
    assert found["expert"] == pytest.approx(constants.EXPERT_SHOWN * 7 * passes * once)


def test_the_ring_of_contexts(parts: Take, make_fleet: MakeFleet) -> None:
    slow = make_fleet(half=0.0, network=0.5e9)
    found = parts(on=slow, context=16)
    flop = T / 16 * SCORES
    keys = 2 * 4 * 128 * T * 2
    once = gathered(keys, 16, 4 * 0.05 * WIRE, WAITS)
    shown = max(0.0, once - flop / 40e12) + max(0.0, 2 * once - 2.5 * flop / 30e12)
    assert shown > 0.0 and found["context"] == pytest.approx(LAYERS * shown)


@pytest.mark.parametrize(("data", "rate", "wait"), [(2, BUS, 0.0), (8, WIRE, 5e-6)])
def test_hops_to_the_next_stage_and_back(parts: Take, data: int, rate: float, wait: float) -> None:
    hop = 2 * T * D * 2 / rate + wait
    found = parts(data=data, pipeline=2, accumulation=6, interleave=2)
    # Between pieces of a stage part of the way is behind other pieces' work.
    assert found["pipeline"] == pytest.approx(constants.HOPS_SHOWN * 2 * (6 + 1) * hop)
    in_context = parts(context=data, pipeline=2)
    assert in_context["pipeline"] == pytest.approx(2 * ((hop - wait) / data + wait))


def test_whole_streams_hop_where_they_are_not_cut(parts: Take) -> None:
    moved = 2 * T * D * 2
    found = parts(tensor=2, pipeline=2, sequence_parallel=False)
    assert found["pipeline"] == pytest.approx((1 + 1) * (moved / 2 / BUS + moved / BUS))


def test_a_stack_that_waits_for_its_host_idles_at_every_block(parts: Take) -> None:
    usual, waiting = (parts(accumulation=6, waits_for_host=wait) for wait in (False, True))
    assert waiting["pipeline"] == pytest.approx(6 * LAYERS * constants.HOST_BLOCK)
    assert {**waiting, "pipeline": 0.0, "waiting": 0.0} == {**usual, "waiting": 0.0}
    staged = parts(pipeline=4, accumulation=6, waits_for_host=True)
    bubble = parts(pipeline=4, accumulation=6)["bubble"] + 3 * LAYERS / 4 * constants.HOST_BLOCK
    assert staged["bubble"] == pytest.approx(bubble)


def test_more_devices_wait_for_a_slower_one() -> None:
    assert waiting_share(1) == constants.WAITING
    few, many, most = waiting_share(8), waiting_share(64), waiting_share(4096)
    # √(2 ln 64) is √2 times √(2 ln 8), and √(2 ln 4096) twice it.
    assert many - waiting_share(1) == pytest.approx(2**0.5 * (few - waiting_share(1)))
    assert most - waiting_share(1) == pytest.approx(2.0 * (few - waiting_share(1)))


def test_blocks_are_done_again_in_part(parts: Take) -> None:
    none, half, full = (
        parts(recompute=kind, recomputed=share)
        for kind, share in (("none", 1.0), ("full", 0.5), ("full", 1.0))
    )
    for name in ("gemm", "attention", "pointwise"):
        assert half[name] == pytest.approx((none[name] + full[name]) / 2)
        assert none[name] < full[name]


def test_launched_kernels_do_not_do_the_last_product_again(parts: Take) -> None:
    again = {
        kernels: parts(recompute="full", kernels=kernels)["gemm"] - parts(kernels=kernels)["gemm"]
        for kernels in ("fused", "eager")
    }
    assert again["fused"] == pytest.approx(2 * LAYERS * WEIGHTS * T / MATMUL)
    assert again["eager"] == pytest.approx(2 * LAYERS * (WEIGHTS - D * F) * T / MATMUL)


def test_the_bubble_waits_for_collectives_too(parts: Take) -> None:
    found = parts(tensor=2, pipeline=4, accumulation=8)
    one = (found["gemm"] + found["attention"] + found["pointwise"] + found["head"]) / 8
    assert found["bubble"] == pytest.approx(3 * (one + found["tensor"] / 8))


def test_gradients_are_summed_in_fp32_and_weights_gathered_in_16_bits(parts: Take) -> None:
    found = parts(data=16, sharding="optimizer")["data"]
    both = across_all(4 * PARAMETERS) + across_all(2 * PARAMETERS)
    assert found == pytest.approx(constants.EXPOSED_REDUCTION * both)


def test_gathering_parameters_hides_behind_the_passes(parts: Take, make_fleet: MakeFleet) -> None:
    found = parts(on=make_fleet(half=0.0, network=2e9), data=16, sharding="parameters")
    forward, backward = directions(found)
    once = gathered(2 * PARAMETERS, 16, 4 * 0.2 * WIRE, WAITS)
    # Backward gathers again, and reduces twice the bytes: gradients are summed in fp32.
    back = once + 2 * once - WAITS
    shown = max(constants.CONTENTION * once, once - constants.OVERLAP * forward)
    shown += max(constants.CONTENTION * back, back - constants.OVERLAP * backward)
    assert shown > constants.CONTENTION * (once + back)
    assert found["data"] == pytest.approx(shown + back / LAYERS)
    quick = parts(on=make_fleet(half=0.0, network=1e12), data=16, sharding="parameters")
    hidden = gathered(2 * PARAMETERS, 16, BUS, WAITS)
    back = hidden + 2 * hidden - WAITS
    taken = constants.CONTENTION * (hidden + back)
    assert quick["data"] == pytest.approx(taken + back / LAYERS)


@pytest.mark.parametrize(("sharding", "share"), [("optimizer", 1), ("parameters", 4)])
def test_copies_reduce_their_share_of_the_gradients(
    parts: Take, make_fleet: MakeFleet, sharding: str, share: int
) -> None:
    slow = make_fleet(half=0.0, network=0.5e9)
    alone = parts(on=slow, data=4, sharding=sharding)
    copied = parts(on=slow, data=4, replicas=4, sharding=sharding)
    reduced = 2 * gathered(2 * PARAMETERS / share, 4, 0.05 * WIRE, APART)
    _, backward = directions(alone)
    assert copied["data"] - alone["data"] == pytest.approx(reduced - 0.5 * backward)


def test_experts_are_reduced_among_their_copies_alone(parts: Take, sparse: ModelSpec) -> None:
    own = 7 * 16 * 3 * D * 1024
    common = PARAMETERS - 7 * 3 * D * F + 7 * (3 * D * 1024 + 16 * D)
    found = parts(of=sparse, data=16, expert=4, sharding="optimizer")

    def both(width: int) -> float:
        # Four ranks, one in each node, hold the same experts.
        copies = gathered(width * own / 4, 4, WIRE, APART)
        return across_all(width * common) + copies

    expected = constants.EXPOSED_REDUCTION * (both(4) + both(2))
    assert found["data"] == pytest.approx(expected)
    mine = (common + own) / 16
    assert found["optimizer"] == pytest.approx(constants.OPTIMIZER_BYTES * mine / MEMORY)
    cut = parts(of=sparse, data=8, tensor=2, expert=4)["optimizer"]
    in_two = common - 7 * 16 * D + 7 * 16 * D * 2
    assert cut == pytest.approx(constants.OPTIMIZER_BYTES * (in_two + own) / 16 / MEMORY)
    assert parts(of=sparse, expert=4, data=16, sharding="none")["optimizer"] == pytest.approx(
        constants.OPTIMIZER_BYTES * (common + own / 4) / MEMORY
    )
