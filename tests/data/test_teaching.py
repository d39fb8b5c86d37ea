from __future__ import annotations

from typing import Any

import pytest

from narrows.data import teaching
from narrows.data.published import Words
from narrows.data.rows import Row
from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.data.training import bpe
from narrows.spec.errors import BadInput
from narrows.spec.objective import Chat, Objective, Prefer

from .test_template import CHATML

Fields = dict[str, Any]
ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
PAIR = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
SYSTEM = "<|im_start|>system\nthere<|im_end|>\n"


@pytest.fixture(scope="module")
def plain() -> Words:
    return Words(Tokenizer(bpe(["hello there"] * 3, 300)))


@pytest.fixture(scope="module")
def talking(plain: Words) -> Words:
    return plain._replace(template=Template(CHATML, {}))


def taught(fields: Fields, objective: Objective, words: Words) -> list[tuple[str, str]]:
    """Of each document its text, and what of it is to be said."""
    taught = teaching.documents([Row(fields, "a.jsonl line 7", None)], objective, words, ())
    decode = words.tokenizer.decode
    return [
        (decode(tokens), decode([each for each, said in zip(tokens, learned, strict=True) if said]))
        for _, found in taught
        for tokens, learned, _, _ in found
    ]


def asked(text: str, lead: str = "") -> str:
    return f"{lead}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"instruction": "say", "input": "one", "output": "1"}, asked("say\n\none")),
        ({"instruction": "say", "input": "", "output": "1"}, asked("say")),
        ({"question": "two?", "context": "hello", "answer": "1"}, asked("hello\n\ntwo?")),
        ({"prompt": "say", "answer": "1", "system": "there"}, asked("say", SYSTEM)),
        ({"prompt": "say", "answer": "1", "system": None}, asked("say")),
        ({"messages": [ASK, {**SAY, "content": "1"}], "system": "there"}, asked("hi", SYSTEM)),
    ],
)
def test_no_part_of_a_prompt_is_lost(fields: Fields, expected: str, talking: Words) -> None:
    assert taught(fields, Chat(), talking) == [(f"{expected}1<|im_end|>\n", "1<|im_end|>\n")]
    text = " ".join(teaching.texts(Row(fields, "", None), Chat()))
    assert all(str(each) in text for name, each in fields.items() if each and name != "messages")


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt": "say", "input": "one"},
        {"prompt": "one", "context": "say"},
        {"prompt": [{"role": "user", "content": "say\n\none"}]},
    ],
)
def test_no_part_of_a_prompt_to_two_answers_is_lost(prompt: Fields, talking: Words) -> None:
    fields = {**prompt, "system": "there", "chosen": "1", "rejected": "2"}
    before = asked("say\n\none", SYSTEM)
    texts = [whole for whole, _ in taught(fields, Prefer(), talking)]
    assert texts == [f"{before}{answer}<|im_end|>\n" for answer in "12"]
    assert teaching.texts(Row(fields, "", None), Prefer()) == ["there", "say\n\none", "1", "2"]


def test_a_call_of_a_tool_is_learned_and_its_tools_are_told(plain: Words) -> None:
    source = (
        "{% for tool in tools or [] %}{{ tool.function.name }}|{% endfor %}{# <tool_call> #}"
        "{% for m in messages %}{{ m.content or m.tool_calls[0].function.name }}|{% endfor %}"
    )
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    words = plain._replace(template=Template(source, {}))
    fields = {"messages": [ASK, calls], "tools": [{"name": "f"}, {"name": "g"}]}
    assert taught(fields, Chat(), words) == [("f|g|hi|f|", "f|")]


def test_what_was_thought_before_a_call_is_learned_where_a_template_knows_no_tools(
    plain: Words,
) -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}|{% endfor %}"
    words = plain._replace(template=Template(source, {}))
    calls = {"role": "assistant", "reasoning_content": "hm", "tool_calls": [{"name": "f"}]}
    ((_, said),) = taught({"messages": [ASK, calls]}, Chat(), words)
    assert said == 'hm<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>|'


def test_an_answer_may_be_a_call(plain: Words) -> None:
    source = "{% for m in messages %}{{ m.content or m.tool_calls[0].function.name }}|{% endfor %}"
    source += "{# <tool_call> #}{% if tools %}{% endif %}"
    words = plain._replace(template=Template(source, {}))
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    fields = {"prompt": [ASK, SAY, ASK], "chosen": [calls], "rejected": "no"}
    # The answers before are what both were asked behind, and nothing to be learned.
    assert taught(fields, Prefer(), words) == [("hi|yo|hi|f|", "f|"), ("hi|yo|hi|no|", "no|")]


