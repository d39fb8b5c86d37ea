"""What a start was is told again only of files that are as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from narrows.data.recalled import recall, remember
from narrows.spec.model import llama
from narrows.spec.plan import Start

SPEC = llama(layers=2, width=32, heads=4, vocabulary=40, context=24)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


def start(path: Path, words: Path) -> Start:
    return Start(path=str(path), family="llama", digest="0", model=SPEC, words=str(words))


@pytest.mark.parametrize("of", ["file", "folder"])
def test_it_is_told_until_a_file_changes(of: str, tmp_path: Path, words: Path) -> None:
    path = tmp_path / "model"
    file = path
    if of == "folder":
        path.mkdir()
        file = path / "model.safetensors"
    file.write_bytes(b"weights")
    assert recall(path) is None
    remember(path, start(path, words))
    assert recall(path) == start(path, words)
    known = file.stat()
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
    assert recall(path) is None
    file.write_bytes(b"others")
    assert recall(path) is None


def test_without_its_words_it_is_not(tmp_path: Path, words: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    remember(path, start(path, words))
    (words / "tokenizer.json").unlink()
    assert recall(path) is None


def test_a_run_is_opened_each_time(tmp_path: Path, words: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.toml").write_text("")
    remember(run, start(run, words))
    assert recall(run) is None
    assert recall(tmp_path / "none") is None


def test_what_is_kept_and_damaged_is_forgotten(tmp_path: Path, words: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    remember(path, start(path, words))
    (kept,) = (tmp_path / "home" / "starts").iterdir()
    kept.write_text("{")
    assert recall(path) is None
