"""The routes: what comes in is read within limits, what goes out is OpenAI's."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from narrows.data.template import unthinking
from narrows.infer.reasoning import thinking_of
from narrows.infer.server import metrics, schemas
from narrows.infer.server.calls import calls_of
from narrows.infer.server.errors import Refusal, response_to
from narrows.infer.server.formats import held
from narrows.infer.server.forms import ChatForm, Form, TextForm
from narrows.infer.server.openapi import Operation, document
from narrows.infer.server.page import page
from narrows.infer.server.reading import Manner
from narrows.infer.server.schemas import ChatAsked, TextAsked, TokensAsked
from narrows.infer.server.service import (
    Limits,
    Service,
    chat_requests,
    submitted,
    text_requests,
    tokens_asked,
)
from narrows.infer.server.streaming import Events, whole
from narrows.spec.errors import NarrowsError, RunFailed

_OPEN = ("/", "/health", "/ready")
"""What needs no key."""
_WRITTEN = ("application/json", "text/event-stream")

A = TypeVar("A", bound=msgspec.Struct)


class Guards(NamedTuple):
    """Who is answered: who knows the key, where there is one, and who asks for one of the hosts,
    where they are told.
    """

    api_key: str | None = None
    hosts: tuple[str, ...] | None = None


_ANYBODY = Guards()


class Named(Protocol):
    """What is served, as all routes need it."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def limits(self) -> Limits:
        """What a request may take."""

    @property
    def cards(self) -> list[dict[str, Any]]:
        """The model and what else may be asked for by a name, as OpenAI lists models."""


def app(service: Service, guards: Guards = _ANYBODY) -> Starlette:
    """The server of a model that writes, as an ASGI application."""
    operations = [
        Operation("/", _page, "A page to talk with the model.", media=("text/html",)),
        Operation("/ready", _ready, "Whether requests are taken."),
        Operation("/metrics", _metrics, "What was done so far.", media=("text/plain",)),
        Operation("/tokenize", _tokenize, "The tokens of a text.", TokensAsked),
        Operation("/v1/chat/completions", _chat, "Answer a conversation.", ChatAsked, _WRITTEN),
        Operation("/v1/completions", _text, "Go on from texts.", TextAsked, _WRITTEN),
    ]
    return assembled(operations, [Route("/v1/embeddings", _embeddings, methods=["POST"])],
                     service, guards)  # fmt: skip


def assembled(
    operations: list[Operation], refused: list[Route], service: Named, guards: Guards
) -> Starlette:
    """Operations of a service, and what it cannot do, their errors told in OpenAI's form, behind
    the guards.
    """
    handlers = {NarrowsError: _told, HTTPException: _misled, ClientDisconnect: _left,
                Exception: _broken}  # fmt: skip
    every = [
        Operation("/health", _health, "Whether the server answers."),
        Operation("/openapi.json", _openapi, "This document."),
        Operation("/v1/models", _models, "The model and its adapters."),
        Operation("/v1/models/{name}", _model, "One of them, by its name."),
        *operations,
    ]
    routes = [*(each.route for each in every), *refused]
    made = Starlette(routes=routes, exception_handlers=handlers)
    made.state.service = service
    made.state.document = document(
        every, service.name, keyed=guards.api_key is not None, free=_OPEN
    )  # fmt: skip
    if guards.api_key is not None:
        made.add_middleware(_Guard, api_key=guards.api_key)
    if guards.hosts is not None:
        made.add_middleware(_HostGuard, hosts=guards.hosts)
    return made


