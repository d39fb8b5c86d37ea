from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.plan.fleet import constants
from narrows.plan.fleet.memory import kept_bytes, memory
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.work import Work
from narrows.plan.memory import MemoryBytes
from narrows.spec.fleet import Spread
from narrows.spec.model import ModelSpec, gpt2

Hold = Callable[..., dict[str, float]]
KINDS = list(MemoryBytes.__struct_fields__)
STATE = ("weights", "gradients", "optimizer")
FEW = st.sampled_from((1, 2, 4))


@pytest.fixture(scope="module")
def hold(small: ModelSpec) -> Hold:
    """Bytes by kind of a layout: by default of the small model."""

    def held(*, of: ModelSpec = small, **layout: Any) -> dict[str, float]:
        found = memory(Work.of(of, of.context), Spreads.of([Spread(**layout)]))
        return {name: float(getattr(found, name)[0]) for name in KINDS}

    return held


def matrices(model: ModelSpec) -> int:
    """Weights of all products and of the table of embeddings, where it is another."""
    table = model.vocabulary * model.width
    return model.product_parameters_active + (0 if model.tied_embeddings else table)


def experts(model: ModelSpec) -> int:
    """Weights of all routed experts."""
    assert model.experts is not None
    return (
        model.layers_of_experts * model.experts.count * 3 * model.width * model.experts.width
    )  # fmt: skip


def test_sixteen_bits_beside_fp32_sums_and_masters_are_eighteen_bytes_a_parameter(
    hold: Hold, small: ModelSpec
) -> None:
    held = hold()
    assert sum(held[kind] for kind in STATE) == pytest.approx(18 * matrices(small))
    assert sum(held[kind] for kind in STATE) == pytest.approx(18 * small.parameters, rel=2e-3)
    tied = msgspec.structs.replace(small, tied_embeddings=True)
    assert sum(hold(of=tied)[kind] for kind in STATE) == pytest.approx(18 * matrices(tied))


@pytest.mark.parametrize(
    ("sharding", "weights", "gradients", "optimizer"),
    [("none", 1, 1, 1), ("optimizer", 1, 1, 8), ("gradients", 1, 8, 8), ("parameters", 8, 8, 8)],
)
def test_what_each_stage_of_zero_divides_among_eight(
    hold: Hold, small: ModelSpec, sharding: str, weights: int, gradients: int, optimizer: int
) -> None:
    held, N = hold(data=8, sharding=sharding), matrices(small)
    assert held["weights"] == pytest.approx(2 * N / weights)
    assert held["gradients"] == pytest.approx(4 * N / gradients)
    assert held["optimizer"] == pytest.approx(12 * N / optimizer)
    in_context = hold(data=2, context=4, sharding=sharding)
    assert [in_context[kind] for kind in STATE] == pytest.approx([held[kind] for kind in STATE])


def test_replicas_share_nothing(hold: Hold) -> None:
    assert hold(data=4, replicas=4, sharding="parameters") == hold(data=4, sharding="parameters")


def test_gathered_weights_stand_two_blocks_at_a_time(hold: Hold, small: ModelSpec) -> None:
    whole, sharded = hold(data=8, sharding="gradients"), hold(data=8, sharding="parameters")
    gathered = (sharded["workspace"] - whole["workspace"]) / constants.ALLOCATOR
    assert gathered == pytest.approx(2 * 2 * matrices(small) / small.layers)


def test_streams_in_flight_are_workspace(hold: Hold, small: ModelSpec) -> None:
    streams = constants.WORKSPACE_STREAMS * 2 * small.context * small.width * 2
    assert hold(micro_batch=2)["workspace"] == pytest.approx(constants.ALLOCATOR * streams)
    assert hold(micro_batch=2)["runtime"] == constants.RUNTIME_BYTES


