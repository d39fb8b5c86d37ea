"""Which text lies in which slot of the core, and what of it another text can begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from narrows.infer.core import Core, Read
from narrows.kernels.arrays import Floats


class Place(NamedTuple):
    """A slot that holds the first `held` tokens of a prompt already; where that is all of them,
    with the logits of what follows.
    """

    slot: int
    held: int
    logits_V: Floats | None


@final
class Slots:
    """A slot that is given back keeps its text until another needs the slot.

    Of a core that computes a text alike however it is cut, any beginning is shared, of prompts and
    of what was written. Of others prompts are shared by the chunks that they are read in, from
    position 0 on, or whole: so every position is computed by the same products as if its request
    had come alone, and equal to the last bit. What one adapter read is nothing to another.
    """

    def __init__(self, core: Core, chunk: int) -> None:
        self.chunk, self._grain = chunk, 1 if core.alike else chunk
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
        self._after: list[Floats | None] = [None] * self._core.slots
        self._adapters: list[str | None] = [None] * self._core.slots

    def take(self, prompt: tuple[int, ...], adapter: str | None = None) -> Place:
        """A free slot, filled with the longest beginning of `prompt` that any slot holds which read
        it with the same adapter; what comes next is read with that, too.
        """
        found = [self._shared(slot, prompt, adapter) for slot in range(self._core.slots)]
        count = max(found)
        source = found.index(count)
        logits_V = self._after[source] if count == len(prompt) else None
        target = self._target(source, count)
        if target == source:
            self._core.cut(target, count)
        elif count:
            self._core.copy(source, target, count)
        else:
            self._core.clear(target)
        self._core.adapt(target, adapter)
        self._read[target], self._after[target] = prompt[:count], logits_V
        self._adapters[target] = adapter
        return Place(target, count, logits_V)

    def next(self, slot: int, prompt: tuple[int, ...], count: int, most: int) -> Read | None:
        """What of a prompt is read next, of which `count` tokens are: the rest of a chunk, or where
        it may be cut anywhere as much as `most`; None where there is no room for it.
        """
        end = count + most if self._core.alike else count - count % self.chunk + self.chunk
        tokens = prompt[count:end]
        if not 0 < len(tokens) <= most:
            return None
        return Read(slot, tokens, count, wanted=int(end >= len(prompt)))

    def keep(self, read: Read, logits_V: Floats | None) -> None:
        """That chunk was read, and what follows where it was the last."""
        self._read[read.slot] += tuple(read.tokens)
        self._after[read.slot] = logits_V

    def give(self, slot: int, written: Sequence[int] = ()) -> None:
        """Nothing more is written there; `written` was read behind the prompt."""
        if self._core.alike and written:
            self._read[slot] += tuple(written)
            self._after[slot] = None
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

    def _shared(self, slot: int, prompt: tuple[int, ...], adapter: str | None) -> int:
        held, grain = self._read[slot], self._grain
        if self._adapters[slot] != adapter:
            return 0
        if held == prompt and self._after[slot] is not None:
            return len(prompt)
        # At least one token is left to read, for what it says of the next.
        least, most = 0, min(len(held), len(prompt) - 1) // grain
        while least < most:
            middle = (least + most + 1) // 2
            same = held[: middle * grain] == prompt[: middle * grain]
            least, most = (middle, most) if same else (least, middle - 1)
        return least * grain
