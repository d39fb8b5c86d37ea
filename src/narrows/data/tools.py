"""Functions that a model may call, as it is told of them in training and when it answers.

messages, tools = told(template, messages, tools)     for the template to render

Two styles of calls are known: Hermes', JSON within <tool_call> tags, which Qwen and others were
taught; and Llama 3's, JSON alone. A template that knows neither is told of tools in its system
message, and the model is asked for Hermes' style.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from narrows.data.template import Message, Template
from narrows.spec.record import Record

Style = Literal["hermes", "llama"]
BEGIN, END = "<tool_call>", "</tool_call>"
"""Hermes' tags around a call."""
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


def style_of(template: Template) -> Style | None:
    """How the template has calls written; None where it knows no tools, or in another way."""
    if not template.reads("tools"):
        return None
    if BEGIN in template.source and "<function=" not in template.source:
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
            said = {key: value for key, value in message.items() if key != "tool_calls"}
            found.append({**said, "content": _written(message)})
        elif message["role"] == "tool":
            answer = f"<tool_response>\n{message['content']}\n</tool_response>"
            if found and found[-1].get("responds"):
                answer = f"{found.pop()['content']}\n{answer}"
            found.append({"role": "user", "content": answer, "responds": True})
        else:
            found.append(message)
    if not tools:
        return found, None
    text = _TOLD.format(tools="\n".join(as_json(tool.told) for tool in tools))
    if found and found[0]["role"] in ("system", "developer"):
        first = found.pop(0)
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *found], None
    return [{"role": "system", "content": text}, *found], None


def _written(message: Message) -> str:
    """What an assistant's message with calls says, in Hermes' style."""
    functions = [call["function"] for call in message["tool_calls"]]
    parts = [f"{BEGIN}\n{as_json({key: each[key] for key in ('name', 'arguments')})}\n{END}"
             for each in functions]  # fmt: skip
    return "\n".join([*([message["content"]] if message.get("content") else []), *parts])


def as_json(value: Any) -> str:
    """Raises ValueError of NaN and infinities, which Python reads and JSON has not."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
