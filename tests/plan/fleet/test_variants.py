from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.plan.fleet.search import Found, evaluate, search
from narrows.plan.fleet.spreads import CHOICES, SCHEDULES, Spreads
from narrows.plan.fleet.structures import candidates
from narrows.plan.fleet.variants import Wanted, refined
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.pieces import pieces

BATCH = 64


@pytest.fixture(scope="module")
def work(small: ModelSpec) -> Work:
    return Work.of(small, small.context)


def every(work: Work, fleet: Fleet, **wanted: Any) -> Spreads:
    fixed = Wanted(**wanted)
    return refined(work, candidates(work, fleet, BATCH, fixed), fixed)


def test_every_choice_that_matters_less_is_tried(work: Work, fleet: Fleet) -> None:
    found = every(work, fleet)
    assert set(found.schedule.tolist()) == {0, SCHEDULES.index("zero_bubble")}
    for name in ("placement", "exchange", "reshard"):
        assert set(getattr(found, name).tolist()) == {0, 1}, name
    assert set(found.recompute.tolist()) == {0, 1, 2, 3}
    assert np.any(found.last_fewer > 0)
    # Ranks of a context share what is sharded, too.
    assert np.any((found.reshard == 0) & (found.data == 1) & (found.context > 1))


def test_variants_are_possible(work: Work, fleet: Fleet, small: ModelSpec) -> None:
    found = every(work, fleet)
    alone = found.pipeline == 1
    assert np.all(found.interleave[found.zero_bubble] == 2)
    assert np.all((found.schedule == 0)[alone] & (found.placement == 0)[alone])
    assert np.all((found.first_fewer + found.last_fewer)[alone] == 0)
    dealt = found.exchange == 1
    assert np.all(small.heads % (found.tensor * found.context)[dealt] == 0)
    assert np.all(found.context[dealt] > 1)
    assert np.all(found.sharding[found.reshard == 0] == 3)
    uneven = found.first_fewer + found.last_fewer > 0
    layers = small.layers + found.first_fewer + found.last_fewer
    assert np.any(uneven) and np.all((layers % found.pipeline == 0)[uneven])
    for index in range(0, found.size, 97):
        assert found.spread(index).batch_sequences == BATCH  # a record that nothing refuses


@pytest.mark.parametrize("layers", [14, 16, 30, 62, 126])
@pytest.mark.parametrize("schedule", [None, "zero_bubble"])
def test_every_stage_and_piece_has_something_to_do(
    small: ModelSpec, fleet: Fleet, layers: int, schedule: Any
) -> None:
    """Of 126 layers in 128 pieces the first has the embedding alone, and the last the head."""
    work = Work.of(msgspec.structs.replace(small, layers=layers), small.context)
    fixed = Wanted(schedule=schedule, interleave=schedule and 2)
    known = candidates(work, fleet, BATCH, fixed)
    found = known.beside(refined(work, known, fixed))
    names = ("pipeline", "interleave", "first_fewer", "last_fewer", "schedule")
    rows = np.stack([getattr(found, name) for name in names])
    _, first = np.unique(rows, axis=1, return_index=True)
    seen = set()
    for index in first:
        spread = found.spread(int(index))
        seen.add(spread.pipeline * spread.interleave - layers)
        assert sum(each.stop - each.start for each in pieces(layers, spread)) == layers
    if layers != 16 and schedule is None:
        assert 2 in seen, "as many pieces as layers with the embedding and the head"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "zero_bubble"), ("schedule", "gpipe"), ("placement", "data_outermost"),
        ("exchange", "all_to_all"), ("reshard", False), ("recompute", "pointwise"),
        ("last_fewer", 1), ("interleave", 2),
    ],
)  # fmt: skip
def test_what_is_fixed_is_fixed_for_all(name: str, value: object, work: Work, fleet: Fleet) -> None:
    found = search(work, fleet, BATCH, Wanted(**{name: value, "pipeline": 4})).spreads
    known = CHOICES.get(name)
    assert set(getattr(found, name).tolist()) == {known.index(value) if known else value}


def test_the_best_variant_is_no_worse_than_the_best_structure(work: Work, fleet: Fleet) -> None:
    coarse = evaluate(work, candidates(work, fleet, BATCH, Wanted()), fleet)
    fine = search(work, fleet, BATCH, Wanted())

    def best(found: Found) -> float:
        index = found.best()
        assert index is not None
        return float(found.seconds[index])

    assert best(fine) <= best(coarse)


def test_all_variants_of_all_structures_have_no_better_one(work: Work, make_fleet: Any) -> None:
    """The shortcut, variants of promising structures alone, against the whole product."""
    fleet = make_fleet(gigabytes=12.0, network=3e9)
    structures = candidates(work, fleet, BATCH, Wanted())
    whole = evaluate(work, refined(work, structures, Wanted()), fleet)
    short = search(work, fleet, BATCH, Wanted())
    best, quick = whole.best(), short.best()
    assert best is not None and quick is not None
    assert short.seconds[quick] <= 1.001 * whole.seconds[best]


def test_free_forgets_the_layout_and_keeps_the_work() -> None:
    wanted = Wanted(tensor=4, schedule="gpipe", state_bits=8, stored_bits=4.5, trained=0.1)
    assert wanted.free() == Wanted(state_bits=8, stored_bits=4.5, trained=0.1)


def test_what_is_shared_is_one_layouts(work: Work, fleet: Fleet) -> None:
    wanted = Wanted(state_bits=8, offload="host", chunked_loss=True, sequence_parallel=False)
    shared = candidates(work, msgspec.structs.replace(fleet), BATCH, wanted).shared
    assert (shared.state_bits, shared.offload) == (8, "host")
    assert shared.chunked_loss and not shared.sequence_parallel


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (Wanted(), 2.0), (Wanted(precision="fp32"), 0.0), (Wanted(state_bits=8), 2.0),
        (Wanted(precision="fp8"), 4.0), (Wanted(offload="host"), 4.0),
    ],
)  # fmt: skip
def test_masters_are_kept_as_training_keeps_them(wanted: Wanted, kept: float) -> None:
    assert wanted.shared.master_bytes == kept
