"""Adapters as native/low_rank.h multiplies with them: beside packed matrices, in bf16.

PackedAdapter(layers, {(0, "qkv"): [Low(...), …], …}) → of a Run
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from narrows.kernels.panels import PANEL

Bits = npt.NDArray[np.uint16]
RANKS = 4
"""Of A that many rows are computed together."""
_PARTS_MOST = 3
_P, _I = ctypes.c_void_p, ctypes.c_int64

MATRICES = ("qkv", "out", "up", "down")
"""Of a layer, in the order that the decoder has them."""


class Low(NamedTuple):
    """Beside rows `first` to `last` of a matrix, whole panels, a product of A [R,D] and B [X,R],
    with what it is multiplied by in B; the bits of bf16.
    """

    first: int
    last: int
    a_RD: Bits
    b_XR: Bits


class _Part(ctypes.Structure):
    _fields_ = (("b", _P), ("begin", _I), ("end", _I))


class LowRank(ctypes.Structure):
    """Of native/low_rank.h, field by field."""

    _fields_ = (
        ("parts", _Part * _PARTS_MOST), ("a", _P), ("count", _I), ("rank", _I), ("columns", _I),
    )  # fmt: skip


class Adapters(ctypes.Structure):
    """Of native/low_rank.h, field by field."""

    _fields_ = (
        ("rows", _P), ("inner", _P), ("columns", _I), ("whole", _P), ("widest", _I),
    )  # fmt: skip


@final
class PackedAdapter:
    """One for a decoder of so many layers; matrices that it leaves alone are absent."""

    def __init__(self, layers: int, beside: Mapping[tuple[int, str], Sequence[Low]]) -> None:
        self.layers, self._kept = layers, list[Bits]()
        self._matrices = (LowRank * (layers * len(MATRICES)))()
        for (layer, matrix), lows in beside.items():
            at = layer * len(MATRICES) + MATRICES.index(matrix)
            self._matrices[at] = self._packed(lows)

    @property
    def at(self) -> int:
        """Where it lies."""
        return ctypes.addressof(self._matrices)

    @property
    def inner(self) -> int:
        """What lies between A and B of a row, at most."""
        return max(each.count * each.rank for each in self._matrices)

    @property
    def nbytes(self) -> int:
        """Of A and B."""
        return sum(each.nbytes for each in self._kept)

    def _packed(self, lows: Sequence[Low]) -> LowRank:
        assert 0 < len(lows) <= _PARTS_MOST
        rank = max(-(-len(each.a_RD) // RANKS) * RANKS for each in lows)
        a_PD = np.concatenate(
            [np.pad(each.a_RD, ((0, rank - len(each.a_RD)), (0, 0))) for each in lows]
        )
        parts = (_Part * _PARTS_MOST)()
        for part, (first, last, _, b_XR) in zip(parts, lows, strict=False):
            assert first % PANEL == 0 and (last - first) % PANEL == 0, "not of whole panels"
            whole_XR = np.pad(b_XR, ((0, 0), (0, rank - b_XR.shape[1])))
            b_PRX = self._keep(whole_XR.reshape(-1, PANEL, rank).transpose(0, 2, 1))
            part.b, part.begin, part.end = b_PRX.ctypes.data, first // PANEL, last // PANEL
        a = self._keep(a_PD)
        return LowRank(parts, a.ctypes.data, len(lows), rank, a.shape[1])

    def _keep(self, values: Bits) -> Bits:
        self._kept.append(np.ascontiguousarray(values))
        return self._kept[-1]
