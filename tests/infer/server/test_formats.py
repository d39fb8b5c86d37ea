from __future__ import annotations

import json

from tests.infer.server.asking import CHAT, TEXT, Make, chunks, error, post, talk


def test_an_answer_keeps_to_the_form_that_is_asked_for(make: Make) -> None:
    service = make()
    wanted = {"type": "object", "properties": {"age": {"enum": [30, 31]}}, "required": ["age"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": wanted, "strict": True}}
    asked = talk("B", response_format=form, n=3, temperature=2.0)
    choices = post(service, CHAT, asked).json()["choices"]
    assert [each["finish_reason"] for each in choices] == ["stop"] * 3
    assert {json.loads(each["message"]["content"])["age"] for each in choices} <= {30, 31}
    streamed = chunks(post(service, CHAT, {**asked, "n": 1, "stream": True}))
    text = "".join(each["choices"][0]["delta"].get("content", "") for each in streamed)
    assert text == choices[0]["message"]["content"]
    asked = {"prompt": "B", "regex": "(yes|no)", "max_tokens": 9}
    assert post(service, TEXT, asked).json()["choices"][0]["text"] in ("yes", "no")
    open_ended = talk("B", response_format={"type": "json_object"}, max_tokens=3)
    [choice] = post(service, CHAT, open_ended).json()["choices"]
    assert choice["message"]["content"].startswith("{")


def test_a_wrong_schema_is_refused_with_its_place(make: Make) -> None:
    wrong = {"properties": {"a": {"type": "strin"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": wrong}}
    told = error(post(make(), CHAT, talk(response_format=form)), 400)
    assert told["param"] == "response_format.json_schema.schema.properties.a"
    assert "Invalid type: strin" in told["message"]
    both = talk(response_format={"type": "json_object"}, regex="a")
    assert "at once" in error(post(make(), CHAT, both), 400)["message"]
