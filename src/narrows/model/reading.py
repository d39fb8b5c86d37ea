"""Weights out of files into a model: each tensor of theirs straight to its rows of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple, final

import torch
from torch import Tensor

from narrows.model.blocks import Groups
from narrows.model.gguf import GGUF
from narrows.model.grouped import joined, of_blocks
from narrows.model.mapped import Tensors
from narrows.model.naming import AS_IS, Naming, Piece
from narrows.model.safetensors import refuse_whole
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec

_SHOWN = 4
_ROWS = 4096
"""Of a matrix in groups, read at once."""


class Grouped(NamedTuple):
    """A matrix in groups: its rows, some at a time, whole panels of them but for the last."""

    rows: int
    slabs: Iterator[Groups]


@torch.no_grad()
def fill(
    parameters: Mapping[str, Tensor], spec: ModelSpec, naming: Naming, source: Tensors
) -> None:
    """Write every parameter, in the type that it has. Raises BadInput, before anything is written,
    where the files lack a tensor, have one that the model has not, or have it in another shape.
    """
    reader = Reader(parameters, spec, naming, source)
    for write in (False, True):
        for name, into in parameters.items():
            reader.into(name, into, write=write)


@final
class Reader:
    """Reads parameters of a model by their names; raises BadInput where the files lack a tensor of
    them or have one that such a model has not.
    """

    def __init__(
        self, names: Iterable[str], spec: ModelSpec, naming: Naming, source: Tensors
    ) -> None:
        self._spec, self._source = spec, source
        self._pieces = _found(names, spec, naming, source)

    @torch.no_grad()
    def into(self, name: str, parameter: Tensor, *, write: bool = True) -> None:
        """Write one, or see whether it fits; raises BadInput where it has another shape."""
        _join(name, parameter, self._pieces[name], self._spec, self._source, write=write)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One of that shape, in fp32."""
        whole = torch.empty(shape, dtype=torch.float32)
        self.into(name, whole, write=False)
        self.into(name, whole)
        return whole

    def grouped(self, name: str) -> bool:
        """Whether the files have a matrix in groups throughout."""
        if not isinstance(self._source, GGUF):
            return False
        blocks = [self._source.tensors[piece.name].block for piece in self._pieces[name]]
        whole = all(piece.expert is None for piece in self._pieces[name])
        return whole and all(block.groups is not None for block in blocks)

    def groups(self, name: str, shape: tuple[int, ...]) -> list[Grouped]:
        """The matrices, one below the other, that make up one of that shape that lies in groups."""
        self.into(name, torch.empty(shape, device="meta"), write=False)
        return [self._grouped(piece) for piece in self._pieces[name]]

    def _grouped(self, piece: Piece) -> Grouped:
        assert isinstance(self._source, GGUF)
        lying = self._source.tensors[piece.name]
        rows = lying.shape[0]
        some = _ROWS if piece.lay is AS_IS else rows
        return Grouped(rows, self._slabs(self._source, piece, some))

    def _slabs(self, source: GGUF, piece: Piece, some: int) -> Iterator[Groups]:
        lying = source.tensors[piece.name]
        (rows, columns), each = lying.shape, lying.size // lying.shape[0]
        for first in range(0, rows, some):
            start, size = lying.start + first * each, min(some, rows - first) * each
            found = of_blocks(source.file.bytes(start, size), lying.block, columns)
            source.file.release(start, size)
            yield found.moved(lambda part: piece.lay.ours(part, self._spec))

    def whole_groups(self, name: str, shape: tuple[int, ...]) -> Groups | None:
        """A matrix as its file packed it; None where it lies in no groups of one kind."""
        if not self.grouped(name):
            return None
        return joined([slab for each in self.groups(name, shape) for slab in each.slabs])

    def packed_bytes(self) -> int | None:
        """What a GGUF file has of the model; None of other files."""
        if not isinstance(self._source, GGUF):
            return None
        names = {piece.name for pieces in self._pieces.values() for piece in pieces}
        return sum(self._source.tensors[name].size for name in names)

    def blocks(self, name: str) -> frozenset[str]:
        """The types, as GGUF calls them, that the file packs a parameter in; none where it does
        not.
        """
        if not isinstance(self._source, GGUF):
            return frozenset()
        lying = [self._source.tensors[piece.name] for piece in self._pieces[name]]
        return frozenset(each.block.name for each in lying if each.block.dtype is None)


