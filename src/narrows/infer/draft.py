"""What a small model says that a large one may say next, several tokens at once.

    draft = Draft(core, most);  draft.guesses(texts) → tokens of each

Each text's own sampler chooses from what the small model says, by the very numbers that it will
choose by from what the large one says: where both say the same, the guess is right whatever is
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from narrows.infer.core import Core, Read
from narrows.infer.lookup import Ahead
from narrows.infer.slots import Slots
from narrows.infer.writing import Rehearsal, Writing
from narrows.kernels.arrays import Floats

CHUNK = 256
"""Tokens of all texts that the small model reads at most before it guesses."""
_MOST = 32
"""Guesses of a text that a pass of few texts has room for."""


@dataclass
class _Follower:
    """Of a text: its slot, which held `begun` of its tokens at first and holds `held` now; and what
    was guessed behind so many that were `known`.
    """

    slot: int
    begun: int
    held: int
    ahead: Ahead
    known: int = 0
    guess: tuple[int, ...] = ()


@final
class Draft:
    """Follows as many texts at once as its core has slots."""

    def __init__(self, core: Core, most: int) -> None:
        """At most `most` tokens are guessed for each."""
        self.core, self._most = core, min(most, _MOST)
        self._slots = Slots(core, CHUNK)
        self._followers: dict[Writing, _Follower] = {}

    def guesses(self, texts: Sequence[Writing]) -> list[tuple[int, ...]]:
        """What may follow the last token of each; nothing where its text is still being read."""
        self._leave(texts)
        followers = [self._follower(text) for text in texts]
        reads, rehearsed = list[Read](), list[tuple[_Follower, Rehearsal, int]]()
        for text, own in zip(texts, followers, strict=True):
            count = min(own.ahead.count, text.left, self.core.context + 1 - own.known)
            if count < 1:
                continue
            behind = text.since(own.held)
            some = behind[: CHUNK // len(texts)]
            reads.append(Read(own.slot, some, own.held, int(len(some) == len(behind))))
            own.held += len(some)
            if reads[-1].wanted:
                rehearsed.append((own, text.rehearsal(), count))
        while reads:
            rows = iter(self.core.step(reads))
            rehearsed = [each for each in rehearsed if _goes_on(*each, next(rows))]
            reads = [Read(own.slot, own.guess[-1:], own.held) for own, _, _ in rehearsed]
            for own, _, _ in rehearsed:
                own.held += 1
        return [own.guess for own in followers]

    def _leave(self, texts: Sequence[Writing]) -> None:
        """Give back the slots of all others; they keep what was read until they are needed."""
        for text in self._followers.keys() - set(texts):
            own = self._followers.pop(text)
            sure = min(own.held, own.known)
            self._slots.give(own.slot, text.since(own.begun)[: max(0, sure - own.begun)])

    def _follower(self, text: Writing) -> _Follower:
        """As of now: of what was guessed that is kept which came true."""
        own = self._followers.get(text)
        if own is None:
            place = self._slots.take(tuple(text.since(0)))
            own = _Follower(place.slot, place.held, place.held, Ahead(self._most))
            self._followers[text] = own
        came = text.since(own.known)
        if own.guess:
            right = next(
                (i for i, token in enumerate(own.guess) if came[i : i + 1] != [token]),
                len(own.guess),
            )
            own.ahead.found(right, len(own.guess))
            own.held = min(own.held, own.known + right)
            self.core.cut(own.slot, own.held)
        own.known, own.guess = own.known + len(came), ()
        return own


def _goes_on(own: _Follower, rehearsal: Rehearsal, count: int, logits_V: Floats) -> bool:
    """Guess a token more; whether another is to follow."""
    token = rehearsal.choose(logits_V)
    if token is not None:
        own.guess += (token,)
    return token is not None and not rehearsal.over and len(own.guess) < count
