"""A prepared dataset: what the plan needs to know of it and where its shards lie."""

from __future__ import annotations

from typing import Literal

from narrows.spec.errors import BadInput
from narrows.spec.record import Record


class Shard(Record):
    """A memory-mapped file of token ids, with the offsets at which its documents begin."""

    file: str
    split: Literal["train", "validation"]
    tokens: int
    documents: int
    sha256: str


class Dropped(Record):
    """Documents that a filter removed, and why."""

    reason: str
    documents: int
    bytes: int


class Examples(Record):
    """What is known of a dataset of rows: how many each split has, which is the longest, and where
    one of `labels` is to be said of each, those. Each row is `documents` documents, of which
    `learned_train` tokens or values are to be learned; the mean token stands in one of `attended`
    tokens. sha256 by file.
    """

    rows_train: int
    rows_validation: int
    longest: int
    longest_row: str
    learned_train: int
    attended: float
    documents: int = 1
    labels: tuple[str, ...] = ()
    files: dict[str, str]

    def refuse_longer(self, context: int, most: int | None = None) -> None:
        """Raises BadInput where an example is longer than that: none is ever cut. `most`: what a
        published model reads at most.
        """
        if self.longest > context:
            rounded = -(-self.longest // 64) * 64
            needed = min(rounded, most or rounded)
            longer = f"--set model.context={needed}"
            without = f"leave longer rows out: --set data.longest={context}"
            raise BadInput(
                f"{self.longest_row} has {self.longest:,} tokens, and the context is {context:,}",
                hint=f"{longer}, or {without}" if needed >= self.longest else without,
            )


class Dataset(Record):
    """The manifest (`dataset.json`) of a prepared corpus: running text in shards, or `examples`.
    `bytes_*` count UTF-8 text.
    """

    name: str
    folder: str
    digest: str
    vocabulary: int
    dtype: Literal["uint16", "uint32"]
    tokens_train: int
    tokens_validation: int
    bytes_train: int
    bytes_validation: int
    documents: int
    dropped: tuple[Dropped, ...]
    shards: tuple[Shard, ...]
    end_of_document: int
    examples: Examples | None = None

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a validation token stands for: turns loss into bits per byte."""
        return self.bytes_validation / max(1, self.tokens_validation)
