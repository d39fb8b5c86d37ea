"""What a plan says that ranks tell each other of what learns is what real processes do."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import pytest
import torch

from narrows.adapt.apply import apply
from narrows.kernels.load import load
from narrows.parallel.mesh import ranks_of
from narrows.parallel.recompute import recomputed
from narrows.parallel.split import Making, split
from narrows.parallel.trace import Counting, axes, traffic
from narrows.plan.exchange import exchange
from narrows.spec.adapter import Learning, LowRank
from narrows.spec.layout import Layout

from .equality import CPU, MODELS, SEQUENCES, layout_of, tokens
from .processes import run
from .test_exchange import KINDS, TRACED, Counts, _axis, _step, assert_same, counted

pytestmark = pytest.mark.dist
LEARNING = {
    "lora": Learning(adapter=LowRank(rank=4)),
    "nf4": Learning(adapter=LowRank(rank=4, base="nf4", rule="dora")),
    "late": Learning(adapter=LowRank(rank=4), frozen=("layers.0-1",)),
    "frozen": Learning(frozen=("embeddings", "layers.0")),
}


def planned(layout: Layout, rank: int, learning: Learning) -> Counts:
    sums: Counts = defaultdict(lambda: [0.0, 0.0])
    for each in exchange(MODELS["dense"], layout, rank, learning=learning):
        if each.axis is not None:
            entry = sums[_axis(layout, each), KINDS[each.kind]]
            entry[0] += each.calls
            entry[1] += each.sent
    return sums


def really(layout: Layout, learning: Learning) -> Counts:
    ranks = ranks_of(layout, CPU)
    prepare = partial(apply, learning=learning)
    making = Making(
        load("torch"), recomputed(layout.recompute), CPU, torch.float32, prepare=prepare
    )  # fmt: skip
    mine = split(MODELS["dense"], layout, ranks, making, seed=3)
    first, count = mine.own(SEQUENCES)
    _step(mine, tokens()[first : first + count])
    counting = Counting(axes(ranks, layout))
    with counting:
        _step(mine, tokens()[first : first + count])
    return counted(traffic(counting.counts))


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("kind", ["replicated", "optimizer", "gradients", "parameters", "kept"])
def test_ranks_tell_each_other_of_what_learns(kind: str, name: str) -> None:
    """The first block that gradients reach has none for what enters it, and without that torch
    gathers a block more: not more than one a micro-batch.
    """
    layout, learning = layout_of(**{**TRACED[kind], "data": 2, "micro_batch": 2}), LEARNING[name]
    for rank, counts in enumerate(run(2, really, layout, learning)):
        mine, gathers = planned(layout, rank, learning), ("data", "gather")
        if gathers in counts:
            more = counts[gathers][0] - mine[gathers][0]
            assert 0 <= more <= layout.accumulation
            each = mine[gathers][1] / mine[gathers][0]
            moved = counts[gathers][1] - mine[gathers][1]
            assert moved == pytest.approx(more * each, rel=0.2)
            mine[gathers] = counts[gathers]
        assert_same(mine, counts)
