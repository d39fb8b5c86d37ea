"""What went wrong, in OpenAI's form: {"error": {message, type, param, code}} and a status."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response

from narrows.infer.generate import TooLong
from narrows.infer.requests import Closed, Full
from narrows.spec.errors import BadInput, NarrowsError

RETRY_S = 1


class Refusal(BadInput):
    """A request that is refused for a reason of HTTP's or of OpenAI's interface."""

    def __init__(
        self, what: str, *, status: int = 400, hint: str | None = None, param: str | None = None,
        code: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(what, hint=hint)
        self.status, self.param, self.code = status, param, code


class _Case(NamedTuple):
    status: int
    kind: str
    code: str | None = None


_INVALID = "invalid_request_error"
_KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}


def body_of(error: NarrowsError) -> dict[str, Any]:
    """What the client is told."""
    case = _case(error)
    parts = [error.what, *error.causes]
    message = ". ".join(parts) + (f". Hint: {error.hint}" if error.hint else "")
    param = error.param if isinstance(error, Refusal) else None
    return {"error": {"message": message, "type": case.kind, "param": param, "code": case.code}}


def response_to(error: NarrowsError) -> Response:
    """The whole response."""
    status = _case(error).status
    headers = {"Retry-After": str(RETRY_S)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = msgspec.json.encode(body_of(error))
    return Response(body, status, headers, media_type="application/json")


def _case(error: NarrowsError) -> _Case:
    if isinstance(error, Refusal):
        return _Case(error.status, _KINDS.get(error.status, _INVALID), error.code)
    if isinstance(error, TooLong):
        return _Case(400, _INVALID, "context_length_exceeded")
    if isinstance(error, BadInput):
        return _Case(400, _INVALID)
    if isinstance(error, Full):
        return _Case(429, "rate_limit_error", "queue_full")
    if isinstance(error, Closed):
        return _Case(503, "server_error", "shutting_down")
    return _Case(500, "server_error")
