from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.plan.fleet import constants
from narrows.plan.fleet.time import Step, waiting_share
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet
from narrows.spec.model import Alibi, ModelSpec

MakeFleet = Callable[..., Fleet]
TakeStep = Callable[..., Step]
PARTS = list(Step.__struct_fields__)
# What one micro-batch takes a stage; the rest comes once a step.
OF_A_MICRO_BATCH = (
    "gemm", "attention", "pointwise", "head", "tensor", "expert", "context",
)  # fmt: skip
FEW = st.sampled_from((1, 2, 4))


def parts(step: Step) -> dict[str, float]:
    return {name: float(getattr(step, name)[0]) for name in PARTS}


def seconds(step: Step) -> float:
    return float(step.seconds[0])


def micro_batches(step: Step) -> float:
    """Seconds of all micro-batches, without the pipeline's losses."""
    return sum(parts(step)[name] for name in OF_A_MICRO_BATCH)


def stack_parameters(model: ModelSpec) -> int:
    """Weights in products, the head's left out."""
    return model.product_parameters_active - model.vocabulary * model.width


def test_products_without_a_ramp_take_six_flop_a_weight_and_token(
    take: TakeStep, make_fleet: MakeFleet, small: ModelSpec
) -> None:
    taken = take(on=make_fleet(half=0.0), micro_batch=2, accumulation=3)
    flop = 6 * stack_parameters(small) * 2 * 3 * small.context
    assert parts(taken)["gemm"] == pytest.approx(flop / (100e12 * 0.5))


def test_the_ramp_is_small_for_large_products_and_large_for_small_ones(
    take: TakeStep, small: ModelSpec
) -> None:
    huge = msgspec.structs.replace(
        small, width=16_384, heads=128, kv_heads=128, feed_forward_width=53_248, context=8192
    )
    tiny = msgspec.structs.replace(small, width=64, heads=1, kv_heads=1, feed_forward_width=128,
                                   head_width=64, context=64)  # fmt: skip
    over = []
    for model in (huge, small, tiny):
        flop = 6 * stack_parameters(model) * model.context
        over.append(parts(take(of=model))["gemm"] / (flop / (100e12 * 0.5)))
    assert 1.0 < over[0] < 1.03 < over[1] < 1.2 < 3 < over[2]


@settings(deadline=None, max_examples=60)
@given(
    data=FEW, replicas=FEW, tensor=FEW, pipeline=FEW, context=FEW, expert=FEW,
    micro_batch=FEW, accumulation=st.sampled_from((1, 3, 8)), interleave=st.sampled_from((1, 2)),
    sharding=st.sampled_from(("none", "optimizer", "gradients", "parameters")),
    recompute=st.sampled_from(("none", "selective", "full")),
    precision=st.sampled_from(("fp32", "bf16", "fp8")),
    sequence_parallel=st.booleans(), flash_attention=st.booleans(), sparsely=st.booleans(),
    kernels=st.sampled_from(("eager", "fused", "compiled")),
)  # fmt: skip
def test_no_part_is_negative_and_all_make_the_step(
    take: TakeStep, small: ModelSpec, sparse: ModelSpec, sparsely: bool, **layout: Any
) -> None:
    taken = take(of=sparse if sparsely else small, **layout)
    found = parts(taken)
    assert all(np.isfinite(value) and value >= 0.0 for value in found.values()), found
    assert sum(found.values()) == pytest.approx(seconds(taken))
    waiting = found.pop("waiting")
    assert waiting == pytest.approx(waiting_share(16) * sum(found.values()))


@pytest.mark.parametrize("interleave", [1, 2])
@pytest.mark.parametrize("pipeline", [2, 4])
def test_the_bubble_is_what_filling_the_pipeline_takes(
    take: TakeStep, pipeline: int, interleave: int
) -> None:
    taken = take(data=2, pipeline=pipeline, accumulation=8, interleave=interleave)
    one = micro_batches(taken) / 8
    assert parts(taken)["bubble"] == pytest.approx((pipeline - 1) / interleave * one)


