from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrows.data.batch import Batch
from narrows.data.loader import Loader
from narrows.data.masking import Masking

from .test_loader import written

MASK = 20_001


def masking(folder: Path, *, share: float = 0.15, seed: int = 4, context: int = 100) -> Masking:
    loader = Loader(written(folder, (20_000,)), "train", context, seed=1)
    return Masking(loader, share, MASK, seed)


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_a_share_is_told_and_most_of_it_hidden(share: float, tmp_path: Path) -> None:
    """Four fifths masked, a tenth replaced, a tenth as it is, each within four deviations."""
    made = masking(tmp_path, share=share)
    batch = made.sequences(0, 200)
    text_BT = made.loader.sequences(0, 200)[:, :-1]
    told = batch.targets_BT >= 0
    assert (told.sum(axis=1) == round(100 * share)).all()
    assert (batch.targets_BT[told] == text_BT[told]).all()
    assert (batch.inputs_BT[~told] == text_BT[~told]).all()
    read = batch.inputs_BT[told]
    kept, hidden = read == text_BT[told], read == MASK
    for part, expected in ((hidden, 0.8), (kept, 0.1), (~kept & ~hidden, 0.1)):
        deviation = (expected * (1 - expected) / len(read)) ** 0.5
        assert abs(part.mean() - expected) < 4 * deviation + 1 / MASK
    assert (batch.inputs_BT <= MASK).all() and (batch.inputs_BT >= 0).all()


def test_a_row_is_hidden_alike_whatever_the_batches(tmp_path: Path) -> None:
    made = masking(tmp_path)
    whole = made.sequences(5, 12)
    again = masking(tmp_path)
    parts = [again.sequences(5, 1), again.sequences(6, 7), again.sequences(13, 4)]
    for number in (0, 1):
        assert (np.concatenate([part[number] for part in parts]) == whole[number]).all()
    other = masking(tmp_path, seed=5).sequences(5, 12)
    assert ((other.targets_BT >= 0) != (whole.targets_BT >= 0)).any()


def test_each_epoch_hides_other_tokens(tmp_path: Path) -> None:
    made = masking(tmp_path)
    chosen = [told(made.sequences(number, 1)) for number in range(40)]
    assert len(set(chosen)) == 40


def test_no_row_teaches_nothing(tmp_path: Path) -> None:
    batch = masking(tmp_path, share=0.001).sequences(0, 30)
    assert ((batch.targets_BT >= 0).sum(axis=1) == 1).all()
    assert batch.documents is None and batch.values is None


def told(batch: Batch) -> tuple[int, ...]:
    return tuple(np.flatnonzero(batch.targets_BT[0] >= 0).tolist())
