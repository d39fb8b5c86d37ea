"""Arrays of numpy, by what they hold: what is computed with where torch is not needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Octets = npt.NDArray[np.uint8]

_LINE = 64


def lined(shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Uninitialised, from a cache line's beginning on."""
    of, count = np.dtype(dtype), math.prod(shape)
    whole = np.empty(count * of.itemsize + _LINE, np.uint8)
    first = -whole.ctypes.data % _LINE
    return whole[first : first + count * of.itemsize].view(of).reshape(shape)
