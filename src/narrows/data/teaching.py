"""What a row teaches: its documents as tokens, which of them are to be said, and its value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from narrows.data import conversation, rows
from narrows.data.conversation import Conversation
from narrows.data.published import Words
from narrows.data.rows import Row, placed
from narrows.data.template import Turn
from narrows.data.tokenizers import Tokenizer
from narrows.data.tools import told
from narrows.spec.errors import BadInput
from narrows.spec.objective import Chat, Classify, Objective, Prefer, Regress

_TEXT = ("text", "sentence", "review", "content")
_LABEL = ("label", "labels", "class", "category")
_VALUE = ("value", "score", "rating", "label")


class Document(NamedTuple):
    """Tokens, of which those are to be said that are `learned`; the value of the whole, NaN where
    it has none; and how many bytes of text are to be said.
    """

    tokens: list[int]
    learned: list[bool]
    value: float
    bytes: int


def documents(
    found: Sequence[Row], objective: Objective, words: Words, labels: tuple[str, ...]
) -> Iterator[tuple[Row, list[Document]]]:
    """Each row with what it teaches, of a conversation that must be learned in several pieces once
    for each. Raises BadInput, with the row, where that cannot be.
    """
    for row in found:
        with placed(row):
            taught = list(_documents(row, objective, words, labels))
        for each in taught:
            yield row, each


def texts(row: Row, objective: Objective) -> list[str]:
    """What of a row a tokenizer is to be made of."""
    match objective:
        case Classify() | Regress():
            return [rows.text(row, _TEXT)]
        case Prefer():
            chosen, rejected = conversation.answers(row)
            messages = [*chosen.messages, rejected.messages[-1]]
        case _:
            messages = [*conversation.taught(row).messages]
    return [each["content"] for each in messages]


def label(row: Row) -> str:
    """The class that a row has."""
    found = rows.field(row, _LABEL)
    if isinstance(found, str):
        return rows.text(row, _LABEL)
    if isinstance(found, int):
        return str(found)
    if isinstance(found, float) and found.is_integer():
        return str(int(found))
    raise BadInput(
        f"{row.place}: the label {found!r:.60} is no class",
        hint="use a text or a whole number; for numbers: --set train.objective.type=regress",
    )


def _documents(
    row: Row, objective: Objective, words: Words, labels: tuple[str, ...]
) -> Iterator[list[Document]]:
    match objective:
        case Chat():
            for turns in _lessons(conversation.taught(row), words):
                yield [_chat(turns, words)]
        case Prefer():
            yield [_chat(_last(each, words), words) for each in conversation.answers(row)]
        case Classify():
            yield [_whole(row, words.tokenizer, float(_index(row, labels)))]
        case Regress():
            yield [_whole(row, words.tokenizer, _value(row))]
        case _:
            raise AssertionError(f"{objective} reads running text")


def _whole(row: Row, tokenizer: Tokenizer, value: float) -> Document:
    """A text as the tokenizer puts it to a model; where it closes none, with the end of one."""
    text = rows.text(row, _TEXT)
    close = tokenizer.close or (tokenizer.end_of_document,)
    tokens = [*tokenizer.begin, *tokenizer.encode(text), *close]
    return Document(tokens, [False] * len(tokens), value, len(text.encode()))


def _index(row: Row, labels: tuple[str, ...]) -> int:
    said = label(row)
    if said not in labels:
        raise BadInput(
            f'{row.place}: the label "{said}" is none of {", ".join(labels)}',
            hint="mend the row, or name all classes in train.objective.labels",
        )
    return labels.index(said)


def _value(row: Row) -> float:
    found = rows.field(row, _VALUE)
    try:
        value = float(found)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{row.place}: {found!r:.60} is no number", hint='"value": 0.5')
    return value


def _lessons(said: Conversation, words: Words) -> list[list[Turn]]:
    """As the model's template renders them; without one, of a single prompt and answer, as they
    stand.
    """
    if words.template is not None:
        messages, tools = told(words.template, said.messages, said.tools)
        return words.template.lessons(messages, tools=tools, options=said.options)
    beside = said.tools or said.options
    if beside or [each.get("role") for each in said.messages] != ["user", "assistant"]:
        raise BadInput(
            "the model has no chat template, which a conversation needs",
            hint="start from an instruction-tuned model (model.start), or give rows of a prompt "
            "and an answer",
        )
    asked, answered = (str(each["content"]) for each in said.messages)
    return [[Turn(asked, False), Turn(answered, True)]]


def _last(said: Conversation, words: Words) -> list[Turn]:
    """Of which the last answer alone is to be learned."""
    *before, answered = _lessons(said, words)[-1]
    return [Turn("".join(each.text for each in before), False), answered]


def _chat(turns: list[Turn], words: Words) -> Document:
    tokenizer, special = words.tokenizer, words.template is not None
    tokens: list[int] = []
    learned: list[bool] = []
    size = 0
    if not special:
        tokens += tokenizer.begin
        learned += [False] * len(tokenizer.begin)
    for turn in turns:
        ids = tokenizer.encode(turn.text, special=special)
        tokens += ids
        learned += [turn.written] * len(ids)
        size += len(turn.text.encode()) * turn.written
    if not special:
        tokens.append(tokenizer.end_of_document)
        learned.append(True)
    return Document(tokens, learned, math.nan, size)
