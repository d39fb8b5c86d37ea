"""From answers in the making to a response: at once when all is written, or as events (SSE)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, final

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from narrows.infer.requests import Answer, Piece
from narrows.infer.server.errors import Refusal, body_of
from narrows.infer.server.forms import Form
from narrows.spec.errors import NarrowsError

_GONE = 499
"""Nobody reads it: the client closed the connection."""


async def whole(http: HTTPRequest, answers: list[Answer], form: Form, seconds: float) -> Response:
    """The response once everything is written; where the client goes away, the answers end."""
    collecting = asyncio.ensure_future(_collected(answers))
    leaving = asyncio.ensure_future(_gone(http))
    both = (collecting, leaving)
    try:
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if collecting.done():
            body = msgspec.json.encode(form.response(collecting.result(), answers))
            return Response(body, media_type="application/json")
        if leaving.done():
            return Response(status_code=_GONE)
        raise _late(seconds)
    finally:
        _end(answers)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


@final
class Events(StreamingResponse):
    """A stream of chunks; however it ends, so do its answers."""

    def __init__(self, answers: list[Answer], form: Form, seconds: float, *, usage: bool) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        events = _events(answers, form, seconds, usage)
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answers, self._seconds = answers, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # A client that reads nothing would hold the response for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * self._seconds):
                    await super().__call__(scope, receive, send)
        finally:
            _end(self._answers)


async def _events(
    answers: list[Answer], form: Form, seconds: float, usage: bool
) -> AsyncIterator[bytes]:
    pieces: list[tuple[int, Piece]] = []
    try:
        async with asyncio.timeout(seconds):
            for chunk in form.opening(sum(answer.request.count for answer in answers)):
                yield _event(chunk)
            async for first, piece in _pieces(answers):
                pieces.append((first, piece))
                yield _event(form.part(first, piece))
    except TimeoutError:
        yield _event(body_of(_late(seconds)))
        return
    except NarrowsError as error:
        yield _event(body_of(error))
        return
    if usage:
        yield _event(form.closing(answers, pieces))
    yield b"data: [DONE]\n\n"


async def _collected(answers: list[Answer]) -> list[tuple[int, Piece]]:
    return [each async for each in _pieces(answers)]


async def _pieces(answers: list[Answer]) -> AsyncIterator[tuple[int, Piece]]:
    """Of one answer after the other, which are written side by side; each with the number of its
    answer's first choice.
    """
    first = 0
    for answer in answers:
        async for piece in answer:
            yield first, piece
        first += answer.request.count


async def _gone(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _event(data: Any) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def _end(answers: list[Answer]) -> None:
    for answer in answers:
        answer.cancel()


def _late(seconds: float) -> Refusal:
    what = f"the answer was not written within {seconds:g} s"
    return Refusal(what, status=503, hint="ask for fewer tokens, or later", code="timeout")
