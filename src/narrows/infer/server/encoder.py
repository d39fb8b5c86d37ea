"""An encoder that is served: vectors of texts, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from narrows.infer.requests import Full
from narrows.infer.server import metrics
from narrows.infer.server.app import Guards, asked_of, assembled, json_of
from narrows.infer.server.errors import Refusal
from narrows.infer.server.openapi import Operation
from narrows.infer.server.service import Limits
from narrows.infer.tally import Tally

if TYPE_CHECKING:
    from torch import Tensor

    from narrows.infer.embedding import Embedder

_INPUTS_MOST = 2048


class EncoderService(NamedTuple):
    """All that the routes need; `turn` is held by the one that computes, `waiting` by the others
    that may wait; `tally` is of requests, tokens and, as its first, the time to the vectors.
    """

    name: str
    since: int
    encoder: Embedder
    limits: Limits
    turn: asyncio.Lock
    waiting: asyncio.Semaphore
    tally: Tally

    @property
    def cards(self) -> list[dict[str, Any]]:
        """The model, as OpenAI lists models, and what it is for."""
        return [{"id": self.name, "object": "model", "created": self.since, "owned_by": "narrows",
                 "context": self.encoder.recipe.tokens_max, "serves": ["/v1/embeddings"],
                 "dimensions": self.encoder.width}]  # fmt: skip


class VectorsAsked(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings; a text or its tokens, one or several."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None

    def inputs(self) -> list[str | list[int]]:
        """Each by itself; raises Refusal where one is empty, or neither text nor tokens."""
        given = self.input
        if isinstance(given, str) or (given and all(type(each) is int for each in given)):
            given = [given]
        if not 1 <= len(given) <= _INPUTS_MOST:
            what = f"there are {len(given)} inputs"
            raise Refusal(what, hint=f"give 1 to {_INPUTS_MOST}", param="input")
        for index, each in enumerate(given):
            tokens = isinstance(each, list) and all(type(token) is int for token in each)
            if not each or not (isinstance(each, str) or tokens):
                what = f"input[{index}] is neither a text nor tokens, or has none"
                raise Refusal(what, param="input")
        return given


def encoder_app(service: EncoderService, guards: Guards) -> Starlette:
    """The server as an ASGI application."""
    operations = [
        Operation("/ready", _ready, "Whether requests are taken."),
        Operation("/metrics", _metrics, "What was done so far.", media=("text/plain",)),
        Operation("/v1/embeddings", _embeddings, "Vectors of texts.", VectorsAsked),
    ]
    refused = [
        Route("/v1/chat/completions", _writes_not, methods=["POST"]),
        Route("/v1/completions", _writes_not, methods=["POST"]),
    ]
    return assembled(operations, refused, service, guards)


async def _ready(http: Request) -> Response:
    return json_of({"status": "ready"})


async def _metrics(http: Request) -> Response:
    tally = http.app.state.service.tally
    return PlainTextResponse(metrics.text_of_vectors(tally), media_type=metrics.MEDIA_TYPE)


async def _embeddings(http: Request) -> Response:
    service: EncoderService = http.app.state.service
    asked = await asked_of(http, VectorsAsked)
    texts = await run_in_threadpool(_tokens, service.encoder, asked)
    vectors_ND = await _vectors(service, texts)
    data = [{"object": "embedding", "index": index, "embedding": _written(vector_D, asked)}
            for index, vector_D in enumerate(vectors_ND)]  # fmt: skip
    count = sum(map(len, texts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_of({"object": "list", "data": data, "model": service.name, "usage": usage})


async def _vectors(service: EncoderService, texts: list[list[int]]) -> Tensor:
    """Of each text, in its turn; what came of it is counted."""
    tally, began = service.tally, time.monotonic()
    if service.waiting.locked():
        tally.requests["refused"] += 1
        raise Full("as many requests wait as may", hint="ask again in a moment")
    try:
        async with service.waiting, service.turn:
            vectors_ND = await run_in_threadpool(service.encoder.embed, texts)
    except BaseException:
        tally.requests["failed"] += 1
        raise
    tally.requests["finished"] += 1
    tally.tokens_read += sum(map(len, texts))
    tally.first.count(time.monotonic() - began)
    return vectors_ND


def _tokens(encoder: Embedder, asked: VectorsAsked) -> list[list[int]]:
    """Of each input, with what stands around every text."""
    if asked.dimensions not in (None, encoder.width):
        what = f"{asked.dimensions} dimensions are asked for, the model's vectors have"
        raise Refusal(f"{what} {encoder.width}", hint="leave it out", param="dimensions")
    tokenizer, found = encoder.words.tokenizer, []
    for index, given in enumerate(asked.inputs()):
        if isinstance(given, str):
            found.append(encoder.tokens(given))
            continue
        for token in given:
            if not 0 <= token < tokenizer.vocabulary:
                what = f"token {token} of input[{index}] is none of the tokenizer's"
                raise Refusal(f"{what} {tokenizer.vocabulary}", param="input")
        found.append([*tokenizer.begin, *given, *tokenizer.close])
    encoder.refuse_long(found)
    return found


def _written(vector_D: Tensor, asked: VectorsAsked) -> list[float] | str:
    if asked.encoding_format == "base64":
        return base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode()
    found: list[float] = vector_D.tolist()
    return found


async def _writes_not(http: Request) -> Response:
    name = http.app.state.service.name
    what = f"{name} is an encoder: it makes vectors of texts, and writes none"
    raise Refusal(what, hint="POST /v1/embeddings, or serve a model that writes", param="model")
