"""An answer as a client is to have it: its thought, its text and its calls told apart."""

from __future__ import annotations

from typing import NamedTuple, final

from narrows.infer.reasoning import ReasoningReader
from narrows.infer.server.calls import Calls
from narrows.infer.tools import Call


class Manner(NamedTuple):
    """How answers to a conversation are told: with each token's odds or without, with which calls
    in them, and whether they begin within a thought, or, where it is None, know none.
    """

    odds: bool = False
    calls: Calls | None = None
    thinking: bool | None = None

    @property
    def plain(self) -> bool:
        """Whether all of an answer is text, and nothing but that is told."""
        return not self.odds and self.calls is None and self.thinking is None


class Read(NamedTuple):
    """A part of an answer, or the whole; `before` is how many calls were made before it."""

    thought: str
    text: str
    calls: list[Call]
    before: int


@final
class AnswerReader:
    """Of one answer, as it is written."""

    def __init__(self, manner: Manner) -> None:
        thinking, calls = manner.thinking, manner.calls
        self._thoughts = None if thinking is None else ReasoningReader(begun=thinking)
        self._calls = None if calls is None else calls.reader()

    def push(self, text: str, *, last: bool) -> Read:
        """What may be told now; with the last piece all of it."""
        thought = ""
        if self._thoughts is not None:
            thought, text = self._thoughts.push(text)
            if last:
                rest = self._thoughts.finish()
                thought, text = thought + rest.thought, text + rest.text
        if self._calls is None:
            return Read(thought, text, [], 0)
        before = self._calls.calls
        found = self._calls.push(text)
        found += self._calls.finish() if last else []
        said = "".join(each for each in found if isinstance(each, str))
        return Read(thought, said, [each for each in found if isinstance(each, Call)], before)
