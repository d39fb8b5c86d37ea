"""A GGUF file: its header read and checked, its tensors as views of the file; and written.

    opened(path) → GGUF;   GGUF.facts: what the header says;   GGUF.tensors: where each tensor lies
    write(path, facts, tensors)

Layout of the format: github.com/ggml-org/ggml, docs/gguf.md. Nothing that the header claims is
believed before it is held against the size of the file.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from narrows.model.blocks import BLOCKS, Block, packed, unpack
from narrows.model.grouped import to_blocks
from narrows.model.mapped import DAMAGED, Mapped
from narrows.model.writing import Outgoing
from narrows.spec.errors import BadInput

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_DIMENSIONS_MOST = 8
_I32, _STRING, _ARRAY = 5, 8, 9
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_NUMBERS = {block.name: number for number, block in BLOCKS.items()}


class Lying(NamedTuple):
    """A tensor in the file: its shape, slowest dimension first, how its values are packed, and
    where its bytes begin.
    """

    shape: tuple[int, ...]
    block: Block
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.block.bytes_of(math.prod(self.shape))


class GGUF(NamedTuple):
    """A file's header, and its bytes."""

    facts: dict[str, Any]
    tensors: dict[str, Lying]
    file: Mapped

    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one, slowest dimension first."""
        return self.tensors[name].shape

    def packed(self, name: str) -> memoryview:
        """The bytes of a tensor, as they lie in the file."""
        return self.file.bytes(self.tensors[name].start, self.tensors[name].size)

    def read(self, name: str, into: Tensor) -> None:
        """Write a tensor's values to `into`, of the same shape."""
        lying = self.tensors[name]
        unpack(self.packed(name), lying.block, into)
        self.file.release(lying.start, lying.size)


def opened(path: Path | str) -> GGUF:
    """Read the header; raises BadInput where it is none, is cut short or contradicts itself."""
    return _Header(Mapped(Path(path))).read()


