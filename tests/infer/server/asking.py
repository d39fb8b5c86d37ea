"""Ask a server in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

from narrows.infer.server.app import Guards, app
from narrows.infer.server.service import Service

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Make = Callable[..., Service]
Asked = dict[str, Any]


def client(service: Service, key: str | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app(service, Guards(key)), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://small", timeout=30.0)


def post(service: Service, path: str, body: Any, **options: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with client(service, options.pop("key", None)) as http:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(path, content=content, **options)

    return asyncio.run(asked())


def get(service: Service, path: str, key: str | None = None, **options: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with client(service, key) as http:
            return await http.get(path, **options)

    return asyncio.run(asked())


def talk(text: str = "But soft", **options: Any) -> Asked:
    return {"messages": [{"role": "user", "content": text}], "seed": 7, "max_tokens": 12, **options}


def chunks(response: httpx.Response) -> list[Any]:
    """The events of a stream, which ends as one should."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def error(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"} and found["message"]
    return found
