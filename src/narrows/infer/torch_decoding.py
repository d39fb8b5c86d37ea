"""A sequence in the making by a model as torch computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from narrows.infer.decoding import Cached, Decoding
from narrows.kernels.arrays import Floats
from narrows.model.transformer import Transformer
from narrows.spec.machine import CachePrecision


def decoding_of(
    model: Transformer, tokens_max: int, kept: CachePrecision | None = None
) -> Decoding:
    """A sequence to begin, of at most so many tokens."""
    return Decoding(model.spec.context, tokens_max, lambda room: _Whole(model, room, kept))


def spoken(logits: torch.Tensor) -> Floats:
    """Logits as tokens are chosen from them."""
    return np.asarray(logits.float().cpu().numpy())


@final
class _Whole(Cached):
    def __init__(self, model: Transformer, room: int, kept: CachePrecision | None) -> None:
        assert not model.training, "dropout is on"
        self._model, self._caches = model, model.caches(1, room, kept)

    @property
    def cache_bytes(self) -> int:
        return sum(each.nbytes for cache in self._caches for each in cache)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], start: int) -> Floats:
        model = self._model
        tokens_BT = torch.tensor([tokens], device=model.head_VD.device)
        hidden_BTD = model.hidden(tokens_BT, self._caches, start)
        return spoken(model.logits(hidden_BTD[0, -1]))
