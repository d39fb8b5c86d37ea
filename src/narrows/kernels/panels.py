"""Matrices in the panels that native/quantized.h computes with."""

from __future__ import annotations

from typing import NamedTuple

from narrows.kernels.arrays import Floats, Octets

PANEL, GROUP, NEST = 16, 32, 8
PARTS_MOST = 3
"""Kinds that a matrix may lie in."""

WHOLE = 16
"""Bits of values that are no codes."""


class Part(NamedTuple):
    """Rows of a matrix that lie in one kind of panels [rows / 16, bytes], the last filled up."""

    panels: Octets
    rows: int
    bits: int
    nested: bool
    centred: bool


class Packed(NamedTuple):
    """A matrix in parts, one below the other, and its bias, filled up to whole panels."""

    parts: tuple[Part, ...]
    bias: Floats | None
    columns: int

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Of the panels."""
        return sum(part.panels.nbytes for part in self.parts)

    @property
    def bits(self) -> int:
        """Of a code; the most that any part has."""
        return max(part.bits for part in self.parts)
