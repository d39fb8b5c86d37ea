"""What a model said at first of the answers that it is to prefer: DPO's reference.

Computed once, before the first step, and kept in the run folder: no second model is held while
training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from narrows.data.packed import Packed
from narrows.data.staging import Split
from narrows.parallel.collectives import add_up
from narrows.spec.errors import BadInput
from narrows.train.objectives import log_probabilities
from narrows.train.step import Trainer, rows_of


def refer(trainer: Trainer, feeds: dict[Split, Packed], run: Path, *, resume: bool) -> None:
    """Give each document of the feeds the logarithm of the probability that it had at first."""
    for split, feed in feeds.items():
        path = run / f"reference-{split}.npy"
        if resume:
            if not path.is_file():
                raise BadInput(
                    f"{path} is missing, without which preferences cannot be compared",
                    hint="train again from the start, or copy the whole run folder",
                )
            feed.replace_values(np.load(path))
            continue
        values = _computed(trainer, feed)
        if trainer.ranks.first:
            np.save(path, values)
        feed.replace_values(values)


@torch.no_grad()
def _computed(trainer: Trainer, feed: Packed) -> np.ndarray:
    """Every rank takes every so many rows, the sum is all of them."""
    axis, micro = trainer.ranks.batches, trainer.plan.layout.micro_batch
    found = torch.zeros(len(feed.lengths), dtype=torch.float64, device=trainer.device)
    trainer.model.eval()
    for first in range(0, feed.windows, micro * axis.size):
        start = first + axis.rank * micro
        numbers = [number for number in range(start, start + micro) if number < feed.windows]
        # All compute as often; who has no row left does the last one again for nothing.
        rows = rows_of(feed.rows(numbers or [feed.windows - 1]), trainer.device)
        said_N = log_probabilities(trainer.model, rows, trainer.plan.layout.loss_chunk)
        if numbers:
            own = [document for number in numbers for document in feed.numbers(number)]
            found[own] = said_N.double()
    trainer.model.train()
    return add_up(found, axis).cpu().numpy()
