from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from narrows.plan.fleet import constants, traffic
from narrows.plan.fleet.forecast import flop_per_token, ledger
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import Stage
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet, Spread
from narrows.spec.ledger import Ledger
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]


@pytest.fixture(params=["small", "sparse"])
def model(request: pytest.FixtureRequest) -> ModelSpec:
    """A dense one, then one of experts."""
    found: ModelSpec = request.getfixturevalue(request.param)
    return found


def laid_out(model: ModelSpec, on: Fleet, **layout: Any) -> tuple[Work, Spread, Ledger]:
    spread = Spread(**{"data": on.devices, **layout})
    work = Work.of(model, model.context)
    return work, spread, ledger(work, spread, on, spread.batch_sequences, None)


def block_flop(work: Work) -> float:
    """Of a token's forward products, the head's left out."""
    spec = work.spec
    return 2.0 * (spec.product_parameters_active - spec.vocabulary * spec.width)


@pytest.mark.parametrize("recompute", ["none", "selective", "full", "pointwise"])
@pytest.mark.parametrize(
    "cut",
    [{}, {"data": 4, "tensor": 4}, {"data": 8, "context": 2}, {"data": 4, "replicas": 4}],
    ids=["data", "tensor", "context", "replicas"],
)
def test_flop_are_the_models_and_what_is_done_again(
    fleet: Fleet, model: ModelSpec, recompute: str, cut: dict[str, int]
) -> None:
    work, spread, found = laid_out(
        model, fleet, recompute=recompute, accumulation=3, micro_batch=2, **cut
    )
    tokens = found.step_tokens / fleet.devices
    scores = model.layers * work.score_flop
    # Attention by tiles makes its scores again whatever the layout.
    again = 0.5 * scores + {
        "none": 0.0, "pointwise": 0.0, "selective": 0.5 * block_flop(work),
        "full": block_flop(work) + scores,
    }[recompute]  # fmt: skip
    # Which experts a token goes to, every tensor rank finds out for itself.
    router = sum(matrix.parameters for matrix in work.routed if matrix.cut == "whole")
    repeated = 2.0 * work.layers_experts * router * (spread.tensor - 1.0)
    often = 3.0 + {"selective": 0.5, "full": 1.0}.get(recompute, 0.0)
    own = flop_per_token(work, spread)
    total = sum(row.flop for row in found.rows)
    assert total == pytest.approx((own + again + often * repeated) * tokens, rel=1e-9)
    forward = sum(row.flop for row in found.rows if row.phase == "forward")
    assert forward == pytest.approx(tokens * (own / 3.0 + repeated), rel=1e-9)


def test_stages_share_the_blocks_and_the_head_counts_as_far_as_it_shows(
    fleet: Fleet, small: ModelSpec
) -> None:
    work, spread, found = laid_out(small, fleet, data=4, pipeline=4, accumulation=8)
    tokens = found.step_tokens / spread.data
    scores = 0.5 * small.layers * work.score_flop
    head = 6.0 * small.vocabulary * small.width
    blocks = (flop_per_token(work, spread) - head + scores) * tokens / 4
    rows = {row.kind: 0.0 for row in found.rows}
    for row in found.rows:
        rows[row.kind] += row.flop
    assert rows["gemm"] + rows["attention"] == pytest.approx(blocks, rel=1e-9)
    # Eight blocks over four stages: all have two, so the whole head shows.
    assert rows["loss"] == pytest.approx(head * tokens, rel=1e-9)
    # Of seven the stage of the head has one, and computes the head while the others do a second.
    seven = msgspec.structs.replace(small, layers=7)
    *_, fewer = laid_out(seven, fleet, data=4, pipeline=4, accumulation=8)
    shown = sum(row.flop for row in fewer.rows if row.kind == "loss")
    assert 0.3 < shown / (head * tokens) < 0.5


@pytest.mark.parametrize("tuned", [{"trained": 0.25, "reached": 0.25}, {"trained": 0.01}])
def test_frozen_blocks_have_less_to_do(
    fleet: Fleet, small: ModelSpec, tuned: dict[str, Any]
) -> None:
    work, spread, found = laid_out(small, fleet, logits=False, **tuned)
    tokens = found.step_tokens / fleet.devices
    flash = 0.5 * spread.reached * small.layers * work.score_flop
    total = sum(row.flop for row in found.rows)
    assert total == pytest.approx((flop_per_token(work, spread) + flash) * tokens, rel=1e-9)


