from __future__ import annotations

from pathlib import Path

import pytest

from narrows.cli.main import main, parser
from narrows.cli.serve import _api_key


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


def test_the_key_comes_from_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_text("from a file\n")
    read = parser().parse_args

    monkeypatch.delenv("NARROWS_API_KEY", raising=False)
    assert _api_key(read(["serve", "nowhere"])) is None
    monkeypatch.setenv("NARROWS_API_KEY", "from outside")
    assert _api_key(read(["serve", "nowhere"])) == "from outside"
    assert _api_key(read(["serve", "nowhere", "--api-key-file", str(file)])) == "from a file"
    assert _api_key(read(["serve", "nowhere", "--api-key", "given"])) == "given"
    monkeypatch.setenv("NARROWS_API_KEY", "")
    for options, told in (
        ([], "NARROWS_API_KEY is empty"),
        (["--api-key-file", str(tmp_path / "no")], "cannot be read"),
        (["--api-key-file", str(file), "--api-key", "a"], "both given"),
    ):
        assert main(["serve", "nowhere", *options]) == 2
        assert told in capsys.readouterr().err
