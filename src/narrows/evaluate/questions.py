"""Questions to answer, out of rows, read strictly.

    {"prompt": "The capital of France is", "answer": "Paris"}
    {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "choices": ["3", "4"]}

and the rows that chat is taught by, which are asked as they were taught: {"question", "answer"},
{"instruction", "input", "output"}, or messages of which the last, the assistant's, is the answer.
Other fields are the file's own business, unless they look like a slip of the pen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from narrows.data.conversation import ANSWER, Conversation, bare, question
from narrows.data.rows import Row, rows, text
from narrows.spec.errors import BadInput

FIELDS = ("prompt", "messages", "answer", "choices")
_SLIP = 0.8


class Question(NamedTuple):
    """A row by its number, and the place where a reader finds it: a prompt or what was said before
    it, the answer that is right, and the choices where it is one of several.
    """

    number: int
    place: str
    prompt: str | None
    said: Conversation
    answer: str
    choices: tuple[str, ...]


def questions(path: Path, limit: int | None = None) -> tuple[tuple[Question, ...], str]:
    """Those of a file or folder, at most `limit`, and their hash. Raises BadInput with the place of
    the first row that is wrong.
    """
    digest, found = hashlib.sha256(), []
    for number, row in enumerate(islice(rows(path), limit), 1):
        each = _question(number, row)
        digest.update(repr(each._replace(place="")).encode("utf-8", "surrogatepass"))
        found.append(each)
    if not found:
        what = f"{path} has no rows"
        raise BadInput(what, hint='{"prompt": "...", "answer": "..."} on each line')
    return tuple(found), digest.hexdigest()


def _question(number: int, row: Row) -> Question:
    said, where = row.fields, row.place
    _refuse_slips(said, where)
    if "prompt" in said and "messages" in said:
        what = f"{where} has both a prompt and messages"
        raise BadInput(what, hint="give each row one of the two")
    if bare(row):
        prompt, before, answer = said["prompt"], Conversation([]), text(row, ANSWER)
        if not isinstance(prompt, str):
            raise BadInput(f"{where}: prompt is no text but {prompt!r:.60}", hint='"prompt": "..."')
    else:
        prompt, (before, answer) = None, question(row)
    choices = _choices(said.get("choices"), where)
    if choices and answer not in choices:
        what = f"{where} has the answer {answer!r}, which is none of its choices"
        raise BadInput(what, hint=f"use one of: {', '.join(choices)}")
    return Question(number, where, prompt, before, answer, choices)


def _refuse_slips(said: Mapping[str, Any], where: str) -> None:
    for name in said:
        near = get_close_matches(name, FIELDS, n=1, cutoff=_SLIP)
        if near and name not in FIELDS and near[0] not in said:
            raise BadInput(f"{where} has the field {name}", hint=f"did you mean {near[0]}?")


def _choices(found: Any, where: str) -> tuple[str, ...]:
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BadInput(f"{where}: choices should be a list of texts", hint='["yes", "no"]')
    if len(found) < 2 or len(set(found)) < len(found) or "" in found:
        what = f"{where} has no two or more choices that differ and are not empty"
        raise BadInput(what, hint='"choices": ["yes", "no"]')
    return tuple(found)
