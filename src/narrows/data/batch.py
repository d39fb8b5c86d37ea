"""What a step reads: tokens, what is to be said at each, and where documents end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of `T` tokens. A target is the token to be said at a place, negative where none is.

    `documents` are, of each row, the lengths of what stands in it side by side, what is empty at
    its end last; None where a row is one text. `values` are what is to be said of each document.
    """

    inputs_BT: Ids
    targets_BT: Ids
    documents: tuple[tuple[int, ...], ...] | None = None
    values: tuple[tuple[float, ...], ...] | None = None

    @staticmethod
    def of(tokens_BT: Ids) -> Batch:
        """Of running text [B,T+1]: at each place the token that follows."""
        return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:])
