"""What computes for the scheduler: the caches of several texts, and what follows each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from narrows.kernels.arrays import Floats


class Read(NamedTuple):
    """Tokens, one or more, that are read in a slot at positions from `start` on, up to where it
    must be filled; of the last `wanted` of them it is asked what follows.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    wanted: int = 1


class Core(ABC):
    """`slots` caches of `context` positions each, and a model of `vocabulary` tokens, with those of
    its `adapters` that slots are given.

    A slot's numbers are the same to the last bit whatever the others hold; `alike`, they also are
    however its text is cut into passes. One thread calls it.
    """

    alike: ClassVar[bool] = False

    def __init__(
        self, slots: int, context: int, vocabulary: int, adapters: Iterable[str | None] = ()
    ) -> None:
        self.slots, self.context, self.vocabulary = slots, context, vocabulary
        self.adapters = frozenset({None, *adapters})
        self._lengths = [0] * slots
        self._adapters: list[str | None] = [None] * slots

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """What keys and values of all slots take."""

    @abstractmethod
    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> Floats:
        """Read tokens, one or more, at positions from `start` on, up to where the slot must be
        filled; logits [V] in fp32 of what follows the last.
        """

    @abstractmethod
    def step(self, reads: Sequence[Read]) -> Floats:
        """Read in different slots at once; logits [W,V] in fp32 of all that are wanted, in turn. A
        core that is not `alike` is asked for at most the last of each.
        """

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Floats:
        """Read one token behind each of different slots' last; logits [M,V] in fp32."""
        pairs = zip(slots, tokens, strict=True)
        return self.step([Read(slot, [token], self.length(slot)) for slot, token in pairs])

    @abstractmethod
    def copy(self, source: int, target: int, count: int) -> None:
        """Make the first `count` positions of `source` all that `target` holds."""

    def adapt(self, slot: int, adapter: str | None) -> None:
        """Read with that adapter what is read in the slot from now on, or with none."""
        assert adapter in self.adapters, "no such adapter"
        self._adapters[slot] = adapter

    def length(self, slot: int) -> int:
        """How many positions the slot holds."""
        return self._lengths[slot]

    def cut(self, slot: int, count: int) -> None:
        """Forget all but the slot's first `count` positions."""
        assert count <= self._lengths[slot], "cannot cut to more than there is"
        self._lengths[slot] = count

    def clear(self, slot: int) -> None:
        """Forget all that the slot holds."""
        self.cut(slot, 0)
