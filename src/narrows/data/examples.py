"""Rows of examples prepared for an objective: tokens, which of them are to be learned, and values.

corpus, objective, words → NARROWS_HOME/data/DIGEST: dataset.json, {train,validation}.*.npy
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from narrows.data import published, rows, teaching, tokenizers
from narrows.data.prepare import MANIFEST
from narrows.data.published import Words
from narrows.data.rows import Row
from narrows.data.staging import SPLITS, Split
from narrows.data.teaching import Document
from narrows.data.tokenizers import Tokenizer
from narrows.spec.dataset import Dataset, Examples
from narrows.spec.errors import BadInput
from narrows.spec.home import narrows_home
from narrows.spec.job import DataSpec
from narrows.spec.objective import Classify, Objective, Prefer
from narrows.spec.record import load, to_json, write_atomically

VERSION = 5  # of all that turns rows into tokens
Talk = Callable[[str], None]


def prepare(spec: DataSpec, objective: Objective, words: Path | None, *, talk: Talk) -> Dataset:
    """The rows at `spec.corpus` as `objective` needs them, prepared unless they already are.
    `words` is a folder with the tokenizer and template of the model that training starts from;
    without one a tokenizer is made of the rows' texts.

    Raises BadInput, with the row, where one cannot be used.
    """
    corpus = Path(spec.corpus).expanduser()
    digest = _digest(spec, objective, corpus, words)
    final = narrows_home() / "data" / digest
    if (final / MANIFEST).is_file():
        return load(Dataset, final / MANIFEST)
    talk(f"preparing the rows of {corpus}")
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        dataset = _filled(partial, final, spec, objective, words, talk)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return dataset


def _filled(
    partial: Path, final: Path, spec: DataSpec, objective: Objective, words: Path | None,
    talk: Talk,
) -> Dataset:  # fmt: skip
    """All files in the folder `partial`, the manifest last; they are to be in `final`."""
    corpus = Path(spec.corpus).expanduser()
    found = list(rows.rows(corpus))
    if not found:
        raise BadInput(f"{corpus} has no rows", hint='{"text": "...", "label": "..."}')
    used = _words(spec, objective, found, words)
    published.save(used, partial)
    labels = _labels(objective, found) if isinstance(objective, Classify) else ()
    splits = _divided(spec, found)
    written = {
        split: _write(partial, spec, split, teaching.documents(each, objective, used, labels))
        for split, each in splits.items()
    }
    train, validation = (written[split] for split in SPLITS)
    if long := train.long + validation.long:
        talk(f"{long} rows have more than {spec.longest} tokens and are left out")
    if (examples := train.rows + validation.rows + train.long + validation.long) > len(found):
        talk(
            f"{len(found)} rows are {examples} examples: the chat template renders the past of a "
            "conversation otherwise when it goes on, so that its answers are learned one by one"
        )
    longest = max((train.longest, validation.longest))
    dataset = Dataset(
        name=corpus.stem, folder=str(final), digest=final.name, dtype="uint32",
        vocabulary=used.tokenizer.vocabulary,
        tokens_train=train.tokens, tokens_validation=validation.tokens,
        bytes_train=train.bytes, bytes_validation=validation.bytes, documents=len(found),
        dropped=(), shards=(), end_of_document=used.tokenizer.end_of_document,
        examples=Examples(
            rows_train=train.rows, rows_validation=validation.rows, longest=longest[0],
            longest_row=longest[1], attended=train.attended, learned_train=train.learned,
            labels=labels,
            documents=2 if isinstance(objective, Prefer) else 1,
            files=train.files | validation.files,
        ),
    )  # fmt: skip
    write_atomically(partial / MANIFEST, to_json(dataset).encode())
    return dataset


class _Written(NamedTuple):
    """What a split came to."""

    rows: int
    tokens: int
    bytes: int
    learned: int
    attended: float
    long: int
    longest: tuple[int, str]
    files: dict[str, str]


def _digest(spec: DataSpec, objective: Objective, corpus: Path, words: Path | None) -> str:
    said = hashlib.sha256(f"{VERSION}\0{to_json(spec)}\0{to_json(objective)}".encode())
    for file in rows.files(corpus):
        said.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    for file in sorted(words.iterdir()) if words else ():
        said.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"rows-{said.hexdigest()[:24]}"


def _words(spec: DataSpec, objective: Objective, found: list[Row], folder: Path | None) -> Words:
    """The start's tokenizer, or one that is made of what is to be read."""
    if folder is not None:
        return published.of_folder(folder)
    if spec.tokenizer not in tokenizers.TRAINED:
        return Words(Tokenizer(tokenizers.ready_made(spec.tokenizer)), None)
    from narrows.data import training

    texts = [text for row in found for text in teaching.texts(row, objective)]
    if spec.tokenizer == "character":
        counts = Counter(character for text in texts for character in text)
        made = training.character(counts, spec.vocabulary)
    else:
        train = training.bpe if spec.tokenizer == "bpe" else training.unigram
        made = train(texts, spec.vocabulary)
    return Words(Tokenizer(made), None)


