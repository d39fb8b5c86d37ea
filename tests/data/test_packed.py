from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.data import examples
from narrows.data.packed import Packed
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.job import DataSpec
from narrows.spec.objective import Chat, Objective, Prefer, Regress

CONTEXT = 32


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, objective: Objective) -> Dataset:
    """A hundred rows of 4 to 21 tokens and more, whose values are their numbers."""
    monkeypatch.setenv("NARROWS_HOME", str(folder / "home"))
    path = folder / "rows.jsonl"
    lines = (
        {"text": f"{n:3}" + "x" * (n % 17), "value": n, "prompt": f"{n:3}",
         "answer": "y" * (n % 9 + 1), "chosen": "yes", "rejected": "no" * (n % 5 + 1)}
        for n in range(100)
    )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = DataSpec(corpus=str(path), tokenizer="character", vocabulary=64, validation=0.2)
    return examples.prepare(spec, objective, None, talk=lambda text: None)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    return prepared(tmp_path, monkeypatch, Regress())


def test_an_epoch_is_every_example_once(dataset: Dataset) -> None:
    packed = Packed(dataset, "train", CONTEXT, seed=3)
    known = dataset.examples
    assert known and packed.examples == known.rows_train and packed.windows < packed.examples / 2
    for epoch in range(3):
        found = packed.sequences(epoch * packed.windows, packed.windows)
        values = [value for row in found.values or () for value in row]
        assert len(set(values)) == len(values) == packed.examples
    alone = Packed(dataset, "train", CONTEXT, seed=3, alone=True)
    assert alone.windows == alone.examples
    assert all(len(row) == 1 for row in alone.sequences(0, alone.windows).values or ())


def test_a_row_is_its_documents_and_what_is_empty(dataset: Dataset) -> None:
    packed = Packed(dataset, "train", CONTEXT, seed=0)
    batch = packed.sequences(0, packed.windows)
    assert batch.documents and batch.values
    folder = Path(dataset.folder)
    tokens, values = (np.load(folder / f"train.{name}.npy") for name in ("tokens", "values"))
    ends = np.cumsum(np.load(folder / "train.lengths.npy"))
    for row, sizes, own in zip(batch.inputs_BT, batch.documents, batch.values, strict=True):
        assert sum(sizes) == CONTEXT and len(sizes) - len(own) in (0, 1)
        at = 0
        for size, value in zip(sizes, own, strict=False):
            number = int(np.flatnonzero(values == value)[0])
            assert (row[at : at + size] == tokens[ends[number] - size : ends[number]]).all()
            at += size
        assert not row[at:].any()


def test_what_follows_is_learned_within_a_document_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepared(tmp_path, monkeypatch, Chat())
    packed = Packed(dataset, "train", CONTEXT, seed=0)
    batch = packed.sequences(0, packed.windows)
    assert batch.documents and dataset.examples
    for inputs, targets, sizes in zip(
        batch.inputs_BT, batch.targets_BT, batch.documents, strict=True
    ):
        said = np.flatnonzero(targets >= 0)
        assert (inputs[said + 1] == targets[said]).all()
        lasts = np.cumsum(sizes) - 1
        assert (targets[lasts] == -1).all()  # what comes next is another's
        for last, size in zip(lasts, sizes, strict=True):
            own = targets[last - size + 1 : last + 1]
            # Of the three digits none, of the answer and its end all; of what is empty nothing.
            assert (own >= 0).sum() in (0, size - 3) and (own[:2] == -1).all()
    assert (batch.targets_BT >= 0).sum() == dataset.examples.learned_train


def test_both_answers_share_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Packed(prepared(tmp_path, monkeypatch, Prefer()), "train", 40, seed=0)
    assert all(len(packed.numbers(row)) % 2 == 0 for row in range(packed.windows))
    assert sorted(each for row in range(packed.windows) for each in packed.numbers(row)) == list(
        range(2 * packed.examples)
    )
    for row in range(packed.windows):
        pairs = packed.numbers(row)
        assert all(two == one + 1 for one, two in zip(pairs[::2], pairs[1::2], strict=True))


@given(st.integers(0, 200), st.lists(st.integers(1, 30), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_batches_and_any_start_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, first: int, sizes: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "packed"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        dataset = prepared(folder, monkeypatch, Regress())
    whole = Packed(dataset, "train", CONTEXT, seed=1).sequences(first, sum(sizes))
    resumed, place = Packed(dataset, "train", CONTEXT, seed=1), first
    parts = []
    for size in sizes:
        parts.append(resumed.sequences(place, size))
        place += size
    for mine, theirs in zip(
        whole[:2], zip(*(part[:2] for part in parts), strict=True), strict=True
    ):
        assert (np.concatenate(theirs) == mine).all()
    assert whole.documents == tuple(row for part in parts for row in part.documents or ())
    assert whole.values == tuple(row for part in parts for row in part.values or ())


def test_the_seed_alone_decides_the_order(dataset: Dataset) -> None:
    def order(seed: int, first: int = 0) -> list[tuple[float, ...]]:
        packed = Packed(dataset, "train", CONTEXT, seed)
        return list(packed.sequences(first, packed.windows).values or ())

    windows = Packed(dataset, "train", CONTEXT, 0).windows
    assert order(1) == order(1)
    assert order(1) != order(2) and sorted(order(1)) == sorted(order(2))
    assert order(1) != order(1, windows) and sorted(order(1)) == sorted(order(1, windows))


@pytest.mark.parametrize("name", ["tokens", "learned", "lengths", "values"])
def test_a_file_that_changed_is_noticed(name: str, dataset: Dataset) -> None:
    path = Path(dataset.folder) / f"train.{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"train.{name}.npy is not what was prepared") as caught:
        Packed(dataset, "train", CONTEXT, 0)
    assert caught.value.hint == f"rm -r {dataset.folder}: the next run prepares it again"
    path.unlink()
    with pytest.raises(BadInput, match="is not what was prepared"):
        Packed(dataset, "train", CONTEXT, 0)
    assert Packed(dataset, "validation", CONTEXT, 0).windows > 0


def test_an_example_longer_than_the_context_is_named(dataset: Dataset) -> None:
    known = dataset.examples
    assert known
    with pytest.raises(BadInput, match=rf"rows.jsonl line \d+ has {known.longest} tokens"):
        Packed(dataset, "train", known.longest - 1, 0)
    assert Packed(dataset, "train", known.longest, 0).windows
