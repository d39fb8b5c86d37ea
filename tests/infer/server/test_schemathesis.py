"""The server against its own description: requests made from /openapi.json, right and wrong.

NARROWS_CASES says how many for each operation and kind of request (20).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from narrows.data.tokenizers import Tokenizer
from tests.infer.conftest import spec, write_run
from tests.infer.server.serving import Served, serving

pytestmark = pytest.mark.slow
schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
hypothesis = pytest.importorskip("hypothesis")
CASES = int(os.environ.get("NARROWS_CASES", "20"))
WAIT_S = 60.0
MISREAD = re.compile("Expected `|there is no field|is not served")
"""What is said of a body that has not the form of its record."""
FINE = (200, 400, 401, 403, 404, 405, 408, 413, 429, 503)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    write_run(folder / "small", bpe, spec(context=128))
    with serving(folder / "small", folder / "log", "--tokens-max", "24") as server:
        yield server


def test_requests_of_its_description_are_answered(served: Served) -> None:
    """Right ones are never called wrong in their form, wrong ones always are, nothing breaks."""
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    statuses: Counter[tuple[str, int]] = Counter()
    for operation in (result.ok() for result in described.get_all_operations()):
        for mode in schemathesis.GenerationMode:
            ask(operation, mode, statuses)
    print(sum(statuses.values()), "cases", sorted(statuses.items()))
    assert served.process.poll() is None
    assert httpx.get(f"{served.url}/ready").json() == {"status": "ready"}
    assert "Traceback" not in served.log.read_text(), served.log.read_text()[-3000:]
    assert sum(statuses.values()) >= CASES


def ask(operation, mode, statuses: Counter[tuple[str, int]]) -> None:
    """So many requests of one operation and kind, where there is any."""
    kinds = hypothesis.HealthCheck
    settings = hypothesis.settings(
        max_examples=CASES, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(kinds), phases=[hypothesis.Phase.generate],
    )  # fmt: skip

    @settings
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def one(case) -> None:
        response = case.call(timeout=WAIT_S)
        statuses[operation.label, response.status_code] += 1
        assert response.status_code in FINE, response.text
        if mode is schemathesis.GenerationMode.NEGATIVE:
            assert response.status_code != 200, (case, response.text)
        else:
            assert not MISREAD.search(response.text), (case, response.text)

    try:
        one()
    except hypothesis.errors.Unsatisfiable:
        return
