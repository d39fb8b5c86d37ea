"""Rows to answer: a file of JSON lines, read strictly.

    {"prompt": "The capital of France is", "answer": "Paris"}
    {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "choices": ["3", "4"]}

Other fields are the file's own business, unless they look like a slip of the pen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from narrows.data.template import check
from narrows.spec.errors import BadInput

FIELDS = ("prompt", "messages", "answer", "choices")
_SLIP = 0.8


class Row(NamedTuple):
    """A question by the number of its line: a prompt or messages, the answer that is right, and the
    choices where it is one of several.
    """

    number: int
    prompt: str | None
    messages: tuple[Mapping[str, Any], ...]
    answer: str
    choices: tuple[str, ...]


def rows(path: Path, limit: int | None = None) -> tuple[tuple[Row, ...], str]:
    """The rows, at most `limit`, and the hash of the lines they stand on; blank lines are passed
    over. Raises BadInput naming the first line that is wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}"
        raise BadInput(what, hint="check the path") from None
    lines = ((n, line) for n, line in enumerate(content.split(b"\n"), 1) if line.strip())
    digest, found = hashlib.sha256(), []
    for number, line in islice(lines, limit):
        digest.update(line.strip() + b"\n")
        found.append(_row(line, number, path))
    if not found:
        raise BadInput(
            f"{path} has no rows", hint='{"prompt": "...", "answer": "..."} on each line'
        )
    return tuple(found), digest.hexdigest()


def _row(line: bytes, number: int, path: Path) -> Row:
    where = f"{path} line {number}"
    try:
        said = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{where} is not valid JSON: {error}",
            causes=[line[:80].decode("utf-8", "replace")],
            hint=f"sed -n {number}p {path}",
        ) from None
    if not isinstance(said, dict):
        what = f"{where} is not a JSON object"
        raise BadInput(what, hint='{"prompt": "...", "answer": "..."}')
    _refuse_slips(said, where)
    if ("prompt" in said) == ("messages" in said):
        what = "both a prompt and messages" if "prompt" in said else "neither prompt nor messages"
        raise BadInput(f"{where} has {what}", hint="give each row one of the two")
    choices = _texts(said.get("choices", []), "choices", where)
    answer = _text(said, "answer", where)
    if "choices" in said:
        _refuse_unlikely(choices, answer, where)
    prompt = _text(said, "prompt", where) if "prompt" in said else None
    return Row(number, prompt, _messages(said.get("messages"), where), answer, choices)


def _refuse_slips(said: Mapping[str, Any], where: str) -> None:
    for name in said:
        near = get_close_matches(name, FIELDS, n=1, cutoff=_SLIP)
        if near and name not in FIELDS and near[0] not in said:
            raise BadInput(f"{where} has the field {name}", hint=f"did you mean {near[0]}?")


def _refuse_unlikely(choices: tuple[str, ...], answer: str, where: str) -> None:
    if len(choices) < 2 or len(set(choices)) < len(choices) or "" in choices:
        what = f"{where} has no two or more choices that differ and are not empty"
        raise BadInput(what, hint='"choices": ["yes", "no"]')
    if answer not in choices:
        what = f"{where} has the answer {answer!r}, which is none of its choices"
        raise BadInput(what, hint=f"use one of: {', '.join(choices)}")


def _text(said: Mapping[str, Any], name: str, where: str) -> str:
    if name not in said:
        raise BadInput(f"{where} has no {name}", hint=f'add "{name}": "..."')
    found = said[name]
    if not isinstance(found, str):
        what = f"{where}: {name} is {msgspec.json.encode(found).decode()[:40]}, and should be text"
        raise BadInput(what, hint=f'"{name}": "..."')
    return found


def _texts(found: Any, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BadInput(f"{where}: {name} should be a list of texts", hint='["yes", "no"]')
    return tuple(found)


def _messages(found: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        hint = '[{"role": "user", "content": "..."}]'
        raise BadInput(f"{where}: messages should be a list of objects", hint=hint)
    try:
        check(found)
    except BadInput as error:
        raise BadInput(f"{where}: {error.what}", hint=error.hint) from None
    return tuple(found)
