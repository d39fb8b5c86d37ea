"""Users and networks at their worst, as long as NARROWS_SOAK_MINUTES says (one): 200 at once that
cancel, read slowly, close halfway, and send what is no request.

Nothing but 503 is the server's fault, memory stays flat, each answer is the one that the same
request is given alone, and what is being written when it is told to end is written to its end.
NARROWS_SOAK_GGUF names a model; by default it is a small one of random weights.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from narrows.data.tokenizers import Tokenizer
from tests.infer.conftest import spec, write_run
from tests.infer.server.serving import Served, serving

pytestmark = pytest.mark.slow
MINUTES = float(os.environ.get("NARROWS_SOAK_MINUTES", "1"))
CLIENTS, PROMPTS, SLOTS, BODY_BYTES = 200, 24, 16, 4 * 2**20
WORDS = [
    "but soft", "what light", "through yonder", "window breaks", "it is the east", "and Juliet",
    "the sun", "arise", "fair sun", "and kill", "the envious moon",
]  # fmt: skip
FINE = (200, 429, 503)


class Case(NamedTuple):
    """A request, and the text that it is answered alone."""

    body: bytes
    text: str


@pytest.fixture
def served(tmp_path: Path, bpe: Tokenizer) -> Iterator[Served]:
    given = os.environ.get("NARROWS_SOAK_GGUF")
    if given is None:
        write_run(tmp_path / "small", bpe, spec(context=1024))
    # What torch computes is not guessed.
    guesses = [] if given is None else ["--speculate", "6"]
    options = ["--slots", str(SLOTS), "--context", "1024", *guesses]
    with serving(Path(given or tmp_path / "small"), tmp_path / "log", *options) as server:
        yield server


def test_it_outlives_its_users(served: Served) -> None:
    cases = [case(served, number) for number in range(PROMPTS)]
    crowd = Crowd(served.port, cases)
    resident, began = [], time.monotonic()

    async def soak() -> None:
        clients = [asyncio.ensure_future(crowd.client(n)) for n in range(CLIENTS)]
        while time.monotonic() - began < 60 * MINUTES:
            await asyncio.sleep(1.0)
            resident.append(resident_bytes(served.process.pid))
        crowd.over = True
        await asyncio.gather(*clients)

    asyncio.run(soak())
    print(dict(crowd.done), "statuses", dict(crowd.statuses))
    print("resident MB", [round(each / 1e6) for each in resident[:: max(1, len(resident) // 20)]])
    assert crowd.wrong == []
    assert not {status for status in crowd.statuses if status >= 500} - {503}
    assert min(crowd.done[kind] for kind in KINDS) > 0
    early, late = resident[len(resident) // 3], max(resident[-5:])
    assert late < early + max(0.1 * early, 30e6), "memory grows"
    assert [case(served, number) for number in range(PROMPTS)] == cases
    assert asyncio.run(drained(served, cases)) == [each.text for each in cases[:SLOTS]]
    assert served.process.wait(40.0) == 0
    assert "Traceback" not in served.log.read_text(), served.log.read_text()[-3000:]


KINDS = (
    "whole",
    "slow",
    "cancel",
    "reset",
    "half-closed",
    "json",
    "utf-8",
    "large",
    "cut",
    "noise",
)
ODDS = (6, 3, 4, 3, 2, 1, 1, 0.3, 1, 1)


class Crowd:
    """Clients that each do one thing after the other, chosen at random."""

    def __init__(self, port: int, cases: list[Case]) -> None:
        self.port, self.cases, self.over = port, cases, False
        self.done: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[int] = collections.Counter()
        self.wrong: list[str] = []

    async def client(self, number: int) -> None:
        chance = random.Random(number)
        while not self.over:
            kind = chance.choices(KINDS, ODDS)[0]
            try:
                await asyncio.wait_for(self.act(kind, chance), 120.0)
            except TimeoutError:
                self.wrong.append(f"{kind}: no end within two minutes")
            except OSError:
                self.done[f"{kind}, broken off"] += 1
            self.done[kind] += 1
            await asyncio.sleep(chance.uniform(0.0, 0.2))

    async def act(self, kind: str, chance: random.Random) -> None:
        asked = chance.choice(self.cases)
        sent = spoiled(kind, asked.body, chance)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**12)
        with closing(writer):
            writer.write(sent)
            await writer.drain()
            if kind == "half-closed":
                writer.write_eof()
            if kind in ("cancel", "reset", "cut"):
                with suppress(TimeoutError, asyncio.IncompleteReadError):
                    count = chance.randrange(1, 2000)
                    await asyncio.wait_for(reader.readexactly(count), chance.uniform(0.0, 2.0))
                if kind == "reset":
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            came = b""
            while part := await reader.read(200 if kind == "slow" else 2**16):
                came += part
                if kind == "slow":
                    await asyncio.sleep(0.05)
        self.judge(kind, asked, came)

    def judge(self, kind: str, asked: Case, came: bytes) -> None:
        while came.startswith(b"HTTP/1.1 100"):
            # Who has closed a direction is asked whether it is still there.
            came = came.partition(b"\r\n\r\n")[2]
        status = int(came.split(b" ", 2)[1]) if came else 0
        self.statuses[status] += 1
        right = {"json": (400,), "utf-8": (400,), "large": (413, 0), "noise": (400, 0)}
        if status not in right.get(kind, FINE):
            self.wrong.append(f"{kind}: status {status}: {came[:300]!r}")
        if status == 200:
            text, ended = text_of(came)
            if not (text == asked.text if ended else asked.text.startswith(text)):
                self.wrong.append(f"{kind}: {text!r} instead of {asked.text!r}")
            if not ended:
                self.wrong.append(f"{kind}: it never ended: {came[-300:]!r}")


def spoiled(kind: str, body: bytes, chance: random.Random) -> bytes:
    """The bytes that a client of this kind sends."""
    if kind == "json":
        body = body[: chance.randrange(1, len(body) - 1)]
    if kind == "utf-8":
        body = body.replace(b"Scene", b"Sc\xff\xc3ne")
    if kind == "large":
        body += b" " * BODY_BYTES
    if kind == "noise":
        return chance.randbytes(200) + b"\r\n\r\n"
    sent = http(body)
    return sent[: chance.randrange(20, len(sent))] if kind == "cut" else sent


def http(body: bytes) -> bytes:
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def case(served: Served, number: int) -> Case:
    chance = random.Random(number)
    words = " ".join(chance.choice(WORDS) for _ in range(chance.choice((3, 20, 60))))
    body = {
        "prompt": f"Scene {number}: {words}", "max_tokens": chance.randint(4, 60), "seed": number,
        "temperature": chance.choice((0.0, 0.0, 0.9)), "stream": True,
    }  # fmt: skip
    url = f"http://127.0.0.1:{served.port}/v1/completions"
    whole = httpx.post(url, json={**body, "stream": False}, timeout=60.0).json()
    return Case(json.dumps(body).encode(), whole["choices"][0]["text"])


async def drained(served: Served, cases: list[Case]) -> list[str]:
    """The texts of a few that are being written when the server is told to end."""

    async def one(body: bytes) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        with closing(writer):
            writer.write(http(body))
            came = await reader.readuntil(b"data: ")
            begun.append(1)
            text, ended = text_of(came + await reader.read(-1))
        assert ended
        return text

    begun: list[int] = []
    tasks = [asyncio.ensure_future(one(each.body)) for each in cases[:SLOTS]]
    while len(begun) < SLOTS:
        await asyncio.sleep(0.001)
    served.process.send_signal(signal.SIGTERM)
    return await asyncio.gather(*tasks)


def text_of(came: bytes) -> tuple[str, bool]:
    """The text of a stream, and whether it came to its end."""
    events = re.findall(rb"data: (\{.*\})\r?\n", came)
    choices = [each for event in events for each in json.loads(event).get("choices", ())]
    return "".join(each["text"] for each in choices), b"data: [DONE]" in came


def resident_bytes(process: int) -> float:
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return float(pages) * os.sysconf("SC_PAGE_SIZE")