def test_what_is_memory_bound_moves_its_bytes_at_the_rate_of_its_seconds(
    fleet: Fleet, model: ModelSpec
) -> None:
    *_, found = laid_out(model, fleet, accumulation=2, sharding="parameters")
    rate = float(fleet.memory_bandwidth.value) * fleet.reach.memory
    bound = [row for row in found.rows if row.kind in ("pointwise", "optimizer")]
    assert len(bound) == 3
    for row in bound:
        assert row.memory_bytes == pytest.approx(rate * row.seconds, rel=1e-9), row.operation
        assert row.flop == 0.0
    computing = [row for row in found.rows if row.kind in ("gemm", "attention", "loss")]
    assert all(row.memory_bytes > 0.0 and row.flop > 0.0 for row in computing)
    # What takes its seconds from FLOP moves no more than memory could meanwhile.
    for row in computing:
        assert row.memory_bytes < float(fleet.memory_bandwidth.value) * row.seconds, row.operation


def test_products_take_as_long_as_their_flop_and_ramp(make_fleet: MakeFleet, small: Any) -> None:
    *_, found = laid_out(small, make_fleet(half=0.0), accumulation=2)
    for row in found.rows:
        if row.kind == "gemm":
            assert row.flop / row.seconds == pytest.approx(0.5 * 100e12), row.operation
    *_, ramped = laid_out(small, make_fleet(half=64.0), accumulation=2)
    assert sum(row.flop for row in ramped.rows) == sum(row.flop for row in found.rows)
    assert ramped.step_seconds > found.step_seconds


def test_scores_through_memory_are_the_bytes_they_take_their_time_from(
    fleet: Fleet, small: ModelSpec
) -> None:
    work, _, found = laid_out(small, fleet, flash_attention=False)
    scores = small.heads * small.context**2 * small.layers
    moved = sum(row.memory_bytes for row in found.rows if row.kind == "attention")
    assert moved == pytest.approx(constants.SCORE_PASSES * scores * 2.0)
    flop = sum(row.flop for row in found.rows if row.kind == "attention")
    # The whole square, which a causal mask hides half of.
    assert flop == pytest.approx(2.0 * 3.0 * small.layers * work.score_flop * small.context)


def test_network_bytes_are_what_a_rank_sends(fleet: Fleet, sparse: ModelSpec) -> None:
    work, spread, found = laid_out(
        sparse, fleet, data=2, tensor=2, pipeline=2, context=2, expert=2, accumulation=4,
        exchange="all_to_all",
    )  # fmt: skip
    planned = traffic.planned(work, spread, Stage.of(work, spread, 1))
    links = [row for row in found.rows if row.kind == "link"]
    assert len(links) == 5
    assert sum(row.network_bytes for row in links) == sum(each.bytes for each in planned)
    assert sum(row.count for row in links) == sum(each.count for each in planned)


def test_a_collective_that_is_hidden_is_told_without_seconds(fleet: Fleet, small: Any) -> None:
    # A slow device has time to hide all keys behind its attention.
    slow = msgspec.structs.replace(
        fleet, reach=msgspec.structs.replace(fleet.reach, attention_forward=1e-3,
                                             attention_backward=1e-3)
    )  # fmt: skip
    *_, found = laid_out(small, slow, data=4, context=4)
    (ring,) = (row for row in found.rows if row.operation == "context-parallel ring")
    assert ring.seconds == 0.0 and ring.network_bytes > 0.0
    assert sum(row.seconds for row in found.rows) == pytest.approx(found.step_seconds)


def test_an_offloaded_optimizer_moves_its_state_in_the_host_and_weights_over_its_link(
    make_fleet: MakeFleet, small: ModelSpec, fleet: Fleet
) -> None:
    linked = make_fleet(host_link=fleet.domains[0].bandwidth)
    (here, away) = (
        next(row for row in laid_out(small, linked, offload=where)[2].rows
             if row.operation == "optimizer")
        for where in ("none", "host")
    )  # fmt: skip
    assert here.network_bytes == 0.0 and away.memory_bytes == here.memory_bytes
    spreads = Spreads.of([Spread(data=16)])
    mine = float(sum(traffic.held(Work.of(small, small.context), spreads))[0]) / 16.0
    assert away.network_bytes == pytest.approx(mine * 2.0 * 2.0)
