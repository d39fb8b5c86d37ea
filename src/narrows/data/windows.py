"""Rows of tokens out of a corpus, spread evenly over it: to calibrate with, and to measure by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrows.data import corpora, pieces, reading
from narrows.data.tokenizers import Tokenizer
from narrows.spec.errors import BadInput
from narrows.spec.job import DataSpec

BYTES_MOST = 16 << 20
"""Of a corpus that are read."""
HELD_SHARE = 0.1

Rows = npt.NDArray[np.int64]


class Stretch(NamedTuple):
    """All tokens of a corpus, in its order, each document behind the token that texts begin with;
    `name` says what part of which it is.
    """

    name: str
    tokens: Rows

    def cut(self, share: float) -> tuple[Stretch, Stretch]:
        """In two, the second of them `share` of it."""
        place = round((1.0 - share) * len(self.tokens))
        percent = f"{share:.0%} of {self.name}"
        return (Stretch(f"{self.name} but for the last {share:.0%}", self.tokens[:place]),
                Stretch(f"the last {percent}", self.tokens[place:]))  # fmt: skip

    def rows(self, count: int, positions: int) -> Rows:
        """At most `count` rows [B,T] at even distances; raises BadInput where there is not one."""
        whole = len(self.tokens) // positions
        if not whole:
            what = f"{self.name} has {len(self.tokens)} tokens, and a row takes {positions}"
            raise BadInput(what, hint="give a longer text, or fewer positions: --positions N")
        rows = self.tokens[: whole * positions].reshape(whole, positions)
        return rows[np.linspace(0, whole - 1, min(count, whole)).round().astype(int)]


def stretch(corpus: str, tokenizer: Tokenizer, *, field: str = "text") -> Stretch:
    """The tokens of a corpus, or of its first BYTES_MOST; raises BadInput where it has no text."""
    found = corpora.find(DataSpec(corpus=corpus, text_field=field))
    begin, tokens, size = beginning(tokenizer), list[int](), 0
    for piece in pieces.pieces(found, field):
        for text in reading.documents(piece, field, lambda reason, dropped: None):
            if size < BYTES_MOST:
                tokens += [*begin, *tokenizer.encode(text)]
                size += len(text.encode("utf-8", "surrogatepass"))
        if size >= BYTES_MOST:
            break
    if not size:
        raise BadInput(f"{corpus} holds no text", hint="give a file with some text in it")
    return Stretch(corpus, np.array(tokens, dtype=np.int64))


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What a text begins behind: the tokenizer's own beginning, else the end of another text."""
    return list(tokenizer.begin) or [tokenizer.end_of_document]
