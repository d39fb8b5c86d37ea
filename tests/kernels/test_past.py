from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from narrows.kernels.blocks import BlockShape, BlockStack
from narrows.kernels.interface import Heads, Rotation
from narrows.kernels.load import load
from narrows.kernels.past import Cache, extend
from narrows.kernels.reference import TorchKernels
from narrows.model.transformer import Transformer

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


class Named(TorchDispatchMode):
    """The names of all operations that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("queries", "start"), [(5, 0), (1, 4)])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_is_timed_is_what_a_model_runs(kind: Any, queries: int, start: int) -> None:
    """One block more is the same operations more, in the probe's stack and in the model."""
    modelled, timed = [], []
    for layers in (1, 2):
        spec = BlockShape(kind, layers, width=64, head_width=32, sequences=2, positions=16).spec
        model = Transformer(spec, load("torch")).eval().requires_grad_(False)
        caches, tokens_BT = model.caches(2, 16), torch.zeros(2, queries, dtype=torch.int64)
        with Named() as run:
            model.hidden(tokens_BT, caches, start)
        modelled.append(Counter(run.names))
        stack = BlockStack(spec, load("torch"), torch.float32, "cpu").requires_grad_(False)
        with Named() as run:
            stack.extend(torch.randn(2, queries, 64), caches, start)
        timed.append(Counter(run.names))
    assert modelled[1] - modelled[0] == timed[1] - timed[0]
    assert sum((timed[1] - timed[0]).values()) > 20
