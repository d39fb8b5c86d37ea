from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.plan.fleet.links import Links
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import Stage
from narrows.plan.fleet.traffic import held, planned, tensor, weights
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread
from narrows.spec.model import Experts, llama

T, D, L, V = 128, 64, 4, 1000
DENSE = llama(layers=L, width=D, heads=8, kv_heads=8, vocabulary=V, context=T)
ROUTED = msgspec.structs.replace(DENSE, experts=Experts(count=8, chosen=2, width=32))


def sent(
    spec: Any = DENSE, number: int = 0, **given: Any
) -> dict[tuple[str, str], tuple[float, float]]:
    """Count and bytes of a rank of the stage of that number, by axis and kind."""
    work, spread = Work.of(spec, T), Spread(**{"accumulation": 3, **given})
    found = planned(work, spread, Stage.of(work, spread, number))
    return {(each.axis, each.kind): (each.count, each.bytes) for each in found}


def test_a_single_rank_sends_nothing() -> None:
    assert sent() == {}
    assert sent(ROUTED) == {}


@pytest.mark.parametrize(("recompute", "passes"), [("none", 2), ("full", 3)])
def test_tensor_ranks_gather_and_scatter_twice_a_pass(recompute: str, passes: int) -> None:
    found = sent(tensor=4, recompute=recompute, micro_batch=2)
    count = 2 * passes * L * 3
    each = (count, count * 2 * T * D * 2 * 3 / 4)
    assert found == {("tensor", "gather"): each, ("tensor", "scatter"): each}
    whole = sent(tensor=4, recompute=recompute, micro_batch=2, sequence_parallel=False)
    assert whole == {("tensor", "sum"): (count, 2 * each[1])}


def test_sharded_parameters_are_gathered_twice_and_gradients_scattered_once() -> None:
    found = sent(data=8, sharding="parameters")
    matrices = DENSE.parameters - (2 * L + 1) * D
    once = matrices * 2 * 7 / 8
    assert found[("data", "gather")] == (6 * (L + 1), pytest.approx(6 * once))
    # In 32 bits.
    assert found[("data", "scatter")] == (3 * (L + 1), pytest.approx(2 * 3 * once))
    kept = sent(data=8, sharding="parameters", reshard=False)
    assert kept[("data", "gather")] == (3 * (L + 1), pytest.approx(3 * once))


@pytest.mark.parametrize("sharding", ["none", "optimizer", "gradients"])
def test_otherwise_gradients_are_reduced_once_in_32_bits(sharding: str) -> None:
    found = sent(data=8, sharding=sharding)
    matrices = DENSE.parameters - (2 * L + 1) * D
    assert found[("data", "scatter")] == (L + 1, pytest.approx(matrices * 4 * 7 / 8))
    assert found[("data", "gather")] == (L + 1, pytest.approx(matrices * 2 * 7 / 8))


def test_other_axes_send_what_they_must() -> None:
    assert sent(pipeline=3)[("pipeline", "send")] == (3, 3 * T * D * 2)
    assert sent(pipeline=3, number=1)[("pipeline", "send")] == (6, 6 * T * D * 2)
    assert sent(pipeline=3, tensor=2)[("pipeline", "send")] == (3, 3 * T * D * 2 / 2)
    ring = sent(context=4)[("context", "send")]
    assert ring == (3 * L * 3 * 3, 3 * L * 3 * (2 * 8 * 8) * 2 * T * 3 / 4)
    dealt = sent(context=4, exchange="all_to_all")[("context", "exchange")]
    assert dealt == (4 * L * 3, 2 * L * 3 * (T / 4) * 4 * D * 2 * 3 / 4)
    routed = sent(ROUTED, data=4, expert=4)[("expert", "exchange")]
    assert routed == (4 * L * 3, 2 * L * 3 * T * 2 * D * 4 * 3 / 4)
    copies = sent(data=2, replicas=2, sharding="parameters")[("replicas", "sum")]
    assert copies == (L + 1, pytest.approx((DENSE.parameters - (2 * L + 1) * D) * 2 / 2))


def test_seconds_are_of_these_bytes() -> None:
    """A ring at a byte a second that never waits takes as many seconds as bytes are sent."""
    links = Links(domain=64.0, inside=1.0, outside=1.0, latency_inside=0.0, latency_outside=0.0)
    work = Work.of(DENSE, T)
    spread = Spread(data=4, tensor=2, accumulation=3)
    spreads = Spreads.of([spread])
    found = sent(data=4, tensor=2)
    one = links.gather(*tensor(work, spreads, np.array([float(T)])))
    count, moved = found[("tensor", "gather")]
    assert float(one[0]) * count == pytest.approx(moved)
    (shared,) = weights(work, spreads, held(work, spreads), 4.0)
    assert float(links.gather(*shared)[0]) == pytest.approx(found[("data", "scatter")][1])