def _labels(objective: Classify, found: list[Row]) -> tuple[str, ...]:
    there = sorted({teaching.label(row) for row in found}, key=_in_order)
    if objective.labels:
        return objective.labels
    if len(there) < 2:
        raise BadInput(
            f"every row has the label {there[0]}: there is nothing to tell apart",
            hint="give rows of at least two labels",
        )
    if len(there) > max(2, len(found) // 2):
        raise BadInput(
            f"{len(found)} rows have {len(there)} labels: these are no classes",
            hint="is this a number to be predicted? --set train.objective.type=regress"
            if all(_in_order(each)[0] < math.inf for each in there)
            else "give more rows of each class, or name all classes in train.objective.labels",
        )
    return tuple(there)


def _in_order(label: str) -> tuple[float, str]:
    try:
        return float(label), label
    except ValueError:
        return math.inf, label


def _divided(spec: DataSpec, found: list[Row]) -> dict[Split, list[Row]]:
    """By the names of their files, else by their own hashes, so that equal rows stay together."""
    if any(row.split == "validation" for row in found):
        named: dict[Split, list[Row]] = {"train": [], "validation": []}
        for row in found:
            named[row.split or "train"].append(row)
        divided = named
    else:
        divided = {"train": [], "validation": []}
        below = int(spec.validation * 2**64)
        for row in found:
            held = int.from_bytes(_hash(row)[:8], "little") < below
            divided["validation" if held else "train"].append(row)
    for split, there in divided.items():
        if not there:
            raise BadInput(
                f"none of {len(found)} rows is left for the {split} split",
                hint="give more rows" + _instead(found),
            )
    return divided


def _instead(found: list[Row]) -> str:
    """The share of unnamed rows that leaves some for both splits, nearest to a fifth."""
    places = sorted(int.from_bytes(_hash(row)[:8], "little") / 2**64 for row in found)
    shares = [n / 100 for n in range(1, 100) if places[0] < n / 100 <= places[-1]]
    if any(row.split == "validation" for row in found) or not shares:
        return ""
    return f", or --set data.validation={min(shares, key=lambda share: abs(share - 0.2))}"


def _hash(row: Row) -> bytes:
    said = sorted((str(name), str(value)) for name, value in row.fields.items())
    return hashlib.blake2b(repr(said).encode(), digest_size=8).digest()


def _write(
    folder: Path, spec: DataSpec, split: Split, found: Iterator[tuple[Row, list[Document]]]
) -> _Written:
    tokens: list[np.ndarray] = []
    learned: list[np.ndarray] = []
    lengths: list[int] = []
    values: list[float] = []
    count, size, longest, long = 0, 0, (0, ""), 0
    for row, documents in found:
        total = sum(len(each.tokens) for each in documents)
        if spec.longest is not None and total > spec.longest:
            long += 1
            continue
        count += 1
        for each in documents:
            tokens.append(np.array(each.tokens, dtype=np.uint32))
            learned.append(np.array(each.learned, dtype=np.uint8))
            lengths.append(len(each.tokens))
            values.append(each.value)
            size += each.bytes
        longest = max(longest, (total, row.place))
    if not count:
        raise BadInput(
            f"all {long} rows of the {split} split have more than {spec.longest} tokens",
            hint="--set data.longest=N with a larger N",
        )
    arrays = {
        "tokens": np.concatenate(tokens), "learned": np.concatenate(learned),
        "lengths": np.array(lengths, dtype=np.int64), "values": np.array(values),
    }  # fmt: skip
    files = {}
    for name, array in arrays.items():
        path = folder / f"{split}.{name}.npy"
        np.save(path, array)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    taught = np.isfinite(arrays["values"]).sum() or arrays["learned"].sum()
    squares = sum(each * each for each in lengths) / sum(lengths)
    return _Written(count, sum(lengths), size, int(taught), squares, long, longest, files)
