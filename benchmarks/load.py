"""Clients of an OpenAI-compatible server: who asks what and when, and what came when.

    [each.told() for each in run("http://127.0.0.1:8000", requests(...), 32)]

All clients are one thread over plain sockets, that notes when bytes came and reads them when all is
over, so that it takes little of the machine that it shares with the server.
"""

from __future__ import annotations

import json
import random
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

WORDS = [
    "the river", "ran under", "an old stone bridge", "where nobody", "had walked", "for years",
    "and children said", "that at night", "one could hear", "a machine", "counting slowly",
    "every drop", "of water", "that went by", "while far away", "the city slept",
]  # fmt: skip


class Mix(NamedTuple):
    """Requests: how many, phrases of a prompt and tokens of an answer from and to, temperature."""

    count: int
    prompt: tuple[int, int]
    answer: tuple[int, int]
    temperature: float
    seed: int


class Asked(NamedTuple):
    """One request: its body, and when it comes after the beginning where that is settled."""

    body: bytes
    at_s: float


class Told(NamedTuple):
    """What came of one: seconds to each event with text, tokens, the text, the status."""

    seconds: tuple[float, ...]
    tokens: int
    text: str
    status: int


def requests(mix: Mix, model: str, rate: float | None) -> list[Asked]:
    """Texts that begin differently, lengths spread evenly, and arrivals by Poisson's law of so many
    a second, or at once.
    """
    chance, at_s, found = random.Random(mix.seed), 0.0, []
    for number in range(mix.count):
        words = [chance.choice(WORDS) for _ in range(chance.randint(*mix.prompt))]
        body = {
            "model": model, "prompt": f"Story {number}: {' '.join(words)}",
            "max_tokens": chance.randint(*mix.answer), "temperature": mix.temperature,
            "seed": number, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        at_s += chance.expovariate(rate) if rate else 0.0
        found.append(Asked(json.dumps(body).encode(), at_s))
    return found


def run(url: str, asked: Sequence[Asked], clients: int | None) -> list[Came]:
    """All of them: when each comes, or one after the other by so many clients."""
    place, left, over = urlsplit(url), deque(asked), list[Came]()
    with selectors.DefaultSelector() as waiting:
        began, open_ = time.perf_counter(), 0
        while left or open_:
            now = time.perf_counter() - began
            while left and (left[0].at_s <= now if clients is None else open_ < clients):
                one = Came(_sent(place.hostname, place.port, left.popleft().body))
                waiting.register(one.socket, selectors.EVENT_READ, one)
                open_ += 1
            pause = max(0.0, left[0].at_s - now) if left and clients is None else None
            for key, _ in waiting.select(pause):
                if not key.data.take():
                    waiting.unregister(key.data.socket)
                    key.data.socket.close()
                    over.append(key.data)
                    open_ -= 1
    return over


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median, what 90 and 99 of a hundred are within, and the most."""
    ordered = sorted(values)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[round(share * last)], 4) for name, share in places.items()}


class Came:
    """A request that was sent, and the parts of its response with when they came."""

    def __init__(self, sent: socket.socket) -> None:
        self.socket, self._began = sent, time.perf_counter()
        self._parts: list[tuple[float, bytes]] = []

    def take(self) -> bool:
        """Another part; False where there are no more."""
        try:
            part = self.socket.recv(2**14)
        except ConnectionError:
            part = b""
        self._parts.append((time.perf_counter(), part))
        return part != b""

    def told(self) -> Told:
        """What it all says."""
        came = [(second - self._began, part) for second, part in self._parts]
        head, _, _ = b"".join(part for _, part in came).partition(b"\r\n\r\n")
        return _read(came, len(head) + 4, int(head.split(b" ", 2)[1]) if head else 0)


def _sent(host: str | None, port: int | None, body: bytes) -> socket.socket:
    made = socket.create_connection((host, port))
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    made.sendall(head.encode() + body)
    return made


def _read(came: list[tuple[float, bytes]], skipped: int, status: int) -> Told:
    """Events of the parts, each at the time of the part that ends it."""
    text, seconds, tokens, held = "", [], 0, b""
    for second, part in came:
        dropped = min(skipped, len(part))
        skipped -= dropped
        # A chunk's length stands in a line of its own between events.
        held += part[dropped:]
        *events, held = re.split(rb"\r?\n\r?\n", held)
        for event in events:
            found = re.search(rb"data: (\{.*\})", event)
            data = json.loads(found[1]) if found else {}
            piece = "".join(choice["text"] for choice in data.get("choices", ()))
            usage = data.get("usage")
            tokens = usage["completion_tokens"] if usage else tokens
            if piece:
                text += piece
                seconds.append(second)
    return Told(tuple(seconds), tokens or len(seconds), text, status)
