from __future__ import annotations

from typing import Any

import pytest

from narrows.data.template import Template, Turn
from narrows.spec.errors import BadInput

CHATML = """\
{% for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def test_messages_become_text() -> None:
    template = Template(CHATML, {})
    asked = template.render([ASK])
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    whole = template.render([ASK, ANSWER], answer=False)
    assert whole == f"{asked}Hello<|im_end|>\n"


def test_turns_tell_what_the_model_writes() -> None:
    template = Template(CHATML, {})
    turns = template.turns([ASK, ANSWER, ASK, ANSWER])
    assert [turn.written for turn in turns] == [False, True, False, True]
    assert "".join(turn.text for turn in turns) == template.render(
        [ASK, ANSWER, ASK, ANSWER], answer=False
    )
    assert turns[1] == Turn("Hello<|im_end|>\n", True)
    assert template.turns([ASK])[-1].written is False


def test_a_past_that_changes_is_refused() -> None:
    forgetful = "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}"
    with pytest.raises(BadInput, match="cannot be told apart") as caught:
        Template(forgetful, {}).turns([ASK, ANSWER, ASK, ANSWER])
    assert caught.value.hint


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
