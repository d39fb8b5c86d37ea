"""A batch that grows while training goes on."""

from __future__ import annotations

from narrows.spec.record import Record, at_least


class BatchRamp(Record):
    """An update reads twice as many sequences, up to `most_sequences`, as soon as the gradients'
    noise scale is no smaller than what it then reads: up to there a larger batch costs no data
    (arXiv:1812.06162). It begins with the batch of a step, and never falls back.
    """

    most_sequences: int

    def __post_init__(self) -> None:
        at_least(1, self, "train.batch_ramp", "most_sequences")

    def times_most(self, batch_sequences: int) -> int:
        """Of how many steps an update reads the data at most: a power of two."""
        return 1 << max(0, (self.most_sequences // batch_sequences).bit_length() - 1)
