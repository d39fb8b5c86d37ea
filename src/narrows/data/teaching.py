"""What a row teaches: its documents as tokens, which of them are to be said, and its value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from narrows.data import rows
from narrows.data.published import Words
from narrows.data.rows import Row
from narrows.data.template import Message, Turn, check
from narrows.data.tokenizers import Tokenizer
from narrows.spec.errors import BadInput
from narrows.spec.objective import Chat, Classify, Objective, Prefer, Regress

_MESSAGES = ("messages", "conversations", "conversation")
_PROMPT = ("prompt", "question", "instruction", "source")
ANSWER = ("answer", "completion", "response", "output", "target")
_TEXT = ("text", "sentence", "review", "content")
_LABEL = ("label", "labels", "class", "category")
_VALUE = ("value", "score", "rating", "label")
_CHOSEN, _REJECTED = ("chosen",), ("rejected",)
_CONTEXT, _INPUT, _SYSTEM = "context", "input", "system"
"""What stands before a prompt, behind it (Alpaca's own order), and before all that is said."""


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
    """Each row with what it teaches. Raises BadInput, with the row, where that cannot be."""
    for row in found:
        with _placed(row):
            taught = _documents(row, objective, words, labels)
        yield row, taught


def texts(row: Row, objective: Objective) -> list[str]:
    """What of a row a tokenizer is to be made of."""
    match objective:
        case Classify() | Regress():
            return [rows.text(row, _TEXT)]
        case Prefer():
            chosen, rejected = _answers(row)
            messages = [*chosen, rejected[-1]]
        case _:
            messages = _conversation(row)
    return [str(each.get("content", "")) for each in messages]


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


@contextmanager
def _placed(row: Row) -> Iterator[None]:
    """What is refused within is refused with the row's place."""
    try:
        yield
    except BadInput as error:
        if row.place in error.what:
            raise
        raise BadInput(f"{row.place}: {error.what}", hint=error.hint) from None


def question(row: Row) -> tuple[list[Message], str]:
    """What is said before a row's answer, as chat is taught, and the answer: a field of its own, or
    the last of the messages. Raises BadInput, with the place, where one is missing.
    """
    messages = _stated(row)
    if messages is None:
        return _led(row, [_asked(row)]), rows.text(row, ANSWER)
    messages = _led(row, messages)
    if any(row.fields.get(each) is not None for each in ANSWER):
        return messages, rows.text(row, ANSWER)
    *asked, last = messages
    answer = last.get("content")
    if not asked or last.get("role") != "assistant" or not isinstance(answer, str):
        raise BadInput(
            f"{row.place} has no answer, and its messages do not end with the assistant's",
            hint='add "answer": "..."',
        )
    return asked, rows.text(row._replace(fields={"answer": answer}), ANSWER)


def bare(row: Row) -> bool:
    """Whether a row's `prompt` is all that is said before its answer."""
    beside = (*_MESSAGES, _CONTEXT, _INPUT, _SYSTEM)
    return "prompt" in row.fields and not any(row.fields.get(name) for name in beside)


def _documents(
    row: Row, objective: Objective, words: Words, labels: tuple[str, ...]
) -> list[Document]:
    match objective:
        case Chat():
            return [_chat(_turns(_conversation(row), words), words)]
        case Prefer():
            return [_chat(_turns(each, words), words) for each in _answers(row)]
        case Classify():
            return [_whole(row, words.tokenizer, float(_index(row, labels)))]
        case Regress():
            return [_whole(row, words.tokenizer, _value(row))]
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


def _conversation(row: Row) -> list[Message]:
    """A row's messages: as they stand, or of a prompt and its answer."""
    messages = _stated(row)
    if messages is not None:
        _refuse_silent(row, messages)
        return _led(row, messages)
    answered = {"role": "assistant", "content": rows.text(row, ANSWER)}
    return [*_led(row, [_asked(row)]), answered]


def _stated(row: Row) -> list[Message] | None:
    """The messages that a row has, each with a role and a content; None where it has none."""
    name = next((name for name in _MESSAGES if name in row.fields), None)
    if name is None:
        return None
    messages = _listed(row, row.fields[name], "the messages are")
    with _placed(row):
        check(messages)
    return messages


def _asked(row: Row) -> Message:
    """The user's turn: a prompt with what the row has beside it."""
    parts = [_beside(row, _CONTEXT), rows.text(row, _PROMPT), _beside(row, _INPUT)]
    return {"role": "user", "content": "\n\n".join(each for each in parts if each.strip())}


def _led(row: Row, messages: list[Message]) -> list[Message]:
    """The messages behind the row's `system`, where it has one."""
    system = {"role": "system", "content": _beside(row, _SYSTEM)}
    if not system["content"].strip() or messages[:1] == [system]:
        return messages
    if messages and messages[0].get("role") == "system":
        raise BadInput(
            f"{row.place} has a {_SYSTEM} beside another one in its messages",
            hint="take one of the two out of the row",
        )
    return [system, *messages]


def _beside(row: Row, name: str) -> str:
    """A text that a row may have; empty where it has none."""
    found = row.fields.get(name)
    if found is not None and not isinstance(found, str):
        raise BadInput(
            f"{row.place}: {name} is no text but {found!r:.60}",
            hint=f"mend the row, or take {name} out of it",
        )
    return found or ""


def _refuse_silent(row: Row, messages: list[Message]) -> None:
    """Raises BadInput where the assistant says nothing, at all or in a turn of its."""
    if not any(each.get("role") == "assistant" for each in messages):
        raise BadInput(
            f"{row.place}: no message is the assistant's, so that there is nothing to learn",
            hint='add {"role": "assistant", "content": "..."}',
        )
    for number, each in enumerate(messages, 1):
        says = str(each.get("content") or "").strip() or each.get("tool_calls")
        if each.get("role") == "assistant" and not says:
            raise BadInput(
                f"{row.place}: message {number}, the assistant's, says nothing",
                hint="mend the row or take it out",
            )


def _listed(row: Row, found: Any, what: str) -> list[Message]:
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise BadInput(
            f"{row.place}: {what} no list of objects",
            hint='[{"role": "user", "content": "..."}, ...]',
        )
    return list(found)


def _answers(row: Row) -> list[list[Message]]:
    """Of a prompt, the conversations with the chosen and with the rejected answer."""
    prompt = row.fields.get("prompt")
    listed = isinstance(prompt, list)
    asked = _led(row, _listed(row, prompt, "the prompt is") if listed else [_asked(row)])
    with _placed(row):
        check(asked)
    chosen, rejected = (_answer(row, names, asked) for names in (_CHOSEN, _REJECTED))
    if chosen == rejected:
        raise BadInput(
            f"{row.place}: the chosen answer is the rejected one", hint="take the row out"
        )
    return [[*asked, {"role": "assistant", "content": each}] for each in (chosen, rejected)]


def _answer(row: Row, names: tuple[str, ...], asked: list[Message]) -> str:
    """A text, or the last of messages, before which the prompt may stand once more."""
    given = rows.field(row, names)
    if isinstance(given, list):
        *before, last = _listed(row, given, f"{names[0]} is") or [{}]
        if last.get("role") != "assistant" or before not in ([], asked[-len(before) :]):
            raise BadInput(
                f"{row.place}: {names[0]} is not one answer of the assistant to the prompt",
                hint=f'"{names[0]}": [{{"role": "assistant", "content": "..."}}], all else in '
                '"prompt"',
            )
        given = last.get("content")
    if not isinstance(given, str) or not given.strip():
        raise BadInput(f"{row.place}: {names[0]} is no text", hint="mend the row")
    return given


def _turns(messages: list[Message], words: Words) -> list[Turn]:
    """As the model's template renders them; without one, of a single prompt and answer, as they
    stand.
    """
    if words.template is not None:
        return words.template.turns(messages)
    if [each.get("role") for each in messages] != ["user", "assistant"]:
        raise BadInput(
            "the model has no chat template, which a conversation needs",
            hint="start from an instruction-tuned model (model.start), or give rows of a prompt "
            "and an answer",
        )
    asked, answered = (str(each.get("content", "")) for each in messages)
    return [Turn(asked, False), Turn(answered, True)]


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
