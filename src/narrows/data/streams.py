"""Files opened as what they hold: compressed bytes, a column of a csv, a parquet file."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from narrows.data.corpora import Source
from narrows.data.encodings import recoded
from narrows.spec.errors import BadInput, nearest

FIELD_CHARACTERS_MAX = 1 << 28


def opened(source: Source) -> IO[bytes]:
    """The bytes of `source`, decompressed as they are read."""
    if source.compression == "gz":
        return gzip.open(source.path, "rb")  # type: ignore[return-value]
    if source.compression == "zst":
        return _zstd().open(source.path, "rb")
    return open(source.path, "rb")


def some(file: IO[bytes], size: int, source: Source) -> bytes:
    """Up to `size` bytes, none at the end; BadInput where the compressed data are damaged."""
    try:
        return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(source, error) from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise _damaged(source, error) from None


def column(source: Source, field: str) -> Iterator[str]:
    """The values of a csv's column `field`; a byte-order mark is no part of the first name."""
    before = csv.field_size_limit(FIELD_CHARACTERS_MAX)
    try:
        with opened(source) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            if field not in header:
                raise missing(field, header, f"{source.path} has no column")
            place = header.index(field)
            for row in reader:
                if len(row) > place:
                    yield row[place]
                elif row:
                    raise BadInput(
                        f"{source.path} line {reader.line_num} has {len(row)} of "
                        f"{len(header)} columns",
                        hint=f"sed -n {reader.line_num}p {source.path}",
                    )
    except csv.Error as error:
        raise BadInput(
            f"{source.path} line {reader.line_num} is not valid csv: {error}",
            hint="quote fields that hold quotes, commas or line breaks",
        ) from None
    except UnicodeDecodeError as error:
        raise not_text(source.path, f"byte {error.start} of a line is not UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(source, error) from None
    finally:
        csv.field_size_limit(before)


def parquet(source: Source) -> Any:
    """A `pyarrow.parquet.ParquetFile`; BadInput where pyarrow is missing or the file is not one."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise needs("parquet files", "pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(source.path, memory_map=False)
    except pyarrow.ArrowInvalid as error:
        raise BadInput(
            f"{source.path} is not a parquet file: {str(error).splitlines()[0]}",
            hint="write it again, or take it out of the folder",
        ) from None


def missing(field: str, known: list[str], what: str) -> BadInput:
    """The text is not where `data.text_field` says; names what is there."""
    guess = nearest(field, known) or next(
        (name for name in ("content", "body") if name in known), ""
    )
    instead = guess or (known[0] if known else "NAME")
    return BadInput(
        f'{what} "{field}"',
        causes=[f"it has: {', '.join(known)}" if known else "it has none"],
        hint=f"--set data.text_field={instead}",
    )


def not_text(path: str, why: str) -> BadInput:
    """A file that was given as text and is none."""
    return BadInput(
        f"{path} is not UTF-8 text: {why}",
        hint=recoded(Path(path), "text.txt"),
    )


def needs(what: str, package: str) -> BadInput:
    """An optional package is missing."""
    return BadInput(
        f"{what} need the package {package}, which is not installed",
        hint="pip install 'narrows[data]'",
    )


def _damaged(source: Source, error: Exception) -> BadInput:
    return BadInput(
        f"{source.path} is damaged or cut short: {error}", hint="copy or download it again"
    )


def _zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise needs(".zst files", "backports.zstd") from None
    return zstd
