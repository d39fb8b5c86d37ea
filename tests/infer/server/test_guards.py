from __future__ import annotations

import asyncio

import httpx
import pytest

from narrows.infer.server.app import app
from narrows.infer.server.run import _guards
from tests.infer.server.asking import CHAT, Make, error, get, post, talk


def test_a_key_is_asked_for_where_one_is_set(make: Make) -> None:
    service, right = make(), {"Authorization": "Bearer secret"}
    assert error(post(service, CHAT, talk(), key="secret"), 401)["code"] == "invalid_api_key"
    for wrong in ("Bearer secre", "Bearer secrets", "secret", "Basic secret", "Bearer Secret"):
        error(get(service, "/v1/models", "secret", headers={"Authorization": wrong}), 401)
    assert post(service, CHAT, talk(), key="secret", headers=right).status_code == 200
    for scheme in ("bearer", "BEARER"):
        named = {"Authorization": f"{scheme} secret"}
        assert get(service, "/v1/models", "secret", headers=named).status_code == 200
    assert get(service, "/metrics", "secret").status_code == 401
    assert get(service, "/health", "secret").status_code == 200


def test_what_is_asked_for_is_described_by_what_reads_it(make: Make) -> None:
    service = make()
    found = get(service, "/openapi.json", key="k", headers={"Authorization": "Bearer k"}).json()
    assert get(service, "/openapi.json", key="k").status_code == 401
    assert found["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in found["paths"]["/health"]["get"]
    asked = found["components"]["schemas"]["ChatAsked"]
    assert asked["required"] == ["messages"] and not asked["additionalProperties"]
    for name, about in asked["properties"].items():
        # Each is known: what is wrong is its value, if anything.
        told = post(service, CHAT, talk(**{name: {"no": "value"}}))
        if told.status_code != 200:
            assert "there is no field" not in error(told, 400)["message"], (name, about)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:80", 200), ("[::1]:8000", 200),
     ("LOCALHOST", 200), ("evil.example", 403), ("localhost.evil.example:8000", 403), ("", 403),
     ("[::1", 403)],
)  # fmt: skip
def test_a_page_whose_name_was_made_to_lead_here_is_refused(
    make: Make, host: str, status: int
) -> None:
    guarded = app(make(), _guards("127.0.0.1", None))

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://small") as http:
            return await http.get("/v1/models", headers={"Host": host})

    assert asyncio.run(asked()).status_code == status
    assert _guards("0.0.0.0", None).hosts is None
