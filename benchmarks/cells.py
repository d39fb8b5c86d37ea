"""A row's cells, however their numbers are spelt."""

from __future__ import annotations

import math
import re

Row = dict[str, str]
_THOUSANDS = {"k": 1024.0, "": 1.0}


def number(row: Row, column: str) -> float | None:
    """A cell as a number, or None: "1,024", "4k" and "6.7B" are some."""
    told = row.get(column, "").lower()
    try:
        return float(told)
    except ValueError:
        found = re.search(r"(\d[\d,]*\.?\d*)(k?)", told)
        return float(found[1].replace(",", "")) * _THOUSANDS[found[2]] if found else None


def size(row: Row, column: str) -> float | None:
    """A number that is more than nothing, or None."""
    told = number(row, column)
    return told if told is not None and 0.0 < told < math.inf else None