def test_one_stage_has_neither_bubble_nor_hops(take: TakeStep) -> None:
    found = parts(take(data=16, accumulation=4))
    assert found["pipeline"] == 0.0 and found["bubble"] == pytest.approx(0.0, abs=1e-12)


def test_layers_that_stages_cannot_share_evenly_are_waited_for(take: TakeStep) -> None:
    """Of eight layers over three stages the fullest has three, which all micro-batches wait for."""
    found = parts(take(pipeline=3, accumulation=300))
    layers = found["gemm"] + found["attention"] + found["pointwise"]
    even_share, fullest = layers / (8 / 3), layers / (8 / 3) * 3
    filling = 2 / 300
    assert found["bubble"] > fullest - 8 / 3 * even_share - found["head"]
    assert found["bubble"] < (fullest - 8 / 3 * even_share) + filling * 2 * fullest


def test_hops_grow_with_the_pieces_and_shrink_with_the_tensor_ranks(take: TakeStep) -> None:
    once = parts(take(data=2, pipeline=2, accumulation=8))["pipeline"]
    assert once > 0.0
    pieces = parts(take(data=2, pipeline=2, accumulation=8, interleave=2))["pipeline"]
    assert pieces == pytest.approx(constants.HOPS_SHOWN * 2 * once)
    assert parts(take(tensor=2, pipeline=2, accumulation=8))["pipeline"] < once


