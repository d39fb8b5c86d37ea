"""One sequence in the making: its tokens, its key-value cache, the logits of what comes next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import final

from narrows.kernels.arrays import Floats


class Cached(ABC):
    """A model and one sequence's keys and values, with room for so many positions."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """What keys and values take when the cache is full."""

    @abstractmethod
    def read(self, tokens: Sequence[int], start: int) -> Floats:
        """Logits [V] of the token after `tokens`, whose positions begin at `start`; what is cached
        from there on is forgotten.
        """


@final
class Decoding:
    """Reads tokens, many at once or one by one, and gives the logits of the next.

    A model knows no position beyond its context. When the cache is full, the last half of the
    context is read again from position 0, which costs one pass for each half context written, and
    the sequence goes on without an end. The result is what the model says of those tokens alone.
    """

    def __init__(self, context: int, tokens_max: int, cached: Callable[[int], Cached]) -> None:
        """`tokens_max`: how long the sequence may grow; the cache has `room` for no more."""
        self._context, self.room = context, min(tokens_max, context)
        self._model = cached(self.room)
        self._cached: list[int] = []

    @property
    def cache_bytes(self) -> int:
        """What keys and values take when the cache is full."""
        return self._model.cache_bytes

    def resume(self, tokens: Sequence[int]) -> Floats:
        """Logits [V] of the token after `tokens`, of which what was read before and is the same is
        not read again.
        """
        pairs = zip(self._cached, tokens[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._cached = self._cached[:shared]
        return self.read(tokens[shared:])

    def read(self, tokens: Sequence[int]) -> Floats:
        """Logits [V] of the token after `tokens`, which follow what was read before."""
        start = len(self._cached)
        if start + len(tokens) > self.room:
            assert self.room == self._context, "more tokens than were announced"
            kept = max(1, self.room // 2)
            tokens, start = (self._cached + list(tokens))[-kept:], 0
            self._cached = []
        self._cached += tokens
        return self._model.read(tokens, start)