@final
class Unread(Mapping[str, Tensor]):
    """Parameters of those shapes, each read in fp32 when it is asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], reader: Reader) -> None:
        self._shapes, self._reader = shapes, reader

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.read(name, self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _found(
    names: Iterable[str], spec: ModelSpec, naming: Naming, source: Tensors
) -> dict[str, list[Piece]]:
    """Of each parameter, the tensors it is made of by the names that the files have."""
    there = naming.there(source.names())
    plan = {name: naming.pieces(name, spec) for name in names}
    wanted = [piece.name for pieces in plan.values() for piece in pieces]
    missing = [name for name in wanted if naming.plain(name) not in there]
    missing += [name for name, pieces in plan.items() if not pieces]
    if missing:
        raise _foreign(
            f"the weights lack {_some(missing)} of the model that their configuration describes"
        )
    used = {naming.plain(name) for name in wanted}
    spare = [name for plain, name in there.items() if plain not in used and not _spare(
        name, naming, spec)]  # fmt: skip
    if spare:
        raise _foreign(
            f"the weights have {_some(spare)}, which the model that their configuration describes "
            "has not"
        )
    return {
        name: [piece._replace(name=there[naming.plain(piece.name)]) for piece in pieces]
        for name, pieces in plan.items()
    }


def _join(
    name: str, into: Tensor, pieces: list[Piece], spec: ModelSpec, source: Tensors, *, write: bool
) -> None:
    """Write the pieces one below the other, or see whether they fit."""
    at = 0
    for piece in pieces:
        refuse_whole(source, piece.name)
        whole = into if piece.expert is None else into[piece.expert]
        # Experts that lie in one tensor are joined by the rows of each.
        dim = 1 if piece.expert is None and ".experts.each." in name else 0
        shape = _shape(piece, spec, source)
        rows, rest = shape[dim] if shape else 0, (*shape[:dim], *shape[dim + 1 :])
        own = (*whole.shape[:dim], *whole.shape[dim + 1 :])
        if len(shape) != whole.ndim or rest != own or at + rows > whole.shape[dim]:
            raise _foreign(
                f"{piece.name} is {list(source.shape(piece.name))} in the weights, and the model "
                f"that their configuration describes has {list(into.shape)} for {name}"
            )
        if write:
            _write(piece, whole.narrow(dim, at, rows), spec, source)
        at = (at + rows) % whole.shape[dim]
    if at:
        raise _foreign(f"the weights have {at} of {into.shape[0]} rows of {name}")


def _write(piece: Piece, into: Tensor, spec: ModelSpec, source: Tensors) -> None:
    if piece.lay is AS_IS and into.is_contiguous() and into.device.type == "cpu":
        source.read(piece.name, into)
        return
    theirs = torch.empty(source.shape(piece.name), dtype=into.dtype)
    source.read(piece.name, theirs)
    into.copy_(piece.lay.ours(theirs, spec))


def _shape(piece: Piece, spec: ModelSpec, source: Tensors) -> tuple[int, ...]:
    """Of theirs as ours lies."""
    shape = source.shape(piece.name)
    if piece.lay is AS_IS:
        return shape
    try:
        return tuple(piece.lay.ours(torch.empty(shape, device="meta"), spec).shape)
    except (RuntimeError, IndexError):
        raise _foreign(
            f"{piece.name} is {list(shape)} in the weights, which the configuration does not allow"
        ) from None


def _spare(name: str, naming: Naming, spec: ModelSpec) -> bool:
    """Whether a tensor may stand there unused."""
    head = naming.whole.get("head", "")
    return naming.passes(name) or (spec.tied_embeddings and name == f"{head}.weight")


def _foreign(what: str) -> BadInput:
    return BadInput(what, hint="take configuration and weights of one model")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(islice(names, _SHOWN))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
