"""What a rule keeps of a parameter between steps: in fp32, in bf16, or in 8 bits by blocks.

In 8 bits a value is one of 256 fractions of the largest in its block of 256, close together near
nought and evenly spread above (arXiv:2110.02861); a state that is never negative has a set of its
own. A rule sees fp32 in any case: what is kept in fewer bits is opened, a piece at a time, and
closed behind the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from narrows.kernels.interface import Code, Kernels, Master
from narrows.spec.optimizer import BLOCK, Kept
from narrows.train.offload import Place, Room

_NEVER_NEGATIVE = ("second",)
_OF_ANOTHER_SHAPE = ("rows", "columns", "mass")
_DECADES = 7
_DTYPES = {32: torch.float32, 16: torch.bfloat16, 8: torch.uint8}
SCALES = "_scales"
"""Behind the kind of a state in 8 bits: the name of its blocks' largest values."""


def rooms(what: Kept, name: str) -> dict[str, Room]:
    """The memory that a state of the parameter `name` needs, by the names of its tensors."""
    found = {f"{what.kind}.{name}": Room(what.shape, _DTYPES[what.bits])}
    if what.scales:
        found[f"{what.kind}{SCALES}.{name}"] = Room((what.scales,), torch.float32)
    return found


class State:
    """One tensor that a rule keeps of the parameter `name`, nought at first; an anchor or an
    average begins with the master.
    """

    def __init__(
        self, what: Kept, name: str, master: Master, kernels: Kernels, place: Place
    ) -> None:
        self.kind, self.bits = what.kind, what.bits
        self._kernels = kernels
        self.values = place.room(f"{what.kind}.{name}")
        self.scales: Tensor | None = None
        if what.bits == 8:
            self.scales = place.room(f"{what.kind}{SCALES}.{name}")
            with place.using([self.values]):
                self.values.fill_(_NOUGHT[self.signed])
        if what.kind in ("anchor", "average"):
            with place.using([self.values]):
                self.values.copy_(kernels.values(master))

    @property
    def signed(self) -> bool:
        """Whether its values may be negative."""
        return self.kind not in _NEVER_NEGATIVE

    def tensors(self) -> dict[str, Tensor]:
        """By kind, as a checkpoint keeps them."""
        scales = {} if self.scales is None else {self.kind + SCALES: self.scales}
        return {self.kind: self.values, **scales}

    def piece(self, start: int, stop: int) -> Iterator[Tensor]:
        """The memory of the flat values from `start` to `stop`; of what is kept for whole rows,
        columns or parameters, all.
        """
        whole = self.kind in _OF_ANOTHER_SHAPE
        yield self.values if whole else self.values.view(-1)[start:stop]
        if self.scales is not None:
            yield self.scales[start // BLOCK : -(-stop // BLOCK)]

    @contextmanager
    def opened(self, start: int, stop: int) -> Iterator[Tensor]:
        """The flat values from `start`, which begins a block, to `stop`, in fp32; what is changed
        in place is kept.
        """
        piece = self.values.view(-1)[start:stop]
        if self.bits == 32:
            yield piece
            return
        if self.bits == 16:
            wide = piece.to(torch.float32)
            yield wide
            piece.copy_(wide)
            return
        assert self.scales is not None
        scales = self.scales[start // BLOCK : -(-stop // BLOCK)]
        meant = code(self.signed, piece.device)
        wide = self._kernels.decoded(piece, scales, meant)
        yield wide
        piece.copy_(self._kernels.encoded(wide, scales, meant))


@cache
def code(signed: bool, device: torch.device) -> Code:
    """The one of states that may be negative, or of the others."""
    levels = _levels(signed).to(device)
    return Code(levels, (levels[1:] + levels[:-1]) / 2)


@cache
def _levels(signed: bool) -> Tensor:
    """The 256 shares of a block's largest value that codes stand for, in rising order: of each
    decade below one twice as many as of the one before it, evenly spread; nought, and one.
    """
    levels = [0.0, 1.0]
    for place in range(_DECADES):
        count = 2 ** (place + 1 - signed)
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        decade = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (place + 1 - _DECADES)
        levels += decade.tolist()
        if signed:
            levels += (-decade).tolist()
    return torch.tensor(sorted(levels), dtype=torch.float32)


_NOUGHT = {signed: int((_levels(signed) == 0.0).nonzero()) for signed in (False, True)}
