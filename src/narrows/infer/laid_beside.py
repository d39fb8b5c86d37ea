"""An adapter laid out in one file, as it stands beside a packed model: torch alone reads PEFT's.

keep(lows, path);   kept(path, layers) → PackedAdapter
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from narrows.kernels.low_rank import Bits, Low, PackedAdapter
from narrows.spec.record import write_atomically

Lows = Mapping[tuple[int, str], Sequence[Low]]
"""Beside each matrix of each layer that the adapter changes."""


def keep(lows: Lows, path: Path) -> None:
    """Write them, whole or not at all."""
    arrays = dict[str, Bits]()
    for (layer, matrix), parts in lows.items():
        for first, last, a_RD, b_XR in parts:
            within = f"{layer} {matrix} {first} {last}"
            arrays[f"{within} a"], arrays[f"{within} b"] = a_RD, b_XR
    content = BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_atomically(path, content.getvalue())


def kept(path: Path, layers: int) -> PackedAdapter | None:
    """The adapter of a model of so many layers; None where it is not there, or not whole."""
    lows = dict[tuple[int, str], list[Low]]()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                layer, matrix, first, last, half = name.split()
                if half == "a":
                    low = Low(int(first), int(last), arrays[name], arrays[f"{name[:-1]}b"])
                    lows.setdefault((int(layer), matrix), []).append(low)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return PackedAdapter(layers, lows)
