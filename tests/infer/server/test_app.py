from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from torch import Tensor

from narrows.infer.server.app import app
from narrows.infer.server.service import Service
from narrows.infer.torch_core import TorchCore
from tests.infer.server.asking import (
    CHAT,
    TEXT,
    Asked,
    Make,
    chunks,
    client,
    error,
    get,
    post,
    talk,
)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set nothing is computed."""
    free, before = threading.Event(), TorchCore.prefill

    def waiting(core: TorchCore, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        assert free.wait(20.0)
        return before(core, slot, tokens, start)

    monkeypatch.setattr(TorchCore, "prefill", waiting)
    yield free
    free.set()


def test_a_stream_says_what_the_whole_answer_says(make: Make) -> None:
    service, asked = make(), talk(n=2, logprobs=True, top_logprobs=2)
    whole = post(service, CHAT, asked).json()
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last = chunks(post(service, CHAT, {**asked, **usage}))
    assert last["choices"] == [] and parts[0]["choices"][0]["delta"]["role"] == "assistant"
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts]
        own = [each for each in own if each["index"] == choice["index"]]
        said = "".join(each["delta"].get("content", "") for each in own)
        assert said == choice["message"]["content"] != ""
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        odds = [one for each in own if each["logprobs"] for one in each["logprobs"]["content"]]
        assert odds == choice["logprobs"]["content"] != []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == whole["usage"][name] > 0


def test_a_whole_number_may_be_written_with_a_point(make: Make) -> None:
    service = make()
    plain, pointed = (post(service, CHAT, talk(max_tokens=most)) for most in (3, 3.0))
    assert plain.json()["choices"] == pointed.json()["choices"]
    assert "max_tokens" in error(post(service, CHAT, talk(max_tokens=3.5)), 400)["message"]
    endless = b'{"messages": [], "temperature": 1e999}'
    assert "out of range" in error(post(service, CHAT, endless), 400)["message"]


def test_texts_and_tokens_are_gone_on_from_in_their_order(make: Make) -> None:
    service = make()
    asked = {"seed": 3, "max_tokens": 8, "logprobs": 1}
    both = post(service, TEXT, {**asked, "prompt": ["ROMEO:", "JULIET:"], "n": 2}).json()
    assert [each["index"] for each in both["choices"]] == [0, 1, 2, 3]
    for index, prompt in ((0, "ROMEO:"), (2, "JULIET:")):
        tokens = post(service, "/tokenize", {"prompt": prompt}).json()["tokens"]
        for alone in (prompt, tokens):
            [one] = post(service, TEXT, {**asked, "prompt": alone}).json()["choices"]
            assert one["text"] == both["choices"][index]["text"]
    [streamed] = [chunks(post(service, TEXT, {**asked, "prompt": "ROMEO:", "stream": True}))]
    assert "".join(each["choices"][0]["text"] for each in streamed) == both["choices"][0]["text"]
    odds = both["choices"][0]["logprobs"]
    assert {len(odds[name]) for name in odds} == {len(odds["tokens"])} != {0}


def test_the_answer_ends_before_a_stop_string(make: Make) -> None:
    service = make()
    text = post(service, CHAT, talk()).json()["choices"][0]["message"]["content"]
    stop = text[3:5]
    [choice] = post(service, CHAT, talk(stop=stop)).json()["choices"]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_sixteen_at_once_hear_what_each_would_alone(make: Make) -> None:
    asked = [talk(f"Romeo {n * 'x'}", seed=n, max_tokens=4 + n, temperature=1.0) for n in range(16)]
    together, alone = make(slots=3), make(slots=1)

    async def answers() -> list[httpx.Response]:
        async with client(together) as http:
            return await asyncio.gather(*(http.post(CHAT, json=each) for each in asked))

    found = [each.json()["choices"] for each in asyncio.run(answers())]
    assert found == [post(alone, CHAT, each).json()["choices"] for each in asked]
    assert len({each[0]["message"]["content"] for each in found}) > 8


def call(
    service: Service, asked: Asked, *, gone: Callable[[], Awaitable[object]]
) -> list[dict[str, Any]]:
    """What the application sends to a client that goes away once `gone` returns."""
    sent: list[dict[str, Any]] = []
    body = json.dumps(asked).encode()
    coming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if coming:
            return coming.pop()
        await gone()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST",
        "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "headers": [],
        "http_version": "1.1", "scheme": "http", "server": ("small", 80), "client": ("a", 1),
        "root_path": "",
    }  # fmt: skip
    asyncio.run(app(service)(scope, receive, send))
    return sent


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(
    make: Make, held: threading.Event, stream: bool
) -> None:
    service = make(slots=1)

    async def at_once() -> None:
        await asyncio.sleep(0.05)

    sent = call(service, talk(stream=stream, max_tokens=30), gone=at_once)
    assert b"[DONE]" not in b"".join(each.get("body", b"") for each in sent)
    held.set()
    until(lambda: service.scheduler.tally.requests["cancelled"] == 1)
    assert service.scheduler.running == service.scheduler.waiting == 0
    assert service.scheduler.tally.tokens_written <= 1
    assert post(service, CHAT, talk()).status_code == 200


def test_more_than_may_wait_are_told_to_come_again(make: Make, held: threading.Event) -> None:
    service = make(slots=1, queue=1)

    async def burst() -> list[httpx.Response]:
        async with client(service) as http:
            first = [asyncio.ensure_future(http.post(CHAT, json=talk())) for _ in range(2)]
            while len(service.scheduler._open) < 2:
                await asyncio.sleep(0.005)
            refused = await http.post(CHAT, json=talk(stream=True))
            held.set()
            return [refused, *await asyncio.gather(*first)]

    refused, *answered = asyncio.run(burst())
    assert error(refused, 429)["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert [each.status_code for each in answered] == [200, 200]


def test_more_than_may_ever_wait_are_refused_with_the_numbers(make: Make) -> None:
    service = make(slots=2, queue=2)
    for stream in (False, True):
        asked = {"prompt": [*"abcde"], "max_tokens": 2, "stream": stream}
        told = error(post(service, TEXT, asked), 400)
        assert told["param"] == "prompt"
        assert "5 prompts" in told["message"] and "writes 2 and lets 2 wait" in told["message"]
        assert post(service, TEXT, {**asked, "prompt": [*"abcd"]}).status_code == 200


def test_what_takes_too_long_is_ended_and_said(make: Make, held: threading.Event) -> None:
    service = make(slots=2, seconds=0.1)
    assert error(post(service, CHAT, talk()), 503)["code"] == "timeout"
    streamed = post(service, CHAT, talk(stream=True))
    assert "not written within 0.1 s" in streamed.text and "[DONE]" not in streamed.text
    held.set()
    until(lambda: service.scheduler.tally.requests["cancelled"] == 2)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not valid JSON"),
        (b'{"messages": "\xff"}', 400, "UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b"[]", 400, "not a JSON object"),
        (b"", 400, "JSON"),
        (b'{"messages": []}', 400, "length >= 1"),
        (b'{"messages": [{"role": "king", "content": ""}]}', 400, "$.messages[0].role"),
        (b'{"messages": [{"role": "user", "content": 3}]}', 400, "$.messages[0].content"),
        (b" " * 5000, 413, "larger than 4096 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_cause(
    make: Make, body: bytes, status: int, said: str
) -> None:
    limit = 4096 if len(body) == 5000 else 2**20
    told = error(post(make(body_bytes=limit), CHAT, body), status)
    assert said in told["message"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", 3.0, "<= 2.0"), ("temperature", "hot", "$.temperature"),
        ("top_p", -0.1, ">= 0.0"), ("n", 0, ">= 1"), ("n", 17, "at most 16"),
        ("max_tokens", 41, "at most 40"), ("max_tokens", -1, ">= 1"), ("stop", "", "empty"),
        ("stop", [""], "empty"), ("logit_bias", {"x": 1}, "no token"),
        ("logit_bias", {"99999": 1}, "99999"), ("top_logprobs", 2, "without logprobs"),
        ("stream_options", {"include_usage": True}, "without stream"),
        ("tools", [{"type": "function"}], "$.tools[0]"), ("tool_choice", "required", "not among"),
        ("response_format", {"type": "yaml"}, "$.response_format"),
        ("regex", "(", "regex is wrong: unclosed group"), ("grammar", "start: x", 'name: "x"'),
        ("temprature", 1.0, "did you mean temperature"), ("model", "other", "no model 'other'"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "text alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_its_name(
    make: Make, field: str, value: Any, said: str
) -> None:
    told = error(post(make(), CHAT, talk(**{field: value})), 404 if field == "model" else 400)
    assert said in told["message"]


def test_what_changes_nothing_is_ignored(make: Make) -> None:
    service = make()
    more = {"user": "me", "tools": None, "response_format": {"type": "text"}, "seed": 7}
    parts = [{"type": "text", "text": "But "}, {"type": "text", "text": "soft"}]
    plain = post(service, CHAT, talk()).json()
    again = post(service, CHAT, {**talk(), **more, "messages": [
        {"role": "user", "content": parts}
    ]}).json()  # fmt: skip
    assert again["choices"] == plain["choices"]


def test_a_refusal_is_what_the_assistant_said(make: Make) -> None:
    service, part = make(), {"type": "refusal", "refusal": "No."}

    def count(role: str, content: Any) -> httpx.Response:
        said = [{"role": "user", "content": "Help"}, {"role": role, "content": content}]
        return post(service, "/tokenize", {"messages": said})

    plain = count("assistant", "Oh. No.").json()["tokens"]
    parts = [{"type": "text", "text": "Oh. "}, part]
    assert count("assistant", parts).json()["tokens"] == plain
    beside = {"role": "assistant", "content": None, "refusal": "Oh. No."}
    said = {"messages": [{"role": "user", "content": "Help"}, beside]}
    assert post(service, "/tokenize", said).json()["tokens"] == plain
    assert "type 'refusal'" in error(count("user", [part]), 400)["message"]
    assert "type 'refusal'" in error(count("assistant", [{"type": "refusal"}]), 400)["message"]


@pytest.mark.parametrize(
    ("field", "value", "fine"),
    [("echo", False, True), ("echo", 0.0, False), ("echo", True, False), ("best_of", 1, True),
     ("best_of", 1.0, True), ("best_of", True, False), ("best_of", 2, False)],
)  # fmt: skip
def test_false_is_no_nought_and_true_no_one(make: Make, field: str, value: Any, fine: bool) -> None:
    answered = post(make(), TEXT, {"prompt": "But", "max_tokens": 1, field: value})
    if fine:
        assert answered.status_code == 200
    else:
        assert f"{field} is not served" in error(answered, 400)["message"]


@pytest.mark.parametrize("prompt", [[True, False], [1, True], [[1, True]], [1.5], [["a"]]])
def test_a_prompt_of_neither_text_nor_tokens_is_refused(make: Make, prompt: Any) -> None:
    told = error(post(make(), TEXT, {"prompt": prompt}), 400)
    assert told["param"] == "prompt" and "neither text nor tokens" in told["message"]


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(make: Make) -> None:
    service = make()
    asked = talk("no " * 90)
    told = error(post(service, CHAT, asked), 400)
    count = post(service, "/tokenize", {"messages": asked["messages"]}).json()["count"]
    assert told["code"] == "context_length_exceeded"
    assert f"{count} tokens long, the context 48" in told["message"]


def test_it_says_how_it_is(make: Make) -> None:
    service = make()
    post(service, CHAT, talk(max_tokens=5, temperature=0))
    assert get(service, "/v1/models").json()["data"][0]["id"] == "small"
    assert get(service, "/v1/models/small").json()["context"] == 48
    error(get(service, "/v1/models/large"), 404)
    error(get(service, "/nothing"), 404)
    error(get(service, CHAT), 405)
    until(lambda: service.scheduler.tally.requests["finished"] == 1)
    lines = get(service, "/metrics").text.splitlines()
    assert 'narrows_requests_total{outcome="finished"} 1' in lines
    assert "narrows_first_token_seconds_count 1" in lines and "narrows_slots 4" in lines
    assert "no embeddings" in error(post(service, "/v1/embeddings", {"input": "a"}), 400)["message"]
    assert get(service, "/ready").status_code == 200
    service.scheduler.close()
    assert get(service, "/ready").status_code == 503
    assert error(post(service, CHAT, talk()), 503)["code"] == "shutting_down"


def test_a_core_that_fails_is_an_error_and_the_next_is_answered(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, failing = make(), [True]
    before = TorchCore.prefill

    def once(core: TorchCore, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        if failing:
            failing.clear()
            raise RuntimeError("a bit fell over")
        return before(core, slot, tokens, start)

    monkeypatch.setattr(TorchCore, "prefill", once)
    assert "engine failed" in error(post(service, CHAT, talk()), 500)["message"]
    assert post(service, CHAT, talk()).status_code == 200
