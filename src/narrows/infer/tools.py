"""Functions that a model may call: told to it, held to, and read out of what it writes.

messages, tools = told(template, messages, tools)     for the template to render
calls(style, tools, ...) → Grammar                    of an answer that calls one
CallReader(style, tools).push(text) → texts and calls

Two styles are known: Hermes', JSON within <tool_call> tags, which Qwen and others were taught; and
Llama 3's, JSON alone. A template that knows neither is told of tools in its system message, and
the model is asked for Hermes' style.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, final

from narrows.data.template import Message, Template
from narrows.infer.grammar import FORM, BadGrammar, Grammar, Grammars, Guide
from narrows.spec.record import Record

Style = Literal["hermes", "llama"]
_BEGIN, _END, _PYTHON = "<tool_call>", "</tool_call>", "<|python_tag|>"
_ARGUMENTS: dict[Style, str] = {"hermes": "arguments", "llama": "parameters"}
_TOLD = """\
You can call functions. These are they, each as JSON:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments as JSON within tags, and nothing else:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


class Tool(Record):
    """A function; `parameters` is the JSON schema of its arguments, none where it takes none."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """As templates know it."""
        given = {"name": self.name, "description": self.description or "",
                 "parameters": self.parameters or {"type": "object", "properties": {}}}  # fmt: skip
        return {"type": "function", "function": given}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The schema of arguments that it is called with: no others than it names."""
        given = self.parameters or {"type": "object"}
        if given.get("type") != "object" or {"additionalProperties", "allOf", "$ref"} & set(given):
            return given
        return {"properties": {}, **given, "additionalProperties": False}


class Call(NamedTuple):
    """A function that the model calls, and its arguments as JSON."""

    name: str
    arguments: str


def style_of(template: Template) -> Style | None:
    """How the template has calls written; None where it knows no tools, or in another way."""
    if not template.reads("tools"):
        return None
    if _BEGIN in template.source and "<function=" not in template.source:
        return "hermes"
    return "llama" if '"parameters"' in template.source else None


def told(
    template: Template, messages: Sequence[Message], tools: Sequence[Tool]
) -> tuple[list[Message], list[Any] | None]:
    """Messages, and tools for the template, where it knows them; else all within the messages."""
    if style_of(template) is not None:
        return list(messages), [tool.told for tool in tools] or None
    found: list[Message] = []
    for message in messages:
        if message.get("tool_calls"):
            found.append({"role": message["role"], "content": _written(message)})
        elif message["role"] == "tool":
            answer = f"<tool_response>\n{message['content']}\n</tool_response>"
            if found and found[-1].get("responds"):
                answer = f"{found.pop()['content']}\n{answer}"
            found.append({"role": "user", "content": answer, "responds": True})
        else:
            found.append(message)
    if not tools:
        return found, None
    text = _TOLD.format(tools="\n".join(_json(tool.told) for tool in tools))
    if found and found[0]["role"] in ("system", "developer"):
        first = found.pop(0)
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *found], None
    return [{"role": "system", "content": text}, *found], None


def guide(
    grammars: Grammars, style: Style, tools: Sequence[Tool], *, several: bool
) -> Guide:  # fmt: skip
    """Holds an answer to calls of these tools, one or, where the style knows that, several.

    Raises BadGrammar, with the tool's number, where the schema of its arguments is wrong.
    """
    for number, tool in enumerate(tools):
        text = _json(tool.arguments)
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
        while (begin := self._held.find(_BEGIN)) >= 0:
            if (end := self._held.find(_END, begin)) < 0:
                break
            before, whole = self._held[:begin], self._held[begin : end + len(_END)]
            self._held = self._held[end + len(_END) :]
            found = self._call(whole.removeprefix(_BEGIN).removesuffix(_END), whole)
            if isinstance(found, Call):
                before = before.rstrip()
            if before:
                yield before
            yield found
        if begin < 0:
            begin = len(self._held) - _beginning(self._held, _BEGIN)
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
            arguments = _json(given)
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
        begin = f'{{"name": {_json(tool.name)}, "{_ARGUMENTS[style]}": '
        form = {"x-guidance": {**FORM, "lenient": not tool.strict}}
        lines += [f"tool_{number}: {_json(begin)} arguments_{number} {_json('}')}",
                  f"arguments_{number}: %json {_json({**tool.arguments, **form})}"]  # fmt: skip
    if style == "llama":
        return "\n".join(["start: object", *lines])
    more = ' ("\\n" call)*' if several else ""
    call = f"call: {_json(_BEGIN + chr(10))} object {_json(chr(10) + _END)}"
    return "\n".join([f"start: call{more}", call, *lines])


def _written(message: Message) -> str:
    """What an assistant's message with calls says, in Hermes' style."""
    functions = [call["function"] for call in message["tool_calls"]]
    parts = [f"{_BEGIN}\n{_json({key: each[key] for key in ('name', 'arguments')})}\n{_END}"
             for each in functions]  # fmt: skip
    return "\n".join([*([message["content"]] if message.get("content") else []), *parts])


def _beginning(text: str, tag: str) -> int:
    """How many characters at the end may be the beginning of the tag."""
    sizes = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((size for size in sizes if tag.startswith(text[-size:])), 0)


def _json(value: Any) -> str:
    """Raises ValueError of NaN and infinities, which Python reads and JSON has not."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
