"""Calls of functions: an answer held to them, and read for them.

guide(grammars, style, tools, ...) → Guide            of an answer that calls one
CallReader(style, tools).push(text) → texts and calls
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

from narrows.data.tools import BEGIN, END, Style, Tool, as_json
from narrows.infer.grammar import FORM, BadGrammar, Grammar, Grammars, Guide

_PYTHON = "<|python_tag|>"
_ARGUMENTS: dict[Style, str] = {"hermes": "arguments", "llama": "parameters"}


class Call(NamedTuple):
    """A function that the model calls, and its arguments as JSON."""

    name: str
    arguments: str


def guide(
    grammars: Grammars, style: Style, tools: Sequence[Tool], *, several: bool
) -> Guide:  # fmt: skip
    """Holds an answer to calls of these tools, one or, where the style knows that, several.

    Raises BadGrammar, with the tool's number, where the schema of its arguments is wrong.
    """
    for number, tool in enumerate(tools):
        text = as_json(tool.arguments)
        try:
            grammars.guide(Grammar(kind="schema", text=text, strict=tool.strict))
        except BadGrammar as error:
            place = f"[{number}].function.parameters{error.place}"
            raise BadGrammar(f"{tool.name}: {error.what}", place=place) from None
    return grammars.guide(Grammar(kind="lark", text=_lark(style, tools, several=several)))


@final
class CallReader:
    """Takes calls out of a text as it is written; what is no call that is known stays text."""

    def __init__(self, style: Style, tools: Sequence[Tool]) -> None:
        # No set: what a model names may be any JSON, which cannot be looked up in one.
        self._style, self._names = style, [tool.name for tool in tools]
        self._held = ""
        self._began = False
        self.calls = 0

    def push(self, text: str) -> list[str | Call]:
        """What may be told now; a call is told whole."""
        self._held += text
        return self._counted(list(self._alone() if self._style == "llama" else self._tagged()))

    def finish(self) -> list[str | Call]:
        """What was held back."""
        rest, self._held = self._held, ""
        if self._style == "llama" and not self._began:
            return self._counted(self._objects(rest))
        return [rest] if rest.strip() or not self.calls else []

    def _counted(self, found: list[str | Call]) -> list[str | Call]:
        self.calls += sum(isinstance(each, Call) for each in found)
        return found

    def _tagged(self) -> Iterator[str | Call]:
        # White space before a call is no text; whether what the tag begins is one, its end shows.
        while (begin := self._held.find(BEGIN)) >= 0:
            if (end := self._held.find(END, begin)) < 0:
                break
            before, whole = self._held[:begin], self._held[begin : end + len(END)]
            self._held = self._held[end + len(END) :]
            found = self._call(whole.removeprefix(BEGIN).removesuffix(END), whole)
            if isinstance(found, Call):
                before = before.rstrip()
            if before:
                yield before
            yield found
        if begin < 0:
            begin = len(self._held) - _beginning(self._held, BEGIN)
        free = len(self._held[:begin].rstrip())
        if free:
            yield self._held[:free]
            self._held = self._held[free:]

    def _alone(self) -> Iterator[str | Call]:
        """Calls stand alone: a text that begins otherwise has none."""
        begin = self._held.lstrip()
        if not self._began and (not begin or _PYTHON.startswith(begin[: len(_PYTHON)])
                                or begin[0] == "{"):  # fmt: skip
            return
        self._began = True
        yield self._held
        self._held = ""

    def _objects(self, text: str) -> list[str | Call]:
        """The calls of a whole text, set apart by semicolons; the text itself where any is none."""
        found, rest = [], text.strip().removeprefix(_PYTHON)
        while rest.strip():
            try:
                _, end = json.JSONDecoder().raw_decode(rest.lstrip())
            except (ValueError, RecursionError):
                return [text]
            whole, rest = rest.lstrip()[:end], rest.lstrip()[end:].lstrip().removeprefix(";")
            found.append(self._call(whole, whole))
        if not found or any(isinstance(each, str) for each in found):
            return [text] if text else []
        return found

    def _call(self, text: str, whole: str) -> str | Call:
        try:
            said = json.loads(text)
            given = said.get(_ARGUMENTS[self._style], {}) if isinstance(said, dict) else None
            if not isinstance(given, dict) or said.get("name") not in self._names:
                return whole
            arguments = as_json(given)
            # Half a surrogate pair can be written in JSON, but not sent in UTF-8.
            arguments.encode()
        except (ValueError, RecursionError):
            return whole
        return Call(said["name"], arguments)


def _lark(style: Style, tools: Sequence[Tool], *, several: bool) -> str:
    """Each tool's schema is a root of its own, so that what it refers to is found."""
    names = " | ".join(f"tool_{number}" for number in range(len(tools)))
    lines = [f"object: {names}"]
    for number, tool in enumerate(tools):
        begin = f'{{"name": {as_json(tool.name)}, "{_ARGUMENTS[style]}": '
        form = {"x-guidance": {**FORM, "lenient": not tool.strict}}
        lines += [f"tool_{number}: {as_json(begin)} arguments_{number} {as_json('}')}",
                  f"arguments_{number}: %json {as_json({**tool.arguments, **form})}"]  # fmt: skip
    if style == "llama":
        return "\n".join(["start: object", *lines])
    more = ' ("\\n" call)*' if several else ""
    call = f"call: {as_json(BEGIN + chr(10))} object {as_json(chr(10) + END)}"
    return "\n".join([f"start: call{more}", call, *lines])


def _beginning(text: str, tag: str) -> int:
    """How many characters at the end may be the beginning of the tag."""
    sizes = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((size for size in sizes if tag.startswith(text[-size:])), 0)
