from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

import narrows.plan.fleet.spreads as module
from narrows.plan.fleet.energy import joules
from narrows.plan.fleet.memory import memory
from narrows.plan.fleet.search import Found, evaluate, search
from narrows.plan.fleet.spreads import ARRAYS, Spreads
from narrows.plan.fleet.structures import candidates
from narrows.plan.fleet.time import step
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec, llama

MakeFleet = Callable[..., Fleet]
BATCH = 64


def work_of(model: ModelSpec) -> Work:
    return Work.of(model, model.context)


@pytest.fixture(scope="module")
def found(small: ModelSpec, fleet: Fleet) -> Found:
    return search(work_of(small), fleet, BATCH, Wanted())


@pytest.fixture(scope="module")
def routed(sparse: ModelSpec, fleet: Fleet) -> Spreads:
    return candidates(work_of(sparse), fleet, BATCH, Wanted())


@pytest.fixture(scope="module", params=["dense", "experts"])
def spreads(request: pytest.FixtureRequest, found: Found, routed: Spreads) -> Spreads:
    """Every candidate, of a dense model and of one with experts."""
    return found.spreads if request.param == "dense" else routed


def test_every_layout_takes_all_devices_and_the_whole_batch(spreads: Spreads) -> None:
    assert spreads.size > 1000
    for index in range(0, spreads.size, 101):
        spread = spreads.spread(index)
        assert (spread.devices, spread.batch_sequences) == (16, BATCH)
    ranks = spreads.data * spreads.replicas
    devices = ranks * spreads.tensor * spreads.pipeline * spreads.context
    assert np.all(devices == 16)
    assert np.all(ranks * spreads.micro_batch * spreads.accumulation == BATCH)


def test_every_layout_is_tried_once(spreads: Spreads) -> None:
    rows = np.stack([getattr(spreads, name) for name in ARRAYS], axis=1)
    assert len(np.unique(rows, axis=0)) == spreads.size


def test_what_is_divided_can_be(spreads: Spreads, small: ModelSpec) -> None:
    assert np.all(small.heads % spreads.tensor == 0)
    assert np.all(spreads.pipeline <= small.layers)
    assert np.all(small.context / spreads.context >= 1024)
    pieces = spreads.pipeline * spreads.interleave
    even = (small.layers % pieces == 0) | ((small.layers + 2) % pieces == 0)
    interleaved = spreads.interleave > 1
    assert np.any(interleaved) and np.all(even[interleaved])
    assert np.all((spreads.accumulation % spreads.pipeline == 0)[interleaved])
    assert np.all((spreads.pipeline > 1)[interleaved])


def test_experts_are_spread_over_data_and_tensor_ranks(routed: Spreads, found: Found) -> None:
    assert set(routed.expert.tolist()) == {1, 2, 4, 8, 16}
    ranks = routed.data * routed.tensor * routed.context
    assert np.all(ranks % routed.expert == 0) and np.all(16 % routed.expert == 0)
    assert set(found.spreads.expert.tolist()) == {1}


def test_copies_of_the_sharded_set_are_whole_nodes(spreads: Spreads) -> None:
    copied = spreads.replicas > 1
    inside = spreads.data * spreads.tensor * spreads.context
    assert np.any(copied) and np.all(inside[copied] % 4 == 0)


def test_every_open_choice_is_tried(found: Found) -> None:
    spreads = found.spreads
    assert set(spreads.tensor.tolist()) == {1, 2, 4}  # within a node
    assert set(spreads.pipeline.tolist()) == {1, 2, 4, 8}
    assert set(spreads.context.tolist()) == {1, 2}
    assert set(spreads.micro_batch.tolist()) == {1, 2, 4, 8, 16, 32, 64}
    assert set(spreads.sharding.tolist()) == {0, 1, 2, 3}
    assert set(spreads.recompute.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("name", "value", "column"),
    [
        ("tensor", 8, 8), ("pipeline", 4, 4), ("context", 4, 4), ("micro_batch", 2, 2),
        ("sharding", "gradients", 2), ("recompute", "full", 2), ("expert", 4, 4),
    ],
)  # fmt: skip
def test_what_is_fixed_is_kept_even_where_it_would_not_be_tried(
    name: str, value: object, column: int, sparse: ModelSpec, fleet: Fleet
) -> None:
    wanted = Wanted(**{name: value})  # type: ignore[arg-type]
    spreads = candidates(work_of(sparse), fleet, BATCH, wanted)
    assert set(getattr(spreads, name).tolist()) == {column}
    assert getattr(spreads.spread(0), name) == value


def test_the_precision_is_that_of_all(small: ModelSpec, fleet: Fleet) -> None:
    spreads = candidates(work_of(small), fleet, BATCH, Wanted(precision="fp8"))
    assert spreads.spread(7).precision == "fp8"


