"""/openapi.json: what may be asked, from the records that requests are read by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from narrows.infer.server import schemas

_PLACE = "#/components/schemas/{name}"
_JSON = "application/json"
_TOLD = {
    "400": "the request is wrong, or asks for more than there is", "404": "no such model",
    "408": "the body came too slowly", "413": "the body is too large",
    "429": "as many requests wait as may", "500": "the server failed",
    "503": "it shuts down, or the answer was not written in time",
}  # fmt: skip


class Told(msgspec.Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failed(msgspec.Struct, frozen=True):
    """Every error, in OpenAI's form."""

    error: Told


class Operation(NamedTuple):
    """A path, what answers it, and what is answered; `asks` is the record of a body."""

    path: str
    answer: Callable[[Request], Awaitable[Response]]
    does: str
    asks: type[msgspec.Struct] | None = None
    media: tuple[str, ...] = (_JSON,)

    @property
    def method(self) -> str:
        """POST where there is a body."""
        return "get" if self.asks is None else "post"

    @property
    def route(self) -> Route:
        """As Starlette has it."""
        path = self.path.replace("}", ":path}")
        return Route(path, self.answer, methods=[self.method.upper()])


def document(
    operations: Sequence[Operation], name: str, *, keyed: bool, free: Collection[str]
) -> dict[str, Any]:
    """The whole, of a server of the model `name`; `keyed`, all but the free paths ask for a key."""
    records = [each.asks for each in operations if each.asks is not None]
    _, known = msgspec.json.schema_components([*records, Failed], ref_template=_PLACE)
    for record in records:
        # A field that nobody knows is refused, but for some of OpenAI's (schemas.read).
        known[record.__name__]["additionalProperties"] = False
        known[record.__name__]["properties"] |= schemas.tolerated(record)
    paths = {
        each.path: {each.method: _described(each, keyed and each.path not in free)}
        for each in operations
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0", "info": {"title": f"narrows serve {name}", "version": "1"},
        "paths": paths, "components": {"schemas": known},
    }  # fmt: skip
    if keyed:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _described(each: Operation, keyed: bool) -> dict[str, Any]:
    told = dict(_TOLD) if each.asks is not None else {"503": "it shuts down"}
    if "{" in each.path:
        told["404"] = _TOLD["404"]
    if keyed:
        told["401"] = "the key is missing or wrong"
    told["403"] = "another host is asked for"
    failed = {_JSON: {"schema": {"$ref": _PLACE.format(name=Failed.__name__)}}}
    answered = {"description": "answered", "content": {media: {} for media in each.media}}
    found: dict[str, Any] = {
        "summary": each.does,
        "responses": {"200": answered}
        | {status: {"description": why, "content": failed} for status, why in told.items()},
    }
    if each.asks is not None:
        schema = {"$ref": _PLACE.format(name=each.asks.__name__)}
        found["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if "{" in each.path:
        found["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if keyed:
        found["security"] = [{"key": []}]
    return found
