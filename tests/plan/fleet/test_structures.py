from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from narrows.plan.fleet.structures import candidates, choices, structures
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]
PIECES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 20)
NAMES = (
    "tensor", "context", "pipeline", "expert", "micro_batch", "replicas", "interleave", "data",
    "accumulation",
)  # fmt: skip
FIXED = (
    Wanted(), Wanted(tensor=2), Wanted(micro_batch=3), Wanted(interleave=2), Wanted(expert=4),
    Wanted(schedule="gpipe"), Wanted(schedule="zero_bubble", interleave=2), Wanted(pipeline=4),
)  # fmt: skip


def plainly(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> Iterator[tuple[int, ...]]:
    """Every structure by trying all numbers, in the order of a search."""
    spec, node = work.spec, fleet.domains[0].devices
    most = max(node, fleet.devices_per_node)
    layers = spec.layers + spec.encoder_layers
    count = spec.experts.count if spec.experts else 1
    every = range(1, fleet.devices + 1)
    micros = [wanted.micro_batch] if wanted.micro_batch else range(1, 65)
    powers = [1 << power for power in range(7)]
    for t, c, p in itertools.product(every, every, every):
        ranks, rest = divmod(fleet.devices, t * c * p)
        if rest or batch % ranks or p > layers or spec.heads % t:
            continue
        if t != wanted.tensor and (wanted.tensor or t not in powers or t > most):
            continue
        if c not in powers or work.positions // c < 1024 or p != (wanted.pipeline or p):
            continue
        for e, b, r in itertools.product(range(1, count + 1), micros, range(1, ranks + 1)):
            whole = r == 1 or (ranks // r * c * t) % node == 0
            if ranks % r or not whole or batch % (ranks * b) or ranks // r * t * c % e or count % e:
                continue
            if e != wanted.expert and (wanted.expert or ranks * t % e):
                continue
            m = batch // (ranks * b)
            for v in cut(layers, p, wanted):
                if v == 1 or m % p == 0 or wanted.schedule == "zero_bubble":
                    yield t, c, p, e, b, r, v, ranks // r, m


def cut(layers: int, stages: int, wanted: Wanted) -> list[int]:
    if stages == 1 or wanted.schedule == "gpipe":
        return [1] if wanted.interleave in (None, 1) else []
    if wanted.interleave:
        possible = wanted.interleave * stages <= layers + 2
        return [wanted.interleave] if possible else []
    even = {v for v in PIECES for own in (layers, layers + 2) if own % (stages * v) == 0}
    return sorted({1, *even})


@pytest.mark.parametrize("wanted", FIXED, ids=lambda wanted: str(wanted.shared.schedule))
@pytest.mark.parametrize(("devices", "batch"), [(16, 64), (12, 36), (1, 6)])
def test_structures_are_those_that_trying_all_numbers_finds(
    devices: int, batch: int, wanted: Wanted, sparse: ModelSpec, make_fleet: MakeFleet
) -> None:
    work, fleet = Work.of(sparse, sparse.context), make_fleet(devices=devices)
    expected = list(plainly(work, fleet, batch, wanted))
    if not expected:
        pytest.skip("none is possible, which test_search.py has refused")
    found = structures(work, fleet, batch, wanted)
    columns = (getattr(found, name).astype(int).tolist() for name in NAMES)
    assert list(zip(*columns, strict=True)) == expected


def test_tensor_ranks_may_be_all_of_a_node_where_bridges_join_only_some(
    sparse: ModelSpec, make_fleet: MakeFleet
) -> None:
    fleet = make_fleet(devices=16, per_node=2, devices_per_node=8)
    work = Work.of(sparse, sparse.context)
    assert fleet.domains[0].devices == 2
    assert set(structures(work, fleet, 64, Wanted()).tensor.tolist()) == {1, 2, 4, 8}


@pytest.mark.parametrize("fewer", [{"first_fewer": 2}, {"last_fewer": 2}])
def test_only_stages_that_have_as_many_layers_can_have_fewer(
    small: ModelSpec, fleet: Fleet, fewer: dict[str, int]
) -> None:
    """Eight layers make two stages, whole or in two pieces, or four whole ones; never one alone."""
    found = structures(Work.of(small, small.context), fleet, 64, Wanted(**fewer))
    ways = set(zip(found.pipeline.tolist(), found.interleave.tolist(), strict=True))
    assert ways == {(2, 1), (4, 1), (2, 2)}


def test_a_candidate_is_a_structure_with_a_choice(sparse: ModelSpec, fleet: Fleet) -> None:
    work = Work.of(sparse, sparse.context)
    known, every = structures(work, fleet, 64, Wanted()), candidates(work, fleet, 64, Wanted())
    pairs = choices(Wanted())
    assert len(pairs) == 12 and every.size == known.size * len(pairs)
    for place in (0, 13, every.size - 1):
        sharding, recompute = pairs[place % len(pairs)]
        laid, of = every.spread(place), known.spread(place // len(pairs))
        assert every.sharding[place] == sharding and every.recompute[place] == recompute
        assert of == msgspec.structs.replace(laid, sharding="none", recompute="none")
    only = candidates(work, fleet, 64, Wanted(sharding="gradients", recompute="pointwise"))
    assert only.size == known.size and set(only.recompute.tolist()) == {3.0}
    assert np.array_equal(only.data, known.data)
