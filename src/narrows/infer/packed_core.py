"""The quick core: all rows of a step through the packed decoder at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import final

from narrows.hardware.find import threads
from narrows.infer.core import Core, Read
from narrows.infer.scheduler import CHUNK
from narrows.kernels.arrays import Floats
from narrows.kernels.decoder import PackedDecoder, PackedModel, Run, blocks
from narrows.kernels.low_rank import PackedAdapter
from narrows.spec.machine import CachePrecision


@final
class PackedCore(Core):
    """The decoder computes a row alike whatever stands beside it, so slots share a pass
    (tests/kernels/test_decoder.py).
    """

    alike = True

    def __init__(
        self, model: PackedModel, slots: int, context: int, kept: CachePrecision = "bf16",
        adapters: Mapping[str | None, PackedAdapter] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        super().__init__(slots, context, model.head.rows, adapters)
        self._beside = {None: None, **adapters}
        self._decoder = PackedDecoder(
            model, room=context, rows=slots + CHUNK, threads=threads(), kept=kept
        )
        self._caches = [self._decoder.cache() for _ in range(slots)]

    @property
    def cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches)

    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> Floats:
        assert tokens and start <= self._lengths[slot], "a gap in the cache"
        assert start + len(tokens) <= self.context, "the slot is full"
        adapter = self._beside[self._adapters[slot]]
        logits_V = self._decoder.read(self._caches[slot], tokens, start, adapter)
        self._lengths[slot] = start + len(tokens)
        return logits_V

    def step(self, reads: Sequence[Read]) -> Floats:
        assert len({each.slot for each in reads}) == len(reads), "a slot twice"
        runs, tokens, wanted = list[Run](), list[int](), list[int]()
        for slot, some, start, count in reads:
            assert some and start <= self._lengths[slot], "a gap in the cache"
            assert start + len(some) <= self.context, "the slot is full"
            adapter = self._beside[self._adapters[slot]]
            runs.append(Run(self._caches[slot], start, len(some), adapter))
            tokens += some
            wanted += range(len(tokens) - count, len(tokens))
        logits_WV = self._decoder.step(runs, tokens, wanted)
        for slot, some, start, _ in reads:
            self._lengths[slot] = start + len(some)
        return logits_WV

    def copy(self, source: int, target: int, count: int) -> None:
        assert count <= self._lengths[source]
        # Positions lie in blocks; what is copied beyond `count` is written over.
        filled = blocks(count)
        self._caches[target][..., :filled, :] = self._caches[source][..., :filled, :]
        self._lengths[target] = count
