from __future__ import annotations

import json
from pathlib import Path

import pytest

from narrows.data import rows
from narrows.spec.errors import BadInput

FOUND = [{"text": "good, really", "label": "1"}, {"text": "bad\nand long", "label": "0"}]
FILES = {
    "a.jsonl": "\ufeff" + "\n\n".join(json.dumps(each) for each in FOUND) + "\r\n",
    "a.json": json.dumps(FOUND, indent=2),
    "a.csv": 'text,label\n"good, really",1\n"bad\nand long",0\n',
    "a.tsv": 'text\tlabel\r\ngood, really\t1\r\n"bad\nand long"\t0\r\n',
}
PLACES = {
    "a.jsonl": ["line 1", "line 3"], "a.json": ["item 1", "item 2"],
    "a.csv": ["line 2", "line 4"], "a.tsv": ["line 2", "line 4"],
}  # fmt: skip


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_format_has_the_same_rows(name: str, tmp_path: Path) -> None:
    found = list(rows.rows(written(tmp_path, name, FILES[name])))
    assert [row.fields for row in found] == FOUND
    assert [row.place for row in found] == [f"{name} {place}" for place in PLACES[name]]


@pytest.mark.parametrize("separator", ";\t")
def test_a_table_is_divided_as_its_header_is(separator: str, tmp_path: Path) -> None:
    content = f'text{separator}label\n"good, really"{separator}1\n'
    (row,) = rows.rows(written(tmp_path, "a.csv", content))
    assert row.fields == FOUND[0]


def test_files_of_a_folder_say_which_split_they_are(tmp_path: Path) -> None:
    for name in ("train-00.jsonl", "dev.csv", "Test_2.jsonl", "more.jsonl", "notes.md"):
        written(tmp_path, name, "text\nx\n" if name.endswith("csv") else '{"text": "x"}\n')
    found = {row.place.partition(" ")[0]: row.split for row in rows.rows(tmp_path)}
    assert found == {
        "Test_2.jsonl": "validation", "dev.csv": "validation", "more.jsonl": None,
        "train-00.jsonl": "train",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n\n7\n', "a.jsonl line 3 is no JSON object but 7"),
        ("a.jsonl", '{"value": ' + "1" * 5000 + "}", "a.jsonl line 1 is not JSON"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 200_000, "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '{"a": 1}\n{"text": "\\ud83d"}', "a.jsonl line 2 is no text: .*half a char"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl is not UTF-8 text: byte 13"),
        ("a.json", '[\n{"text": "x"},\n{"text"}\n]', "a.json line 3 is not JSON"),
        ("a.json", '[{"text": "x"}, "y"]', "a.json item 2 is no JSON object but 'y'"),
        ("a.csv", "text,label\nx,1\ny\n", "a.csv line 3 has not as many columns"),
        ("a.csv", "text,label\nx,1,2\n", "a.csv line 2 has not as many columns"),
        ("a.csv", 'text,label\nx,1\n"y,2\n', "a.csv line 3 is not a valid table"),
        ("a.tsv", 'text\tlabel\n"y"z\t2\n', "a.tsv line 2 is not a valid table"),
        ("a.txt", "x", "a.txt holds no rows of examples"),
    ],
)
def test_bad_files_are_refused_with_the_place(
    name: str, content: str | bytes, what: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        list(rows.rows(written(tmp_path, name, content)))
    assert caught.value.hint


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        list(rows.rows(tmp_path / "none.jsonl"))
    with pytest.raises(BadInput, match="has no file of rows"):
        list(rows.rows(tmp_path))


def test_fields_have_several_names_and_their_first_is_missed(tmp_path: Path) -> None:
    row = rows.Row({"txt": "x", "review": "  ", "label": None, "n": 3}, "a.jsonl line 7", None)
    assert rows.field(row, ("value", "n")) == 3
    with pytest.raises(BadInput, match=r'line 7 has no text\n.*it has: txt, review(.|\n)*"txt"'):
        rows.text(row, ("text",))
    with pytest.raises(BadInput, match="line 7: review is empty"):
        rows.text(row, ("review",))
    with pytest.raises(BadInput, match="line 7: n is no text but 3"):
        rows.text(row, ("n",))
    with pytest.raises(BadInput, match="line 7 has no label"):
        rows.field(row, ("label",))