@pytest.mark.parametrize("sharding", ["none", "optimizer", "parameters"])
def test_twice_the_data_ranks_halve_a_fixed_batch_but_for_their_collectives(
    take: TakeStep, sharding: str
) -> None:
    half, whole = (
        parts(take(data=data, accumulation=64 // data, sharding=sharding)) for data in (4, 8)
    )
    for name in OF_A_MICRO_BATCH:
        assert whole[name] == pytest.approx(half[name] / 2), name
    if sharding != "none":
        assert whole["optimizer"] == pytest.approx(half["optimizer"] / 2)
    assert whole["data"] > 0.0


def test_one_data_rank_reduces_nothing(take: TakeStep) -> None:
    assert parts(take(tensor=4))["data"] == 0.0 < parts(take(data=4))["data"]


def test_gradients_are_reduced_once_a_step_and_parameters_gathered_each_time(
    take: TakeStep,
) -> None:
    by_stage = {
        sharding: [parts(take(data=16, sharding=sharding, accumulation=m))["data"] for m in (1, 4)]
        for sharding in ("optimizer", "parameters")
    }
    assert by_stage["optimizer"][1] == by_stage["optimizer"][0]
    assert by_stage["parameters"][1] == pytest.approx(4 * by_stage["parameters"][0])


def test_sets_within_a_node_spare_the_network(take: TakeStep, make_fleet: MakeFleet) -> None:
    """Hybrid sharding: parameters gathered over the bus, gradients once over the wire."""
    slow = make_fleet(network=2e9)
    layout = {"sharding": "parameters", "micro_batch": 2, "accumulation": 8}
    flat = parts(take(on=slow, data=16, **layout))
    hybrid = parts(take(on=slow, data=4, replicas=4, **layout))
    assert hybrid["data"] < flat["data"] / 2
    assert hybrid["optimizer"] == pytest.approx(4 * flat["optimizer"])
    for name in OF_A_MICRO_BATCH:
        assert hybrid[name] == flat[name]


def test_copies_of_a_set_exchange_their_gradients(take: TakeStep) -> None:
    alone = parts(take(data=4, sharding="parameters"))["data"]
    assert parts(take(data=4, replicas=4, sharding="parameters"))["data"] > alone


def test_what_is_computed_again_is_a_third_of_the_products(take: TakeStep) -> None:
    none, selective, full = (
        take(data=16, accumulation=4, recompute=name) for name in ("none", "selective", "full")
    )
    assert parts(full)["gemm"] == pytest.approx(4 / 3 * parts(none)["gemm"])
    assert 1.27 < micro_batches(full) / micro_batches(none) < 1.35
    # PyTorch's selective checkpointing does half of the products again, and no attention.
    assert parts(selective)["gemm"] == pytest.approx(7 / 6 * parts(none)["gemm"])
    assert micro_batches(none) < micro_batches(selective) < micro_batches(full)
    assert parts(selective)["attention"] == parts(none)["attention"]
    again = parts(full)["attention"] - parts(none)["attention"]
    # Forward is 2 products at a rate of 0.4, backward 5 at 0.3.
    assert again / parts(none)["attention"] == pytest.approx((2 / 0.4) / (2 / 0.4 + 5 / 0.3))


def test_scores_are_computed_again_where_they_are_dropped(take: TakeStep) -> None:
    none, selective = (
        take(data=16, flash_attention=False, recompute=name) for name in ("none", "selective")
    )
    assert parts(selective)["gemm"] == parts(none)["gemm"]
    assert parts(selective)["attention"] > parts(none)["attention"]


def test_narrower_formats_are_quicker_and_wider_ones_slower(take: TakeStep) -> None:
    wide, usual, narrow = (parts(take(data=16, precision=p)) for p in ("fp32", "bf16", "fp8"))
    assert narrow["gemm"] == pytest.approx(usual["gemm"] / 2)
    assert wide["gemm"] == pytest.approx(4 * usual["gemm"])
    for name in ("attention", "head"):
        # Scores and the head stay in 16 bits, where there are fewer.
        assert narrow[name] == pytest.approx(usual[name]) and usual[name] < wide[name], name
    assert narrow["pointwise"] == usual["pointwise"] == wide["pointwise"] / 2
    assert take(data=16, precision="fp16").seconds == take(data=16).seconds


def test_a_device_without_bf16_computes_in_fp16(take: TakeStep, make_fleet: MakeFleet) -> None:
    older = make_fleet(formats=("fp32", "fp16"))
    assert take(on=older, precision="bf16").seconds == take(precision="bf16").seconds


def test_a_format_that_the_device_lacks_is_refused_with_those_it_has(
    take: TakeStep, make_fleet: MakeFleet
) -> None:
    with pytest.raises(BadInput, match="made-up has no fp4 figures") as caught:
        take(precision="fp4")
    assert str(caught.value.hint).endswith("with one of fp32, bf16, fp16, fp8")
    with pytest.raises(BadInput, match="no bf16"):
        take(on=make_fleet(formats=()))
    with pytest.raises(BadInput, match="no int8") as caught:
        take(on=make_fleet(formats=("bf16", "int8")), precision="int8")
    assert str(caught.value.hint).endswith("with one of bf16")


def test_sequence_parallelism_divides_what_tensor_parallelism_leaves_whole(
    take: TakeStep,
) -> None:
    without, with_it = (
        parts(take(data=4, tensor=4, sequence_parallel=chosen)) for chosen in (False, True)
    )
    assert with_it["pointwise"] < 0.6 * without["pointwise"]
    assert with_it["tensor"] == pytest.approx((1 - constants.TENSOR_OVERLAP) * without["tensor"])
    assert with_it["gemm"] == without["gemm"]


def test_tensor_parallelism_costs_collectives_that_leave_the_node_dearly(take: TakeStep) -> None:
    alone, inside, beyond = (parts(take(tensor=t))["tensor"] for t in (1, 4, 8))
    assert alone == 0.0 < 2 * inside < beyond


def test_the_exchange_grows_with_the_experts_that_are_chosen(
    take: TakeStep, small: ModelSpec, sparse: ModelSpec
) -> None:
    assert sparse.experts is not None
    found = []
    for chosen in (1, 2, 4):
        experts = msgspec.structs.replace(sparse.experts, chosen=chosen)
        model = msgspec.structs.replace(sparse, experts=experts)
        found.append(parts(take(of=model, data=16, expert=16)))
    exchanged = [each["expert"] for each in found]
    assert 1.9 < exchanged[1] / exchanged[0] < 2.0 and 1.9 < exchanged[2] / exchanged[1] < 2.0
    assert found[0]["gemm"] < found[1]["gemm"] < found[2]["gemm"]
    assert parts(take(of=small, data=16))["expert"] == 0.0
    assert parts(take(of=sparse, data=16))["expert"] == 0.0


def test_experts_that_stay_in_the_node_are_exchanged_quicker(
    take: TakeStep, sparse: ModelSpec
) -> None:
    inside, beyond = (parts(take(of=sparse, data=16, expert=e))["expert"] for e in (4, 16))
    assert 0.0 < 3 * inside < beyond


def test_few_experts_a_rank_see_more_tokens_each(take: TakeStep, sparse: ModelSpec) -> None:
    spread = [parts(take(of=sparse, data=16, expert=expert))["gemm"] for expert in (1, 4, 16)]
    assert spread[0] > spread[1] > spread[2]


def test_attention_through_memory_is_slower_than_by_tiles(take: TakeStep) -> None:
    tiles, through = (
        parts(take(data=16, flash_attention=chosen)) for chosen in (True, False)
    )  # fmt: skip
    assert through["attention"] > 2 * tiles["attention"]
    assert through["gemm"] == tiles["gemm"]


def test_tiles_are_at_their_best_with_wide_heads_and_without_a_bias(
    take: TakeStep, small: ModelSpec
) -> None:
    usual = parts(take())["attention"]
    narrow = msgspec.structs.replace(small, heads=32, kv_heads=8, head_width=64)
    assert parts(take(of=narrow))["attention"] == pytest.approx(
        usual * 2**constants.HEAD_WIDTH_POWER
    )
    biased = msgspec.structs.replace(small, positions=Alibi())
    assert parts(take(of=biased))["attention"] == pytest.approx(2 * usual)


def test_heads_whose_width_is_no_multiple_of_eight_miss_the_tensor_cores(
    take: TakeStep, small: ModelSpec
) -> None:
    found = []
    for width in (104, 100):
        model = msgspec.structs.replace(small, head_width=width)
        found.append(parts(take(of=model, flash_attention=False))["attention"])
    assert found[1] > 2 * found[0]


def test_a_ring_of_contexts_hides_behind_long_attention_alone(
    take: TakeStep, make_fleet: MakeFleet, small: ModelSpec
) -> None:
    slow = make_fleet(network=1e9)
    assert parts(take(context=4))["context"] == 0.0
    assert parts(take(on=slow, context=16))["context"] > 0.0
    lengthy = msgspec.structs.replace(small, context=1_048_576)
    assert parts(take(on=slow, of=lengthy, context=16))["context"] == 0.0
    assert parts(take(data=16))["context"] == 0.0


def test_compiled_kernels_move_least(take: TakeStep) -> None:
    apart, fused, compiled = (
        parts(take(kernels=chosen))["pointwise"] for chosen in ("eager", "fused", "compiled")
    )
    assert fused == pytest.approx(constants.FUSED * apart)
    assert compiled == pytest.approx(constants.COMPILED * apart) and compiled < fused <= apart


def test_frozen_weights_need_no_gradient_of_their_own(take: TakeStep) -> None:
    whole = parts(take(data=16, sharding="optimizer"))
    adapters = parts(take(data=16, sharding="optimizer", trained=0.01))
    assert adapters["gemm"] == pytest.approx(2.01 / 3.0 * whole["gemm"])
    assert adapters["optimizer"] == pytest.approx(0.01 * whole["optimizer"])
    assert adapters["data"] == pytest.approx(0.01 * whole["data"])
    assert adapters["attention"] == whole["attention"]


def test_stages_that_are_neighbours_spare_the_network_where_data_does_not(
    take: TakeStep, make_fleet: MakeFleet
) -> None:
    slow = make_fleet(network=2e9)
    layout = {"data": 4, "pipeline": 4, "accumulation": 8}
    megatron = parts(take(on=slow, **layout))
    turned = parts(take(on=slow, placement="data_outermost", **layout))
    assert turned["pipeline"] < megatron["pipeline"] / 2
    assert turned["data"] > megatron["data"]
    assert turned["gemm"] == megatron["gemm"]


def test_heads_dealt_out_are_sent_and_not_hidden(take: TakeStep, small: ModelSpec) -> None:
    ring, dealt = (parts(take(context=4, exchange=chosen)) for chosen in ("ring", "all_to_all"))
    assert ring["context"] == 0.0
    # Queries and outputs of 16 heads of 128, keys and values of 4, at a quarter of the positions;
    # three quarters leave the rank, twice, over the bus.
    moved = small.context / 4 * (16 * 256 + 4 * 256) * 2
    share = constants.LINK
    bus = 2 * small.layers * (moved * 0.75 / (100e9 * share) + 3e-6)
    assert dealt["context"] == pytest.approx(bus, rel=1e-6)
    again = parts(take(context=4, exchange="all_to_all", recompute="full"))
    assert again["context"] == pytest.approx(1.5 * bus, rel=1e-6)


def test_parameters_that_stay_are_gathered_once(take: TakeStep, make_fleet: MakeFleet) -> None:
    slow = make_fleet(network=1e9)
    twice, once = (
        parts(take(on=slow, data=16, sharding="parameters", reshard=chosen))["data"]
        for chosen in (True, False)
    )
    assert 0.6 < once / twice < 0.75


def test_norms_and_activations_alone_are_cheap_to_do_again(take: TakeStep) -> None:
    none, pointwise, full = (
        take(data=16, recompute=chosen) for chosen in ("none", "pointwise", "full")
    )
    assert seconds(none) < seconds(pointwise) < seconds(none) + (seconds(full) - seconds(none)) / 3
    assert parts(pointwise)["gemm"] == parts(none)["gemm"]
    assert parts(pointwise)["pointwise"] == pytest.approx(parts(full)["pointwise"])


def test_experts_of_a_capacity_compute_it_whole(take: TakeStep, sparse: ModelSpec) -> None:
    assert sparse.experts is not None
    roomy = msgspec.structs.replace(
        sparse, experts=msgspec.structs.replace(sparse.experts, capacity=2.0)
    )
    usual, padded = (parts(take(of=model, data=16, expert=16)) for model in (sparse, roomy))
    assert padded["gemm"] > usual["gemm"]
    assert 1.9 < padded["expert"] / usual["expert"] < 2.0


def test_fewer_layers_beside_the_head_shorten_the_step(take: TakeStep, small: ModelSpec) -> None:
    """A vocabulary that weighs as much as two layers."""
    heavy = msgspec.structs.replace(small, layers=14, vocabulary=64_000)
    even, uneven = (
        take(of=heavy, pipeline=4, accumulation=64, last_fewer=fewer) for fewer in (0, 2)
    )
    assert seconds(uneven) < seconds(even)


def test_nothing_goes_back_in_front_of_what_is_trained(take: TakeStep) -> None:
    whole = take(data=16)
    half = take(data=16, trained=0.5, reached=0.5)
    head = take(data=16, trained=1e-6, reached=0.0, logits=False)
    assert parts(half)["gemm"] == pytest.approx(2 / 3 * parts(whole)["gemm"])
    assert parts(head)["gemm"] == pytest.approx(1 / 3 * parts(whole)["gemm"], rel=1e-5)
    assert parts(head)["head"] == 0.0 < parts(half)["head"]
    # Attention's forward is 2 products at a rate of 0.4, its backward 5 at 0.3.
    assert parts(head)["attention"] / parts(whole)["attention"] == pytest.approx(
        (2 / 0.4) / (2 / 0.4 + 5 / 0.3)
    )
