"""Rows with adapters are computed by the sums of matrices, and those beside them as ever."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from narrows.kernels.build import obstacle
from narrows.kernels.decoder import Run
from narrows.kernels.interface import Heads
from narrows.kernels.low_rank import Low, PackedAdapter

from .decoding import Decoder, bits
from .test_decoder import EXTRAS, KINDS, ROOM, Extras, Kind, Made, drawn, told

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
HEADS = Heads(6, 2, 32)


def adapter_of(made: Made, rank: int, seed: int, *, add: bool = False) -> PackedAdapter:
    """Beside queries and values, and whatever else of the first layer alone there is; with `add`,
    the sums take the place of what torch multiplies with.
    """
    (N, K, H), wide = made.heads, made.wide
    places: list[tuple[int, str, list[tuple[int, int]]]] = [
        (0, "qkv", [(0, N * H), ((N + K) * H, (N + 2 * K) * H)]),
        (1, "qkv", [(N * H, (N + K) * H)]),
        (0, "out", [(0, made.width)]),
        (0, "down", [(0, made.width)]),
        (0, "up", [(0, wide), (wide, 2 * wide)] if made.extras.gated else [(0, wide)]),
    ]
    beside: dict[tuple[int, str], Sequence[Low]] = {}
    for layer, place, parts in places:
        matrix, lows = made.whole[f"{place}{layer}"], list[Low]()
        for first, last in parts:
            seed += 2
            a_RD = drawn(rank, matrix.shape[1], seed=seed, scale=matrix.shape[1] ** -0.5)
            b_XR = drawn(last - first, rank, seed=seed + 1, scale=rank**-0.5)
            lows.append(Low(first, last, bits(a_RD), bits(b_XR)))
            if add:
                matrix[first:last] += b_XR @ a_RD
        beside[layer, place] = lows
    return PackedAdapter(2, beside)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("rank", [3, 16])
def test_logits_are_those_of_the_sums(kind: Kind, extras: Extras, rank: int) -> None:
    made, tokens = Made(kind, HEADS, extras), told(21, seed=3)
    plain_TV = made.logits(tokens)
    adapter = adapter_of(made, rank, 100, add=True)
    decoder = Decoder(made.model, room=ROOM, rows=64, threads=2)
    run = Run(decoder.cache(), 0, 21, adapter)
    found_TV, expected_TV = decoder.step([run], tokens, range(21)), made.logits(tokens)
    off = float((found_TV - expected_TV).norm() / expected_TV.norm())
    # As without an adapter (test_decoder); what it changes is many times that.
    assert off < 0.03 < 0.3 < float((plain_TV - expected_TV).norm() / expected_TV.norm())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Q4_1", "BF16"])
def test_a_row_is_the_same_whichever_adapters_stand_beside_it(kind: str, threads: int) -> None:
    made, tokens = Made(KINDS[kind], HEADS), told(41, seed=5)
    adapters = [None, adapter_of(made, 3, 100), adapter_of(made, 17, 200)]
    decoder = Decoder(made.model, room=ROOM, rows=200, threads=threads)
    alone = [decoder.step([Run(decoder.cache(), 0, 41, each)], tokens, range(41))
             for each in adapters]  # fmt: skip
    assert not torch.equal(alone[0], alone[1]) and not torch.equal(alone[1], alone[2])
    order = [2, 0, 1, 0]
    runs = [Run(decoder.cache(), 0, 41, adapters[index]) for index in order]
    beside = decoder.step(runs, tokens * 4, range(164)).split(41)
    assert all(torch.equal(found, alone[index]) for found, index in zip(beside, order, strict=True))
    caches = [decoder.cache() for _ in adapters]
    for t in range(41):
        runs = [Run(*each) for each in zip(caches, [t] * 3, [1] * 3, adapters, strict=True)]
        found = decoder.step(runs, [tokens[t]] * 3, range(3))
        assert all(torch.equal(row, each[t]) for row, each in zip(found, alone, strict=True))


def test_another_models_adapter_is_no_ones() -> None:
    made = Made(KINDS["BF16"], HEADS)
    decoder = Decoder(made.model, room=ROOM, rows=8, threads=1)
    low = Low(0, 96, bits(torch.zeros(4, 96)), bits(torch.zeros(96, 4)))
    with pytest.raises(AssertionError, match="another model"):
        decoder.step([Run(decoder.cache(), 0, 1, PackedAdapter(3, {(2, "out"): [low]}))], [5], [0])
