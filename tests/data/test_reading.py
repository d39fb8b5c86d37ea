from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from narrows.data import corpora, pieces, reading
from narrows.data.pieces import PIECE_BYTES, Block, Span
from narrows.data.pieces import pieces as cut
from narrows.spec.errors import BadInput
from narrows.spec.job import DataSpec

LONG = "".join(f"line {number} of a long text, é and 中 in it\n" for number in range(150_000))


def read(path: Path, field: str = "text") -> tuple[list[str], dict[str, int]]:
    """All documents of a corpus, and the bytes lost by reason."""
    lost: dict[str, int] = {}
    texts = [
        text
        for piece in cut(corpora.find(DataSpec(corpus=str(path))), field)
        for text in reading.documents(piece, field, lambda why, size: lost.update({why: size}))
    ]
    return texts, lost


def refused(path: Path, field: str = "text") -> str:
    with pytest.raises(BadInput) as error:
        read(path, field)
    return str(error.value)


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_a_large_text_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path: Path) -> None:
    text = LONG.replace("9 of", "9 of\n\n")
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert path.stat().st_size > 2 * PIECE_BYTES
    found = list(cut(corpora.find(DataSpec(corpus=str(path))), "text"))
    assert len(found) > 2 and all(isinstance(each, Span) for each in found)
    documents, _ = read(path)
    assert "".join(documents) == text
    assert all(each.endswith("\n\n") for each in documents[:-1])
    assert max(map(len, documents)) < 2 * reading.PART_CHARACTERS


def test_a_large_compressed_text_comes_in_blocks_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(LONG.encode() + LONG.encode()[::-1].hex().encode(), 0))
    found = list(cut(corpora.find(DataSpec(corpus=str(path))), "text"))
    assert len(found) > 2 and all(isinstance(each, Block) for each in found)
    documents, _ = read(path)
    assert "".join(documents) == LONG + LONG.encode()[::-1].hex()


def test_text_without_a_break_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("中" * PIECE_BYTES)
    documents, _ = read(path)
    assert len(documents) >= 3 and "".join(documents) == "中" * PIECE_BYTES


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("count", [3, 60_000])
def test_every_line_is_a_document(suffix: str, count: int, tmp_path: Path) -> None:
    texts = [f"document {number} " + "é" * (number % 50) for number in range(count)]
    content = lines(*({"id": number, "text": text} for number, text in enumerate(texts)))
    if suffix.endswith("gz"):
        content = gzip.compress(content, 0)
    elif suffix.endswith("zst"):
        content = pytest.importorskip("backports.zstd").compress(content, 1)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert read(path) == (texts, {})


def test_blank_lines_nulls_and_half_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"a"}\n\n  \r\n{"text":null}\n{"text":"b\\ud800c"}')
    assert read(path)[0] == ["a", "", "b\ufffdc"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"text": "unfinished\n', "line 3 is not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", "line 3 is not valid JSON"),
        (b'["a list"]\n', "line 3 is not a JSON object"),
        (b'{"content": "a"}\n', 'line 3 has no field "text"'),
        (b'{"text": 5, "body": "a"}\n', "line 3: a int is in the field"),
        (b'{"text": "\xff"}\n', "line 3 is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(bad: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"a"}\n\n' + bad + b'{"text":"b"}\n')
    assert said in refused(path) and "hint: " in refused(path)


@pytest.mark.parametrize("compress", [False, True])
def test_a_bad_line_deep_in_a_large_file_has_its_number(compress: bool, tmp_path: Path) -> None:
    good = b'{"text":"' + b"x" * 90 + b'"}\n'
    path = tmp_path / ("a.jsonl.gz" if compress else "a.jsonl")
    content = good * 60_000 + b"{bad\n" + good * 10
    path.write_bytes(gzip.compress(content, 0) if compress else content)
    assert "line 60001 is not valid JSON" in refused(path)


def test_the_field_that_was_meant_is_proposed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"id": 1, "content": "words"}))
    assert "--set data.text_field=content" in refused(path)
    assert read(path, "content")[0] == ["words"]


def test_csv_with_quotes_breaks_and_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefftext,n\n"one, ""two""\nthree",1\nfour,2\n'.encode())
    assert read(path)[0] == ['one, "two"\nthree', "four"]
    assert "it has: text, n" in refused(path, "body")
    path.write_text("text,n\na,1\nb,\n,c\nd\n")
    assert read(path)[0] == ["a", "b", "", "d"]
    path.write_text("n,text\n1,a\n2\n")
    assert "line 3 has 1 of 2 columns" in refused(path)
    path.write_text('text\n"a\n')
    assert "not valid csv" in refused(path)


def test_a_large_csv_is_read_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + "".join(f'{n},"line {n}\n{"x" * 90}"\n' for n in range(30_000)))
    assert path.stat().st_size > PIECE_BYTES
    assert read(path)[0] == [f"line {n}\n{'x' * 90}" for n in range(30_000)]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [f"row {number} é" * 20 for number in range(20_000)] + [None]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"id": range(20_001), "body": texts})
    parquet.write_table(table, path, row_group_size=3000)
    assert len(list(cut(corpora.find(DataSpec(corpus=str(path))), "body"))) > 1
    assert read(path, "body")[0] == [text or "" for text in texts]
    assert "it has: id, body" in refused(path)
    assert "a int is in the column" in refused(path, "id")
    path.write_bytes(b"PAR1 and nothing more")
    assert "is not a parquet file" in refused(path)


@pytest.mark.parametrize("content", [b"\x00\x01binary", b"caf\xe9", b"\xff\xfea\x00b\x00"])
def test_what_is_not_text_is_refused_alone_and_dropped_among_others(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    said = refused(tmp_path / "bad.txt")
    assert "is not UTF-8 text" in said and "offset" in said
    assert ("iconv" in said) == (b"\0" not in content or content.startswith(b"\xff\xfe"))
    (tmp_path / "good.txt").write_text("good")
    assert read(tmp_path) == (["good"], {reading.NOT_TEXT: len(content)})


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(LONG.encode())
    path = tmp_path / "a.jsonl.gz"
    for content in (whole[:-2000], b"no gzip at all", whole[:500] + b"\xff" * 9 + whole[509:]):
        path.write_bytes(content)
        assert "is damaged or cut short" in refused(path) or "not valid JSON" in refused(path)


def test_python_sources_in_the_encoding_they_declare(tmp_path: Path) -> None:
    source = corpora.Source(
        path=str(tmp_path / "a.py"), format="python", compression="none", bytes=9, strict=False
    )
    (tmp_path / "a.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    piece = pieces.Files(sources=(source,))
    assert list(reading.documents(piece, "", lambda *_: None)) == ["# coding: latin-1\nx = 'é'\n"]
