from __future__ import annotations

import numpy as np

from narrows.plan.fleet.spreads import Spreads
from narrows.spec.fleet import Spread

FIRST = Spread(
    data=2, replicas=3, tensor=4, pipeline=5, interleave=6, context=7, expert=8, micro_batch=9,
    accumulation=10, sharding="gradients", recompute="selective", precision="fp8", trained=0.5,
)  # fmt: skip
SECOND = Spread(precision="fp8", trained=0.5, sharding="none", recompute="full")


def test_layouts_come_back_as_they_went_in() -> None:
    stacked = Spreads.of([FIRST, SECOND])
    assert stacked.size == 2
    assert [stacked.spread(index) for index in (0, 1)] == [FIRST, SECOND]


def test_a_part_is_a_run_of_them() -> None:
    part = Spreads.of([FIRST, SECOND, FIRST]).part(slice(1, 3))
    assert [part.spread(index) for index in range(part.size)] == [SECOND, FIRST]


def test_what_is_sharded_lies_over_data_and_context() -> None:
    assert np.array_equal(Spreads.of([FIRST, SECOND]).shards, [2 * 7, 1])


def test_values_have_two_bytes_but_in_fp32() -> None:
    sizes = [Spreads.of([Spread(precision=each)]).value_bytes for each in ("fp32", "bf16", "fp8")]
    assert sizes == [4.0, 2.0, 2.0]
