"""Rows of examples out of files: one JSON object a line, or a table with a header.

rows(path) → (fields, place, split or None), one after the other
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from narrows.data.encodings import recoded
from narrows.data.staging import Split
from narrows.spec.errors import BadInput, nearest

_FORMATS = (".jsonl", ".json", ".csv", ".tsv")
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "validation", "eval": "validation",
}  # fmt: skip


class Row(NamedTuple):
    """A row's fields, where it stands as a reader would look it up, and the split that its file's
    name says.
    """

    fields: dict[str, Any]
    place: str
    split: Split | None


def files(path: Path) -> list[Path]:
    """The file, or those of a folder that hold rows; raises BadInput where there is none."""
    if path.is_file():
        if path.suffix.lower() in _FORMATS:
            return [path]
        known = ", ".join(_FORMATS)
        raise BadInput(
            f"{path} holds no rows of examples: they are read from {known}",
            hint="write one JSON object a line to a .jsonl file",
        )
    if not path.is_dir():
        raise BadInput(f"{path} does not exist", hint="data.corpus is a file or folder of rows")
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in _FORMATS)
    if not found:
        raise BadInput(
            f"{path} has no file of rows", hint=f"put files there that end in {', '.join(_FORMATS)}"
        )
    return found


def rows(path: Path) -> Iterator[Row]:
    """All rows of a file or folder, in order. Raises BadInput, with the place, for what is none."""
    for file in files(path):
        told = file.stem.lower().replace("_", "-").partition("-")[0]
        # A file alone is both splits, whatever it is called.
        split = None if file == path else _SPLITS.get(told)
        reader = _objects if file.suffix.lower() in (".jsonl", ".json") else _table
        for place, fields in reader(file):
            yield Row(fields, f"{file.name} {place}", split)


def field(row: Row, names: tuple[str, ...]) -> Any:
    """The value of the first of `names` that the row has; BadInput where it has none."""
    for name in names:
        if name in row.fields and row.fields[name] is not None:
            return row.fields[name]
    there = [str(name) for name in row.fields]
    guess = nearest(names[0], there)
    raise BadInput(
        f"{row.place} has no {names[0]}",
        causes=[f"it has: {', '.join(there) or 'nothing'}"],
        hint=f'is "{guess}" meant? call it "{names[0]}"' if guess else f'add "{names[0]}" to it',
    )


def text(row: Row, names: tuple[str, ...]) -> str:
    """As `field`, where the value must be a text with something in it."""
    found = field(row, names)
    if not isinstance(found, str) or not found.strip():
        what = "is empty" if isinstance(found, str) else f"is no text but {found!r:.60}"
        raise BadInput(f"{row.place}: {names[0]} {what}", hint="mend the row or take it out")
    return found


@contextmanager
def placed(row: Row) -> Iterator[None]:
    """What is refused within is refused with the row's place."""
    try:
        yield
    except BadInput as error:
        if row.place in error.what:
            raise
        raise BadInput(f"{row.place}: {error.what}", hint=error.hint) from None


def _objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of a file with one object a line, or with one list of objects."""
    content = _read(file)
    if content.lstrip()[:1] == "[":
        for number, each in enumerate(_parsed(content, file, 1), 1):
            yield f"item {number}", _checked(each, f"{file} item {number}")
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            found = _checked(_parsed(line, file, number), f"{file} line {number}")
            yield f"line {number}", found


def _table(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = _read(file)
    before = csv.field_size_limit(1 << 28)
    reader = csv.DictReader(
        io.StringIO(content, newline=""), strict=True, delimiter=_separator(file, content)
    )
    begins = 1
    try:
        if reader.fieldnames:
            begins = reader.line_num + 1
        for fields in reader:
            if None in fields or None in fields.values():
                raise BadInput(
                    f"{file} line {reader.line_num} has not as many columns as the header",
                    hint=f"sed -n {reader.line_num}p {file}",
                )
            yield f"line {reader.line_num}", dict(fields)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(
            f"{file} line {begins} is not a valid table: {error}",
            hint="quote fields that hold quotes, separators or line breaks",
        ) from None
    finally:
        csv.field_size_limit(before)


def _separator(file: Path, content: str) -> str:
    """A tab in .tsv; in .csv a comma, or what spreadsheets write where the comma is a decimal."""
    if file.suffix.lower() == ".tsv":
        return "\t"
    header = content.lstrip().partition("\n")[0]
    return next((each for each in ",;\t" if each in header), ",")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{file} is not UTF-8 text: byte {error.start}",
            hint=recoded(file, f"mended{file.suffix}"),
        ) from None


def _parsed(text: str, file: Path, first: int) -> Any:
    """The JSON of a text that begins in the line `first`."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeEncodeError as error:
        number, why = first, f"is no text: {error.object[error.start]!r} is half a character"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, too
        number = first + getattr(error, "lineno", 1) - 1
        why = f"is not JSON: {error}"
    raise BadInput(f"{file} line {number} {why}", hint=f"sed -n {number}p {file}")


def _checked(found: Any, place: str) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    raise BadInput(
        f"{place} is no JSON object but {found!r:.60}", hint='{"text": "...", "label": "..."}'
    )
