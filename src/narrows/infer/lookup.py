"""What a text may go on with, by what followed the same words before: names, quotations, code.

    lookup = Lookup(prompt, most);  lookup.guess() → tokens;  lookup.add(...);  lookup.found(...)

A guess costs a row of the next pass, and changes no text (arXiv:2304.04487 reads quotations so).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

_LONG, _SHORT = 3, 2
"""Tokens that are looked up; the shorter where the longer were never said."""


@final
class Ahead:
    """How many tokens are guessed: as many as were right of the last guess, twice as many where all
    were, from 1 to `most`.
    """

    def __init__(self, most: int) -> None:
        self._most, self.count = most, 1

    def found(self, right: int, guessed: int) -> None:
        """So many tokens of a guess were right."""
        grown = 2 * self.count if right == guessed else right
        self.count = max(1, min(grown, self._most))


@final
class Lookup:
    """All tokens of a text, and where each few of them were said last; at most `most` guessed."""

    def __init__(self, tokens: Iterable[int], most: int) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._ahead, self._guessed = Ahead(most), 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on with it."""
        place = len(self._tokens)
        for length in (_LONG, _SHORT):
            if place >= length:
                self._behind[tuple(self._tokens[-length:])] = place
        self._tokens.append(token)

    def guess(self) -> tuple[int, ...]:
        """What followed when the last tokens were said before; none where they never were."""
        for length in (_LONG, _SHORT):
            place = self._behind.get(tuple(self._tokens[-length:]))
            if place is not None:
                found = tuple(self._tokens[place : place + self._ahead.count])
                self._guessed = len(found)
                return found
        return ()

    def found(self, right: int) -> None:
        """So many tokens of the last guess were right."""
        self._ahead.found(right, self._guessed)