def write(path: Path, facts: Mapping[str, Any], tensors: Sequence[tuple[Outgoing, Block]]) -> None:
    """Write a file of these facts and tensors, each packed as its block says, one at a time."""
    header = _MAGIC + struct.pack("<IQQ", _VERSIONS[-1], len(tensors), len(facts))
    header += b"".join(_string(key) + _fact(value) for key, value in facts.items())
    at = 0
    for each, block in tensors:
        sizes = [_U64.pack(size) for size in reversed(each.shape)]
        header += _string(each.name) + _U32.pack(len(sizes)) + b"".join(sizes)
        header += _U32.pack(_NUMBERS[block.name]) + _U64.pack(at)
        at += _padded(block.bytes_of(math.prod(each.shape)))
    with path.open("wb") as file:
        file.write(header + bytes(_padded(len(header)) - len(header)))
        for each, block in tensors:
            for part in _parts(each, block):
                file.write(part.numpy().data)
            file.write(bytes(-file.tell() % _ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())


def _parts(tensor: Outgoing, block: Block) -> Iterator[Tensor]:
    """Its bytes; of what lies in groups, as it lies."""
    if tensor.groups is not None:
        yield to_blocks(tensor.groups(), block)
        return
    values = tensor.take()
    assert tuple(values.shape) == tensor.shape, tensor.name
    yield from packed(values, block)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _fact(value: Any) -> bytes:
    """A value with its type before it; whole numbers in lists are signed, as llama.cpp's are."""
    if not isinstance(value, list):
        return _U32.pack(_kind(value)) + _bare(_kind(value), value)
    kind = _kind(value[0]) if value and type(value[0]) is not int else _I32
    body = b"".join(_bare(kind, each) for each in value)
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + body


def _kind(value: Any) -> int:
    match value:
        case str():
            return _STRING
        case bool():
            return 7
        case float():
            return 6
    if value < 0:
        return _I32 if value >= -(1 << 31) else 11
    return 4 if value < 1 << 32 else 10


def _bare(kind: int, value: Any) -> bytes:
    return _string(value) if kind == _STRING else _SCALARS[kind].pack(value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return _U64.pack(len(raw)) + raw


class _Header:
    """Reads one header from its first byte to its last."""

    def __init__(self, file: Mapped) -> None:
        self.file, self.path, self.at, self.end = file, file.path, 0, len(file)

    def read(self) -> GGUF:
        """All of it."""
        if self._take(4, "its magic") != _MAGIC:
            self._refuse("is not a GGUF file: it does not begin with GGUF")
        version = self._scalar(_U32, "its version")
        if version not in _VERSIONS:
            self._refuse(f"is GGUF of version {version}, and versions 2 and 3 are known")
        tensors, facts = (self._count(f"the number of {what}") for what in ("tensors", "facts"))
        found = self._facts(facts)
        alignment = found.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            self._refuse(f"says general.alignment = {alignment!r}")
        lying = self._tensors(tensors, alignment)
        return GGUF(found, lying, self.file)

    def _facts(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._text("the key of a fact")
            if key in found:
                self._refuse(f"says {key} twice")
            kind = self._scalar(_U32, f"the type of {key}")
            found[key] = self._value(kind, key)
        return found

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(key)
        if kind != _ARRAY:
            return self._scalar(self._known(kind, key), key)
        kind = self._scalar(_U32, f"the type of {key}")
        count = self._count(f"the length of {key}")
        if kind == _STRING:
            return [self._text(key) for _ in range(count)]
        if kind == _ARRAY:
            self._refuse(f"has lists within a list in {key}")
        one = self._known(kind, key)
        taken = self._take(count * one.size, key)
        return [value for (value,) in one.iter_unpack(taken)]

    def _tensors(self, count: int, alignment: int) -> dict[str, Lying]:
        told: dict[str, tuple[tuple[int, ...], Block, int]] = {}
        for _ in range(count):
            name = self._text("the name of a tensor")
            if name in told:
                self._refuse(f"has two tensors named {name}")
            dimensions = self._scalar(_U32, f"the dimensions of {name}")
            if dimensions > _DIMENSIONS_MOST:
                self._refuse(f"gives {name} {dimensions} dimensions")
            sizes = [self._scalar(_U64, f"the shape of {name}") for _ in range(dimensions)]
            block = self._block(self._scalar(_U32, f"the type of {name}"), name)
            offset = self._scalar(_U64, f"the place of {name}")
            if offset % alignment:
                self._refuse(f"puts {name} at {offset}, which is no multiple of {alignment}")
            told[name] = (tuple(reversed(sizes)), block, offset)
        start = -(-self.at // alignment) * alignment
        return {name: self._lying(name, *each, start) for name, each in told.items()}

    def _lying(
        self, name: str, shape: tuple[int, ...], block: Block, offset: int, start: int
    ) -> Lying:
        if 0 in shape or (shape and shape[-1] % block.values):
            self._refuse(f"gives {name} the shape {list(shape)} in {block.name}")
        lying = Lying(shape, block, start + offset)
        if lying.start + lying.size > self.end:
            self._refuse(
                f"ends before {name}: {lying.start + lying.size:,} bytes are promised and "
                f"{self.end:,} are there"
            )
        return lying

    def _block(self, number: int, name: str) -> Block:
        block = BLOCKS.get(number)
        if block is None:
            known = ", ".join(each.name for each in BLOCKS.values())
            raise BadInput(
                f"{self.path} packs {name} in type {number}, which narrows does not read",
                hint=f"take a file in one of: {known}",
            )
        return block

    def _known(self, kind: int, key: str) -> struct.Struct:
        if kind not in _SCALARS:
            self._refuse(f"gives {key} the type {kind}, which does not exist")
        return _SCALARS[kind]

    def _text(self, what: str) -> str:
        length = self._scalar(_U64, f"the length of {what}")
        taken = self._take(length, what)
        # Tokens of a vocabulary may be any bytes; they are told apart, not read.
        return taken.decode("utf-8", errors="surrogateescape")

    def _count(self, what: str) -> int:
        """A number of things, of each of which at least a byte must be there."""
        count: int = self._scalar(_U64, what)
        if count > self.end - self.at:
            self._refuse(f"claims {count:,} for {what}, more than it has bytes")
        return count

    def _scalar(self, one: struct.Struct, what: str) -> Any:
        return one.unpack(self._take(one.size, what))[0]

    def _take(self, size: int, what: str) -> bytes:
        if size > self.end - self.at:
            self._refuse(f"ends within {what[:80]}")
        taken = bytes(self.file.bytes(self.at, size))
        self.at += size
        return taken

    def _refuse(self, what: str) -> NoReturn:
        raise BadInput(f"{self.path} {what}", hint=DAMAGED)
