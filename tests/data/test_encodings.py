from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from narrows.data.encodings import guessed, recoded

CHINESE = "今天小明忘记了月亮，夏天的农民喜欢河边。Python 3.11 也不例外。\n" * 9
TAIWAN = "今天天氣很好，我們一起去圖書館讀書學習電腦程式設計。\n" * 9
FRENCH = "Où est l'été ? À la fenêtre, déjà, un élève rêve d'œuvres françaises.\n" * 9
PLACES = [
    (CHINESE, "gb18030", "GB18030"), (TAIWAN, "big5", "BIG5"), (FRENCH, "cp1252", "WINDOWS-1252"),
    (CHINESE, "utf-16", "UTF-16"), ("naïve\n", "latin-1", "WINDOWS-1252"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "encoding", "name"), PLACES)
def test_the_hint_makes_the_text_that_it_was(
    tmp_path: Path, text: str, encoding: str, name: str
) -> None:
    path = tmp_path / "a text.txt"
    path.write_bytes(text.encode(encoding))
    assert guessed(path.read_bytes()) == name
    hint = recoded(path, str(tmp_path / "new.txt"))
    command, _, new = hint.partition(": ")[2].partition(" > ")
    done = subprocess.run(shlex.split(command), capture_output=True, check=True)
    assert done.stdout.decode() == text and new == str(tmp_path / "new.txt")


def test_a_character_cut_at_the_end_does_not_mislead() -> None:
    assert guessed(CHINESE.encode("gb18030")[:-4]) == "GB18030"


def test_what_is_no_text_is_not_turned_into_one(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    assert "no text at all" in recoded(tmp_path / "a.bin", "text.txt")
