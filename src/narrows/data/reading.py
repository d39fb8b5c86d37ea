"""A piece of a corpus read into documents."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from narrows.data import plays, streams
from narrows.data.corpora import Source
from narrows.data.pieces import Block, Files, Piece, RowGroups, Span, Texts, seam
from narrows.spec.errors import BadInput

PART_CHARACTERS = 1 << 20
NOT_TEXT = "not UTF-8 text"
Drop = Callable[[str, int], None]


def documents(piece: Piece, field: str, drop: Drop) -> Iterator[str]:
    """The documents of `piece`; `drop(reason, bytes)` is told of each that cannot be read.

    A text longer than 1.5 PART_CHARACTERS becomes several documents of about that length.
    """
    for text in _texts(piece, field, drop):
        yield from parts(text)


def parts(text: str) -> Iterator[str]:
    """`text`, cut behind blank lines where it is too long for one document."""
    start = 0
    while len(text) - start > PART_CHARACTERS * 3 // 2:
        place = start + PART_CHARACTERS
        window = text[place : place + (1 << 16)].encode("utf-8", "replace")
        place += len(window[: seam(window)].decode("utf-8", "replace"))
        yield text[start:place]
        start = place
    yield text[start:]


def _texts(piece: Piece, field: str, drop: Drop) -> Iterator[str]:
    match piece:
        case Texts():
            yield from piece.texts
        case Files():
            for source in piece.sources:
                yield from _file(source, field, drop)
        case Span():
            with open(piece.source.path, "rb") as file:
                file.seek(piece.start)
                content = file.read(piece.stop - piece.start)
            if piece.source.format == "jsonl":
                yield from _lines(content, piece.source, field, _line_at(piece.source, piece.start))
            else:
                yield from _text(content, piece.source, drop, piece.start)
        case Block():
            if piece.source.format == "jsonl":
                yield from _lines(piece.content, piece.source, field, lambda: piece.line)
            else:
                yield from _text(piece.content, piece.source, drop, 0)
        case RowGroups():
            yield from _rows(piece, field)


def _file(source: Source, field: str, drop: Drop) -> Iterator[str]:
    if source.format == "csv":
        yield from streams.column(source, field)
        return
    try:
        with streams.opened(source) as file:
            content = streams.some(file, -1, source)
    except PermissionError:
        raise BadInput(
            f"{source.path} cannot be read: no permission", hint=f"chmod u+r {source.path}"
        ) from None
    if source.format == "jsonl":
        yield from _lines(content, source, field, lambda: 1)
    elif source.format == "play":
        yield from plays.scenes(content.decode("utf-8"))
    elif source.format == "python":
        yield from _python(content, drop)
    else:
        yield from _text(content, source, drop, 0)


def _text(content: bytes, source: Source, drop: Drop, offset: int) -> Iterator[str]:
    """The text of `content`, which lies at `offset` of its file."""
    why = None
    try:
        text = content.decode("utf-8")
        if "\0" in text:
            why = f"a zero byte at offset {offset + content.index(0)}"
    except UnicodeDecodeError as error:
        why = f"byte 0x{content[error.start]:02x} at offset {offset + error.start}"
    if why is None:
        yield text
    elif source.strict:
        raise streams.not_text(source.path, why)
    else:
        drop(NOT_TEXT, len(content))


def _python(content: bytes, drop: Drop) -> Iterator[str]:
    """A source file in the encoding that it declares (PEP 263)."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        yield content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        drop(NOT_TEXT, len(content))


def _lines(content: bytes, source: Source, field: str, first: Callable[[], int]) -> Iterator[str]:
    """The text of each JSON line; blank lines are passed over, a null is an empty document."""
    decode = _decoder(field).decode
    for index, line in enumerate(content.split(b"\n")):
        if not line or line.isspace():
            continue
        try:
            yield decode(line).text or ""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            text = _leniently(line, field)
            if text is None:
                raise _explain(line, source, first() + index, field, error) from None
            yield text


def _decoder(field: str) -> msgspec.json.Decoder[Any]:
    shape = msgspec.defstruct("Line", [("text", str | None)], rename={"text": field})
    return msgspec.json.Decoder(shape)


def _leniently(line: bytes, field: str) -> str | None:
    """Half of a surrogate pair, which JSON allows and text does not, becomes U+FFFD."""
    if not re.search(rb"\\u[dD][89a-fA-F]", line):
        return None
    import json

    try:
        text = json.loads(line)[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return re.sub("[\ud800-\udfff]", "\ufffd", text) if isinstance(text, str) else None


def _explain(line: bytes, source: Source, number: int, field: str, error: Exception) -> BadInput:
    where = f"{source.path} line {number}"
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BadInput(
            f"{where} is not valid JSON: {error}",
            causes=[line[:80].decode("utf-8", "replace")],
            hint=f"sed -n {number}p {source.path}",
        )
    if not isinstance(value, dict):
        return BadInput(
            f"{where} is not a JSON object",
            causes=[line[:80].decode("utf-8", "replace")],
            hint=f'each line looks like {{"{field}": "..."}}',
        )
    if field not in value:
        return streams.missing(field, list(value), f"{where} has no field")
    texts = [name for name, inner in value.items() if isinstance(inner, str)]
    return streams.missing(
        field, texts, f"{where}: a {type(value[field]).__name__} is in the field"
    )


def _line_at(source: Source, offset: int) -> Callable[[], int]:
    """The number of the line at `offset`, counted only when an error asks for it."""

    def count() -> int:
        lines = 1
        with open(source.path, "rb") as file:
            while offset > file.tell():
                lines += file.read(min(1 << 20, offset - file.tell())).count(b"\n")
        return lines

    return count


def _rows(piece: RowGroups, field: str) -> Iterator[str]:
    file = streams.parquet(piece.source)
    names = file.schema_arrow.names
    if field not in names:
        raise streams.missing(field, names, f"{piece.source.path} has no column")
    groups = list(range(piece.first, piece.stop))
    for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[field]):
        for text in batch.column(0).to_pylist():
            if text is not None and not isinstance(text, str):
                kind = type(text).__name__
                what = f"{piece.source.path}: a {kind} is in the column"
                raise streams.missing(field, names, what)
            yield text or ""
