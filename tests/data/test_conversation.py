"""Rows as many hands write them, and what of them templates are given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from narrows.data.conversation import Conversation, answers, bare, question, taught
from narrows.data.rows import Row
from narrows.data.tools import Tool
from narrows.spec.errors import BadInput

Fields = dict[str, Any]
ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
RAIN: Fields = {"name": "rain", "description": "Whether.", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "rain", "arguments": {"city": "Rome"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}


def row(fields: Fields) -> Row:
    return Row(fields, "a.jsonl line 7", None)


def called(**changes: object) -> Fields:
    return {"messages": [ASK, {"role": "assistant", **changes}]}


@pytest.mark.parametrize(
    "messages",
    [
        [ASK, SAY],
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}],
        [{"role": "user", "content": [{"type": "text", "text": "h"}, "i"]}, SAY],
    ],
)
def test_a_message_is_the_same_whoever_wrote_it(messages: list[Fields]) -> None:
    for name in ("messages", "conversations"):
        assert taught(row({name: messages})) == Conversation([ASK, SAY])


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_one_whatever_it_is_called(name: str) -> None:
    *_, said = taught(row(called(content="yo", **{"thinking": None, name: "hm"})))[0]
    assert said["reasoning_content"] == "hm" and said[name] == "hm"


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        CALL["function"],
        {"function": {"name": "rain", "arguments": '{"city": "Rome"}'}},
    ],
)
@pytest.mark.parametrize("content", [None, ""])
def test_the_arguments_of_a_call_are_a_table(call: Fields, content: str | None) -> None:
    given = called(content=content, tool_calls=[call])
    assert taught(row(given)).messages == [ASK, CALLS]
    kept = {**CALLS, "tool_calls": [{**CALL, "id": "1"}]}
    assert taught(row({"messages": [ASK, kept]})).messages == [ASK, {**CALLS, **kept}]


@pytest.mark.parametrize(
    "tools", [[RAIN], [{"type": "function", "function": RAIN}], json.dumps([RAIN])]
)
def test_the_tools_of_a_row_are_known_however_they_are_listed(tools: Any) -> None:
    told = (Tool(**RAIN),)
    assert taught(row({"messages": [ASK, SAY], "tools": tools})).tools == told
    assert taught(row({"prompt": "hi", "answer": "yo", "tools": tools})).tools == told
    pair = {"prompt": "hi", "chosen": "a", "rejected": "b", "tools": tools}
    assert [each.tools for each in answers(row(pair))] == [told, told]
    asked, answer = question(row({"messages": [ASK, SAY], "tools": tools}))
    assert (asked, answer) == (Conversation([ASK], told), "yo")
    assert not bare(row({"prompt": "hi", "answer": "yo", "tools": tools}))


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_none(tools: Any) -> None:
    assert taught(row({"messages": [ASK, SAY], "tools": tools})) == Conversation([ASK, SAY])


def test_two_conversations_that_begin_alike_are_two_answers() -> None:
    other = {"role": "assistant", "content": "no"}
    begun = [ASK, SAY, ASK]
    found = answers(row({"chosen": [*begun, SAY], "rejected": [*begun, other]}))
    assert [each.messages for each in found] == [[*begun, SAY], [*begun, other]]
    with pytest.raises(BadInput, match="rejected is not one answer of the assistant"):
        answers(row({"chosen": [ASK, SAY], "rejected": [{**ASK, "content": "ho"}, other]}))


def test_a_field_of_a_tool_is_refused_with_the_nearest_one() -> None:
    wrong = [RAIN, {"name": "sun", "descripton": "x"}]
    with pytest.raises(BadInput, match=r"tools\[1\]: unknown key descripton") as caught:
        taught(row({"messages": [ASK, SAY], "tools": wrong}))
    assert caught.value.hint == "did you mean description?"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"messages": [ASK, SAY], "input": "x"}, "has input beside its messages, which would not"),
        ({"conversations": [ASK, SAY], "context": "x"}, "has context beside its conversations"),
        ({"messages": [{"from": "alpaca", "value": "x"}, SAY]}, "message 1 has the role 'alpaca'"),
        ({"messages": [{"from": "human"}, SAY]}, "message 1 has no content"),
        (called(content=[{"type": "image_url"}]), "message 2 has a part that is no text"),
        (called(content="x", reasoning_content=5), "message 2 has a thought that is no text: 5"),
        (called(content="", tool_calls="rain()"), "message 2 has tool_calls that are no list"),
        (called(content="", tool_calls=["rain"]), "message 2 has a call without a name"),
        (called(content="", tool_calls=[{"name": "rain", "arguments": "{"}]), "has a call without"),
        (called(content="", tool_calls=[{"name": "rain", "arguments": []}]), "has a call without"),
        (called(content="", tool_calls=[{"function": None}]), "has a call without"),
        ({"messages": [ASK, SAY], "tools": "rain"}, "tools are no list of functions"),
        ({"messages": [ASK, SAY], "tools": ["rain"]}, r"tools\[0\]: the whole should be"),
        ({"messages": [ASK, SAY], "tools": [{"description": "x"}]}, r"tools\[0\]: name is missing"),
        ({"messages": [ASK, SAY], "tools": [{**RAIN, "return": 5}]}, r"\[0\]: unknown key return"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused_with_its_place(fields: Fields, what: str) -> None:
    with pytest.raises(BadInput, match=f"^a.jsonl line 7:? .*{what}") as caught:
        taught(row(fields))
    assert caught.value.hint
