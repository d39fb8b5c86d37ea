"""The quick core: all rows of a step through the packed decoder at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from narrows.infer.core import Core
from narrows.infer.scheduler import CHUNK
from narrows.kernels.decoder import PackedDecoder, PackedModel, Run
from narrows.kernels.packing import PANEL


@final
class PackedCore(Core):
    """The decoder computes a row alike whatever stands beside it, so slots share a pass
    (tests/kernels/test_decoder.py).
    """

    alike = True

    def __init__(self, model: PackedModel, slots: int, context: int) -> None:
        super().__init__(slots, context, model.head.rows)
        rows, threads = max(slots, CHUNK), torch.get_num_threads()
        self._decoder = PackedDecoder(model, room=context, rows=rows, threads=threads)
        self._caches = [self._decoder.cache() for _ in range(slots)]

    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        assert tokens and start <= self._lengths[slot], "a gap in the cache"
        assert start + len(tokens) <= self.context, "the slot is full"
        logits_V = self._decoder.read(self._caches[slot], tokens, start)
        self._lengths[slot] = start + len(tokens)
        return logits_V

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        assert len(set(slots)) == len(slots) == len(tokens), "a slot twice"
        assert all(self._lengths[slot] < self.context for slot in slots), "a slot is full"
        runs = [Run(self._caches[slot], self._lengths[slot], 1) for slot in slots]
        logits_MV = self._decoder.step(runs, tokens, range(len(slots)))
        for slot in slots:
            self._lengths[slot] += 1
        return logits_MV

    def copy(self, source: int, target: int, count: int) -> None:
        assert count <= self._lengths[source]
        # Keys lie in blocks of PANEL positions; what is copied beyond `count` is written over.
        blocks = -(-count // PANEL) * PANEL * self._decoder.model.heads.width
        self._caches[target][..., :blocks] = self._caches[source][..., :blocks]
        self._lengths[target] = count