class _Guard:
    """Asks for the key, and takes as long to find a wrong one wrong whatever it begins with."""

    def __init__(self, inner: ASGIApp, api_key: str) -> None:
        self._inner, self._digest = inner, _digest(f"bearer {api_key}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, space, key = given.partition(b" ")
            if not secrets.compare_digest(_digest(scheme.lower() + space + key), self._digest):
                what = "the API key is wrong" if given else "no API key is given"
                told = Refusal(what, status=401, hint="Authorization: Bearer KEY",
                               code="invalid_api_key")  # fmt: skip
                await response_to(told)(scope, receive, send)
                return
        await self._inner(scope, receive, send)


class _HostGuard:
    """Refuses who asks for another host: a page elsewhere whose name was made to lead here."""

    def __init__(self, inner: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._inner, self._hosts = inner, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            host = given[: given.find("]") + 1] if given[:1] == "[" else given.partition(":")[0]
            if host not in self._hosts:
                told = Refusal(f"this server is not {host[:100]!r}", status=403,
                               hint=f"ask for {self._hosts[0]}")  # fmt: skip
                await response_to(told)(scope, receive, send)
                return
        await self._inner(scope, receive, send)


async def _page(http: Request) -> Response:
    return HTMLResponse(page(), headers={"Cache-Control": "no-cache"})


async def _openapi(http: Request) -> Response:
    return json_of(http.app.state.document)


async def _health(http: Request) -> Response:
    return json_of({"status": "ok"})


async def _ready(http: Request) -> Response:
    ready = _service(http).scheduler.alive
    return json_of({"status": "ready" if ready else "shutting down"}, 200 if ready else 503)


async def _metrics(http: Request) -> Response:
    return PlainTextResponse(metrics.text(_service(http).scheduler), media_type=metrics.MEDIA_TYPE)


async def _models(http: Request) -> Response:
    return json_of({"object": "list", "data": http.app.state.service.cards})


async def _model(http: Request) -> Response:
    service: Named = http.app.state.service
    _refuse_other(service, name := http.path_params["name"])
    return json_of(next(card for card in service.cards if card["id"] == name))


async def _tokenize(http: Request) -> Response:
    service = _service(http)
    asked = await asked_of(http, TokensAsked)
    tokens = await run_in_threadpool(tokens_asked, service, asked)
    context = service.scheduler.core.context
    return json_of({"tokens": tokens, "count": len(tokens), "context": context})


async def _chat(http: Request) -> Response:
    service = _service(http)
    asked = await asked_of(http, ChatAsked)
    requests, manner = await run_in_threadpool(_conversed, service, asked)
    form = ChatForm(asked.model or service.name, service.writer.tokenizer, manner)
    return await _answered(http, asked, requests, form)


def _conversed(service: Service, asked: ChatAsked) -> tuple[list[Any], Manner]:
    """What a conversation asks for, and how its answer is read."""
    template = service.writer.template
    calls = calls_of(asked, template)
    tools = calls.known if calls else ()
    text = service.rendered(asked.messages, asked.chat_template_kwargs, tools)
    thinking = thinking_of(template, text)
    if held(asked) or (calls is not None and calls.chosen):
        # It has no thought before it.
        text, thinking = unthinking(text) if thinking else text, None
    requests = chat_requests(service, asked, text, calls)
    return requests, Manner(odds=bool(asked.logprobs), calls=calls, thinking=thinking)


async def _text(http: Request) -> Response:
    service = _service(http)
    asked = await asked_of(http, TextAsked)
    requests = await run_in_threadpool(text_requests, service, asked)
    name, tokenizer = asked.model or service.name, service.writer.tokenizer
    form = TextForm(name, tokenizer, odds=asked.logprobs is not None)
    return await _answered(http, asked, requests, form)


async def _embeddings(http: Request) -> Response:
    name = _service(http).name
    what = f"{name} writes texts, and is no encoder: it has no embeddings"
    raise Refusal(what, hint="serve an encoder, such as a BERT", param="model")


async def _answered(
    http: Request, asked: schemas.Asked, requests: list[Any], form: Form
) -> Response:
    """The stream or the whole; while nothing is sent yet, an error is still a status."""
    service = _service(http)
    options = asked.stream_options
    if options is not None and not asked.stream:
        raise Refusal("stream_options without stream", param="stream_options")
    answers = submitted(service, requests)
    if not asked.stream:
        return await whole(http, answers, form, service.limits.seconds)
    usage = options is not None and bool(options.include_usage)
    return Events(answers, form, service.limits.seconds, usage=usage)


async def asked_of(http: Request, kind: type[A]) -> A:
    """The body as that form; raises Refusal where it is none, or asks for another model."""
    asked = await run_in_threadpool(schemas.read, await _body(http), kind)
    _refuse_other(http.app.state.service, getattr(asked, "model", None))
    return asked


async def _body(http: Request) -> bytes:
    limits: Limits = http.app.state.service.limits
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in http.stream():
                body += part
                if len(body) > limits.body_bytes:
                    what = f"the body is larger than {limits.body_bytes} bytes"
                    raise Refusal(what, status=413, hint="send less at once")
    except TimeoutError:
        what = f"the body did not come within {limits.body_seconds:g} s"
        raise Refusal(what, status=408, hint="send it faster") from None
    return bytes(body)


def _refuse_other(service: Named, name: str | None) -> None:
    """Raises Refusal where the name is not the model's, and no adapter's."""
    names = [card["id"] for card in service.cards]
    if name is not None and name not in names:
        what = f"there is no model {name[:100]!r} here"
        raise Refusal(what, status=404, hint=f"ask for {' or '.join(names)}", param="model",
                      code="model_not_found")  # fmt: skip


def _service(http: Request) -> Service:
    found: Service = http.app.state.service
    return found


def json_of(value: Any, status: int = 200) -> Response:
    """A response."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


async def _told(http: Request, error: Exception) -> Response:
    assert isinstance(error, NarrowsError)
    return response_to(error)


async def _misled(http: Request, error: Exception) -> Response:
    """No such path, or not by that method."""
    assert isinstance(error, HTTPException)
    what = f"{http.method} {http.url.path[:100]}: {error.detail.lower()}"
    told = Refusal(what, status=error.status_code, hint="GET /openapi.json lists what there is")
    response = response_to(told)
    response.headers.update(error.headers or {})
    return response


async def _broken(http: Request, error: Exception) -> Response:
    return response_to(RunFailed("the server failed; its log says why"))


async def _left(http: Request, error: Exception) -> Response:
    """Nobody reads it; what ends so often is not to fill the log."""
    return Response(status_code=400)
