from __future__ import annotations

import pytest
import torch

from narrows.kernels.interface import Heads, Rotation
from narrows.kernels.past import Cache, extend
from narrows.kernels.reference import TorchKernels

POSITIONS = 12


@pytest.mark.parametrize("pieces", [(12,), (11, 1), (1,) * 12, (5, 4, 3)])
@pytest.mark.parametrize("heads", [Heads(4, 4, 8), Heads(6, 2, 8)])
@pytest.mark.parametrize("turned", [True, False])
def test_in_pieces_as_at_once(pieces: tuple[int, ...], heads: Heads, turned: bool) -> None:
    torch.manual_seed(0)
    qkv_BTX = torch.randn(2, POSITIONS, (heads.query + 2 * heads.key_value) * heads.width)
    angles_TH = torch.randn(POSITIONS, heads.width // 2)
    rotation = Rotation(angles_TH.cos(), angles_TH.sin()) if turned else None
    whole_BTX = TorchKernels().attention(qkv_BTX, heads, rotation)
    cache = Cache(*torch.zeros(2, 2, heads.key_value, POSITIONS, heads.width))
    start, found = 0, []
    for count in pieces:
        part = slice(start, start + count)
        own = Rotation(*(each[part] for each in rotation)) if rotation else None
        found.append(extend(qkv_BTX[:, part], heads, own, cache, start))
        start += count
    assert torch.allclose(torch.cat(found, 1), whole_BTX, atol=1e-5)
