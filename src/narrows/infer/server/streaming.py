"""From answers in the making to a response: at once when all is written, or as events (SSE)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, final

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from narrows.infer.requests import Answer, Piece
from narrows.infer.server.connection import DIRECT
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
        super().__init__((), media_type="text/event-stream", headers=headers)
        self._answers, self._form, self._seconds, self._usage = answers, form, seconds, usage
        self._write: Callable[[bytes], bool] | None = None
        self._written, self._left = 0, sum(answer.request.count for answer in answers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write = scope.get("extensions", {}).get(DIRECT)
        try:
            # A client that reads nothing would hold the response for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * self._seconds):
                    await super().__call__(scope, receive, send)
        finally:
            _end(self._answers)

    async def stream_response(self, send: Send) -> None:
        """Send all of it; the last chunk of text goes with what closes the stream."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        last = held = b""
        try:
            async with asyncio.timeout(self._seconds):
                opening = b"".join(map(_event, self._form.opening(self._left)))
                await send(_part(opening))
                async for chunk in self._chunks():
                    # By what was read, not by what is written already: only then it is the last.
                    if self._left:
                        await send(_part(chunk))
                    else:
                        held = chunk
        except TimeoutError:
            last = _event(body_of(_late(self._seconds)))
        except NarrowsError as error:
            last = _event(body_of(error))
        else:
            if self._usage:
                last = _event(self._form.closing(self._answers, self._written))
            last += b"data: [DONE]\n\n"
        await send(_part(held + last, more=False))

    async def _chunks(self) -> AsyncIterator[bytes]:
        """Events of one answer after the other, which are written side by side; those that the
        connection takes at once are not among them.
        """
        first = 0
        for answer in self._answers:
            async for pieces in answer.batches(partial(self._at_once, first)):
                yield b"".join(self._chunk(first, piece) for piece in pieces)
            first += answer.request.count

    def _at_once(self, first: int, piece: Piece) -> bool:
        # Chunks of calls are told apart by what was read before: they are made once, and sent.
        if piece.finish or self._write is None or not self._form.plain:
            return False
        taken = self._write(_framed(self._form.encoded(first, piece)))
        self._written += piece.tokens if taken else 0
        return taken

    def _chunk(self, first: int, piece: Piece) -> bytes:
        self._written += piece.tokens
        self._left -= piece.finish is not None
        return _framed(self._form.encoded(first, piece))


async def _collected(answers: list[Answer]) -> list[tuple[int, Piece]]:
    """Of one answer after the other; each piece with the number of its answer's first choice."""
    first, found = 0, list[tuple[int, Piece]]()
    for answer in answers:
        async for pieces in answer.batches():
            found += [(first, piece) for piece in pieces]
        first += answer.request.count
    return found


async def _gone(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _event(data: Any) -> bytes:
    return _framed(msgspec.json.encode(data))


def _framed(event: bytes) -> bytes:
    return b"data: " + event + b"\n\n"


def _part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _end(answers: list[Answer]) -> None:
    for answer in answers:
        answer.cancel()


def _late(seconds: float) -> Refusal:
    what = f"the answer was not written within {seconds:g} s"
    return Refusal(what, status=503, hint="ask for fewer tokens, or later", code="timeout")
