"""A packed decoder's cache in int8: what is kept, and that it is read as what it stands for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from narrows.kernels.build import obstacle
from narrows.kernels.decoder import Run
from narrows.kernels.interface import Heads
from narrows.kernels.past import coded
from narrows.spec.machine import CachePrecision
from tests.kernels.test_decoder import EXTRAS, KINDS, ROOM, Extras, Made, told

from .decoding import Decoder

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")


@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
@pytest.mark.parametrize(
    "heads", [Heads(3, 3, 32), Heads(6, 2, 32), Heads(9, 3, 64), Heads(2, 1, 256)]
)
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)
def test_logits_over_a_cache_in_int8_are_those_of_its_codes(
    kind: str, heads: Heads, extras: Extras
) -> None:
    made, tokens = Made(KINDS[kind], heads, extras, "int8"), told(53, seed=3)
    found = [
        Decoder(made.model, room=ROOM, rows=64, threads=2, kept=kept) for kept in ("bf16", "int8")
    ]
    whole_TV, found_TV = (
        each.step([Run(each.cache(), 0, 53)], tokens, range(53)) for each in found
    )
    expected_TV = made.logits(tokens)
    assert float((found_TV - expected_TV).norm() / expected_TV.norm()) < 0.03
    assert not torch.equal(found_TV, whole_TV)


class Laid(NamedTuple):
    """A cache's numbers in their order in memory: keys [L,K,blocks,H/2,16,2] and values
    [L,K,blocks,8,H,2], with scales [L,K,blocks,16] of each in int8.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @staticmethod
    def of(lying: np.ndarray, width: int, kept: CachePrecision) -> Laid:
        cache = torch.from_numpy(lying)
        if kept == "bf16":
            numbers, scales = cache.view(torch.bfloat16), (None, None)
        else:
            scales = cache[..., 16 * width :].view(torch.float32).unbind(2)
            numbers = cache[..., : 16 * width].view(torch.int8)
        keys, values = numbers.unbind(2)
        return Laid(
            keys.unflatten(-1, (width // 2, 16, 2)), values.unflatten(-1, (8, width, 2)), *scales
        )

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values [L,K,S,H] in fp32."""
        keys = self.keys.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3).float()
        values = self.values.permute(0, 1, 2, 3, 5, 4).flatten(2, 4).float()
        if self.key_scales is None or self.value_scales is None:
            return keys, values
        scales = (each.flatten(2)[..., None] for each in (self.key_scales, self.value_scales))
        return keys * next(scales), values * next(scales)


@pytest.mark.parametrize("pieces", [[53], [1] * 53, [20, 7, 26]])
def test_what_is_kept_in_int8_is_coded_as_torch_does(pieces: list[int]) -> None:
    """Of the first layer, which no cache was before; bf16 is the same numbers, rounded."""
    made, tokens = Made(KINDS["Q8_0"], Heads(6, 2, 32)), told(53, seed=3)
    kinds: tuple[CachePrecision, ...] = ("bf16", "int8")
    laid = []
    for kept in kinds:
        decoder, first = Decoder(made.model, room=ROOM, rows=64, threads=2, kept=kept), 0
        cache = decoder.cache()
        for count in pieces:
            decoder.step([Run(cache, first, count)], tokens[first : first + count], [])
            first += count
        laid.append(Laid.of(cache, 32, kept))
    for near, found in zip(*(each.whole() for each in laid), strict=True):
        _, scales = coded(near[0, :, :53])
        # int8 is off by half a code at most, bf16 by a 256th.
        most = 0.51 * scales + near[0, :, :53].abs() / 256
        assert ((found[0, :, :53] - near[0, :, :53]).abs() <= most).all()
        assert (found[0, :, 53:] == 0.0).all()
    codes = Laid(laid[1].keys, laid[1].values).whole()
    assert all((each[:, :, :53].abs().amax(-1) == 127.0).all() for each in codes)


@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("extras", ["plain", "norms on both sides, windows, caps"])
@pytest.mark.parametrize("heads", [Heads(6, 2, 32), Heads(9, 3, 64), Heads(2, 1, 256)])
def test_a_cache_in_int8_reads_as_the_same_numbers_in_bf16(
    heads: Heads, extras: str, queries: int
) -> None:
    """Codes of seven bits times powers of two are whole in bf16, too. Scales differ a lot from
    position to position: to take the next one's changes logits by a fifth and more.
    """
    made, past = Made(KINDS["BF16"], heads, EXTRAS[extras]), 47
    generator = torch.Generator().manual_seed(8)
    kinds: tuple[CachePrecision, ...] = ("bf16", "int8")
    decoders = [Decoder(made.model, room=ROOM, rows=64, threads=2, kept=kept)
                for kept in kinds]  # fmt: skip
    caches = [each.cache() for each in decoders]
    whole, laid = (
        Laid.of(cache, heads.width, kept) for cache, kept in zip(caches, kinds, strict=True)
    )
    assert laid.key_scales is not None and laid.value_scales is not None
    for codes in (laid.keys, laid.values):
        codes.copy_(torch.randint(-127, 128, codes.shape, generator=generator))
    for scales in (laid.key_scales, laid.value_scales):
        scales.copy_(2.0 ** torch.randint(-12, -5, scales.shape, generator=generator))
    whole.keys.copy_(laid.keys * laid.key_scales[..., None, :, None])
    whole.values.copy_(laid.values * laid.value_scales.unflatten(-1, (8, 1, 2)))
    for one, other in zip(whole.whole(), laid.whole(), strict=True):
        assert torch.equal(one, other)
    tokens = told(queries, seed=4)
    expected, found = (
        decoder.step([Run(cache, past, queries)], tokens, range(queries))
        for decoder, cache in zip(decoders, caches, strict=True)
    )
    assert float((found - expected).norm() / expected.norm()) < 0.02
