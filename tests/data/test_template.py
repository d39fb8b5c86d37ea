from __future__ import annotations

from typing import Any

import pytest

from narrows.data.template import Template, Turn, unthinking
from narrows.spec.errors import BadInput

CHATML = """\
{% for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
CHATML_ASKED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def test_messages_become_text() -> None:
    template = Template(CHATML, {})
    asked = template.render([ASK])
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    whole = template.render([ASK, ANSWER], answer=False)
    assert whole == f"{asked}Hello<|im_end|>\n"


def test_what_a_developer_says_is_the_systems_where_a_template_knows_no_developer() -> None:
    said = {"role": "developer", "content": "Be brief."}
    source = "{% for m in messages if m.role != 'developer' %}{{ m.role }}|{% endfor %}"
    assert Template(source.replace("developer", "boss"), {}).render([said, ASK]) == "system|user|"
    assert Template(source, {}).render([said, ASK]) == "user|"
    assert Template(CHATML, {}).render([said]).startswith("<|im_start|>system\nBe brief.")


def test_turns_tell_what_the_model_writes() -> None:
    template = Template(CHATML, {})
    (turns,) = template.lessons([ASK, ANSWER, ASK, ANSWER])
    assert [turn.written for turn in turns] == [False, True, False, True]
    assert "".join(turn.text for turn in turns) == template.render(
        [ASK, ANSWER, ASK, ANSWER], answer=False
    )
    assert turns[1] == Turn("Hello<|im_end|>\n", True)
    whole = template.render([ASK], answer=False)
    assert template.lessons([ASK]) == [[Turn(whole, False)]]


FORGETFUL = """\
{% for m in messages %}
{{ m.role[0] }}:\
{% if m.role == 'assistant' and (loop.last or m.reasoning_content) %}
<think>{{ m.reasoning_content if loop.last }}</think>\
{% endif %}
{{ m.content }};
{% endfor %}
{% if add_generation_prompt %}a:{{ '<think></think>' if enable_thinking is false }}{% endif %}"""


def test_answers_of_a_template_that_forgets_thoughts_are_learned_one_by_one() -> None:
    template = Template(FORGETFUL.replace("\n", ""), {})
    thought = {**ANSWER, "reasoning_content": "hm"}
    asked = "u:Hi;a:"
    for answer, said in ((ANSWER, "<think></think>Hello;"), (thought, "<think>hm</think>Hello;")):
        past = "" if answer is ANSWER else "<think></think>"
        first = [Turn(asked, False), Turn(said, True)]
        second = [Turn(f"{asked}{past}Hello;{asked}", False), Turn(said, True)]
        assert template.lessons([ASK, answer, ASK, answer]) == [first, second]
        # What follows the last answer changes it, and is nothing to be learned.
        assert template.lessons([ASK, answer, ASK]) == [first]


FORCING = """\
{% for m in messages %}
{{ m.role[0] }}:{{ past if m.role == 'assistant' }}{{ m.content.split('</think>')[-1] }};\
{% endfor %}
{% if add_generation_prompt %}a:<think>{{ seam }}{% endif %}"""


@pytest.mark.parametrize(("seam", "close"), [("\n", "\n</think>\n\n"), ("", "</think>")])
@pytest.mark.parametrize("past", ["", "</think>"])
def test_a_thought_that_the_question_opens_is_learned_though_the_template_forgets_it(
    seam: str, close: str, past: str
) -> None:
    template = Template(FORCING.replace("\n", ""), {"seam": seam, "past": past})
    within = {**ANSWER, "content": "<think>\nhm\n</think>\n\nHello"}
    for answer in ({**ANSWER, "reasoning_content": "hm"}, within, ANSWER):
        said = ("" if answer is ANSWER else "hm") + close + "Hello;"
        (first,) = template.lessons([ASK, answer])
        assert first == [Turn(f"u:Hi;a:<think>{seam}", False), Turn(said, True)]
        again, second = template.lessons([ASK, answer, ASK, answer])
        assert again == first and second[-1] == first[-1]
        assert second[0].text.endswith("Hello;u:Hi;a:<think>" + seam)


@pytest.mark.parametrize(
    ("prompt", "ended"),
    [
        ("a:<think>\n", "a:<think>\n\n</think>\n\n"),
        ("a:<think>", "a:<think></think>"),
        ("a:<think></think>", "a:<think></think>"),
        ("a:", "a:"),
    ],
)
def test_a_thought_that_the_question_opens_can_be_ended(prompt: str, ended: str) -> None:
    assert unthinking(prompt) == ended


@pytest.mark.parametrize("seam", ["\n", ""])
@pytest.mark.parametrize("past", ["", "</think>"])
def test_who_wants_no_thought_gets_none_of_a_template_that_always_opens_one(
    seam: str, past: str
) -> None:
    template = Template(FORCING.replace("\n", ""), {"seam": seam, "past": past})
    quiet = {"enable_thinking": False}
    asked = f"u:Hi;a:<think>{seam * 2}</think>{seam * 2}"
    assert template.render([ASK], options=quiet) == asked
    (turns,) = template.lessons([ASK, ANSWER], options=quiet)
    assert turns == [Turn(asked, False), Turn("Hello;", True)]
    with pytest.raises(BadInput, match="thought in message 2"):
        template.lessons([ASK, {**ANSWER, "reasoning_content": "hm"}], options=quiet)


def test_a_thought_that_would_not_be_learned_is_refused() -> None:
    thought = {**ANSWER, "reasoning_content": "hm"}
    forgetful = Template(FORGETFUL.replace("\n", ""), {})
    for template, options in (Template(CHATML, {}), {}), (forgetful, {"enable_thinking": False}):
        with pytest.raises(BadInput, match="thought in message 2") as caught:
            template.lessons([ASK, thought], options=options)
        assert caught.value.hint
    (turns,) = Template(CHATML, {}).lessons([ASK, {**ANSWER, "content": "<think>hm</think>Hello"}])
    assert turns[1].text == "<think>hm</think>Hello<|im_end|>\n"


def test_an_answer_that_changes_what_it_answers_is_refused() -> None:
    rewriting = "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}"
    with pytest.raises(BadInput, match="cannot be told apart") as caught:
        Template(rewriting, {}).lessons([ASK, ANSWER])
    assert caught.value.hint


def test_options_reach_the_template_and_no_other_are_taken() -> None:
    template = Template(FORGETFUL.replace("\n", ""), {"eos_token": "</s>"})
    assert template.reasons and not Template(CHATML, {}).reasons
    assert template.render([ASK], options={"enable_thinking": False}) == "u:Hi;a:<think></think>"
    assert template.render([ASK], options={"enable_thinking": True}) == "u:Hi;a:"
    # What is not wanted is no option that is missed.
    assert Template(CHATML, {}).render([ASK], options={"enable_thinking": False}) == CHATML_ASKED
    for name in ("messages", "eos_token", "add_generation_prompt"):
        with pytest.raises(BadInput, match=f"{name} is no option"):
            template.render([ASK], options={name: "x"})
    with pytest.raises(BadInput, match="knows no enable_thoughts") as caught:
        template.render([ASK], options={"enable_thoughts": True})
    assert "enable_thinking" in str(caught.value.hint)


def test_what_a_template_sets_before_it_reads_it_is_no_option() -> None:
    source = (
        "{% if not mood is defined %}{% set mood = 'x' %}{% endif %}"
        "{% macro listed(tools) %}{{ tools }}{% endmacro %}"
        "{% set tone = tone | default('y') %}{% if mine %}{% set tools = mine %}{% endif %}"
        "{% for m in messages %}{% if m.content %}{% set said = m.content %}{% else %}"
        "{% set said = '' %}{% endif %}{{ mood }}{{ tone }}{{ said }}{{ tools }}{% endfor %}"
    )
    template = Template(source, {})
    assert template.render([ASK], options={"mood": "a", "tone": "b"}) == "abHiNone"
    with pytest.raises(BadInput, match="knows no said") as caught:
        template.render([ASK], options={"said": "x"})
    assert str(caught.value.hint).endswith(": mine, mood, tone")
    assert template.reads("tools")


def test_what_templates_take_for_granted_is_there() -> None:
    source = (
        "{{ bos_token }}{% generation %}{{ messages[0]['content'] | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}"
        "{{ strftime_now('%Y') | length }}{% if tools is none %}-{% endif %}"
    )
    message = {"role": "user", "content": "é"}
    assert Template(source, {"bos_token": "<s>"}).render([message, ASK]) == '<s>"é"x4-'


def test_a_template_that_refuses_is_heard() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadInput, match="roles must alternate"):
        Template(source, {}).render([ASK])


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "no messages"),
        ([{"role": "boss", "content": "x"}], "the role 'boss'"),
        ([{"content": "x"}], "the role None"),
        ([ASK, {"role": "user"}], "message 2 has no content"),
        ([{"role": "user", "content": None}], "message 1 has no content"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "message 1 has no content"),
        ([{"role": "user", "content": True}], "message 1 is no text but True"),
    ],
)
def test_messages_that_cannot_be_are_refused(messages: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(BadInput, match=why) as caught:
        Template(CHATML, {}).render(messages)
    assert caught.value.hint


def test_a_template_reaches_nothing_outside() -> None:
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BadInput):
        Template(source, {}).render([ASK])
    with pytest.raises(BadInput, match="no Jinja template"):
        Template("{% for %}", {}).render([ASK])