def test_tensor_and_pipeline_parallelism_divide_the_state(hold: Hold, small: ModelSpec) -> None:
    whole = sum(hold()[kind] for kind in STATE)
    assert sum(hold(tensor=4)[kind] for kind in STATE) == pytest.approx(whole / 4)
    # The fullest stage has one of the two tables.
    table = small.vocabulary * small.width
    stage = (matrices(small) - 2 * table) / 4 + table
    assert sum(hold(pipeline=4)[kind] for kind in STATE) == pytest.approx(18 * stage)


def test_experts_are_divided_among_their_ranks_and_sharded_among_the_rest(
    hold: Hold, sparse: ModelSpec
) -> None:
    assert sparse.experts is not None
    own = experts(sparse)
    common = sparse.parameters - own
    for expert in (1, 4, 16):
        held = hold(of=sparse, data=16, expert=expert, sharding="optimizer")
        assert held["weights"] == pytest.approx(2 * (common + own / expert), rel=2e-3)
        # However experts lie, sixteen ranks hold their optimizer once.
        assert held["optimizer"] == pytest.approx(12 * (common + own) / 16, rel=2e-3)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_a_gpt_block_keeps_what_korthikanti_et_al_count(
    tensor: int, sequence_parallel: bool
) -> None:
    """sbh (10 + 24/t), or sbh 34/t with sequence parallelism (arXiv:2205.05198, equations 2 to 4),
    without the scores, which attention by tiles does not keep.
    """
    gpt = gpt2(layers=4, width=4096, heads=32, vocabulary=50_304, context=2048)
    spread = Spread(tensor=tensor, sequence_parallel=sequence_parallel)
    kept = float(kept_bytes(Work.of(gpt, 2048), Spreads.of([spread]))[0])
    outside = 10 / tensor if sequence_parallel else 10
    assert kept == pytest.approx(4096 * (outside + 24 / tensor), rel=0.01)
    # Attention by tiles keeps the logarithm of each row's sum instead.
    assert kept == pytest.approx(4096 * (outside + 24 / tensor) + 4 * 32 / tensor)


def test_experts_keep_the_rows_that_were_sent_to_them(
    hold: Hold, small: ModelSpec, sparse: ModelSpec
) -> None:
    # Gate, up and down's input of two chosen and one shared, and the two rows sent, in seven layers
    # instead of a dense feed-forward.
    values = 7 * (3 * 3 * 1024 + 2 * 2048 - 3 * 5632)
    more = hold(of=sparse)["activations"] - hold()["activations"]
    assert more == pytest.approx(constants.ALLOCATOR * small.context * 2 * values)


def test_scores_that_are_kept_take_five_bytes_each(hold: Hold, small: ModelSpec) -> None:
    tiles, through = hold(tensor=2), hold(tensor=2, flash_attention=False)
    scores = small.layers * small.context**2 * small.heads / 2 * 5
    assert through["activations"] - tiles["activations"] == pytest.approx(
        constants.ALLOCATOR * scores
    )
    again = hold(tensor=2, flash_attention=False, recompute="selective")
    assert again == tiles


def test_narrow_formats_keep_the_operands_of_products_narrow(hold: Hold, small: ModelSpec) -> None:
    usual, narrow, wide = (hold(precision=each)["activations"] for each in ("bf16", "fp8", "fp32"))
    # A byte less of what goes into the four products of a block.
    values = small.heads * small.head_width + small.feed_forward_width + 2 * small.width
    saved = small.layers * small.context * values
    assert usual - narrow == pytest.approx(constants.ALLOCATOR * saved)
    assert wide == pytest.approx(2 * usual, rel=0.01)


def test_full_recompute_keeps_the_streams_and_one_block(hold: Hold, small: ModelSpec) -> None:
    none = hold(micro_batch=4)["activations"]
    full = hold(micro_batch=4, recompute="full")["activations"]
    stream = 4 * small.context * small.width * 2 * constants.ALLOCATOR
    assert full == pytest.approx(small.layers * stream + none / small.layers)
    # With sequence parallelism a rank keeps its part of a stream, without it the whole.
    for parallel, part in ((True, stream / 2), (False, stream)):
        layout = {"micro_batch": 4, "tensor": 2, "sequence_parallel": parallel}
        block = hold(**layout)["activations"] / small.layers
        kept = hold(**layout, recompute="full")["activations"]
        assert kept == pytest.approx(small.layers * part + block)


