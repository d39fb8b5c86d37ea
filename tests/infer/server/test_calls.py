"""A round of tool calls by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.data.tools import Tool
from narrows.infer.grammar import Grammars
from narrows.infer.loading import Generator
from narrows.infer.requests import Piece
from narrows.infer.scheduler import Scheduler
from narrows.infer.server.app import app
from narrows.infer.server.calls import Calls
from narrows.infer.server.forms import ChatForm
from narrows.infer.server.reading import Manner
from narrows.infer.server.service import Limits, Service
from narrows.infer.torch_core import TorchCore

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "What the weather is.", "strict": True,
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Rome", "Zürich"]}},
            "required": ["city"], "additionalProperties": False,
        },
    },
}  # fmt: skip
TIME = {"type": "function", "function": {"name": "time"}}
ASKED = [{"role": "user", "content": "Does it rain in Rome?"}]
Run = Callable[[Callable[[openai.AsyncOpenAI], Awaitable[Any]]], Any]


@pytest.fixture
def run(roomy: Generator) -> Iterator[Run]:
    """Runs what uses a client of a small model with room for a conversation."""
    talking = roomy._replace(template=Template(TEMPLATE, {}))
    scheduler = Scheduler(TorchCore(talking.model, 2), talking.tokenizer)
    grammars = Grammars(talking.tokenizer)
    service = Service("small", 1, talking, scheduler, Limits(tokens_max=200), grammars)

    def asked(use: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
        async def using() -> Any:
            transport = httpx.ASGITransport(app(service))
            async with httpx.AsyncClient(transport=transport, timeout=60.0) as http:
                url = "http://localhost/v1"
                return await use(openai.AsyncOpenAI(base_url=url, api_key="-", http_client=http))

        return asyncio.run(using())

    yield asked
    scheduler.close()


def test_a_round_of_calls(run: Run) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        more: dict[str, Any] = {"model": "small", "tools": [WEATHER, TIME], "seed": 1}
        forced = {"type": "function", "function": {"name": "weather"}}
        asked: list[Any] = list(ASKED)
        first = await client.chat.completions.create(
            messages=asked, tool_choice=forced, temperature=2.0, **more
        )
        [choice] = first.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert choice.message.tool_calls is not None
        [call] = choice.message.tool_calls
        assert call.function.name == "weather" and call.id.startswith("call_")
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Zürich")
        answer = {"role": "tool", "tool_call_id": call.id, "content": "It pours."}
        asked += [choice.message.model_dump(exclude_none=True), answer]
        last = await client.chat.completions.create(
            messages=asked, tool_choice="none", max_tokens=5, **more
        )
        assert last.choices[0].message.content and last.choices[0].message.tool_calls is None

    run(use)


def test_calls_are_streamed(run: Run) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        more: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "n": 2, "seed": 5}
        async with client.chat.completions.stream(
            model="small", messages=ASKED, parallel_tool_calls=False, **more
        ) as stream:
            async for _ in stream:
                pass
            whole = await stream.get_final_completion()
        assert len(whole.choices) == 2
        for choice in whole.choices:
            assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
            [call] = choice.message.tool_calls
            assert json.loads(call.function.arguments)["city"] in ("Rome", "Zürich")

    run(use)


@pytest.mark.parametrize(
    "said",
    ["I say <tool_call> is a tag.", "\n\nSo:\n<tool_call>{}</tool_call>",
     '\n So: <tool_call>{"name": "time"}</tool_call>\n<tool_call>{"name": []}</tool_call> '],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 5])
def test_a_stream_says_the_text_of_the_whole_answer(bpe: Tokenizer, said: str, size: int) -> None:
    calls = Calls("hermes", (Tool(name="time"),), (), several=True)
    pieces = [Piece(0, said[place : place + size], 1) for place in range(0, len(said), size)]
    pieces[-1] = pieces[-1]._replace(finish="end")
    form = ChatForm("small", bpe, Manner(calls=calls))
    [choice] = form.response([(0, piece) for piece in pieces], [])["choices"]
    parts = [form.part(0, piece)["choices"][0] for piece in pieces]
    streamed = "".join(part["delta"].get("content", "") for part in parts)
    assert streamed == choice["message"]["content"]
    assert parts[-1]["finish_reason"] == choice["finish_reason"]


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "war"}}}, "known: weather"),
        ({"tools": [WEATHER, WEATHER]}, "same name"),
        ({"response_format": {"type": "json_object"}}, "at once"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "a", "arguments": "["}}]}]},
         "arguments is no JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_refused(run: Run, field: Any, said: str) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        asked: dict[str, Any] = {"model": "small", "messages": ASKED, "tools": [WEATHER], **field}
        with pytest.raises(openai.BadRequestError, match=said):
            await client.chat.completions.create(**asked)

    run(use)


def test_tokens_are_counted_with_the_tools(run: Run) -> None:
    async def counted(client: openai.AsyncOpenAI, **body: Any) -> int:
        asked = await client.post("http://localhost/tokenize", body=body, cast_to=httpx.Response)
        return int(asked.json()["count"])

    async def use(client: openai.AsyncOpenAI) -> None:
        answered = await client.chat.completions.create(
            model="small", messages=ASKED, tools=[WEATHER, TIME], max_tokens=1
        )  # fmt: skip
        count = await counted(client, messages=ASKED, tools=[WEATHER, TIME])
        assert count == answered.usage.prompt_tokens
        assert count > await counted(client, messages=ASKED)
        for body, what in (
            ({"prompt": "x", "tools": [TIME]}, "with messages"),
            ({"messages": ASKED, "tools": [TIME, TIME]}, "the same name"),
        ):
            with pytest.raises(openai.BadRequestError, match=what):
                await counted(client, **body)

    run(use)