def test_one_at_a_time_is_as_all_at_once(
    found: Found, small: ModelSpec, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(small)
    for index in range(0, found.spreads.size, 149):
        alone = Spreads.of([found.spreads.spread(index)])
        taken = step(work, alone, fleet)
        assert found.seconds[index] == float(taken.seconds[0])
        assert found.bytes[index] == float(memory(work, alone).peak[0])
        assert found.joules[index] == float(joules(taken, fleet)[0])
    monkeypatch.setattr(module, "_CHUNK", 100)
    chunked = evaluate(work, found.spreads, fleet)
    assert np.array_equal(chunked.seconds, found.seconds)
    assert np.array_equal(chunked.bytes, found.bytes)


@pytest.mark.parametrize(
    ("goal", "column"), [("time", "seconds"), ("energy", "joules"), ("memory", "bytes")]
)
def test_the_best_is_the_least_of_those_that_fit(
    goal: Any, column: str, small: ModelSpec, make_fleet: MakeFleet
) -> None:
    tight = search(work_of(small), make_fleet(gigabytes=7.0), BATCH, Wanted())
    best = tight.best(goal)
    assert best is not None and tight.bytes[best] <= tight.limit == 0.94 * 7e9
    values = getattr(tight, column)
    fitting = [values[i] for i in range(len(values)) if tight.bytes[i] <= tight.limit]
    assert 0 < len(fitting) < tight.spreads.size and values[best] == min(fitting)
    if goal == "time":
        assert values[best] > min(values)


def test_nothing_is_best_where_nothing_fits(small: ModelSpec, make_fleet: MakeFleet) -> None:
    none = search(work_of(small), make_fleet(gigabytes=1.0), BATCH, Wanted())
    assert none.best() is None and none.pareto() == [] and not none.fits.any()


def test_the_front_is_beaten_by_none_and_beats_all(found: Found) -> None:
    front = found.pareto()
    assert len(front) > 2 and front[0] == found.best()
    seconds, held = found.seconds[front], found.bytes[front]
    assert np.all(np.diff(seconds) >= 0) and np.all(np.diff(held) < 0)
    for index in np.flatnonzero(found.fits):
        assert not np.any((found.seconds[index] < seconds) & (found.bytes[index] < held)), index
        # Some layout of the front is as quick, with at most a fiftieth more memory.
        as_good = (seconds <= found.seconds[index]) & (0.98 * held <= found.bytes[index])
        assert np.any(as_good), index


@pytest.mark.parametrize(
    ("wanted", "batch", "what"),
    [
        (Wanted(tensor=3), 64, "16 heads cannot be divided among 3 tensor ranks"),
        (Wanted(pipeline=16), 64, "8 layers do not fill 16 pipeline stages"),
        (Wanted(pipeline=4, interleave=3), 64,
         "8 layers do not fill 12 pieces, 3 in each of 4 stages"),
        (Wanted(pipeline=1, interleave=2), 64,
         "a pipeline whose stages are cut needs stages, and layout.pipeline is 1"),
        (Wanted(pipeline=1, interleave=2, schedule="zero_bubble"), 64,
         "a zero-bubble pipeline needs stages, and layout.pipeline is 1"),
        (Wanted(interleave=6), 64, "8 layers do not fill 12 pieces, 6 in each of 2 stages"),
        (Wanted(last_fewer=9), 64, "a stage of 8 layers in 2 cannot have 9 fewer"),
        (Wanted(context=3), 64, "16 devices cannot be divided into groups of 3"),
        (Wanted(tensor=16, pipeline=2), 64, "16 devices cannot be divided into groups of 32"),
        (
            Wanted(tensor=1, pipeline=1, context=1), 24,
            "a batch of 24 sequences cannot be divided among 16 data ranks",
        ),
        (
            Wanted(tensor=2, pipeline=1, context=1), 12,
            "a batch of 12 sequences cannot be divided among 8 data ranks",
        ),
        (
            Wanted(micro_batch=3), 64,
            "a batch of 64 sequences cannot be divided among 16 data ranks in micro-batches of 3",
        ),
        (Wanted(expert=2), 64, "a model without experts cannot spread them over 2 ranks"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_refused_with_a_hint(
    wanted: Wanted, batch: int, what: str, small: ModelSpec, fleet: Fleet
) -> None:
    with pytest.raises(BadInput) as caught:
        candidates(work_of(small), fleet, batch, wanted)
    assert caught.value.what == what and caught.value.hint
    if "micro-batches" in what:
        assert caught.value.hint.startswith("a batch that is a multiple of 48,")


@pytest.mark.parametrize(
    ("wanted", "what", "numbers"),
    [
        (Wanted(expert=3), "16 experts cannot be spread over 3 of 16 ranks", "1, 2, 4, 8, 16"),
        (Wanted(expert=16, pipeline=4), "16 experts cannot be spread over 16 of 4 ranks",
         "1, 2, 4"),
    ],
)  # fmt: skip
def test_experts_that_ranks_cannot_share_are_refused(
    wanted: Wanted, what: str, numbers: str, sparse: ModelSpec, fleet: Fleet
) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        candidates(work_of(sparse), fleet, BATCH, wanted)
    assert str(caught.value.hint).endswith(f"with N one of {numbers}")


def test_every_number_of_the_hint_is_possible(make_fleet: MakeFleet) -> None:
    twelve = llama(layers=8, width=768, heads=12, vocabulary=1000, context=1024)
    work, eight = work_of(twelve), make_fleet(devices=8)
    with pytest.raises(BadInput) as caught:
        candidates(work, eight, BATCH, Wanted(tensor=5))
    numbers = [int(each) for each in re.findall(r"\d+", str(caught.value.hint))]
    assert numbers == [1, 2, 4]
    for tensor in numbers:
        assert candidates(work, eight, BATCH, Wanted(tensor=tensor)).size


def test_an_encoder_has_layers_for_stages_too(small: ModelSpec, fleet: Fleet) -> None:
    both = msgspec.structs.replace(small, encoder_layers=8)
    assert candidates(work_of(both), fleet, BATCH, Wanted(pipeline=16)).size