@pytest.mark.parametrize(
    ("accumulation", "interleave", "flight"),
    [(1, 1, 1), (2, 1, 2), (4, 1, 4), (64, 1, 4), (64, 2, 4 * (1 + 3 / 8))],
)
def test_the_first_stage_keeps_as_many_micro_batches_as_are_under_way(
    hold: Hold, small: ModelSpec, accumulation: int, interleave: int, flight: float
) -> None:
    terse = msgspec.structs.replace(small, vocabulary=1)
    alone = hold(of=terse)["activations"]
    held = hold(of=terse, pipeline=4, accumulation=accumulation, interleave=interleave)
    assert held["activations"] == pytest.approx(flight * alone / 4)
    if flight > 1:
        assert held["logits"] == 0.0


def test_the_last_stage_is_fullest_where_the_logits_weigh_more(
    hold: Hold, small: ModelSpec
) -> None:
    wordy = msgspec.structs.replace(small, vocabulary=1_000_000)
    held = hold(of=wordy, pipeline=2, accumulation=8)
    assert held["logits"] == constants.LOGIT_MEMORY * small.context * 1_000_000
    assert held["activations"] == pytest.approx(hold(of=wordy)["activations"] / 2)


def test_a_chunked_loss_never_has_all_logits(hold: Hold, small: ModelSpec) -> None:
    whole, chunked = hold(micro_batch=2), hold(micro_batch=2, chunked_loss=True)
    assert whole["logits"] == constants.LOGIT_MEMORY * 2 * small.context * small.vocabulary
    assert chunked["logits"] == pytest.approx(whole["logits"] / 4)
    assert hold(micro_batch=2, tensor=4)["logits"] == pytest.approx(whole["logits"] / 4)


def test_what_is_offloaded_is_not_on_the_device(hold: Hold) -> None:
    held, kept = hold(offload="host"), hold()
    assert held["gradients"] == held["optimizer"] == 0.0
    assert held["weights"] == kept["weights"] and held["activations"] == kept["activations"]


def test_only_what_is_trained_has_gradients_and_moments(hold: Hold) -> None:
    adapted, whole = hold(trained=0.01), hold()
    for kind in ("gradients", "optimizer"):
        assert adapted[kind] == pytest.approx(0.01 * whole[kind])
    assert adapted["weights"] == whole["weights"]
    assert adapted["activations"] == whole["activations"] > 0.0
    frozen = hold(trained=0.0)
    assert frozen["activations"] == frozen["logits"] == frozen["optimizer"] == 0.0


def test_stored_bits_are_of_all_but_the_table(hold: Hold, small: ModelSpec) -> None:
    table = small.vocabulary * small.width
    held = hold(stored_bits=4.5, trained=0.0)
    # Both tables stay in 16 bits, and one matrix at a time is whole again.
    tables = (1 if small.tied_embeddings else 2) * table
    in_products = matrices(small) - tables
    assert held["weights"] == pytest.approx(in_products * 4.5 / 8 + 2 * tables)
    widest = 2.0 * small.up_width * small.width
    whole = hold(trained=0.0)["workspace"] + constants.ALLOCATOR * widest
    assert held["workspace"] == pytest.approx(whole)


def test_selective_recompute_keeps_the_stream_and_half_of_the_rest(hold: Hold) -> None:
    none, selective, full = (
        hold(recompute=name)["activations"] for name in ("none", "selective", "full")
    )
    assert full < selective < none
    stored = hold(recompute="selective", flash_attention=False)
    assert stored["activations"] == pytest.approx(none)


