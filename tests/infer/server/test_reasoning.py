"""Thoughts before answers, as clients ask for them and are told them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.data.tools import Tool
from narrows.infer.requests import Piece
from narrows.infer.server.calls import Calls
from narrows.infer.server.forms import ChatForm
from narrows.infer.server.reading import Manner
from narrows.infer.server.schemas import ChatAsked, read
from narrows.infer.server.service import Service
from tests.infer.server.asking import CHAT, Make, chunks, error, post, talk

TEMPLATE = Template(
    "{% for m in messages %}{{ m.role[0] }}{{ m.reasoning_content }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% if enable_thinking is false %}<think></think>{% else %}"
    "<think>{% endif %}{% endif %}",
    {},
)
QUIET = {"chat_template_kwargs": {"enable_thinking": False}}
TOOL = Tool(name="weather", description=None, parameters=None)
WRITTEN = ["<thi", "nk>\nIt ", "rains?\n", "</think>\n\nLet me look.", "\n<tool_call>",
           '{"name": "weather", "arguments": {}}</tool_call>']  # fmt: skip


@pytest.fixture
def reasoning(make: Make) -> Callable[..., Service]:
    def made(**options: Any) -> Service:
        service = make()
        return service._replace(
            writer=service.writer._replace(template=TEMPLATE),  # type: ignore[attr-defined]
            options=options,
        )

    return made


def tokens(service: Service, body: dict[str, Any]) -> str:
    asked = post(service, "/tokenize", body)
    assert asked.status_code == 200, asked.text
    return service.writer.tokenizer.decode(asked.json()["tokens"])


def test_what_is_thought_is_no_part_of_what_is_said(bpe: Tokenizer) -> None:
    manner = Manner(calls=Calls("hermes", (TOOL,), (), True), thinking=False)
    pieces = [Piece(0, text, 1) for text in WRITTEN] + [Piece(0, "", 1, finish="end")]
    form = ChatForm("small", bpe, manner)
    choice = form.response([(0, each) for each in pieces], [])["choices"][0]
    message = choice["message"]
    assert message["reasoning_content"] == "It rains?"
    assert message["content"] == "Let me look."
    assert [each["function"]["name"] for each in message["tool_calls"]] == ["weather"]
    assert choice["finish_reason"] == "tool_calls"
    parts = [form.part(0, each)["choices"][0] for each in pieces]
    deltas = [each["delta"] for each in parts]
    assert "".join(each.get("reasoning_content", "") for each in deltas) == "It rains?"
    assert "".join(each.get("content", "") for each in deltas) == "Let me look."
    assert not any("content" in each and "reasoning_content" in each for each in deltas[:2])
    assert parts[-1]["finish_reason"] == "tool_calls"


def test_an_answer_within_a_thought_is_one(reasoning: Callable[..., Service]) -> None:
    service = reasoning()
    whole = post(service, CHAT, talk()).json()["choices"][0]["message"]
    assert whole["content"] == "" and whole["reasoning_content"]
    deltas = [
        each["choices"][0]["delta"] for each in chunks(post(service, CHAT, talk(stream=True)))
    ]
    thought = "".join(each.get("reasoning_content", "") for each in deltas)
    assert thought == whole["reasoning_content"]
    assert not any(each.get("content") for each in deltas)
    quiet = post(service, CHAT, talk(**QUIET)).json()["choices"][0]["message"]
    assert quiet["content"] and "reasoning_content" not in quiet
    # An answer that is held to a form is that.
    held = post(service, CHAT, talk(regex="[ab]{3}")).json()["choices"][0]["message"]
    assert set(held["content"]) <= {"a", "b"} and "reasoning_content" not in held


def test_what_is_held_is_asked_for_behind_the_end_of_a_thought(
    reasoning: Callable[..., Service],
) -> None:
    service = reasoning()
    encode = service.writer.tokenizer.encode
    for form, asked in (
        ({"regex": "[ab]{3}"}, "u:But soft;a:<think></think>"), ({}, "u:But soft;a:<think>")
    ):  # fmt: skip
        found = post(service, CHAT, talk(**form)).json()
        assert found["usage"]["prompt_tokens"] == len(encode(asked, special=True))


def test_the_template_is_told_the_servers_options_and_then_the_requests(
    reasoning: Callable[..., Service],
) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    quiet, loud = "<think></think>", "a:<think>"
    assert tokens(reasoning(), asked).endswith(loud)
    assert tokens(reasoning(), {**asked, **QUIET}).endswith(quiet)
    assert tokens(reasoning(enable_thinking=False), asked).endswith(quiet)
    told = {**asked, "chat_template_kwargs": {"enable_thinking": True}}
    assert tokens(reasoning(enable_thinking=False), told).endswith(loud)


def test_what_was_thought_before_is_told_to_the_template(
    reasoning: Callable[..., Service],
) -> None:
    for name in ("reasoning_content", "reasoning"):
        said = {"role": "assistant", "content": "yo", name: "hm"}
        asked = {"messages": [{"role": "user", "content": "hi"}, said]}
        assert "ahm:yo;" in tokens(reasoning(), asked)


def test_an_option_that_the_template_does_not_read_is_refused(
    reasoning: Callable[..., Service], make: Make
) -> None:
    wrong = {"chat_template_kwargs": {"enable_thoughts": True}}
    for service in (reasoning(), make()):
        found = error(post(service, CHAT, talk(**wrong)), 400)
        assert "enable_thoughts" in found["message"]
    # A model without thoughts is as quiet as it is asked to be.
    assert post(make(), CHAT, talk(**QUIET)).status_code == 200
    found = error(post(make(), CHAT, talk(reasoning_effort="low")), 400)
    assert "chat_template_kwargs" in found["message"]
    body = msgspec.json.encode(talk(chat_template_kwargs="x"))
    with pytest.raises(Exception, match="chat_template_kwargs"):
        read(body, ChatAsked)
