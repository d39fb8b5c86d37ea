"""Running text with some of its tokens masked, for a model that reads both ways."""

from __future__ import annotations

from typing import final

import numpy as np

from narrows.data import order
from narrows.data.batch import Batch
from narrows.data.loader import Loader

_MASKED, _REPLACED = 0.8, 0.9
"""Of the chosen tokens: masked up to here, then replaced, then as they are (arXiv:1810.04805)."""


@final
class Masking:
    """Rows of a loader, a `share` of whose tokens are to be told; `mask` is the token that hides
    one. What is drawn for a row depends on the seed and the row's number alone.
    """

    def __init__(self, loader: Loader, share: float, mask: int, seed: int) -> None:
        self.loader, self.share, self.mask, self.seed = loader, share, mask, seed

    def sequences(self, first: int, count: int) -> Batch:
        """Rows `first` up to `first + count`."""
        tokens_BT = self.loader.sequences(first, count)[:, :-1]
        inputs_BT, targets_BT = tokens_BT.copy(), np.full_like(tokens_BT, -1)
        for row, number in enumerate(range(first, first + count)):
            drawn = np.random.default_rng(order.number(self.seed, number, 7))
            ways_T = np.asarray(drawn.random(tokens_BT.shape[1:]))
            # At least one, so that no row teaches nothing.
            wanted = max(1, round(self.share * len(ways_T)))
            chosen_C = drawn.permutation(len(ways_T))[:wanted]
            targets_BT[row, chosen_C] = tokens_BT[row, chosen_C]
            hidden_C = ways_T[chosen_C] < _MASKED
            other_C = (ways_T[chosen_C] >= _MASKED) & (ways_T[chosen_C] < _REPLACED)
            inputs_BT[row, chosen_C[hidden_C]] = self.mask
            any_C = drawn.integers(0, self.mask, int(other_C.sum()))
            inputs_BT[row, chosen_C[other_C]] = any_C
        return Batch(inputs_BT, targets_BT)
