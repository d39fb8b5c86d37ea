"""One sequence in the making: its tokens, its key-value cache, the logits of what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from narrows.model.transformer import Transformer


@final
class Decoding:
    """Reads tokens, many at once or one by one, and gives the logits of the next.

    A model knows no position beyond its context. When the cache is full, the last half of the
    context is read again from position 0, which costs one pass for each half context written, and
    the sequence goes on without an end. The result is what the model says of those tokens alone.
    """

    def __init__(self, model: Transformer, tokens_max: int) -> None:
        """`tokens_max`: how long the sequence may grow; the cache is no larger than it need be."""
        assert not model.training, "dropout is on"
        self._model = model
        self._room = min(tokens_max, model.spec.context)
        self._caches = model.caches(1, self._room)
        self._cached: list[int] = []

    @property
    def cache_bytes(self) -> int:
        """What keys and values take when the cache is full."""
        return sum(each.nbytes for cache in self._caches for each in cache)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> Tensor:
        """Logits [V] of the token after `tokens`, which follow what was read before."""
        start = len(self._cached)
        if start + len(tokens) > self._room:
            assert self._room == self._model.spec.context, "more tokens than were announced"
            kept = max(1, self._room // 2)
            tokens, start = (self._cached + list(tokens))[-kept:], 0
            self._cached = []
        self._cached += tokens
        model = self._model
        tokens_BT = torch.tensor([tokens], device=model.head_VD.device)
        hidden_BTD = model.hidden(tokens_BT, self._caches, start)
        return model.logits(hidden_BTD[0, -1])
