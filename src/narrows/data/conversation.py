"""What a row says, as templates know it: messages, and the functions that they may call.

    taught(row)   → Conversation              of which the assistant's turns are to be learned
    answers(row)  → two of them               with the chosen and with the rejected answer
    question(row) → Conversation, its answer  to be held against what a model answers

Messages are written by many hands: whole or in parts, with a role or with whom they are `from`,
the arguments of a call as a table or as JSON. Templates, and the server, know one form of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from narrows.data import rows
from narrows.data.rows import Row, placed
from narrows.data.template import NO_OPTIONS, Message, Options, check
from narrows.data.tools import Tool
from narrows.spec.errors import BadInput
from narrows.spec.record import from_builtins

ANSWER = ("answer", "completion", "response", "output", "target")
_MESSAGES = ("messages", "conversations", "conversation")
_PROMPT = ("prompt", "question", "instruction", "source")
_CHOSEN, _REJECTED = "chosen", "rejected"
_CONTEXT, _INPUT, _SYSTEM, _TOOLS = "context", "input", "system", "tools"
"""What stands before a prompt, behind it (Alpaca's own order), before all that is said, and what
may be called.
"""
_OPTIONS = "chat_template_kwargs"
"""transformers' name."""
_FROM = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
"""ShareGPT's names of roles."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What vLLM, OpenRouter and Ollama call what was thought; templates know the first."""
_CALLS = '"tool_calls": [{"function": {"name": "...", "arguments": {...}}}]'


class Conversation(NamedTuple):
    """Messages, each with a role and a content that is text, the tools that are told of, and what
    else the template is told.
    """

    messages: Sequence[Message]
    tools: tuple[Tool, ...] = ()
    options: Options = NO_OPTIONS


def taught(row: Row) -> Conversation:
    """A row's messages: as they stand, or of a prompt and its answer."""
    messages = _stated(row)
    if messages is None:
        answered = {"role": "assistant", "content": rows.text(row, ANSWER)}
        messages = [_asked(row), answered]
    else:
        _refuse_silent(row, messages)
    return Conversation(_led(row, messages), *_beside_messages(row))


def question(row: Row) -> tuple[Conversation, str]:
    """What is said before a row's answer, as chat is taught, and the answer: a field of its own, or
    the last of the messages. Raises BadInput, with the place, where one is missing.
    """
    messages, beside = _stated(row), _beside_messages(row)
    if messages is None:
        return Conversation(_led(row, [_asked(row)]), *beside), rows.text(row, ANSWER)
    messages = _led(row, messages)
    if any(row.fields.get(each) is not None for each in ANSWER):
        return Conversation(messages, *beside), rows.text(row, ANSWER)
    *asked, last = messages
    if not asked or last["role"] != "assistant" or not last["content"]:
        raise BadInput(
            f"{row.place} has no answer, and its messages do not end with the assistant's",
            hint='add "answer": "..."',
        )
    answer = rows.text(row._replace(fields={"answer": last["content"]}), ANSWER)
    return Conversation(asked, *beside), answer


def answers(row: Row) -> list[Conversation]:
    """Of a prompt, the conversations with the chosen and with the rejected answer."""
    asked = _led(row, _before(row))
    with placed(row):
        check(asked)
    chosen, rejected = (_answer(row, name, asked) for name in (_CHOSEN, _REJECTED))
    if chosen == rejected:
        raise BadInput(
            f"{row.place}: the chosen answer is the rejected one", hint="take the row out"
        )
    beside = _beside_messages(row)
    return [Conversation([*asked, each], *beside) for each in (chosen, rejected)]


def bare(row: Row) -> bool:
    """Whether a row's `prompt` is all that is said before its answer."""
    beside = (*_MESSAGES, _CONTEXT, _INPUT, _SYSTEM, _TOOLS, _OPTIONS)
    return "prompt" in row.fields and not any(row.fields.get(name) for name in beside)


def _stated(row: Row) -> list[Message] | None:
    """The messages that a row has; None where it has none."""
    name = next((name for name in _MESSAGES if name in row.fields), None)
    if name is None:
        return None
    for other in (_CONTEXT, _INPUT):
        if _beside(row, other).strip():
            raise BadInput(
                f"{row.place} has {other} beside its {name}, which would not be read",
                hint=f"say it in a message, or take {other} out of the row",
            )
    messages = _listed(row, row.fields[name], "the messages are")
    with placed(row):
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


def _before(row: Row) -> list[Message]:
    """What the chosen and the rejected answer are to: a prompt, or what both begin with."""
    prompt, chosen = row.fields.get("prompt"), row.fields.get(_CHOSEN)
    if isinstance(prompt, list):
        return _listed(row, prompt, "the prompt is")
    if prompt is None and isinstance(chosen, list) and len(chosen) > 1:
        return _listed(row, chosen, f"{_CHOSEN} is")[:-1]
    return [_asked(row)]


def _answer(row: Row, name: str, asked: list[Message]) -> Message:
    """A text, or the last of messages, before which the prompt may stand once more."""
    given = rows.field(row, (name,))
    if isinstance(given, list):
        *before, last = _listed(row, given, f"{name} is") or [{}]
        if last.get("role") != "assistant" or before not in ([], asked[-len(before) :]):
            raise BadInput(
                f"{row.place}: {name} is not one answer of the assistant to the prompt",
                hint=f'"{name}": [{{"role": "assistant", "content": "..."}}], all else in "prompt"',
            )
    else:
        last = {"role": "assistant", "content": given}
    if not _says(last):
        raise BadInput(f"{row.place}: {name} is no text", hint="mend the row")
    return last


def _says(message: Message) -> bool:
    """Whether a message of the assistant's says or calls anything."""
    content = message.get("content")
    return bool(isinstance(content, str) and (content.strip() or message.get("tool_calls")))


def _refuse_silent(row: Row, messages: list[Message]) -> None:
    """Raises BadInput where the assistant says nothing, at all or in a turn of its."""
    if not any(each["role"] == "assistant" for each in messages):
        raise BadInput(
            f"{row.place}: no message is the assistant's, so that there is nothing to learn",
            hint='add {"role": "assistant", "content": "..."}',
        )
    for number, each in enumerate(messages, 1):
        if each["role"] == "assistant" and not _says(each):
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
    return [_plain(row, number, each) for number, each in enumerate(found, 1)]


def _plain(row: Row, number: int, message: Message) -> Message:
    """As templates know it; what else it has stays with it."""
    place, found = f"{row.place}: message {number}", dict(message)
    if "role" not in found and isinstance(found.get("from"), str):
        who = found.pop("from")
        found |= {"role": _FROM.get(who, who), "content": found.pop("value", None)}
    if isinstance(found.get("content"), list):
        found["content"] = "".join(_said(place, part) for part in found["content"])
    thought = next((found[name] for name in _THOUGHTS if found.get(name) is not None), None)
    if thought is not None:
        if not isinstance(thought, str):
            what = f"{place} has a thought that is no text: {thought!r:.60}"
            raise BadInput(what, hint='"reasoning_content": "..."')
        found[_THOUGHTS[0]] = thought
    if calls := found.get("tool_calls"):
        if not isinstance(calls, list):
            raise BadInput(f"{place} has tool_calls that are no list", hint=_CALLS)
        found["tool_calls"] = [_call(place, call) for call in calls]
        found["content"] = found.get("content") or ""
    return found


def _said(place: str, part: Any) -> str:
    """Of a content in parts, one."""
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise BadInput(
            f"{place} has a part that is no text: {part!r:.60}",
            hint="the model reads text alone; take the row out",
        )
    return text


def _call(place: str, call: Any) -> dict[str, Any]:
    """A call with its arguments as a table."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name, arguments = None, None
    if isinstance(function, Mapping):
        name, arguments = function.get("name"), _json(function.get("arguments"), {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise BadInput(f"{place} has a call without a name and arguments", hint=_CALLS)
    known = {"id": call["id"]} if "id" in call else {}
    return {**known, "type": "function", "function": {"name": name, "arguments": arguments}}


def _beside_messages(row: Row) -> tuple[tuple[Tool, ...], Options]:
    """What the template is told of beside messages."""
    options = _json(row.fields.get(_OPTIONS), {})
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        what = f"{row.place}: {_OPTIONS} is no table"
        raise BadInput(what, hint=f'"{_OPTIONS}": {{"enable_thinking": false}}')
    return _tools(row), options


def _tools(row: Row) -> tuple[Tool, ...]:
    """The functions that a row tells of, listed as OpenAI lists them or bare, or that as JSON."""
    given, place = _json(row.fields.get(_TOOLS), []), f"{row.place}: {_TOOLS}"
    form = '"tools": [{"name": "...", "description": "...", "parameters": {...}}]'
    if not isinstance(given, list):
        raise BadInput(f"{place} are no list of functions", hint=form)
    bare = [each.get("function", each) if isinstance(each, Mapping) else each for each in given]
    try:
        return tuple(
            from_builtins(Tool, each, source=f"{place}[{n}]") for n, each in enumerate(bare)
        )
    except BadInput as error:
        raise BadInput(error.what, hint=error.hint or form) from None


def _json(given: Any, empty: Any) -> Any:
    """What stands as JSON in a text is what it says; nothing is `empty`."""
    if not isinstance(given, str):
        return empty if given is None else given
    try:
        return json.loads(given) if given.strip() else empty
    except (ValueError, RecursionError):
        return None
