from __future__ import annotations

from pathlib import Path

import pytest

from narrows.data import training, windows
from narrows.data.tokenizers import Tokenizer
from narrows.data.windows import stretch
from narrows.spec.errors import BadInput

LINES = [f"line {number} of a text" for number in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(training.bpe(LINES, 300))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(LINES[number::3]))
    return str(tmp_path)


def test_documents_lie_one_behind_the_other(corpus: str, tokenizer: Tokenizer) -> None:
    found = stretch(corpus, tokenizer)
    begins = [at for at, token in enumerate(found.tokens) if token == tokenizer.end_of_document]
    assert begins[0] == 0 and len(begins) == 3
    first = found.tokens[1 : begins[1]].tolist()
    assert tokenizer.decode(first) == "\n".join(LINES[::3])


def test_what_is_held_back_is_calibrated_with_by_nothing(corpus: str, tokenizer: Tokenizer) -> None:
    whole = stretch(corpus, tokenizer)
    rest, held = whole.cut(0.1)
    assert [*rest.tokens, *held.tokens] == [*whole.tokens]
    assert len(held.tokens) == pytest.approx(0.1 * len(whole.tokens), abs=1)
    assert "but for the last 10%" in rest.name and held.name.startswith("the last 10% of")


def test_rows_are_spread_over_all(corpus: str, tokenizer: Tokenizer) -> None:
    whole = stretch(corpus, tokenizer)
    rows_BT = whole.rows(3, 32)
    count = len(whole.tokens) // 32
    starts = [0, round((count - 1) / 2), count - 1]
    assert rows_BT.tolist() == [
        whole.tokens[32 * start : 32 * start + 32].tolist() for start in starts
    ]
    assert whole.rows(10_000, 32).shape == (count, 32)


def test_what_is_too_short_or_empty_is_refused(
    corpus: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="a row takes 100000"):
        stretch(corpus, tokenizer).rows(1, 100_000)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "none.txt").write_text("")
    with pytest.raises(BadInput):
        stretch(str(tmp_path / "empty"), tokenizer)


def test_no_more_is_read_than_wanted(
    corpus: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = len(stretch(corpus, tokenizer).tokens)
    monkeypatch.setattr(windows, "BYTES_MOST", 100)
    assert 0 < len(stretch(corpus, tokenizer).tokens) < whole / 2
