"""What may be asked, field by field.

OpenAI's fields that are not served are refused where they would change the answer, and ignored
where they would not; a field that nobody knows is refused with the one that was probably meant.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from narrows.infer.server.errors import Refusal
from narrows.spec.errors import suggestion

_HARMLESS = frozenset({
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prediction", "parallel_tool_calls",
})  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []), "tool_choice": (None, "none", "auto"), "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]), "audio": (None,), "reasoning_effort": (None, "none"),
    "web_search_options": (None,), "verbosity": (None, "medium"), "suffix": (None, ""),
    "echo": (None, False), "best_of": (None, 1), "dimensions": (None,),
}  # fmt: skip
"""The values at which each changes nothing."""
_INSTEAD = {
    "reasoning_effort": 'what the chat template reads: "chat_template_kwargs": '
    '{"enable_thinking": false}',
}

Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
Count = Annotated[int, Meta(ge=1)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a stream ends with the usage of all."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON schema as response_format has it."""

    name: str
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None


class AnyText(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Any text."""


class AnyObject(msgspec.Struct, frozen=True, kw_only=True, tag="json_object"):
    """Any JSON object."""


class OfSchema(msgspec.Struct, frozen=True, kw_only=True, tag="json_schema"):
    """JSON that fits a schema."""

    json_schema: NamedSchema


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversation and a text have in common; top_k, min_p, repetition_penalty, regex and
    grammar are not OpenAI's.
    """

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: AnyText | AnyObject | OfSchema | None = None
    regex: str | None = None
    grammar: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None

    def said(self, role: str) -> str | None:
        """Its text, or why an assistant would not answer; None where it is neither."""
        if self.type == "refusal" and role == "assistant":
            return self.refusal
        return self.text if self.type == "text" else None


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """What was called; arguments are JSON."""

    name: str
    arguments: str = "{}"


class Called(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made before."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"

    def plain(self, place: str) -> dict[str, Any]:
        """As templates know it, its arguments a table."""
        try:
            arguments = msgspec.json.decode(self.function.arguments)
        except (msgspec.DecodeError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise Refusal(f"{place}.function.arguments is no JSON object", param=place)
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said, whole or in parts, what the model called, or what came of that; its
    thought may be called reasoning, too.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    name: str | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """As templates know it; raises Refusal where a part is no text."""
        place = f"messages[{index}]"
        found: dict[str, Any] = {"role": self.role, "content": self._text(place)}
        if self.tool_calls:
            found["tool_calls"] = [call.plain(f"{place}.tool_calls[{number}]")
                                   for number, call in enumerate(self.tool_calls)]  # fmt: skip
        thought = self.reasoning if self.reasoning_content is None else self.reasoning_content
        beside = {"reasoning_content": thought, "name": self.name,
                  "tool_call_id": self.tool_call_id}  # fmt: skip
        return found | {key: said for key, said in beside.items() if said is not None}

    def _text(self, place: str) -> str:
        if not isinstance(self.content, list):
            refused = self.refusal if self.role == "assistant" else None
            return self.content or refused or ""
        said = ""
        for part in self.content:
            text = part.said(self.role)
            if text is None:
                what = f"{place} has a part of type {part.type!r}: the model reads text alone"
                raise Refusal(what, param=place)
            said += text
        return said


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call, and the JSON schema of its arguments."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """Such a function, as OpenAI lists tools."""

    function: Function
    type: Literal["function"]


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    """One of them."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    """The one to be called."""

    function: FunctionName
    type: Literal["function"]


class ChatAsked(Asked, frozen=True, kw_only=True):
    """POST /v1/chat/completions; chat_template_kwargs, which templates read, are not OpenAI's."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TextAsked(Asked, frozen=True, kw_only=True):
    """POST /v1/completions; a prompt is text or tokens, one or several."""

    prompt: str | list[Any] = ""
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """Each by itself."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(type(each) is int for each in given):
            return [given]
        if not given:
            raise Refusal("prompt is an empty list", param="prompt")
        for each in given:
            tokens = isinstance(each, list) and all(type(token) is int for token in each)
            if not isinstance(each, str) and not tokens:
                raise Refusal("prompt is neither text nor tokens nor a list of them",
                              param="prompt")  # fmt: skip
        return given


class TokensAsked(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize; a text, or a conversation as its template renders it with the tools."""

    prompt: str | None = None
    messages: list[Message] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None


A = TypeVar("A", bound=msgspec.Struct)


def _number(text: str) -> float:
    """1.0 is a whole number, as JSON schemas and some clients have it."""
    value = float(text)
    if not math.isfinite(value):
        raise msgspec.DecodeError(f"the number {text[:40]} is out of range")
    return int(value) if value.is_integer() and abs(value) < _WHOLE_MOST else value


_WHOLE_MOST = 2.0**53
_DECODER = msgspec.json.Decoder(float_hook=_number)


def tolerated(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON schemas of the fields that are no record's, and yet not refused."""
    found: dict[str, Any] = {name: {} for name in sorted(_HARMLESS)}
    found |= {name: {"enum": list(values)} for name, values in _NEUTRAL.items()}
    return {name: one for name, one in found.items() if name not in kind.__struct_fields__}


def read(body: bytes, kind: type[A]) -> A:
    """The request in a body; raises Refusal with the place of what is wrong."""
    try:
        data = _DECODER.decode(body)
    except UnicodeDecodeError as error:
        raise Refusal(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refusal("the body is not a JSON object", hint='send {"...": ...}')
    known = kind.__struct_fields__
    for name, value in data.items():
        if name in known or name in _HARMLESS:
            continue
        if name not in _NEUTRAL:
            near = suggestion(name, {each: each for each in known})
            raise Refusal(f"there is no field {name[:60]!r}", hint=near, param=name[:60])
        if not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
            raise Refusal(
                f"{name} is not served, and would change the answer",
                hint=_INSTEAD.get(name, "leave it out"), param=name, code="unsupported_parameter",
            )  # fmt: skip
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        place = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else None
        raise Refusal(str(error), param=place) from None


def _same(one: object, other: object) -> bool:
    """As JSON has it: to Python false is 0, and true 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
