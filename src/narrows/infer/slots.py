"""Which text lies in which slot of the core, and what of it another text can begin with."""

from __future__ import annotations

from typing import NamedTuple, final

from torch import Tensor

from narrows.infer.core import Core


class Place(NamedTuple):
    """A slot that holds the first `held` tokens of a prompt already; where that is all of them,
    with the logits of what follows.
    """

    slot: int
    held: int
    logits_V: Tensor | None


@final
class Slots:
    """A slot that is given back keeps its prompt until another text needs the slot.

    Prompts are read in chunks from position 0 on, and shared by whole chunks, or whole: so every
    position is computed by the same products as if its request had come alone, and equal to the
    last bit. What was written token by token is therefore never shared.
    """

    def __init__(self, core: Core, chunk: int) -> None:
        self.chunk = chunk
        self._core = core
        self.forget()

    @property
    def free(self) -> int:
        """How many slots no text is written in."""
        return len(self._free)

    def forget(self) -> None:
        """Take nothing that the slots hold for granted; all are free."""
        self._free = list(range(self._core.slots))
        self._read: list[tuple[int, ...]] = [()] * self._core.slots
        self._after: list[Tensor | None] = [None] * self._core.slots

    def take(self, prompt: tuple[int, ...]) -> Place:
        """A free slot, filled with the longest beginning of `prompt` that any slot holds."""
        source = max(range(self._core.slots), key=lambda slot: self._shared(slot, prompt))
        count = self._shared(source, prompt)
        logits_V = self._after[source] if count == len(prompt) else None
        target = self._target(source, count)
        if target == source:
            self._core.cut(target, count)
        elif count:
            self._core.copy(source, target, count)
        else:
            self._core.clear(target)
        self._read[target], self._after[target] = prompt[:count], logits_V
        return Place(target, count, logits_V)

    def read(self, slot: int, prompt: tuple[int, ...], count: int) -> tuple[int, Tensor]:
        """Read the next chunk of a prompt, of which `count` tokens are read: how many are then, and
        the logits of what follows.
        """
        end = min(len(prompt), count - count % self.chunk + self.chunk)
        logits_V = self._core.prefill(slot, prompt[count:end], count)
        self._read[slot] = prompt[:end]
        self._after[slot] = logits_V if end == len(prompt) else None
        return end, logits_V

    def give(self, slot: int) -> None:
        """Nothing more is written there."""
        self._core.cut(slot, len(self._read[slot]))
        self._free.append(slot)

    def _target(self, source: int, count: int) -> int:
        """`source` itself where nothing would be lost or nothing else is free; else the slot that
        was given back first.
        """
        whole = count == len(self._read[source]) or len(self._free) == 1
        target = source if source in self._free and whole else self._free[0]
        self._free.remove(target)
        return target

    def _shared(self, slot: int, prompt: tuple[int, ...]) -> int:
        held, chunk = self._read[slot], self.chunk
        if held == prompt and self._after[slot] is not None:
            return len(prompt)
        # At least one token is left to read, for what it says of the next.
        most = min(len(held), len(prompt) - 1)
        wanted = range(0, most - most % chunk, chunk)
        differs = (at for at in wanted if held[at : at + chunk] != prompt[at : at + chunk])
        return next(differs, wanted.stop)
