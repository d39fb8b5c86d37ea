"""Streams of answers that are over before they are read, or while they are."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from narrows.data.tokenizers import Tokenizer
from narrows.infer.requests import Answer, Piece, Request, ring
from narrows.infer.server.connection import DIRECT
from narrows.infer.server.forms import TextForm
from narrows.infer.server.streaming import Events
from tests.infer.server.asking import TEXT, Make, chunks, post

LAST = (Piece(0, "b", 1), Piece(0, "c", 1, finish="length"))


def streamed(answers: list[Answer], form: TextForm) -> list[tuple[int, str, str | None]]:
    """What each chunk says of which choice, in the order in which the client gets them."""
    sent: list[bytes] = []

    def write(part: bytes) -> bool:
        sent.append(part)
        return True

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "extensions": {DIRECT: write}}
    asyncio.run(Events(answers, form, 10.0, usage=False)(scope, receive, send))
    *events, done, rest = b"".join(sent).decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    return [(each["index"], each["text"], each["finish_reason"]) for each in choices]


def test_answers_that_are_over_are_streamed_whole(bpe: Tokenizer) -> None:
    answers = [Answer(Request(prompt=(1,), tokens_max=3)) for _ in range(3)]
    for answer in answers:
        for piece in LAST:
            answer.put(piece)
    found = streamed(answers, TextForm("small", bpe, odds=False))
    wanted = [(number, *said) for number in range(3) for said in (("b", None), ("c", "length"))]
    assert found == wanted


def test_an_answer_that_ends_while_its_chunk_is_made_is_streamed_in_order(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, left = Answer(Request(prompt=(1,), tokens_max=3)), list(LAST)
    form = TextForm("small", bpe, odds=False)
    before = form.encoded

    def ending(first: int, piece: Piece) -> bytes:
        while left:
            answer.put(left.pop(0))
        ring([answer])
        return before(first, piece)

    monkeypatch.setattr(form, "encoded", ending)
    answer.put(Piece(0, "a", 1))
    assert streamed([answer], form) == [(0, "a", None), (0, "b", None), (0, "c", "length")]


@pytest.mark.parametrize("asked", [{"prompt": ["ROMEO:", "JULIET:"]}, {"prompt": "But", "n": 2}])
def test_each_choice_of_a_stream_says_what_it_says_whole(make: Make, asked: Any) -> None:
    service, asked = make(), {"max_tokens": 6, "seed": 3, **asked}
    whole = post(service, TEXT, asked).json()["choices"]
    parts = [each["choices"][0] for each in chunks(post(service, TEXT, {**asked, "stream": True}))]
    for choice in whole:
        own = [each for each in parts if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
