"""Thoughts taken off answers, however these come in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.data.template import Template
from narrows.infer.reasoning import ReasoningReader, Said, parted, thinking_of


@pytest.mark.parametrize(
    ("begun", "written", "thought", "text"),
    [
        (False, "<think>\nHm, 4.\n</think>\n\nFour.\n", "Hm, 4.", "Four.\n"),
        (False, " \n<think>a b</think>c", "a b", "c"),
        (False, "<think>\n\n</think>\n\nFour.", "", "Four."),
        (True, "Hm.\n</think>\n\nFour.", "Hm.", "Four."),
        (True, "</think>Four.", "", "Four."),
        (True, "<think>\nHm.\n</think>So.", "Hm.", "So."),
        (True, "<thin", "<thin", ""),
        # Cut short within a thought, or before its end is whole.
        (False, "<think>\nHm, so ", "Hm, so", ""),
        (True, "a </thin", "a </thin", ""),
        (True, "a </think>", "a", ""),
        # A thought stands at the beginning alone, and is one.
        (False, "<b> so", "", "<b> so"),
        (False, "  Four.", "", "  Four."),
        (False, "So <think>x</think>", "", "So <think>x</think>"),
        (False, "<think>a <think> b</think>c</think>", "a <think> b", "c</think>"),
        (False, "<thin", "", "<thin"),
        (False, "", "", ""),
    ],
)
def test_a_thought_is_told_apart(begun: bool, written: str, thought: str, text: str) -> None:
    assert parted(begun, written) == Said(thought, text)
    reader = ReasoningReader(begun=begun)
    said = [reader.push(each) for each in written] + [reader.finish()]
    assert "".join(each.thought for each in said) == thought
    assert "".join(each.text for each in said) == text


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "/think>", "a", " ", "\n"])), st.data()
)
def test_pieces_change_nothing(parts: list[str], data: st.DataObject) -> None:
    written, begun = "".join(parts), data.draw(st.booleans())
    reader, said, start = ReasoningReader(begun=begun), list[Said](), 0
    while start < len(written):
        end = data.draw(st.integers(start + 1, len(written)))
        said.append(reader.push(written[start:end]))
        start = end
    said.append(reader.finish())
    whole = Said("".join(one.thought for one in said), "".join(one.text for one in said))
    assert whole == parted(begun, written)


def test_nothing_is_told_late() -> None:
    reader = ReasoningReader()
    assert reader.push("<think>one ") == Said("one", "")
    assert reader.push("two") == Said(" two", "")
    assert reader.push("</think>\nSo") == Said("", "So")
    assert reader.push(" be it ") == Said("", " be it ")


def test_whether_an_answer_begins_within_a_thought_the_prompt_says() -> None:
    knowing = Template("<think></think>", {})
    assert thinking_of(knowing, "a:<think>\n") is True
    assert thinking_of(knowing, "a:<think>\n\n</think>\n\n") is False
    assert thinking_of(Template("x", {}), "a:<think>\n") is None
    assert thinking_of(None, "a:") is None
    assert parted(None, "<think>x</think>") == Said("", "<think>x</think>")
