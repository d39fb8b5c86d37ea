from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import stages
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread
from narrows.spec.model import llama
from narrows.spec.pieces import Piece, pieces, rank_of
from tests import layouts

KINDS: dict[str, dict[str, Any]] = {
    "1f1b": {},
    "gpipe": {"schedule": "gpipe"},
    "interleaved": {"interleave": 2},
    "zero_bubble": {"schedule": "zero_bubble", "interleave": 2},
}
layout_of = partial(layouts.layout_of, accumulation=8, loss_chunk=32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages_count", [2, 3, 4, 8])
@pytest.mark.parametrize("fewer", [(0, 0), (0, 1), (0, 2), (1, 1), (2, 1)])
def test_ranks_have_as_many_layers_as_in_the_plan(
    kind: str, stages_count: int, fewer: tuple[int, int]
) -> None:
    given: dict[str, Any] = {
        "first_fewer": fewer[0],
        "last_fewer": fewer[1],
        "pipeline": stages_count,
    }
    for layers in (30, 32, 33, 38):
        spec = llama(layers=layers, width=64, heads=8, vocabulary=120, context=32)
        layout = layout_of(**given, **KINDS[kind])
        spread = Spread(**given, **KINDS[kind], accumulation=8)
        planned = stages(Work.of(spec, spec.context), Spreads.of([spread])).layers[:, 0]
        found = pieces(layers, layout)
        assert [found[0].start, found[-1].stop] == [0, layers]
        assert all(a.stop == b.start for a, b in zip(found, found[1:], strict=False))
        counts = [0] * stages_count
        for piece in found:
            counts[rank_of(piece.number, layout)] += piece.stop - piece.start
        assert counts[0] == planned[0]
        inner = counts[1:] if kind == "zero_bubble" else counts[1:-1]
        assert not inner or max(inner) <= planned[1]
        if kind != "zero_bubble":
            assert counts[-1] == planned[2]


def test_pieces_are_dealt_out_in_turn_or_bent() -> None:
    turns, bent = (
        layout_of(pipeline=3, **KINDS["interleaved"]),
        layout_of(pipeline=3, **KINDS["zero_bubble"]),
    )
    assert [rank_of(number, turns) for number in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [rank_of(number, bent) for number in range(6)] == [0, 1, 2, 2, 1, 0]


def test_tables_are_at_the_ends_and_tied_ones_at_both() -> None:
    first, middle, last = (Piece(number, 3, 2 * number, 2 * number + 2) for number in range(3))
    assert middle.has("blocks.3.qkv.weight", tied=True)
    assert not middle.has("blocks.4.qkv.weight", tied=True)
    for name in ("tokens.weight", "positions.weight", "norm_embedding.bias"):
        assert first.has(name, tied=False) and not middle.has(name, tied=False)
        assert last.has(name, tied=True) == (name == "tokens.weight")
    for name in ("norm.weight", "head.weight", "head_bias"):
        assert last.has(name, tied=False) and not first.has(name, tied=False)
