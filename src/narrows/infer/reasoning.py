"""Thoughts told apart from what is said, in the answers of models that reason.

thinking = thinking_of(template, prompt)          whether the prompt leaves the model in a thought
reader = ReasoningReader(begun=thinking)
reader.push(text) → Said(thought, text)           of an answer as it is written
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple, final

from narrows.data.template import THOUGHT, Template

_BEGIN, _END = THOUGHT


class Said(NamedTuple):
    """A part of an answer: of the thought that it begins with, and of what follows."""

    thought: str
    text: str


class _Place(Enum):
    BEFORE = auto()
    WITHIN = auto()
    BEHIND = auto()
    """Of the thought, with nothing said yet."""
    SAYING = auto()


@final
class ReasoningReader:
    """Takes the thought off an answer's beginning, in `begun` ones from the first token on. White
    space around it is no part of anything.
    """

    def __init__(self, *, begun: bool = False) -> None:
        self._held = _BEGIN if begun else ""
        self._place = _Place.BEFORE
        self._thought = False

    def push(self, text: str) -> Said:
        """What may be told now."""
        self._held += text
        thought = ""
        if self._place is _Place.BEFORE:
            self._begin()
        if self._place is _Place.WITHIN:
            thought = self._think()
        if self._place is _Place.BEHIND:
            self._held = self._held.lstrip()
            self._place = _Place.SAYING if self._held else _Place.BEHIND
        if self._place is not _Place.SAYING:
            return Said(thought, "")
        text, self._held = self._held, ""
        return Said(thought, text)

    def finish(self) -> Said:
        """What was held back."""
        if not self._held:
            return Said("", "")
        self.push("")
        rest, self._held = self._held, ""
        return Said(rest.rstrip(), "") if self._place is _Place.WITHIN else Said("", rest)

    def _begin(self) -> None:
        ahead = self._held.lstrip()
        if ahead.startswith(_BEGIN):
            self._place, self._held = _Place.WITHIN, ahead[len(_BEGIN) :]
        elif not _BEGIN.startswith(ahead):
            self._place = _Place.SAYING

    def _think(self) -> str:
        """What may be told of the thought: all but what may be its end."""
        held = self._held
        if not self._thought:
            # A model may open again what its prompt did.
            held = held.lstrip().removeprefix(_BEGIN).lstrip()
            if held and _BEGIN.startswith(held):
                return ""
        end = held.find(_END)
        if end >= 0:
            self._place, thought = _Place.BEHIND, held[:end].rstrip()
            self._held = held[end + len(_END) :]
        else:
            ends = (n for n in range(len(_END) - 1, 0, -1) if held.endswith(_END[:n]))
            thought = held[: len(held) - next(ends, 0)].rstrip()
            self._held = held[len(thought) :]
        self._thought = self._thought or bool(thought)
        return thought


def thinking_of(template: Template | None, prompt: str) -> bool | None:
    """Whether what the template rendered ends within a thought; None where it knows of none."""
    if template is None or not template.reasons:
        return None
    return prompt.rstrip().endswith(_BEGIN)


def parted(thinking: bool | None, text: str) -> Said:
    """A whole answer."""
    if thinking is None:
        return Said("", text)
    reader = ReasoningReader(begun=thinking)
    first, last = reader.push(text), reader.finish()
    return Said(first.thought + last.thought, first.text + last.text)
