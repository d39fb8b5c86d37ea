"""Loss, perplexity and bits per byte of documents, by a window that slides over each.

    document → tokens → windows → nats of the tokens that are new in each

Every token counts once, behind as much as the model can read: the first window counts all of its
own, each further one those that it moved on by. A document begins behind the token that texts begin
with, as an empty prompt does, and its end is not counted: nor do the harness' rolling likelihoods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, final

from narrows.data import corpora, pieces, reading
from narrows.data.windows import beginning
from narrows.evaluate.assessment import Found, Item, Kind, Manner, Texts, metrics
from narrows.evaluate.likelihood import Reader, Reading
from narrows.evaluate.passes import Passes
from narrows.evaluate.progress import Progress, Talk
from narrows.infer.loading import Generator
from narrows.spec.errors import BadInput
from narrows.spec.job import DataSpec

KINDS = (
    Kind(name="loss", form="mean", better="lower"),
    Kind(name="perplexity", form="perplexity", better="lower"),
    Kind(name="bits per byte", form="bits", better="lower"),
)
_HELD = 16
"""Windows that wait to be sorted by their length, for each that is read at once."""


class Window(NamedTuple):
    """Tokens `start` to `stop` of a document, of which those from `first` on are new."""

    start: int
    first: int
    stop: int


def windows(tokens: int, first: int, context: int, stride: int) -> Iterator[Window]:
    """Those of a document of so many tokens, the first of which to count is `first`. A window is
    one token longer than the model reads, as its last is only foretold.
    """
    stop = min(tokens, context + 1)
    yield Window(0, first, stop)
    while stop < tokens:
        new, stop = stop, min(tokens, stop + stride)
        yield Window(stop - context - 1, new, stop)


def read(
    generator: Generator, data: Texts, manner: Manner, passes: Passes, talk: Talk
) -> Found:  # fmt: skip
    """The sums of every document; raises BadInput where there is no text, or it cannot be read."""
    reader = Reader(generator.model, manner.batch, _context(generator, manner), passes)
    stride = _stride(reader.context, manner)
    totals = _Totals(reader, stride, talk)
    unlike = 0
    for number, text in _numbered(data, manner.limit, totals.dropped):
        ids = generator.tokenizer.encode(text)
        unlike += generator.tokenizer.decode(ids) != text
        totals.add(number, text, begin(generator), ids)
    totals.finish()
    items = tuple(totals.items())
    if not items:
        what = f"{data.corpus} holds no text"
        raise BadInput(what, causes=totals.notes(), hint="give a file with some text in it")
    window = f"{reader.context:,} tokens are read at once, {stride:,} further each time"
    notes = (window, *totals.notes())
    if unlike:
        notes += (
            f"{unlike} of {len(items)} documents do not come back from their tokens as they were: "
            "the tokenizer does not know some characters, and bits per byte are too low",
        )
    counted = sum(each.sums["loss"][1] for each in items)
    size = sum(each.sums["bits per byte"][1] for each in items)
    found = metrics(KINDS, items, manner.seed)
    sha256 = totals.digest.hexdigest()
    return Found(items, found, sha256, int(counted), int(size), notes)


def begin(generator: Generator) -> list[int]:
    """What a text begins behind."""
    return beginning(generator.tokenizer)


@final
class _Totals:
    """Windows of all documents, read together; sums by document."""

    def __init__(self, reader: Reader, stride: int, talk: Talk) -> None:
        self._reader, self._stride, self._talk = reader, stride, talk
        self._progress = Progress(talk, "tokens")
        self._waiting: list[tuple[int, Reading]] = []
        self._nats: dict[int, float] = {}
        self._counts: dict[int, tuple[int, int]] = {}
        self._dropped: dict[str, int] = {}
        self._empty = 0
        self.digest = hashlib.sha256()

    def add(self, number: int, text: str, beginning: list[int], ids: list[int]) -> None:
        """A document as it is and as tokens."""
        raw = text.encode("utf-8", "surrogatepass")
        self.digest.update(len(raw).to_bytes(8, "little") + raw)
        if not ids:
            self._empty += 1
            return
        tokens = [*beginning, *ids]
        self._nats[number], self._counts[number] = 0.0, (len(ids), len(raw))
        context = self._reader.context
        for window in windows(len(tokens), len(beginning), context, self._stride):
            part = tokens[window.start : window.stop]
            self._waiting.append((number, Reading(part, window.first - window.start)))
            if len(self._waiting) >= _HELD * self._reader.batch:
                self.finish()

    def dropped(self, reason: str, size: int) -> None:
        """A document that could not be read."""
        self._dropped[reason] = self._dropped.get(reason, 0) + 1

    def finish(self) -> None:
        """Read what waits."""
        waiting, self._waiting = self._waiting, []
        readings = [each for _, each in waiting]
        tokens = sum(len(each.tokens) - each.first for each in readings)
        self._reader.announce(readings, f"{tokens:,} tokens", self._talk)
        found = self._reader.read(readings, self._told)
        for (number, _), each in zip(waiting, found, strict=True):
            self._nats[number] += each.nats

    def _told(self, readings: Sequence[Reading]) -> None:
        self._progress.add(sum(len(each.tokens) - each.first for each in readings))

    def items(self) -> Iterator[Item]:
        """Each document that has tokens."""
        for number, nats in self._nats.items():
            tokens, size = self._counts[number]
            by_token = (nats, float(tokens))
            yield Item(
                number=number,
                sums={"loss": by_token, "perplexity": by_token, "bits per byte": (nats, size)},
            )

    def notes(self) -> tuple[str, ...]:
        """What was left out, and why."""
        found = [f"{count} left out: {reason}" for reason, count in sorted(self._dropped.items())]
        return (*found, f"{self._empty} left out: empty") if self._empty else tuple(found)


def _numbered(
    data: Texts, limit: int | None, drop: reading.Drop
) -> Iterable[tuple[int, str]]:  # fmt: skip
    corpus = corpora.find(DataSpec(corpus=data.corpus, text_field=data.field))
    texts = (
        text
        for piece in pieces.pieces(corpus, data.field)
        for text in reading.documents(piece, data.field, drop)
    )
    return islice(enumerate(texts, 1), limit)


def _context(generator: Generator, manner: Manner) -> int:
    most = generator.model.spec.context
    if manner.context is not None and manner.context > most:
        what = f"a context of {manner.context} tokens is more than the model's {most} positions"
        raise BadInput(what, hint=f"--context {most}, or leave it out")
    return manner.context or most


def _stride(context: int, manner: Manner) -> int:
    if manner.stride is not None and manner.stride > context:
        what = f"a stride of {manner.stride} would pass over tokens: {context} are read at once"
        raise BadInput(what, hint=f"--stride {context} at most; less gives each token more context")
    return manner.stride or max(1, context // 2)
