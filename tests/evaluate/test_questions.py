from __future__ import annotations

import json
from pathlib import Path

import pytest

from narrows.evaluate.questions import questions
from narrows.spec.errors import BadInput

GOOD = {"prompt": "2 + 2 =", "answer": "4"}
SAID = [{"role": "assistant", "content": "Hi"}]
USER = [{"role": "user", "content": "Hello"}]


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    )
    return path


def test_rows_are_numbered_and_know_their_place(tmp_path: Path) -> None:
    choosing = {"messages": USER, "answer": "b", "choices": ["a", "b"], "id": 7}
    found, digest = questions(written(tmp_path, GOOD, "", choosing))
    assert [(row.number, row.answer) for row in found] == [(1, "4"), (2, "b")]
    assert [row.place for row in found] == ["rows.jsonl line 1", "rows.jsonl line 3"]
    assert found[0].prompt == "2 + 2 =" and found[1].said.messages == USER
    assert found[1].choices == ("a", "b")
    assert questions(written(tmp_path, GOOD, choosing))[1] == digest
    assert questions(written(tmp_path, GOOD, choosing), 1)[1] != digest


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "a", ', "line 2 is not JSON"),
        (b"\xff".decode("latin-1") + "{", "line 2 is not JSON"),
        ("[1, 2]", "line 2 is no JSON object"),
        ({"prompt": "a"}, "line 2 has no answer"),
        ({"answer": "a"}, "line 2 has no prompt"),
        ({**GOOD, "messages": USER}, "line 2 has both a prompt and messages"),
        ({"prompt": 3, "answer": "a"}, "line 2: prompt is no text but 3"),
        ({"prompt": "a", "answer": None}, "line 2 has no answer"),
        ({"promt": "a", "answer": "a"}, "line 2 has the field promt"),
        ({**GOOD, "choises": ["4", "5"]}, "line 2 has the field choises"),
        ({**GOOD, "choices": ["5", "6"]}, "'4', which is none of its choices"),
        ({**GOOD, "answer": " "}, "line 2: answer is empty"),
        ({**GOOD, "choices": ["4"]}, "line 2 has no two or more choices"),
        ({**GOOD, "choices": ["4", "4"]}, "line 2 has no two or more choices"),
        ({**GOOD, "choices": "4"}, "line 2: choices should be a list of texts"),
        ({"messages": "Hello", "answer": "a"}, "line 2: the messages are no list"),
        ({"messages": [{"role": "me"}], "answer": "a"}, "line 2: message 1 has the role 'me'"),
        ({"messages": USER}, "line 2 has no answer, and its messages do not end"),
        ({"messages": [*USER, SAID[0] | {"content": " "}]}, "line 2: answer is empty"),
        ({"question": "a", "answer": "b", "input": 5}, "line 2: input is no text but 5"),
        ({"messages": [], "answer": "a"}, "line 2: there are no messages"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, what: str) -> None:
    with pytest.raises(BadInput) as caught:
        questions(written(tmp_path, GOOD, line))
    assert what in str(caught.value) and caught.value.hint


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ({"question": "2?", "answer": "Hi"}, [user("2?")]),
        ({"question": "2?", "context": "Two", "answer": "Hi"}, [user("Two\n\n2?")]),
        ({"instruction": "Say", "input": "it", "output": "Hi"}, [user("Say\n\nit")]),
        ({"prompt": "2?", "system": "Be", "answer": "Hi"},
         [{"role": "system", "content": "Be"}, user("2?")]),
        ({"messages": USER + SAID}, USER),
        ({"conversation": USER + SAID + USER, "answer": "Hi"}, USER + SAID + USER),
        ({"messages": USER + SAID, "system": "Be"}, [{"role": "system", "content": "Be"}, *USER]),
    ],
)  # fmt: skip
def test_rows_that_teach_are_asked_as_they_were_taught(
    tmp_path: Path, line: object, messages: object
) -> None:
    ((row,), _) = questions(written(tmp_path, line))
    assert (row.prompt, row.said.messages, row.answer) == (None, messages, "Hi")


def test_a_slip_is_met_with_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        questions(written(tmp_path, {"prompt": "a", "anwser": "b"}))
    assert caught.value.hint == "did you mean answer?"


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no rows"):
        questions(written(tmp_path, "", " "))
    with pytest.raises(BadInput, match="does not exist"):
        questions(tmp_path / "absent.jsonl")
