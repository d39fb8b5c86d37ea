"""Weights out of a model into files: each parameter of ours as the tensors of theirs that it is.

    outgoing(weights, spec, naming) → [Outgoing], for `safetensors.write` and `gguf.write`

The inverse of `reading`. Weights are any mapping by our names: a model's parameters, a checkpoint,
what an adapter was merged into. One is asked for at a time, and let go when its pieces are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.blocks import Groups
from narrows.model.naming import Naming, Piece
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec


class Outgoing(NamedTuple):
    """A tensor to be written: its name in the file, its shape there, and where it comes from;
    `groups` where it lies in groups already, which are then not to be rounded again.
    """

    name: str
    shape: tuple[int, ...]
    take: Callable[[], Tensor]
    groups: Callable[[], Groups] | None = None


def outgoing(
    weights: Mapping[str, Tensor], spec: ModelSpec, naming: Naming,
    groups: Mapping[str, Groups] = MappingProxyType({}),
) -> list[Outgoing]:  # fmt: skip
    """Every tensor of the files, in the order of our parameters; of `groups` by our names. Nothing
    is read yet.

    Raises BadInput where the weights lack a parameter of the spec, or the family has no place for
    one.
    """
    shapes = parameters(spec)
    if missing := [name for name in shapes if name not in weights]:
        raise BadInput(f"the weights lack {missing[0]}", hint="export an untouched checkpoint")
    last = _Last(weights, groups)
    found: list[Outgoing] = []
    for name, shape in shapes.items():
        pieces = naming.pieces(name, spec)
        if not pieces:
            raise BadInput(
                f"the family has no place for {name}", hint="export to another format or family"
            )
        found += _of_parameter(name, shape, pieces, spec, last)
    return found


def parameters(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shapes of our parameters, by name."""
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    return {name: tuple(each.shape) for name, each in model.named_parameters()}


class _Last:
    """Weights of which the last one that was asked for is kept: its pieces follow each other."""

    def __init__(self, weights: Mapping[str, Tensor], groups: Mapping[str, Groups]) -> None:
        self._weights, self._name, self._tensor = weights, "", torch.empty(0)
        self.groups = groups

    def __call__(self, name: str) -> Tensor:
        if name != self._name:
            self._tensor = torch.empty(0)
            self._name, self._tensor = name, self._weights[name].detach()
        return self._tensor


def _of_parameter(
    name: str, shape: tuple[int, ...], pieces: tuple[Piece, ...], spec: ModelSpec, last: _Last
) -> Iterator[Outgoing]:
    """Its pieces, which lie one below the other in it, or in the part of an expert."""
    for expert, several in groupby(pieces, key=lambda piece: piece.expert):
        group = list(several)
        whole = shape if expert is None else shape[1:]
        # Experts that lie in one tensor are joined by the rows of each.
        dim = 1 if expert is None and ".experts.each." in name else 0
        at = 0
        for piece, rows in zip(group, _rows(whole[dim], len(group), spec), strict=True):

            def take(
                piece: Piece = piece, dim: int = dim, at: int = at, rows: int = rows
            ) -> Tensor:
                ours = last(name) if piece.expert is None else last(name)[piece.expert]
                return piece.lay.theirs(ours.narrow(dim, at, rows), spec)

            def packed(piece: Piece = piece, at: int = at, rows: int = rows) -> Groups:
                return last.groups[name].moved(
                    lambda ours: piece.lay.theirs(ours.narrow(0, at, rows), spec)
                )

            part = torch.empty((*whole[:dim], rows, *whole[dim + 1 :]), device="meta")
            yield Outgoing(
                piece.name, tuple(piece.lay.theirs(part, spec).shape), take,
                packed if name in last.groups else None,
            )  # fmt: skip
            at += rows


def _rows(total: int, pieces: int, spec: ModelSpec) -> tuple[int, ...]:
    """Three are queries, keys and values; two are halves."""
    if pieces == 3:
        K = spec.kv_heads * spec.head_width
        return total - 2 * K, K, K
    return (total // pieces,) * pieces
