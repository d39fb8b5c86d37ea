"""A packed model laid out in a folder as it lies in memory: what is mapped need not be read.

    Shelf(folder).close(model, about, words);   Laid.of(folder) → Laid

arrays: the bytes of all arrays, each from a cache line's beginning on
model.json: a PackedModel in which an array is the place of its bytes
about.json: what the model is, and how many bytes `arrays` has
tokenizer.json: of a GGUF file, whose header has no such
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, final

import msgspec
import numpy as np
import numpy.typing as npt

from narrows.data import published
from narrows.data.published import Words
from narrows.data.template import Template
from narrows.data.tokenizers import FILE, Tokenizer, opened
from narrows.kernels.decoder import PackedModel
from narrows.kernels.panels import Packed
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.record import Record, load, to_json

Array = npt.NDArray[Any]
_ABOUT, _MODEL, _ARRAYS = "about.json", "model.json", "arrays"
_LINE = 64


class Spoken(Record):
    """The words of a GGUF file beside its tokenizer: where texts end, the end of a document first,
    the chat template's source, and what some tokens are called.
    """

    ends: tuple[int, ...]
    template: str | None = None
    special: dict[str, str]


class About(Record):
    """What is laid out: where it came from, what it is `called` behind that, its shape, what was
    `said` when it was, the `words` of a GGUF file, and the bytes of all arrays.
    """

    source: str
    called: str
    model: ModelSpec
    said: tuple[str, ...]
    words: Spoken | None = None
    size: int = 0


class _Place(msgspec.Struct, frozen=True):
    at: int
    dtype: str
    shape: tuple[int, ...]


class Laid(NamedTuple):
    """A model that was laid out, its arrays mapped from their file: they take memory when they are
    computed with, and are the system's to drop.
    """

    about: About
    model: PackedModel
    folder: Path

    @staticmethod
    def of(folder: Path) -> Laid | None:
        """The one in a folder; None where it is not there, or not whole."""
        try:
            about = load(About, folder / _ABOUT)
            with (folder / _ARRAYS).open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(content) != about.size:
                return None
            if hasattr(mmap, "MADV_WILLNEED"):
                content.madvise(mmap.MADV_WILLNEED)
            model = _decoded((folder / _MODEL).read_bytes(), content)
        except (OSError, ValueError, BadInput, msgspec.MsgspecError):
            return None
        with suppress(OSError):
            os.utime(folder)
        return Laid(about, model, folder)

    @staticmethod
    def source_of(folder: Path) -> Path | None:
        """Where the model came from that is laid out in a folder; None where either is gone."""
        try:
            found = Path(load(About, folder / _ABOUT).source)
        except BadInput:
            return None
        return found if found.exists() else None

    def words(self) -> Words:
        """How the model reads and writes text."""
        said = self.about.words
        if said is None:
            return published.of_folder(Path(self.about.source))
        template = None if said.template is None else Template(said.template, said.special)
        tokenizer = Tokenizer(opened(self.folder / FILE), said.ends)
        return Words(tokenizer, template, said.special)


def _spoken(words: Words) -> Spoken:
    first = words.tokenizer.end_of_document
    return Spoken(
        ends=(first, *sorted(words.tokenizer.ends - {first})),
        template=words.template and words.template.source, special=dict(words.special),
    )  # fmt: skip


@final
class Shelf:
    """A model to be laid out in a folder that is there and empty; it is whole once closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / _ARRAYS).open("wb")
        self._places: dict[int, _Place] = {}
        self._mapped: list[Array] = []

    def keep(self, matrix: Packed) -> Packed:
        """The same, its panels in the file and no more in memory of our own."""
        return matrix._replace(parts=tuple(
            part._replace(panels=self._moved(part.panels)) for part in matrix.parts
        ))  # fmt: skip

    def close(self, model: PackedModel, about: About, words: Words | None) -> None:
        """Write what is left of it, and what it is; `words` of a GGUF file."""
        said = msgspec.json.encode(model, enc_hook=self._put)
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            about = msgspec.structs.replace(about, size=self._file.tell())
        (self._folder / _MODEL).write_bytes(said)
        if words is not None:
            (self._folder / FILE).write_text(words.tokenizer.to_json(), encoding="utf-8")
            about = msgspec.structs.replace(about, words=_spoken(words))
        (self._folder / _ABOUT).write_text(to_json(about), encoding="utf-8")

    def _moved(self, panels: Array) -> Array:
        place = self._write(panels)
        self._file.flush()
        mapped = np.memmap(self._folder / _ARRAYS, np.uint8, "r", place.at, place.shape)
        # As long as it lives, nothing else lies at its address.
        self._mapped.append(mapped)
        self._places[mapped.ctypes.data] = place
        return mapped.view(np.ndarray)

    def _put(self, array: Array) -> _Place:
        """Where it is in the file, once."""
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous
        address = array.ctypes.data
        if address not in self._places:
            self._places[address] = self._write(array)
        return self._places[address]

    def _write(self, array: Array) -> _Place:
        self._file.write(bytes(-self._file.tell() % _LINE))
        place = _Place(self._file.tell(), array.dtype.str, array.shape)
        self._file.write(array.data)
        return place


def _decoded(said: bytes, content: mmap.mmap) -> PackedModel:
    def array(kind: Any, place: Any) -> Array:
        found = msgspec.convert(place, _Place)
        count = int(np.prod(found.shape, dtype=np.int64))
        flat = np.frombuffer(content, np.dtype(found.dtype), count, found.at)
        return flat.reshape(found.shape)

    model = msgspec.json.decode(said, type=PackedModel, dec_hook=array)
    # A head that is the table is one matrix.
    alike = _lies_at(model.head) == _lies_at(model.table)
    return model._replace(head=model.table) if alike else model


def _lies_at(matrix: Packed) -> list[int]:
    return [part.panels.ctypes.data for part in matrix.parts]
