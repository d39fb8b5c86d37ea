"""Examples packed into rows of the context, in an order that the seed alone decides."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import final

import numpy as np

from narrows.data import bins, order
from narrows.data.batch import Batch
from narrows.data.staging import Split
from narrows.spec.dataset import Dataset, Examples
from narrows.spec.errors import BadInput


@final
class Packed:
    """Rows of examples of one split, by their number: 0, 1, 2 and on through as many epochs as one
    likes. Row n is the same whoever asks for it, in whatever batches.

    Which examples share a row is fixed; each epoch shuffles the rows. With `alone` every example
    has a row of its own. The first token of an example is predicted from nothing, so it is not.
    """

    def __init__(
        self, dataset: Dataset, split: Split, context: int, seed: int, *, alone: bool = False
    ) -> None:
        """Opens and verifies the files; BadInput for a damaged one or an example too long."""
        known = dataset.examples
        assert known is not None
        known.refuse_longer(context)
        folder = Path(dataset.folder)
        self._tokens, self._learned, lengths, self._values = (
            _verified(folder / f"{split}.{name}.npy", known)
            for name in ("tokens", "learned", "lengths", "values")
        )
        self._ends = np.cumsum(lengths)
        self.lengths, self._each = lengths, known.documents
        units = lengths.reshape(-1, known.documents)
        count = len(units)
        self._rows = [[unit] for unit in range(count)] if alone else bins.packed(
            units.sum(axis=1).tolist(), context
        )  # fmt: skip
        self._context, self._seed = context, seed
        self.examples, self.windows, self.tokens = count, len(self._rows), int(lengths.sum())

    def sequences(self, first: int, count: int) -> Batch:
        """Rows `first` up to `first + count`."""
        epochs, items = np.divmod(np.arange(first, first + count, dtype=np.int64), self.windows)
        numbers = [
            int(order.shuffled(items[[at]], self.windows, seed=self._seed, epoch=epoch)[0])
            for at, epoch in enumerate(epochs.tolist())
        ]
        return self.rows(numbers)

    def rows(self, numbers: list[int]) -> Batch:
        """The rows of these numbers in the order in which they were packed."""
        inputs_BT = np.zeros((len(numbers), self._context), dtype=np.int64)
        targets_BT = np.full_like(inputs_BT, -1)
        lengths, values = [], []
        for row, number in enumerate(numbers):
            at = 0
            own = [document for unit in self._rows[number] for document in self._of(unit)]
            for document in own:
                end, size = int(self._ends[document]), int(self.lengths[document])
                tokens = self._tokens[end - size : end].astype(np.int64)
                learned = self._learned[end - size : end].astype(bool)
                inputs_BT[row, at : at + size] = tokens
                targets_BT[row, at : at + size - 1] = np.where(learned[1:], tokens[1:], -1)
                at += size
            sizes = [int(self.lengths[document]) for document in own]
            lengths.append((*sizes, *([self._context - at] if at < self._context else [])))
            values.append(tuple(float(self._values[document]) for document in own))
        return Batch(inputs_BT, targets_BT, tuple(lengths), tuple(values))

    def replace_values(self, values: np.ndarray) -> None:
        """Give every document another value, by its number."""
        assert values.shape == self._values.shape
        self._values = values

    def numbers(self, row: int) -> list[int]:
        """The documents of a row of `rows`."""
        return [document for unit in self._rows[row] for document in self._of(unit)]

    def _of(self, unit: int) -> range:
        return range(unit * self._each, (unit + 1) * self._each)


def _verified(path: Path, known: Examples) -> np.ndarray:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        found = error.strerror or "unreadable"
    if found != known.files[path.name]:
        raise BadInput(
            f"{path} is not what was prepared",
            hint=f"rm -r {path.parent}: the next run prepares it again",
        )
    return np.load(path, mmap_mode="r")
