from __future__ import annotations

import pytest

from narrows.cli.main import main


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--slots", "0"], "--slots is 0"), (["--queue", "-1"], "--queue is -1"),
        (["--tokens-max", "0"], "--tokens-max is 0"), (["--port", "-1"], "--port is -1"),
        (["--api-key", ""], "--api-key is empty"), ([], "nowhere does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_loaded(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nowhere", *options]) == 2
    assert told in capsys.readouterr().err
