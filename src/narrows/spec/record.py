"""Records: frozen structs that refuse unknown keys, read and written as TOML or JSON.

Every noun of `spec` is one. Reading reports the place of a mistake in the file and, for a misspelt
key, the name that was probably meant.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import msgspec

from narrows.spec.errors import BadInput, nearest
from narrows.spec.mistake import explain
from narrows.spec.units import Quantity


class _KeywordOnly(msgspec.StructMeta):
    """msgspec does not inherit `kw_only`; every record is keyword-only."""

    def __new__(
        mcls, name: str, bases: tuple[type, ...], body: dict[str, Any], **options: Any
    ) -> Any:
        return super().__new__(mcls, name, bases, body, **{"kw_only": True, **options})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, metaclass=_KeywordOnly, frozen=True, forbid_unknown_fields=True):
    """Base of all records: values only, equal by value."""


R = TypeVar("R", bound=Record)


def at_least(least: int, record: Record, place: str, *names: str, otherwise: str = "") -> None:
    """Raises BadInput where one of the fields `names` is below; absent ones are not."""
    for name in names:
        value = getattr(record, name)
        if value is not None and value < least:
            raise BadInput(f"{place}.{name} is {value}", hint=f"use at least {least}{otherwise}")


def to_builtins(record: Record) -> dict[str, Any]:
    """Plain dicts and lists; quantities as text with their unit; absent values left out."""
    built = msgspec.to_builtins(record, enc_hook=_encode)
    return _without_none(built)  # type: ignore[no-any-return]


def from_builtins(kind: type[R], data: object, *, source: str = "input") -> R:
    """Build a `kind` from plain data; raises BadInput naming the place in `source`."""
    try:
        return msgspec.convert(data, kind, dec_hook=_decode, strict=True)
    except msgspec.ValidationError as error:
        raise explain(str(error), kind, source) from None


def to_json(record: Record) -> str:
    """One line of JSON."""
    return msgspec.json.encode(to_builtins(record)).decode()


def to_toml(record: Record) -> str:
    """TOML text, keys in the record's order."""
    import tomli_w

    return tomli_w.dumps(to_builtins(record))


def load(kind: type[R], path: Path | str) -> R:
    """Read a `.toml` or `.json` file; raises BadInput where it is absent or wrong."""
    return from_builtins(kind, read(path), source=str(path))


def loads(kind: type[R], text: str, *, source: str = "input.toml") -> R:
    """Read TOML, or JSON where `source` ends in .json."""
    return from_builtins(kind, _parse(text, source), source=source)


def read(path: Path | str) -> Any:
    """The plain data of a `.toml` or `.json` file; raises BadInput where it cannot be read."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist", hint=_beside(path)) from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a directory", hint=_beside(path / "x")) from None
    except PermissionError:
        raise BadInput(f"{path} may not be read", hint=f"chmod +r {path}") from None
    except UnicodeDecodeError as error:
        what = f"{path} is not a text file: {error.reason} at byte {error.start}"
        raise BadInput(what, hint="it should be TOML in UTF-8") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    return _parse(text, str(path))


def save(record: Record, path: Path | str) -> None:
    """Write a `.toml` or `.json` file, whole or not at all."""
    path = Path(path)
    text = to_json(record) + "\n" if path.suffix == ".json" else to_toml(record)
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, then rename: a reader sees the old or the new."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a file", hint="choose the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def digest(record: Record) -> str:
    """Short hash of a record's content, equal for equal records."""
    import hashlib

    canonical = msgspec.json.encode(to_builtins(record), order="deterministic")
    return hashlib.sha256(canonical).hexdigest()[:16]


def with_override(data: dict[str, Any], assignment: str) -> dict[str, Any]:
    """Apply one `key.path=value` (the value read as TOML, else as text) to plain data."""
    path, separator, text = assignment.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not separator or not all(keys):
        raise BadInput(f'--set "{assignment}" is not key.path=value', hint="--set train.steps=100")
    return _with(data, keys, _value(text.strip()), assignment)


def _with(data: dict[str, Any], keys: list[str], value: Any, assignment: str) -> dict[str, Any]:
    head, *rest = keys
    if not rest:
        return {**data, head: value}
    inner = data.get(head, {})
    if not isinstance(inner, dict):
        raise BadInput(f'--set "{assignment}": {head} is not a table')
    return {**data, head: _with(inner, rest, value, assignment)}


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _parse(text: str, source: str) -> Any:
    try:
        return msgspec.json.decode(text) if source.endswith(".json") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, too
        form = "JSON" if source.endswith(".json") else "TOML"
        what = f"{source} is not valid {form}: {error}"
        raise BadInput(what, hint="mend it there, or take the file as it was") from None


def _beside(path: Path) -> str:
    """What lies next to a missing file that may have been meant."""
    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix in (".toml", ".json")]
    except OSError:
        return f"{path.parent} does not exist either"
    guess = nearest(path.name, names)
    return f"did you mean {path.with_name(guess)}?" if guess else "check the path"


def _encode(value: object) -> object:
    if isinstance(value, Quantity):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode(kind: type, value: object) -> object:
    if issubclass(kind, Quantity):
        try:
            return kind.parse(value)
        except BadInput as error:
            raise ValueError(f"{error.what}. {error.hint or ''}".strip()) from None
    raise NotImplementedError(kind)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value
