from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import openai
import pytest
import torch

from narrows.data.published import Words
from narrows.data.tokenizers import Tokenizer
from narrows.infer.embedding import Embedder, Recipe
from narrows.infer.server.app import Guards
from narrows.infer.server.encoder import EncoderService, encoder_app
from narrows.infer.server.service import Limits
from narrows.infer.tally import Tally
from tests.infer.conftest import CONTEXT, built, encoder_spec

PATH = "/v1/embeddings"


@pytest.fixture
def service(bpe: Tokenizer) -> EncoderService:
    encoder = Embedder(built(encoder_spec(), seed=2), Words(bpe), Recipe("mean", True, CONTEXT))
    waiting = asyncio.Semaphore(3)
    turn, limits = asyncio.Lock(), Limits(tokens_max=1)
    return EncoderService("small", 1, encoder, limits, turn, waiting, Tally())


def ask(service: EncoderService, path: str, *bodies: Any) -> list[httpx.Response]:
    async def asked() -> list[httpx.Response]:
        transport = httpx.ASGITransport(encoder_app(service, Guards()))
        async with httpx.AsyncClient(transport=transport, base_url="http://small") as http:
            return await asyncio.gather(*(
                http.get(path) if body is None else http.post(path, json=body) for body in bodies
            ))  # fmt: skip

    return asyncio.run(asked())


def test_openais_client_gets_vectors(service: EncoderService) -> None:
    texts = ["But soft", "what light through yonder", "ROMEO:"]

    async def asked() -> None:
        transport = httpx.ASGITransport(encoder_app(service, Guards()))
        async with httpx.AsyncClient(transport=transport) as http:
            url = "http://small/v1"
            client = openai.AsyncOpenAI(base_url=url, api_key="-", http_client=http)
            plain = await client.embeddings.create(
                model="small", input=texts, encoding_format="float"
            )
            packed = await client.embeddings.create(model="small", input=texts)
            tokens = [service.encoder.words.tokenizer.encode(text) for text in texts]
            listed = await client.embeddings.create(model="small", input=tokens)
        wanted_ND = service.encoder.embed([service.encoder.tokens(text) for text in texts])
        for found in (plain, packed, listed):
            assert [each.index for each in found.data] == [0, 1, 2]
            vectors_ND = torch.tensor([each.embedding for each in found.data])
            torch.testing.assert_close(vectors_ND, wanted_ND, rtol=0.0, atol=1e-7)
            assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))

    asyncio.run(asked())


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"input": ""}, "input[0]"), ({"input": []}, "0 inputs"), ({"input": ["a", 3]}, "input[1]"),
        ({"input": [999]}, "token 999"), ({"input": [[-1]]}, "token -1"),
        ({"input": "x " * 90}, "tokens long"), ({"dimensions": 3}, "3 dimensions"),
        ({"encoding_format": "int8"}, "$.encoding_format"), ({"inputs": "a"}, "no field 'inputs'"),
        ({"input": [[]]}, "input[0]"), ({"input": [True]}, "input[0]"),
    ],
)  # fmt: skip
def test_what_has_no_vector_is_refused(
    service: EncoderService, field: dict[str, Any], said: str
) -> None:
    [response] = ask(service, PATH, {"input": "a", **field})
    assert response.status_code == 400 and said in response.json()["error"]["message"]


def test_it_serves_vectors_alone_and_says_so(service: EncoderService) -> None:
    [models] = ask(service, "/v1/models", None)
    [card] = models.json()["data"]
    assert (card["serves"], card["dimensions"]) == ([PATH], service.encoder.width)
    [refused] = ask(service, "/v1/chat/completions", {"messages": []})
    assert refused.status_code == 400 and "is an encoder" in refused.json()["error"]["message"]
    [other] = ask(service, PATH, {"input": "a", "model": "large"})
    assert other.status_code == 404


def test_more_than_may_wait_are_told_to_come_again(service: EncoderService) -> None:
    found = ask(service, PATH, *[{"input": "a"}] * 12)
    refused = [each for each in found if each.status_code == 429]
    assert refused and all(each.headers["retry-after"] for each in refused)
    assert {each.status_code for each in found} == {200, 429}
    assert ask(service, PATH, {"input": "a"})[0].status_code == 200
    assert service.tally.requests["refused"] == len(refused)


def test_it_says_what_it_did(service: EncoderService, monkeypatch: pytest.MonkeyPatch) -> None:
    [answered] = ask(service, PATH, {"input": ["But soft", "ROMEO:"]})

    def embed(encoder: Embedder, texts: object) -> None:
        raise RuntimeError("a bit fell over")

    monkeypatch.setattr(Embedder, "embed", embed)
    with pytest.raises(RuntimeError):
        ask(service, PATH, {"input": "a"})
    [told] = ask(service, "/metrics", None)
    lines = told.text.splitlines()
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    for outcome, count in (("finished", 1), ("failed", 1), ("refused", 0)):
        assert f'narrows_requests_total{{outcome="{outcome}"}} {count}' in lines
    read = answered.json()["usage"]["prompt_tokens"]
    assert f"narrows_tokens_read_total {read}" in lines
    assert "narrows_vectors_seconds_count 1" in lines


def test_what_is_not_there_is_told_with_where_to_look(service: EncoderService) -> None:
    for path in ("/", "/nothing"):
        [missing] = ask(service, path, None)
        assert missing.status_code == 404
        place = re.search(r"Hint: GET (\S+)", missing.json()["error"]["message"])
        assert place and ask(service, place[1], None)[0].status_code == 200
