"""The server as its users meet it: a process, a socket, OpenAI's own client, a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from openai import BadRequestError, OpenAI

import narrows
from narrows.data.tokenizers import Tokenizer
from tests.infer.conftest import spec, write_run
from tests.infer.server.serving import browsing

CHAT = "/v1/chat/completions"
CONTEXT = 4096
START_S = 60.0


class Served(NamedTuple):
    """A server process, where it answers, and the token that ends its texts."""

    process: subprocess.Popen[str]
    url: str
    end: int

    def talk(self, **options: Any) -> dict[str, Any]:
        """A conversation that only its length ends."""
        messages = [{"role": "user", "content": "But soft"}]
        bias = {str(self.end): -100}
        return {"messages": messages, "seed": 3, "logit_bias": bias, "max_tokens": 20, **options}


Start = Callable[..., Served]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer) -> Iterator[Start]:
    """Starts servers of a small run; killed at the end."""
    run = tmp_path_factory.mktemp("served") / "small"
    write_run(run, bpe, spec(context=CONTEXT))
    (run / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    made: list[subprocess.Popen[str]] = []
    source = str(Path(narrows.__file__).parents[1])

    def started(*options: str) -> Served:
        words = ["-m", "narrows.cli.main", "serve", str(run), "--port", "0", *options]
        made.append(subprocess.Popen(
            [sys.executable, *words], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        ))  # fmt: skip
        assert made[-1].stderr is not None
        for line in made[-1].stderr:
            if found := re.search(r"http://\S+", line):
                return Served(made[-1], found[0], bpe.end_of_document)
        raise AssertionError("the server ended before it listened")

    yield started
    for each in made:
        each.kill()
        each.wait()


@pytest.fixture(scope="module")
def served(start: Start) -> Served:
    return start("--slots", "2")


def figure(served: Served, name: str) -> float:
    """Of /metrics."""
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_openais_client_gets_what_it_expects(served: Served) -> None:
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    [model] = client.models.list()
    asked: dict[str, Any] = {**served.talk(), "model": model.id}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
    streamed = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    *parts, last = streamed
    assert "".join(part.choices[0].delta.content or "" for part in parts) == (
        whole.choices[0].message.content
    )
    assert whole.usage and last.usage and whole.usage.completion_tokens == 20
    assert last.usage.completion_tokens == 20
    assert whole.choices[0].logprobs and len(whole.choices[0].logprobs.content or ()) == 20
    text = client.completions.create(model=model.id, prompt="ROMEO:", max_tokens=3, seed=1)
    assert text.choices[0].finish_reason in ("length", "stop")
    with pytest.raises(BadRequestError, match="no embeddings"):
        client.embeddings.create(model=model.id, input="a")


def test_a_connection_that_closes_frees_the_slot(served: Served) -> None:
    before = figure(served, 'narrows_requests_total{outcome="cancelled"}')
    long = served.talk(stream=True, max_tokens=4000)
    with httpx.stream("POST", served.url + CHAT, json=long) as response:
        lines = response.iter_lines()  # closed with the response where nobody holds it
        assert next(lines).startswith("data: ")
        until(lambda: figure(served, "narrows_texts_running") == 1)
    until(lambda: figure(served, "narrows_texts_running") == 0)
    assert figure(served, 'narrows_requests_total{outcome="cancelled"}') == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_who_has_said_all_and_shuts_that_direction_is_answered(
    served: Served, stream: bool
) -> None:
    text = httpx.post(served.url + CHAT, json=served.talk()).json()["choices"][0]["message"]
    with asked(served, served.talk(stream=stream, max_tokens=20)) as connection:
        connection.shutdown(socket.SHUT_WR)
        came = b""
        while part := connection.recv(2**16):
            came += part
    if stream:
        events = re.findall(rb"data: (\{.*\})", came)
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("content", "") for delta in deltas) == text["content"]
        assert came.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    else:
        assert json.loads(came.rpartition(b"\r\n\r\n")[2])["choices"][0]["message"] == text


def test_who_leaves_before_a_whole_answer_frees_the_slot(served: Served) -> None:
    cancelled = 'narrows_requests_total{outcome="cancelled"}'
    before = figure(served, cancelled)
    with asked(served, served.talk(max_tokens=4000)):
        until(lambda: figure(served, "narrows_texts_running") == 1)
    until(lambda: figure(served, cancelled) == before + 1)
    assert figure(served, "narrows_texts_running") == 0


def test_who_reads_slowly_misses_nothing(served: Served) -> None:
    """More than the connection holds waits in the server, in its order."""
    talk = served.talk(max_tokens=3000, stream=True)
    with httpx.stream("POST", served.url + CHAT, json=talk, timeout=60.0) as response:
        quick = response.read()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with asked(served, talk, connection):
            time.sleep(1.0)
            slow = b""
            while not slow.endswith(b"0\r\n\r\n"):
                slow += connection.recv(2**12)
    assert texts(slow) == texts(quick) != []


def texts(stream: bytes) -> list[str]:
    """What each event of a stream says."""
    events = re.findall(rb"data: (\{.*\})", stream)
    return [json.loads(each)["choices"][0]["delta"].get("content", "") for each in events]


def asked(
    served: Served, talk: dict[str, Any], connection: socket.socket | None = None
) -> socket.socket:
    """A connection on which that was sent."""
    host, port = served.url.removeprefix("http://").split(":")
    connection = connection or socket.socket()
    connection.settimeout(60.0)
    connection.connect((host, int(port)))
    body = json.dumps(talk).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_broken_request_harms_nobody(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    half = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\n{{".encode()
    endless = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000
    for sent in (b"\x16\x03\x01 no http", half, endless):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    assert httpx.post(served.url + CHAT, json=served.talk()).status_code == 200


def test_sigterm_lets_answers_end_and_takes_no_more(start: Start) -> None:
    served = start("--slots", "1")
    lines: list[str] = []
    asked = served.talk(stream=True, max_tokens=1500)
    with httpx.stream("POST", served.url + CHAT, json=asked, timeout=60.0) as response:
        for line in response.iter_lines():
            if not lines:
                served.process.send_signal(signal.SIGTERM)
            lines += [line] if line else []
    assert lines[-1] == "data: [DONE]" and '"finish_reason":"length"' in lines[-2]
    assert served.process.wait(20.0) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health")


def test_a_taken_port_is_told(served: Served) -> None:
    source = str(Path(narrows.__file__).parents[1])
    assert isinstance(served.process.args, list)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*served.process.args[:5], "--port", port], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": source}, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"error: 127.0.0.1:{port} cannot be listened on" in done.stderr


def edits_and_sends_again(page: Any) -> None:
    """The first message: what came after it is gone once it is sent, and not before."""
    said = [page.locator(f".text.{who}") for who in ("user", "assistant")]
    page.fill("#message", "And then")
    page.press("#message", "Enter")
    page.wait_for_function("!document.getElementById('send').disabled")
    assert [each.count() for each in said] == [2, 2]
    page.click(".who button >> nth=0")
    assert page.input_value("#message") == "<b>But soft</b>"
    page.press("#message", "Escape")
    assert page.input_value("#message") == ""
    page.click(".who button >> nth=0")
    page.fill("#message", "But loud")
    assert said[0].count() == 2
    with page.expect_request(f"**{CHAT}") as request:
        page.press("#message", "Enter")
    messages = json.loads(request.value.post_data)["messages"]
    assert [each["content"] for each in messages] == ["Be brief.", "But loud"]
    page.wait_for_function("!document.getElementById('send').disabled")
    assert [each.count() for each in said] == [1, 1]
    assert said[0].inner_text() == "But loud"


def test_the_page_folds_thoughts_away(served: Served) -> None:
    said = [{"reasoning_content": "Two and "}, {"reasoning_content": "two."}, {"content": "Four"}]
    chunks = [{"choices": [{"index": 0, "delta": each}]} for each in said]
    events = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + "data: [DONE]\n\n"
    with browsing(served.url) as page:
        page.route(f"**{CHAT}", lambda route: route.fulfill(
            body=events, content_type="text/event-stream"
        ))  # fmt: skip
        for count in (1, 2):
            page.fill("#message", "2 + 2?")
            with page.expect_request(f"**{CHAT}") as request:
                page.press("#message", "Enter")
            page.wait_for_function("!document.getElementById('send').disabled")
            assert page.locator(".text.assistant").nth(count - 1).inner_text() == "Four"
            thought = page.locator("#said details")
            assert thought.count() == count
            assert thought.last.locator(".text").text_content() == "Two and two."
            assert not thought.last.locator(".text").is_visible()
        # What was thought is no part of what is asked next.
        messages = json.loads(request.value.post_data)["messages"]
        assert [each["content"] for each in messages] == ["2 + 2?", "Four", "2 + 2?"]


def test_the_page_talks_and_stops(served: Served) -> None:
    with browsing(served.url) as page:
        page.wait_for_function("document.getElementById('model').textContent === 'small'")
        page.click("summary")
        page.fill("#system", "Be brief.")
        page.fill("#tokens", "30")
        page.fill("#message", "<b>But soft</b>")
        page.press("#message", "Enter")
        page.wait_for_function("!document.getElementById('send').disabled")
        assert page.is_disabled("#model")
        assert page.locator(".text.user").inner_text() == "<b>But soft</b>"
        assert page.locator(".text.assistant").inner_text() != ""
        assert re.fullmatch(r"\d+ tokens?(, [\d.]+ tokens/s)?", page.inner_text("#rate"))
        edits_and_sends_again(page)
        cancelled = 'narrows_requests_total{outcome="cancelled"}'
        before = figure(served, cancelled)
        page.fill("#tokens", "9000")
        page.fill("#message", "On and on")
        page.click("#send")
        page.wait_for_selector(".text.error")
        assert "9000 tokens are asked for" in page.locator(".text.error").inner_text()
        # A text that does not end before the button is reached.
        page.route(f"**{CHAT}", lambda route: route.continue_(post_data=json.dumps(
            {**json.loads(route.request.post_data), "logit_bias": served.talk()["logit_bias"]}
        )))  # fmt: skip
        page.fill("#tokens", "3500")
        page.fill("#message", "On and on")
        page.click("#send")
        page.click("#stop")
        page.wait_for_function("!document.getElementById('send').disabled")
        until(lambda: figure(served, cancelled) == before + 1)