def test_answers_that_a_template_forgets_the_thoughts_of_are_examples_of_their_own(
    plain: Words,
) -> None:
    source = "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}!{% endif %}"
    source += "{{ m.content }}|{% endfor %}"
    words = plain._replace(template=Template(source, {}))
    fields = {"messages": [ASK, SAY, ASK, SAY]}
    expected = [("hi|!yo|", "!yo|"), ("hi|yo|hi|!yo|", "!yo|")]
    assert taught(fields, Chat(), words) == expected


@pytest.mark.parametrize("options", [{"mood": "x"}, '{"mood": "x"}'])
def test_a_template_is_told_what_the_row_tells_it(options: Any, plain: Words) -> None:
    source = "{{ mood }}{% for m in messages %}{{ m.content }}|{% endfor %}"
    words = plain._replace(template=Template(source, {}))
    fields = {"messages": [ASK, SAY], "chat_template_kwargs": options}
    assert taught(fields, Chat(), words) == [("xhi|yo|", "yo|")]
    pair = {**PAIR, "chat_template_kwargs": options}
    assert taught(pair, Prefer(), words) == [("xhi|yes|", "yes|"), ("xhi|no|", "no|")]
    with pytest.raises(BadInput, match="line 7: .* knows no mod"):
        taught({**fields, "chat_template_kwargs": {"mod": "x"}}, Chat(), words)


@pytest.mark.parametrize("system", [{}, {"system": "there"}])
def test_the_prompt_may_stand_before_an_answer_once_more(system: Fields, talking: Words) -> None:
    expected = taught({**PAIR, **system, "chosen": "yo"}, Prefer(), talking)
    for chosen in ([SAY], [ASK, SAY]):
        assert taught({**PAIR, **system, "chosen": chosen}, Prefer(), talking) == expected


def test_without_a_template_a_prompt_is_whole_too(plain: Words) -> None:
    ((whole, said),) = taught({"instruction": "say", "input": "1", "output": "2"}, Chat(), plain)
    assert whole == f"say\n\n1{said}"


@pytest.mark.parametrize(
    ("objective", "fields", "what"),
    [
        (Chat(), {"prompt": "x", "answer": "y", "system": 5}, "system is no text but 5"),
        (Chat(), {"prompt": "x", "answer": "y", "input": ["z"]}, "input is no text"),
        (Chat(), {"prompt": "x", "answer": "y", "context": {}}, "context is no text"),
        (Chat(), {"messages": [ASK, SAY], "system": 5}, "system is no text"),
        (Chat(), {"messages": [ASK, SAY], "chat_template_kwargs": [5]}, "kwargs is no table"),
        (Chat(), {"messages": [{**ASK, "role": "system"}, SAY], "system": "y"}, "another one"),
        (Chat(), {"messages": [ASK, "yo"]}, "the messages are no list of objects"),
        (Chat(), {"messages": [ASK, {**SAY, "content": None}]}, "message 2 has no content"),
        (Chat(), {"messages": [{**ASK, "content": None}, SAY]}, "message 1 has no content"),
        (Chat(), {"messages": [ASK, {**SAY, "content": 5}]}, "message 2 is no text but 5"),
        (Chat(), {"messages": [ASK, {**SAY, "content": " "}, ASK, SAY]}, "message 2, .* nothing"),
        (Prefer(), {**PAIR, "prompt": [{**ASK, "content": None}]}, "message 1 has no content"),
        (Prefer(), {**PAIR, "prompt": ["2+2?", ASK]}, "the prompt is no list of objects"),
        (Prefer(), {**PAIR, "chosen": ["yes"]}, "chosen is no list of objects"),
        (Prefer(), {**PAIR, "rejected": [None]}, "rejected is no list of objects"),
        (Prefer(), {**PAIR, "chosen": []}, "chosen is not one answer"),
        (Prefer(), {**PAIR, "chosen": [SAY, ASK]}, "chosen is not one answer"),
        (Prefer(), {**PAIR, "chosen": [SAY, ASK, SAY]}, "chosen is not one answer"),
        (Prefer(), {**PAIR, "chosen": [{**SAY, "content": None}]}, "chosen is no text"),
        (Prefer(), {**PAIR, "rejected": "yes"}, "the chosen answer is the rejected one"),
        (Prefer(), {**PAIR, "rejected": [{**SAY, "content": "yes"}]}, "is the rejected one"),
        (Prefer(), {"prompt": "x", "system": 5, "chosen": "y", "rejected": "z"}, "system is no"),
    ],
)
def test_what_cannot_be_taught_is_refused_with_its_place(
    objective: Objective, fields: Fields, what: str, talking: Words
) -> None:
    with pytest.raises(BadInput, match=f"^a.jsonl line 7:? .*{what}") as caught:
        taught(fields, objective, talking)
    assert caught.value.hint
