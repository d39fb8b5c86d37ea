"""The readable core: the model as torch computes it, each slot by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import final

import numpy as np
import torch

from narrows.infer.core import Core, Read
from narrows.infer.torch_decoding import spoken
from narrows.kernels.arrays import Floats
from narrows.model.transformer import Transformer
from narrows.spec.machine import CachePrecision


@final
class TorchCore(Core):
    """One cache a slot, and one pass a slot: no product has rows of two texts, so that the text of
    one cannot depend on its neighbours (tests/infer/test_core.py).
    """

    def __init__(
        self, model: Transformer, slots: int, context: int | None = None,
        kept: CachePrecision | None = None,
        adapted: Mapping[str | None, Transformer] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`context`: the most positions of a slot, by default all that the model knows; their keys
        and values are kept as the model computes, or in int8. `adapted` are the same model with
        adapters, by the names of these.
        """
        assert not model.training, "dropout is on"
        super().__init__(slots, context or model.spec.context, model.spec.vocabulary, adapted)
        self._models = {None: model, **adapted}
        self._caches = [model.caches(1, self.context, kept) for _ in range(slots)]

    @property
    def cache_bytes(self) -> int:
        return sum(each.nbytes for slot in self._caches for cache in slot for each in cache)

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> Floats:
        assert tokens and start <= self._lengths[slot], "a gap in the cache"
        assert start + len(tokens) <= self.context, "the slot is full"
        model = self._models[self._adapters[slot]]
        tokens_BT = torch.tensor([list(tokens)], device=model.head_VD.device)
        hidden_BTD = model.hidden(tokens_BT, self._caches[slot], start)
        self._lengths[slot] = start + len(tokens)
        return spoken(model.logits(hidden_BTD[0, -1]))

    def step(self, reads: Sequence[Read]) -> Floats:
        assert len({each.slot for each in reads}) == len(reads), "a slot twice"
        assert all(each.wanted <= 1 for each in reads), "rows of one pass are not those of many"
        rows = [(each, self.prefill(each.slot, each.tokens, each.start)) for each in reads]
        wanted = [logits_V for each, logits_V in rows if each.wanted]
        return np.stack(wanted) if wanted else np.empty((0, self.vocabulary), np.float32)

    @torch.inference_mode()
    def copy(self, source: int, target: int, count: int) -> None:
        assert count <= self._lengths[source]
        for here, there in zip(self._caches[source], self._caches[target], strict=True):
            for from_BKSX, to_BKSX in zip(here, there, strict=True):
                to_BKSX[:, :, :count] = from_BKSX[:, :, :count]
        self._lengths[target] = count