def test_a_pipeline_holds_its_gathered_stage(hold: Hold) -> None:
    alone, staged = (hold(data=4, pipeline=p, sharding="parameters") for p in (1, 2))
    gradients = hold(data=4, pipeline=2, sharding="gradients")
    assert staged["weights"] > alone["weights"]
    assert staged["weights"] == pytest.approx(gradients["weights"])
    assert staged["gradients"] == pytest.approx(4 * gradients["gradients"])


def test_a_second_copy_of_gradients_is_counted(hold: Hold) -> None:
    assert hold(gradient_bytes=6.0)["gradients"] == pytest.approx(1.5 * hold()["gradients"])


def test_communicators_take_memory_where_there_are_any(hold: Hold) -> None:
    assert hold()["runtime"] == constants.RUNTIME_BYTES
    assert hold(tensor=2)["runtime"] == constants.RUNTIME_BYTES + constants.COMMUNICATOR_BYTES


@settings(deadline=None, max_examples=60)
@given(
    data=FEW, tensor=FEW, pipeline=FEW, context=FEW, expert=FEW, micro_batch=FEW,
    accumulation=st.sampled_from((1, 3, 8)), interleave=st.sampled_from((1, 2)),
    sharding=st.sampled_from(("none", "optimizer", "gradients", "parameters")),
    recompute=st.sampled_from(("none", "selective", "full")),
    flash_attention=st.booleans(), sequence_parallel=st.booleans(), sparsely=st.booleans(),
)  # fmt: skip
def test_kinds_make_the_peak_which_grows_with_the_micro_batch(
    hold: Hold, small: ModelSpec, sparse: ModelSpec, sparsely: bool, **layout: Any
) -> None:
    model = sparse if sparsely else small
    found = memory(Work.of(model, model.context), Spreads.of([Spread(**layout)]))
    kinds = hold(of=model, **layout)
    assert all(np.isfinite(value) and value >= 0.0 for value in kinds.values())
    assert float(found.peak[0]) == pytest.approx(sum(kinds.values()))
    twice = hold(of=model, **{**layout, "micro_batch": 2 * layout["micro_batch"]})
    assert sum(twice.values()) > sum(kinds.values()) > constants.RUNTIME_BYTES


def test_norms_and_activations_done_again_are_not_kept(hold: Hold, small: ModelSpec) -> None:
    kept, dropped = (hold(recompute=chosen)["activations"] for chosen in ("none", "pointwise"))
    values = 2 * small.width + small.feed_forward_width
    assert kept - dropped == pytest.approx(
        constants.ALLOCATOR * small.layers * small.context * 2 * values
    )
    assert dropped > hold(recompute="full")["activations"]


def test_parameters_that_stay_gathered_are_a_whole_copy(hold: Hold, small: ModelSpec) -> None:
    layout = {"data": 16, "sharding": "parameters"}
    extra = hold(reshard=False, **layout)["workspace"] - hold(**layout)["workspace"]
    assert extra == pytest.approx(constants.ALLOCATOR * 2 * matrices(small) * 6 / 8)


def test_all_forwards_first_keep_all_micro_batches(hold: Hold) -> None:
    layout = {"pipeline": 4, "accumulation": 32}
    ratio = hold(schedule="gpipe", **layout)["activations"] / hold(**layout)["activations"]
    assert ratio == pytest.approx(32 / 4)


def test_the_fullest_stage_may_be_any(small: ModelSpec, hold: Hold) -> None:
    """With a large vocabulary the last one, whose logits are there at once."""
    layout = {"pipeline": 4, "accumulation": 4}
    assert hold(**layout)["logits"] == 0.0
    wordy = msgspec.structs.replace(small, vocabulary=512_000)
    assert hold(of=wordy, **layout)["logits"] > 0.0
    bent = hold(schedule="zero_bubble", interleave=2, **layout)
    assert bent["logits"] > 0.0
