"""Tokens to text as they come: no half character, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from narrows.data.tokenizers import Tokenizer
from narrows.spec.errors import BadInput

_CONTEXT = 8
"""Tokens of the prompt that are decoded along: some tokenizers join words across tokens."""
_INCOMPLETE = "\ufffd"


@final
class TextStream:
    """The text of tokens, piece by piece; the pieces together are the text of all of them.

    A character whose bytes are spread over several tokens is held back until it is whole: an
    incomplete one at the end decodes to a single U+FFFD. Only tokens since the last whole
    character, and those before them for context, are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt[-_CONTEXT:])
        self._fresh: list[int] = []
        self._known = len(tokenizer.decode(self._context))

    def push(self, token: int) -> str:
        """The text that `token` completes, often a word, sometimes nothing."""
        alone = None if self._fresh else self._tokenizer.text_anywhere(token)
        if alone is not None:
            self._context, self._known = [token], len(alone)
            return alone
        self._fresh.append(token)
        text = self._text()
        if text.endswith(_INCOMPLETE):
            piece = text[self._known : -1]
            self._known += len(piece)
            return piece
        piece = text[self._known :]
        self._context, self._fresh = self._fresh, []
        self._known = len(self._text())
        return piece

    def finish(self) -> str:
        """What was held back: U+FFFD for a character that was never completed."""
        piece = self._text()[self._known :]
        self._known += len(piece)
        return piece

    def _text(self) -> str:
        return self._tokenizer.decode(self._context + self._fresh)


@final
class StopStrings:
    """Lets text through up to the first stop string, however the text is cut into pieces.

    What may be the beginning of a stop string is held back. The stop string that ends first counts;
    of two that end together, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise BadInput("a stop string is empty", hint='give some text, as --stop "JULIET:"')
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What of the text so far may be shown; after a stop string, nothing more."""
        if not self._stops:
            return text
        if self.found:
            return ""
        self._held += text
        ends = [(self._held.find(stop) + len(stop), -len(stop)) for stop in self._stops
                if stop in self._held]  # fmt: skip
        if ends:
            end, length = min(ends)
            self.found = True
            return self._held[: end + length]
        free = len(self._held) - self._beginning()
        piece, self._held = self._held[:free], self._held[free:]
        return piece

    def finish(self) -> str:
        """What was held back for a stop string that never came."""
        return "" if self.found else self._held

    def _beginning(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
